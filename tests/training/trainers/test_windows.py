"""`windows`: what each latent stands for after each pass, from the row to the loss."""

import json
import re
from types import SimpleNamespace

import datasets
import pytest
import torch
from conftest import CONFIGS, ROOT, make_model, question_batch, with_span
from torch.nn import functional as F

import run_ccot
from latent_cot import tasks
from latent_cot.jacobi_pccot import jacobi
from latent_cot.losses_pccot import window_targets
from latent_cot.spans_pccot import ThoughtSpan
from latent_cot.training import CoTTrainingArguments, DataArguments, ModelArguments, PCCoTArguments, PCCoTTrainer
from latent_cot.training.data.collators import PCCoTCollator
from latent_cot.training.data.rows import check_row
from latent_cot.training.data.sources import as_dataset, load_splits
from latent_cot.training.data.tokenization import tokenize
from latent_cot.training.errors import InputError

NO = -100
PLAIN = {"question": "q", "steps": ["a", "b", "c"], "answer": "c"}
ROW = PLAIN | {"windows": [["a", "x", ""], ["a", "b", "c"]]}
MAPS = "maps=6,modulus=5,values=0,windows=1,train=40,validation=4,test=4"


# --- the tasks ---


def apply(formula: str, number: int) -> int:
    return eval(formula.replace("x", "*x"), {"x": number}) % 5


def permute(word: str, items: str) -> str:
    return "".join(items[int(place) - 1] for place in word)


@pytest.mark.parametrize(
    ("task", "settings", "act", "things"),
    [
        ("affine", "values=0,modulus=5,maps=9", apply, range(5)),
        ("permutations", "length=8", permute, ["12345", "abcde"]),
    ],
)
def test_a_window_does_what_its_elements_do(task, settings, act, things):
    """One after the other, on everything; 1, 3, 7, 15 of them, and in the last pass those of the steps."""
    sizes = "train=30,validation=2,test=2"
    plain = tasks.generate(task, f"{settings},{sizes}")["train"]
    first = tasks.generate(task, f"{settings},{sizes},first=1")["train"]
    found = tasks.generate(task, f"{settings},{sizes},windows=1")["train"]
    for row, begun, short in zip(found, first, plain, strict=True):
        elements = row["question"].split()
        assert len(row["windows"]) == 4 and row["windows"][-1] == row["steps"] == [elements[0], *short["steps"]]
        for width, texts in zip((1, 3, 7, 15), row["windows"], strict=True):
            for end, text in enumerate(texts, start=1):
                for thing in things:
                    wanted = thing
                    for element in elements[max(0, end - width) : end]:
                        wanted = act(element, wanted)
                    assert act(text, thing) == wanted
        assert begun == {name: value for name, value in row.items() if name != "windows"}
        assert (short["question"], short["answer"]) == (row["question"], row["answer"])


@pytest.mark.parametrize("settings", ["windows=1", "first=1", "values=0,windows=2", "values=0,first=-1"])
def test_windows_are_of_maps_alone(settings):
    with pytest.raises(ValueError, match="affine: first and windows must be 0 or 1, and 1 only with values=0"):
        tasks.generate("affine", settings)


def test_other_numbers_are_no_settings_of_permutations():
    with pytest.raises(ValueError, match="permutations: first and windows must be 0 or 1"):
        tasks.generate("permutations", "windows=3")


# --- rows ---


@pytest.mark.parametrize("windows", [None, ROW["windows"], tuple(ROW["windows"])])
def test_a_row_may_have_windows(windows):
    assert check_row(PLAIN | {"windows": windows}) == (ROW if windows else PLAIN)


@pytest.mark.parametrize(
    ("windows", "said"),
    [
        ("text", "'windows' must be a list over passes, each with a text per step"),
        ([], "'windows' must be a list over passes, each with a text per step"),
        ([["a", "b", "c"], "abc"], "'windows' of pass 1 must be a list of texts"),
        ([["a", "b", 3]], "'windows' of pass 0 must be a list of texts"),
        ([["a", "b", None]], "'windows' of pass 0 must be a list of texts"),
        ([["a", "b", "c"], ["a", "b"]], "'windows' of pass 1 has 2 texts, and there are 3 steps"),
        ([["a", "b", "\0"]], "'windows' holds a NUL character"),
    ],
)
def test_windows_of_another_shape_are_named(windows, said):
    with pytest.raises(InputError, match=f"^{re.escape(said)}"):
        check_row(PLAIN | {"windows": windows})


