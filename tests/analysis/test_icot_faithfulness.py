"""Whether iCoT models depend on their fillers, or on the steps that they still write."""

import json

import pytest
import torch
from conftest import ROOT, make_any

import run_icot
from latent_cot import tasks
from latent_cot.analysis.faithfulness import answers_under, main, measure
from latent_cot.analysis.faithfulness_report import ICoTReport, Row
from latent_cot.analysis.icot_faithfulness import (
    LABELS,
    answers_to_steps,
    other_token,
    what_stands_between,
    written_steps,
)
from latent_cot.training.arguments import CoTTrainingArguments, DataArguments, EvaluationArguments, ModelArguments
from latent_cot.training.data.tokenization import tokenize_answer_prompt
from latent_cot.training.errors import InputError
from latent_cot.training.method_arguments import ICoTArguments
from latent_cot.training.trainers.icot import ICoTTrainer

QUESTIONS = ["7+3*4-2+9=", "1+1=", "9*9-8=", "2=", "3+4-5="]
LIMITS = {"max_new_tokens": 5, "max_cot_tokens": 9}


def made(characters, between: str, **changes):
    """A small random model with fillers, with steps that it writes, or with nothing between question and answer."""
    fields = {
        "fillers": {},
        "steps": {"filler_mode": "none", "num_fillers": 0, "num_internalized_tokens": 1},
        "nothing": {"filler_mode": "none", "num_fillers": 0},
    }[between]
    names = ("<pcot.bot>", "<pcot.latent>", "<pcot.eot>")
    start, pause, ready = characters.convert_tokens_to_ids(list(names))
    fields |= {"start_token_id": start, "pause_token_id": pause, "ready_token_id": ready, "vocab_size": len(characters)}
    fields |= {"eos_token_id": characters.eos_token_id, "pad_token_id": characters.pad_token_id, "bos_token_id": None}
    fields |= {"answer_prompt_ids": tokenize_answer_prompt("#", characters)}
    return make_any("icot-gpt2", **(fields | changes))


CASES = [(between, name) for between, labels in LABELS.items() for name in labels]


@pytest.mark.parametrize(("between", "name"), CASES)
def test_rows_are_independent_under_every_intervention(between, name, characters):
    """Alone and in a batch, the same answers after a change; the partners are those of the whole list, so they stay."""
    model = made(characters, between)
    assert what_stands_between(model) == between
    together = answers_under(model, characters, QUESTIONS, name, batch_size=5, **LIMITS)
    assert answers_under(model, characters, QUESTIONS, name, batch_size=1, **LIMITS).texts == together.texts
    assert len(set(together.texts)) > 1


def test_what_an_intervention_puts_in_the_place_of_fillers(characters):
    model, seen = made(characters, "fillers"), []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    asked = characters(QUESTIONS[1], return_tensors="pt")["input_ids"]
    embedding, length = model.get_input_embeddings().weight.detach(), asked.shape[1]

    def fillers(name: str, **more) -> tuple[torch.Tensor, torch.Tensor | None]:
        seen.clear()
        answers_under(model, characters, QUESTIONS[1:2], name, max_new_tokens=1, **more)
        (first, *_) = seen
        embeds = first["inputs_embeds"] if first.get("input_ids") is None else embedding[first["input_ids"]]
        return embeds[0, length + 1 : -2], first.get("position_ids")

    own = embedding[model.config.pause_token_id]
    assert torch.equal(fillers("as_they_are")[0], own.expand(3, -1))
    assert not fillers("zeroed")[0].any()
    noise, _ = fillers("noise")
    assert torch.allclose(noise.norm(dim=-1), own.norm().expand(3)) and not torch.equal(noise[0], noise[1])
    other = other_token(model, characters, 0)
    assert other not in characters.all_special_ids
    assert torch.equal(fillers("other_token")[0], embedding[other].expand(3, -1))
    nothing, positions = fillers("left_out")
    assert len(nothing) == 0
    assert positions[0, length:].tolist() == [length, length + 4, length + 5]  # <start>, then <ready> where it was
    assert len(fillers("as_they_are", num_fillers=6)[0]) == 6


