"""Whether answers are read from thoughts: every intervention, the shipped model, and one that ignores its latents."""

import json
import random
import re

import pytest
import torch
from conftest import ROOT, SHIPPED, chain_model
from transformers import GPT2Config, GPT2LMHeadModel

import run_ccot
from latent_cot import tasks
from latent_cot.analysis.faithfulness import answers_from, answers_under, main, measure, spread, think
from latent_cot.analysis.faithfulness_report import PCCoTReport, Row, majority_row
from latent_cot.analysis.interventions import LABELS, change_thoughts, partners
from latent_cot.tasks.chain import OPERATORS
from latent_cot.training import CoTTrainingArguments, ModelArguments, PCCoTTrainer
from latent_cot.training.checkpoints.model_card import replace_section
from latent_cot.training.errors import InputError

QUESTIONS = ["7+3*4-2+9=", "1+1=", "9*9-8=", "2=", "3+4-5="]


@pytest.fixture(scope="module")
def chains() -> list[dict]:
    return tasks.generate("chain", "train=1,validation=1,test=300,seed=5")["test"]


@pytest.fixture(scope="module")
def shipped_report(shipped, chains) -> PCCoTReport:
    return measure(*shipped, chains, data="chains", batch_size=300, max_new_tokens=4)


# --- the changes ---


def test_partners():
    """A derangement, the same for the same seed, whose answers differ where no answer is that of more than half."""
    golds = ["0"] * 5 + ["1"] * 3 + ["2"] * 2
    questions = [f"q{row}" for row in range(10)]
    for seed in range(20):
        found = partners(questions, golds, seed)
        assert sorted(found) == list(range(10)) and found == partners(questions, golds, seed)
        assert all(golds[row] != golds[partner] for row, partner in enumerate(found))
    assert partners(questions, golds, 0) != partners(questions, golds, 1)
    for answers in (None, ["0"] * 10, ["0"] * 9 + ["1"]):
        assert all(row != partner for row, partner in enumerate(partners(questions, answers)))
    with pytest.raises(InputError, match="at least two questions"):
        partners(["q"])


@pytest.mark.parametrize("counts", [(2, 2, 2), (5, 3, 2), (4, 1, 1, 1, 1), (1, 1)])
def test_partners_of_repeated_questions(counts):
    """A question asked several times has one thought, so a partner is one of another text, with golds and without."""
    questions = [f"q{number}" for number, count in enumerate(counts) for _ in range(count)]
    for seed in range(20):
        for golds in (None, questions, ["0"] * len(questions), ["0"] * (len(questions) - 1) + ["1"]):
            found = partners(questions, golds, seed)
            assert sorted(found) == list(range(len(questions)))
            assert all(questions[row] != questions[partner] for row, partner in enumerate(found))


def test_partners_where_one_question_is_most_of_them():
    questions = ["a"] * 5 + ["b", "c"]
    for seed in range(20):
        found = partners(questions, ["0"] * 7, seed)
        assert all(questions[row] != questions[partner] for row, partner in enumerate(found))
    with pytest.raises(InputError, match="at least two questions"):
        partners(["a", "a"])


def test_each_change():
    thoughts = torch.randn(len(QUESTIONS), 4, 8)
    before = thoughts.clone()
    changed = {name: change_thoughts(thoughts, QUESTIONS, name) for name in LABELS if name != "removed"}
    assert torch.equal(thoughts, before) and torch.equal(changed["as_they_are"], before)
    assert not changed["zeroed"].any()
    assert torch.equal(changed["swapped"], thoughts[partners(QUESTIONS)])
    for row in range(len(QUESTIONS)):
        orders = [
            tuple(before[row].eq(latent).all(dim=1).nonzero().flatten().tolist()) for latent in changed["shuffled"][row]
        ]
        assert sorted(orders) == [(0,), (1,), (2,), (3,)] != orders
    assert (changed["noise"].norm(dim=-1) - before.norm(dim=-1)).abs().max() < 1e-5
    assert torch.nn.functional.cosine_similarity(changed["noise"], before, dim=-1).abs().mean() < 0.7
    removed = change_thoughts(thoughts, QUESTIONS, "removed", latent=2)
    assert torch.allclose(removed[:, 1], before[:, 1].mean(dim=0).expand(5, -1))
    assert torch.equal(removed[:, [0, 2, 3]], before[:, [0, 2, 3]])