def load(path, text: str, streaming: bool = False):
    path.write_text(text)
    return load_splits(DataArguments(train_file=str(path), streaming=streaming), ["train"])["train"]


@pytest.mark.parametrize("streaming", [False, True])
def test_files_with_windows(streaming, tmp_path):
    """A row without any is none of them; what is read is found again, and other windows are another entry."""
    text = f"{json.dumps(ROW)}\n{json.dumps(PLAIN)}\n"
    found = load(tmp_path / "a.jsonl", text, streaming)
    assert list(found) == [ROW, PLAIN | {"windows": None}] and "windows" in found.features
    quoted = [json.dumps(ROW[name]).replace('"', '""') for name in ("steps", "windows")]
    table = 'question,steps,answer,windows\nq,"{}",c,"{}"\n'.format(*quoted)
    assert list(load(tmp_path / "a.csv", table, streaming)) == [ROW]
    if not streaming:
        assert load(tmp_path / "a.jsonl", text)._fingerprint == found._fingerprint
        assert load(tmp_path / "a.jsonl", text.replace('"x"', '"y"'))._fingerprint != found._fingerprint


def test_a_stream_shows_its_windows_in_the_first_row(tmp_path):
    with pytest.raises(InputError, match="has 'windows' and the first has none"):
        list(load(tmp_path / "a.jsonl", f"{json.dumps(PLAIN)}\n{json.dumps(ROW)}\n", streaming=True))


def test_a_csv_field_that_is_no_json(tmp_path):
    with pytest.raises(InputError, match="line 2: 'windows' not JSON"):
        load(tmp_path / "a.csv", "question,steps,answer,windows\nq,s,1,[x\n")
    assert "windows" not in load(tmp_path / "b.csv", "question,steps,answer,windows\nq,s,1,\n").features


# --- tokens and labels ---


@pytest.mark.parametrize("keep", [False, True])
def test_windows_in_tokens(characters, keep):
    """The last step's go with the last step; a row without any stays without."""
    columns = {name: [ROW[name], (PLAIN | {"windows": None})[name]] for name in ROW}
    windows, nothing = tokenize(columns, characters, keep)["windows"]
    assert nothing is None
    texts = [[characters.decode(ids) for ids in row] for row in windows]
    assert texts == [row[: None if keep else -1] for row in ROW["windows"]]
    assert "windows" not in tokenize({name: [value] for name, value in PLAIN.items()}, characters)


FEATURES = [
    {"question": [8, 9], "steps": [[20], [21]], "answer": [30], "windows": [[[22, 23], []], [[24], [25]]]},
    {"question": [8], "steps": [[20]], "answer": [30], "windows": [[[26]]]},
    {"question": [8], "steps": [[20]], "answer": [30], "windows": None},
]
TOKENIZER = SimpleNamespace(pad_token_id=0, eos_token_id=1)


@pytest.mark.parametrize(
    ("latents", "per_step", "wanted"),
    [
        (3, 1, [[[22, NO, NO], [24, 25, NO]], [[26, NO, NO], [26, NO, NO]], [[NO] * 3] * 2]),
        (1, 1, [[[22], [24]], [[26], [26]], [[NO], [NO]]]),
        (3, 2, [[[22, 23, NO], [24, NO, 25]], [[26, NO, NO], [26, NO, NO]], [[NO] * 3] * 2]),
    ],
)
def test_window_labels(latents, per_step, wanted):
    config = CONFIGS["gpt2"](num_latent_tokens=latents, latents_per_step=per_step)
    collator = PCCoTCollator(TOKENIZER, config)
    assert collator(FEATURES)["window_labels"].tolist() == wanted
    assert "window_labels" not in collator(FEATURES[2:])
    assert "window_labels" not in collator([{name: FEATURES[0][name] for name in ("question", "steps", "answer")}])