def test_a_model_that_is_given_its_own_steps_answers_as_it_does(characters):
    """So what swapped steps change is what they say. The random model is made to end its steps where it wrote `token`."""
    model, limits = made(characters, "steps"), {"max_new_tokens": 4, "max_cot_tokens": 9}
    token, ready = written_steps(model, characters, QUESTIONS, 5, **limits)[0][3], model.config.ready_token_id
    head = model.lm_head.weight.detach().clone()
    head[ready] = 1.05 * head[token]
    model.lm_head.weight = torch.nn.Parameter(head)
    steps = written_steps(model, characters, QUESTIONS, 5, **limits)
    assert 0 < len(steps[0]) <= 3 and all(ready not in own for own in steps) and any(own != steps[0] for own in steps)
    answers = answers_to_steps(model, characters, QUESTIONS, steps, 5, **limits).texts
    for question, own, answer in zip(QUESTIONS, steps, answers, strict=True):
        ids = [*characters(question)["input_ids"], model.config.start_token_id, *own, ready]
        ids += model.config.answer_prompt_ids
        length = len(ids)
        with torch.no_grad():
            while len(ids) < length + 4:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert characters.decode(ids[length:], skip_special_tokens=True).strip() == answer


def test_a_report_of_each_kind(characters, tmp_path):
    rows = [{"question": question, "steps": [], "answer": str(place)} for place, question in enumerate(QUESTIONS)]
    reports = {between: measure(made(characters, between), characters, rows, data="d", **LIMITS) for between in LABELS}
    assert [row.label for row in reports["fillers"].fillers] == [f"fillers = {count}" for count in (0, 1, 3, 6)]
    for between, report in reports.items():
        assert [row.name for row in report.interventions] == [*LABELS[between]]
        assert report.left_out in report.text() and report.left_out in report.section()
        assert json.loads(json.dumps(report.values()))["between"] == between
    assert reports["nothing"].verdict().startswith("nothing stands between question and answer")
    free = made(characters, "steps", keep_position=True, position_gap=2)
    report = measure(free, characters, rows, data="d", **LIMITS)
    assert "swapped" not in [row.name for row in report.interventions] and "keep_position" in report.left_out
    narrow = measure(made(characters, "fillers", n_positions=20), characters, rows, data="d", **LIMITS)
    assert [row.label for row in narrow.fillers] == [f"fillers = {count}" for count in (0, 1, 3)]
    assert "Twice as many do not fit" in narrow.left_out


@pytest.mark.parametrize(
    ("left_out", "none", "same", "ending"),
    [
        (45, 10, 0.3, "drops exact match from 0.95 to 0.45: the answer partly (chance is 0.18) depends on them"),
        (10, 17, 0.1, "drops exact match from 0.95 to 0.17: the answer depends on them"),
        (10, 95, 1.0, "changes exact match from 0.95 to 0.95: the answer does not depend on them"),
    ],
)
def test_the_verdict_about_fillers(left_out, none, same, ending):
    """It goes by what harms less: positions that stay free, or that move up."""
    rows = [Row.counted("as_they_are", "as they are", 95, 100), Row.counted("left_out", "", left_out, 100, same=same)]
    rows.append(Row.counted("other_token", "", 50, 100, same=0.5))
    fillers = [Row.counted("fillers0", "fillers = 0", none, 100, same=same)]
    shown = {"model_type": "icot-gpt2", "data": "d", "seed": 0, "between": "fillers", "num_fillers": 3, "left_out": ""}
    report = ICoTReport(chance=Row.counted("chance", "", 18, 100), interventions=rows, fillers=fillers, **shown)
    assert report.verdict() == f"leaving out the fillers {ending}; with another token in their place it is 0.50"