@pytest.mark.parametrize("name", ["shuffled", "noise"])
def test_what_is_drawn_goes_by_the_question(name):
    """Not by its place: alone, a question has the same change."""
    thoughts = torch.randn(len(QUESTIONS), 4, 8)
    together = change_thoughts(thoughts, QUESTIONS, name, seed=3)
    for row, question in enumerate(QUESTIONS):
        alone = change_thoughts(thoughts[row : row + 1], [question], name, seed=3)
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(together, change_thoughts(thoughts, QUESTIONS, name, seed=4))
    twins = change_thoughts(thoughts[:1].expand(5, -1, -1), QUESTIONS, name, seed=3)  # one thought, five questions
    assert len(twins.unique(dim=0)) > 1


@pytest.mark.parametrize("name", LABELS)
def test_rows_are_independent_under_every_intervention(name, characters):
    """Alone and in a batch, the same answers after a change; the model is random, so answers differ from row to row."""
    model = chain_model(characters)
    options = {"latent": 2 if name == "removed" else None, "max_new_tokens": 6}
    one = answers_under(model, characters, QUESTIONS, name, batch_size=1, **options)
    all_of_them = answers_under(model, characters, QUESTIONS, name, batch_size=5, **options)
    assert one.texts == all_of_them.texts and len(set(one.texts)) > 1


def test_answers_under_is_what_its_parts_are(shipped, chains):
    model, tokenizer = shipped
    questions, golds = [row["question"] for row in chains[:20]], [row["answer"] for row in chains[:20]]
    got = answers_under(model, tokenizer, questions, "swapped", golds=golds, max_new_tokens=4)
    thoughts, _ = think(model, tokenizer, questions, batch_size=7)
    wanted = answers_from(
        model, tokenizer, questions, thoughts[partners(questions, golds)], batch_size=20, max_new_tokens=4
    )
    assert got.answers == wanted.answers
    plain = answers_under(model, tokenizer, questions, max_new_tokens=4)
    assert plain.answers == golds
    assert answers_under(model, tokenizer, questions, num_iterations=0, max_new_tokens=4).answers != golds
    assert answers_under(model, tokenizer, questions, num_latent_tokens=1, max_new_tokens=4).answers != golds


# --- the models ---


def test_the_shipped_model_reads_its_thoughts(shipped_report):
    rows = {row.label: row for row in shipped_report.interventions}
    assert rows["thoughts as they are"].rate >= 0.99
    for label in ("thoughts zeroed", "thoughts of another question", "noise of the same norm", "latent 3 removed"):
        assert rows[label].low <= shipped_report.chance.high, label
    assert [row.rate >= 0.99 for row in shipped_report.iterations] == [False, False, False, True]
    assert [row.rate >= 0.99 for row in shipped_report.latents] == [False, False, True]
    assert all(row.rate >= 0.99 and row.count == 300 for row in shipped_report.reading)
    assert re.fullmatch(
        r"swapping the thoughts drops exact match from 1.00 to 0.[12]\d: the answer is read from them",
        shipped_report.verdict(),
    )


def test_the_shipped_model_goes_on_from_the_other_thought(shipped, chains):
    """With another question's thought, it answers its own last operation on the other's third result."""
    questions, golds = [row["question"] for row in chains], [row["answer"] for row in chains]
    answers = answers_under(*shipped, questions, "swapped", golds=golds, batch_size=300, max_new_tokens=4).answers
    wanted = []
    for row, partner in zip(chains, partners(questions, golds), strict=True):
        value, (operator, number) = int(chains[partner]["steps"][2]), row["question"][-3:-1]
        assert operator in OPERATORS
        results = {"+": value + int(number), "-": value - int(number), "*": value * int(number)}
        wanted.append(str(results[operator] % 10))
    assert sum(map(str.__eq__, answers, wanted)) / len(wanted) >= 0.97
    assert sum(map(str.__eq__, golds, wanted)) / len(wanted) < 0.3


@pytest.fixture(scope="module")
def ignoring(tmp_path_factory):
    """A model trained on questions that hold their answer, their first digit: it needs no thought, and learns none."""
    source, rows = random.Random(0), []
    while len(rows) < 4000:
        digits = [str(source.randrange(10)) for _ in range(4)]
        rows.append(
            {"question": "".join(digits) + "=", "steps": [digits[1], digits[2], digits[0]], "answer": digits[0]}
        )
    trainer = PCCoTTrainer(
        ModelArguments(
            config_name=str(ROOT / "configs" / "pccot_gpt2_tiny.json"),
            config_overrides="num_latent_tokens=2,num_iterations=2",
            tokenizer_name="characters",
        ),
        CoTTrainingArguments(
            str(tmp_path_factory.mktemp("ignoring")), use_cpu=True, report_to="none", max_steps=100, learning_rate=1e-2,
            per_device_train_batch_size=32, save_strategy="no", disable_tqdm=True,
        ),
        train_dataset=rows[200:],
    )  # fmt: skip
    trainer.train()
    return trainer.model.eval(), trainer.processing_class, rows[:200]