def test_the_mixed_curriculum_is_refused():
    collator = PCCoTCollator(TOKENIZER, CONFIGS["gpt2"](), curriculum_prob=0.5)
    assert collator.length(FEATURES[2]) > 0
    with pytest.raises(InputError, match="--latent_curriculum mixed does not go with data that has 'windows'"):
        collator.length(FEATURES[0])


# --- the loss ---


def training_step(model, labels, **more):
    """A batch with windows for 6 latents, and its thought span's mask and ids."""
    ids, mask = with_span(model, *question_batch([6, 4]))
    batch = {
        "input_ids": ids, "attention_mask": mask, "labels": ids, "cot_input_ids": ids[:, :14], "cot_labels": ids[:, :14],
        "cot_attention_mask": mask[:, :14], "question_length": 6, "kd_indices": torch.tensor([15, 15]),
        "cot_kd_indices": torch.tensor([9, 11]), "thought_span": ThoughtSpan(6, 6),
    }  # fmt: skip
    return batch | labels | more


def random_labels() -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(3)
    labels = {
        "step_labels": torch.randint(7, 36, (2, 6), generator=source),
        "window_labels": torch.randint(7, 36, (2, 2, 6), generator=source),
    }
    labels["step_labels"][1, 4:] = NO
    labels["window_labels"][0, 1, 2:4] = NO
    return labels


@pytest.mark.parametrize("iterations", [0, 1, 3, 6, 8])
@pytest.mark.parametrize("steps", [True, False])
def test_the_loss_is_that_of_unpruned_passes(iterations, steps):
    """Loss and gradients, in double precision: each pass of `jacobi` computes all latents, and those labels count whose
    states `jacobi_window` has: of pass t, latents t + 1 to t + c - T + 1; the last labels hold for later passes."""
    model = make_model("gpt2", num_iterations=iterations, loss_alpha=0, loss_beta=0, loss_gamma=0, loss_delta=1.0)
    model, labels = model.double().train(), random_labels()
    labels = labels if steps else {"window_labels": labels["window_labels"]}
    batch, base = training_step(model, labels), model.base_model
    output = model(**batch)
    output.loss.backward()
    ours = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    run, passes = base.passes(batch["attention_mask"]), []

    def recorded(inputs, start):
        passes.append(run(inputs, start))
        return passes[-1]

    embeds = base.get_input_embeddings()(batch["input_ids"])
    final = jacobi(recorded, embeds, 6, 6, iterations, base.project)
    states, wanted = ([final[:, 6:12].flatten(0, 1)], [labels["step_labels"].flatten()]) if steps else ([], [])
    for t in range(min(iterations, 6)):
        after = passes[t] if t == 0 else torch.cat([passes[0][:, :7], passes[t]], dim=1)
        for latent in range(t, t + 6 - min(iterations, 6) + 1):
            states.append(after[:, 6 + latent])
            wanted.append(labels["window_labels"][:, min(t, 1), latent])
    if not states:
        assert output.step_loss is None
        return
    plain = F.cross_entropy(model.lm_head(torch.cat(states)).float(), torch.cat(wanted), ignore_index=NO)
    plain.backward()
    assert (output.step_loss - plain).abs() < 1e-6 and (output.loss - plain).abs() < 1e-6
    for mine, parameter in zip(ours, model.parameters(), strict=True):
        theirs = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(mine, theirs, atol=1e-7)


def test_windows_beside_a_decoder_that_reads_steps():
    """The step loss is the mean over the labels of both."""
    model, labels = make_model("gpt2", num_iterations=3, loss_delta=1.0), random_labels()
    window_labels = {"window_labels": labels["window_labels"]}
    given = []

    def read(states, wanted, embeddings):
        given.append((states.flatten(0, 1)[:5], wanted.flatten()[:5]))
        return given[-1]

    with torch.no_grad():
        windows = model(**training_step(model, window_labels)).step_loss
        both = model(**training_step(model, labels, read_steps=read)).step_loss
        (states, wanted), of_windows = given[0], window_targets(labels["window_labels"], 3).ne(NO).sum()
        losses = F.cross_entropy(model.lm_head(states).float(), wanted, reduction="sum")
    assert (both * (of_windows + 5) - (windows * of_windows + losses)).abs() < 1e-4