@pytest.mark.slow
def test_a_model_that_writes_its_steps_reads_them(tmp_path):
    """Three operations, the results of two are written: those of another question give another answer."""
    rows = tasks.generate("chain", "operations=3,train=20000,validation=1,test=200")
    trainer = ICoTTrainer(
        ModelArguments(
            config_name=str(ROOT / "configs" / "icot_gpt2_chain.json"),
            config_overrides="n_layer=2,n_embd=64,initializer_range=0.1",
            tokenizer_name="characters",
        ),
        CoTTrainingArguments(
            str(tmp_path), use_cpu=True, report_to="none", max_steps=500, learning_rate=2e-3, disable_tqdm=True,
            per_device_train_batch_size=64, save_strategy="no", adam_beta2=0.98, weight_decay=0.01, warmup_steps=50,
        ),
        method=ICoTArguments(answer_prompt="#", partial_removal=True, remove_per_epoch=0),
        data=DataArguments(keep_last_step=False),
        evaluation=EvaluationArguments(),
        train_dataset=rows["train"],
    )  # fmt: skip
    trainer.train()
    trainer.record_progress()
    report = measure(trainer.model.eval(), trainer.processing_class, rows["test"], data="chains", **LIMITS)
    assert report.row("as_they_are").rate > 0.6
    assert report.verdict().startswith("swapping the steps drops exact match from")
    assert report.verdict().endswith("read from them") and report.row("swapped").rate < 0.4


def test_a_run_and_the_command(tmp_path, capsys):
    """`--faithfulness` in run_icot.py; and the checkpoint asked again gives the same."""
    files = []
    for name, lines in tasks.generate("chain", "train=32,validation=1,test=6").items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
        files += [f"--{name}_file", str(tmp_path / f"{name}.jsonl")]
    flags = ["--config_name", "configs/icot_gpt2_chain.json", "--tokenizer_name", "characters", "--answer_prompt", "#"]
    flags += ["--switch_tokens", "--switch_from_n_steps", "0", "--switch_from_n_rate", "100", "--no_write_fillers"]
    flags += ["--partial_removal", "--remove_per_epoch", "0", "--no_explicit_cot", "--max_new_tokens", "3", "--use_cpu"]
    flags += ["--do_train", "--max_steps", "1", "--save_strategy", "no", "--report_to", "none"]
    run_icot.main([*files, *flags, "--do_predict", "--faithfulness", "--output_dir", str(tmp_path / "out")])
    values = json.loads((tmp_path / "out" / "faithfulness.json").read_text())
    assert values["between"] == "fillers" and values["num_fillers"] > 0 and values["chance"]["count"] == 6
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Is the answer read from the thought?\n\nLeaving out the fillers" in card
    assert (tmp_path / "out" / "faithfulness.png").stat().st_size > 10_000
    capsys.readouterr()
    report = main(["--model", str(tmp_path / "out"), *files, "--max_new_tokens", "3", "--use_cpu", "--seed", "42"])
    assert report.values()["interventions"] == values["interventions"]
    assert capsys.readouterr().out.startswith("leaving out the fillers")


@pytest.mark.parametrize(
    ("between", "name", "more", "message"),
    [
        ("fillers", "swapped", {}, "no intervention 'swapped' where fillers stand between question and answer"),
        ("nothing", "noise", {}, "no intervention 'noise' where nothing stands between question and answer"),
        ("steps", "as_they_are", {"num_fillers": 2}, "num_fillers= is for models with fillers"),
        ("fillers", "noise", {"num_iterations": 2}, "num_iterations= is not for icot-gpt2 models"),
        ("fillers", "noise", {"latent": 1}, "latent= is not for icot-gpt2 models"),
    ],
)
def test_what_is_refused(between, name, more, message, characters):
    with pytest.raises(InputError, match=message):
        answers_under(made(characters, between), characters, QUESTIONS, name, **more)