@pytest.mark.slow
def test_a_model_that_ignores_its_latents_is_caught(ignoring):
    model, tokenizer, rows = ignoring
    report = measure(model, tokenizer, rows, data="copies", batch_size=200, max_new_tokens=4)
    plain, swapped = report.row("as_they_are"), report.row("swapped")
    assert plain.rate > 0.9 and swapped.rate > 0.9 and swapped.same > 0.95
    assert report.verdict().endswith("the answer does not depend on them")


# --- the report ---


def made_report(plain: int, swapped: int, same: float, chance: int = 18, count: int = 100) -> PCCoTReport:
    rows = [Row.counted("as_they_are", "thoughts as they are", plain, count)]
    rows.append(Row.counted("swapped", "thoughts of another question", swapped, count, same=same))
    parts = {"chance": Row.counted("chance", "always 0", chance, count), "interventions": rows}
    parts |= {"iterations": [], "latents": [], "reading": []}
    return PCCoTReport(model_type="pccot-gpt2", data="d", num_latent_tokens=3, num_iterations=3, seed=0, **parts)


@pytest.mark.parametrize(
    ("plain", "swapped", "same", "ending"),
    [
        (100, 12, 0.1, "drops exact match from 1.00 to 0.12: the answer is read from them"),
        (100, 60, 0.6, "drops exact match from 1.00 to 0.60: the answer is partly (chance is 0.18) read from them"),
        (28, 28, 1.0, "changes exact match from 0.28 to 0.28: the answer does not depend on them"),
        (28, 24, 0.3, "though 70% of the answers change: that answers are right does not measurably depend on them"),
        (28, 80, 0.3, "the model answers better from other questions' thoughts"),
        (100, 97, 0.97, "changes exact match from 1.00 to 0.97: the answer does not depend on them"),
    ],
)
def test_the_verdict_goes_by_intervals(plain, swapped, same, ending):
    assert made_report(plain, swapped, same).verdict().endswith(ending)


def test_chance_is_the_most_frequent_answer():
    row = majority_row(["1", "0", "1", "2"])
    assert (row.rate, row.count) == (0.5, 4) and "'1'" in row.label


def test_spread():
    assert spread(0, 3) == [0, 1, 2, 3] and spread(1, 1) == [1]
    assert spread(1, 24)[0] == 1 and spread(1, 24)[-1] == 24 and len(spread(1, 24)) == 9


def test_a_section_of_a_card_is_written_once(tmp_path, shipped_report):
    card = tmp_path / "README.md"
    card.write_text("# A\n\ntext\n\n## Licence\n\nfree\n")
    replace_section(card, made_report(28, 28, 1.0).section())
    replace_section(card, shipped_report.section())
    text = card.read_text()
    assert text.startswith("# A\n\ntext\n\n## Licence\n\nfree\n\n## Is the answer read from the thought?\n\nSwapping")
    assert text.count("## Is the answer") == 1 and "0.28" not in text.partition("(chains")[0]
    card.write_text(text + "\n## Last\n\nword\n")
    replace_section(card, shipped_report.section())
    assert card.read_text() == text + "\n## Last\n\nword\n"