def test_without_its_weight_nothing_is_read():
    model, labels = make_model("gpt2", loss_delta=0), random_labels()
    with torch.no_grad():
        assert model(**training_step(model, labels)).step_loss is None
        assert model(**training_step(model, labels, teacher_only=True)).step_loss is None


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Of maps with windows; two rows per batch, four per optimiser step."""
    monkeypatch.chdir(ROOT)
    arguments = CoTTrainingArguments(
        str(tmp_path), use_cpu=True, do_train=True, report_to="none", per_device_train_batch_size=2,
        gradient_accumulation_steps=2, dry_run=True,
    )  # fmt: skip
    source = ModelArguments(
        config_name="configs/pccot_gpt2_tiny.json",
        tokenizer_name="words",
        config_overrides="num_latent_tokens=5,num_iterations=3,loss_delta=1",
    )
    rows = tasks.generate("affine", MAPS)["train"]
    return PCCoTTrainer(source, arguments, train_dataset=rows, method=PCCoTArguments(answer_prompt="#"))


@pytest.mark.parametrize(("drawn", "wanted"), [(None, 3 * 3), (1, 5), (5, 5), (7, 5), (0, 0)])
def test_the_mean_is_over_all_labelled_tokens_of_a_step(trainer, monkeypatch, drawn, wanted):
    """Of T x W labels of each row, for the T of the step; the parts' losses add up to that of the whole."""
    monkeypatch.setattr(type(trainer), "drawn_iterations", lambda self: drawn)
    rows = [trainer.splits["train"][row] for row in range(4)]
    rows[3]["windows"] = None
    parts = [trainer.model_inputs(trainer.data_collator(part), True) for part in (rows[:1], rows[1:])]
    sizes = [trainer.loss_sizes(part) for part in parts]
    assert [int(size[2]) for size in sizes] == [5 + wanted, 3 * 5 + 2 * wanted]
    model = trainer.unwrapped.eval()
    with torch.no_grad():
        whole = model(**trainer.model_inputs(trainer.data_collator(rows), True))
        outputs = [trainer.compute_loss(model, trainer._prepare_inputs(part), True, sum(sizes))[1] for part in parts]
    assert abs(sum(output.step_loss for output in outputs) - whole.step_loss) < 1e-5
    assert window_targets(parts[1]["window_labels"], 3).shape == (3, 3, 3)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_with_windows(streaming, tmp_path, monkeypatch):
    """From a task to a checkpoint; the windows make the step loss another one."""
    monkeypatch.chdir(ROOT)
    argv = ["--config_name", "configs/pccot_gpt2_tiny.json", "--tokenizer_name", "words", "--dataset_name", "affine"]
    argv += ["--answer_prompt", "#", "--config_overrides", "num_latent_tokens=5,num_iterations=3,loss_delta=1"]
    argv += ["--do_train", "--max_steps", "2", "--logging_steps", "1", "--use_cpu", "--save_strategy", "no"]
    losses = []
    for name, settings in (("with", MAPS), ("without", MAPS.replace("windows", "first"))):
        folder = tmp_path / name
        flags = ["--task_args", settings, "--streaming", str(streaming), "--shuffle_buffer", "0"]
        run_ccot.main([*argv, *flags, "--output_dir", str(folder)])
        state = json.loads((folder / "trainer_state.json").read_text())
        losses.append(state["log_history"][0]["step_loss"])
    assert losses[0] != losses[1]
    with pytest.raises(InputError, match="does not go with data that has 'windows'"):
        run_ccot.main(
            [*argv, "--task_args", MAPS, "--latent_curriculum", "mixed", "--output_dir", str(tmp_path / "mixed")]
        )
    assert not (tmp_path / "mixed").exists()


def test_a_data_set_of_rows_keeps_its_windows():
    rows = datasets.Dataset.from_list([ROW, PLAIN | {"windows": None}])
    found = as_dataset(rows)
    assert list(found) == [ROW, PLAIN | {"windows": None}] and as_dataset(found) is found
    assert "windows" not in as_dataset([PLAIN, PLAIN]).features