def test_the_command(tmp_path, capsys):
    report = main([
        "--model", str(SHIPPED), "--dataset_name", "chain", "--task_args", "train=1,validation=1,test=60,seed=5", "--use_cpu",
        "--max_new_tokens", "4", "--max_predict_samples", "40", "--output_dir", str(tmp_path / "out"),
    ])  # fmt: skip
    printed = capsys.readouterr().out
    assert printed.startswith("swapping the thoughts drops exact match from 1.00 to 0.") and "40 questions" in printed
    values = json.loads((tmp_path / "out" / "faithfulness.json").read_text())
    assert values["verdict"] == report.verdict() and values["interventions"][0]["rate"] == 1.0
    assert (tmp_path / "out" / "faithfulness.txt").read_text() == printed
    assert (tmp_path / "out" / "faithfulness.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("lora", [[], ["--use_peft", "--lora_r", "2"]], ids=["all weights", "LoRA"])
def test_a_run_measures_it_for_its_card(lora, tmp_path):
    """`--faithfulness`: beside the results, and in the card; without training beside the predictions alone."""
    rows = tasks.generate("chain", "train=32,validation=1,test=6")
    rows["test"][2] |= {"question": "1+" * 20}  # more than there are positions for
    files = []
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        files += [f"--{name}_file", str(tmp_path / f"{name}.jsonl")]
    asked = [*files, "--drop_long", "--no_explicit_cot", "--use_cpu", "--report_to", "none"]
    asked += ["--do_predict", "--faithfulness"]
    tiny = ["--config_name", "configs/pccot_gpt2_tiny.json", "--tokenizer_name", "characters", "--answer_prompt", "#"]
    tiny += ["--config_overrides", "n_positions=24"]
    train = ["--do_train", "--max_steps", "1", "--save_strategy", "no", "--output_dir", str(tmp_path / "one")]
    run_ccot.main([*tiny, *asked, *train, *lora])
    assert json.loads((tmp_path / "one" / "faithfulness.json").read_text())["chance"]["count"] == 5
    assert "## Is the answer read from the thought?" in (tmp_path / "one" / "README.md").read_text()
    run_ccot.main(["--model_name_or_path", str(tmp_path / "one"), *asked, "--output_dir", str(tmp_path / "two")])
    one, two = (json.loads((tmp_path / name / "faithfulness.json").read_text()) for name in ("one", "two"))
    assert one["interventions"] == two["interventions"]


def test_the_document_shows_what_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "faithfulness.md").read_text(), re.DOTALL | re.MULTILINE
    )
    exec(block, {})
    answers = eval(capsys.readouterr().out)
    assert len(answers) == 2 and answers != ["7", "1"]


# --- what is refused ---


def test_models_without_latent_thoughts_are_refused(characters, shipped):
    stock = GPT2LMHeadModel(GPT2Config(vocab_size=len(characters), n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(InputError, match="a gpt2 model has no thoughts that could be changed"):
        answers_under(stock, characters, QUESTIONS, "zeroed")
    with pytest.raises(InputError, match="num_fillers= is not for pccot-gpt2 models"):
        answers_under(*shipped, QUESTIONS, num_fillers=2)
    with pytest.raises(InputError, match="at T = 0 the latents are filler tokens"):
        answers_under(*shipped, QUESTIONS, "zeroed", num_iterations=0)
    with pytest.raises(InputError, match="at T = 0"):
        measure(chain_model(characters, num_iterations=0), characters, [], data="")


@pytest.mark.parametrize(
    ("intervention", "latent", "message"),
    [
        ("melted", None, "no intervention 'melted'; there are: as_they_are, zeroed"),
        ("removed", None, "latent= says which"),
        ("zeroed", 1, "latent= says which"),
        ("removed", 4, "latent must be from 1 to 3, got 4"),
    ],
)
def test_interventions_that_there_are_not(intervention, latent, message):
    with pytest.raises(InputError, match=message):
        change_thoughts(torch.zeros(2, 3, 4), ["a", "b"], intervention, latent=latent)


def test_one_latent_has_no_other_order():
    with pytest.raises(InputError, match="no other order"):
        change_thoughts(torch.zeros(2, 1, 4), ["a", "b"], "shuffled")


def test_questions_that_it_cannot_read_are_counted(caplog):
    main(["--model", str(SHIPPED), "--dataset_name", "affine", "--task_args", "test=6", "--use_cpu"])
    assert "questions hold text that the tokenizer does not know" in caplog.text


def test_commands_that_cannot_end_well(tmp_path):
    chain = ["--dataset_name", "chain", "--task_args", "train=32,validation=4,test=6", "--use_cpu"]
    tiny = ["--config_name", "configs/pccot_gpt2_tiny.json", "--tokenizer_name", "characters"]
    train = [*tiny, *chain, "--do_train", "--do_predict", "--faithfulness", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(InputError, match="at T = 0"):
        run_ccot.main([*train, "--config_overrides", "num_iterations=0"])
    with pytest.raises(InputError, match="no model"):
        main(chain)
    with pytest.raises(InputError, match="unknown arguments: --streaming"):
        main(["--model", str(SHIPPED), *chain, "--streaming"])
    with pytest.raises(InputError, match="unknown arguments: --block_size"):
        main(["--model", str(SHIPPED), *chain, "--block_size", "3"])
    with pytest.raises(InputError, match="there is no"):
        main(["--model", str(tmp_path), *chain, "--update_card"])
