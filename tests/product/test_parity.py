"""Losses, logits, gradients and answers of the original PCCoT implementation, on tiny random models.

    pytest tests/product/test_parity.py --parity-dir DIR

checks any folder of cases: every subfolder with `inputs.safetensors` is a model, every one with `process.safetensors`
a tokenizer's data, every one with `expected_logits.safetensors` a checkpoint as the original publishes them. Where the original is known to be wrong (answers in left-padded batches, an end of sequence as
first token), the test asks for what is right instead: each question alone, and a stop.

Tolerance: 10 times the rounding noise that the case itself records (float32 against float64), plus 1e-5 relative.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from latent_cot import PCCoTConfigMixin
from latent_cot.converters.export import export
from latent_cot.spans_pccot import ThoughtSpan
from latent_cot.training.checkpoints import read as checkpoint
from latent_cot.training.data.collators import PCCoTCollator
from latent_cot.training.data.tokenization import prepare_tokenizer, tokenize, tokenize_answer_prompt

LOSSES = ("loss", "cot_loss", "ccot_loss", "kd_loss", "teacher_std")


def pytest_generate_tests(metafunc):
    folder = Path(metafunc.config.getoption("--parity-dir"))
    kinds = {"case": "inputs.safetensors", "tokenizer_case": "process.safetensors"}
    kinds["published_case"] = "expected_logits.safetensors"
    for name, marker in kinds.items():
        if name in metafunc.fixturenames:
            cases = sorted(path.parent for path in folder.glob(f"*/{marker}"))
            metafunc.parametrize(name, cases, ids=lambda path: path.name)


def noise_of(case: Path) -> dict[str, float]:
    """The case's own rounding noise; where it records none, what is usual for these models."""
    usual = {name: 1e-6 for name in (*LOSSES, "answer_logits", "cot_logits", "grad_norm_rel_max")}
    return usual | expected_of(case)["float32_vs_float64_abs"]


def read(case: Path, name: str) -> dict:
    return load_file(case / f"{name}.safetensors")


@cache
def expected_of(case: Path) -> dict:
    return json.loads((case / "expected.json").read_text())


def load(case: Path, dtype=torch.float32):
    """The case's model; settings that the original kept outside the configuration are passed in."""
    original = expected_of(case)["pccot_args"]
    prompt = read(case, "gen_inputs")["labels"][0, 1:]
    names = ("bot_token_id", "eot_token_id", "latent_token_id", "num_latent_tokens")
    settings = {name: original[name] for name in names}
    model = AutoModelForCausalLM.from_pretrained(
        case, dtype=dtype, attn_implementation="eager", answer_prompt_ids=prompt.tolist(), **settings
    )
    return model.eval()


def training_batch(case: Path, inputs: dict, model, rows=slice(None)) -> dict:
    """The original's batch in our layout: the teacher's questions stand in the student's columns."""
    boundary, _, prompt_end = inputs["key_indices"].tolist()
    shared, latents = boundary - 1, model.config.num_latent_tokens
    ids, mask = inputs["input_ids"][rows], inputs["attention_mask"][rows]
    shift = shared - mask[:, :shared].sum(dim=1)  # left padding of each question
    width = inputs["cot_input_ids"].shape[1] + int(shift.max())
    teacher = {"cot_input_ids": 0, "cot_attention_mask": 0, "cot_labels": -100}
    for name, fill in teacher.items():
        moved = torch.full((len(ids), width), fill)
        for row, (values, by) in enumerate(zip(inputs[name][rows], shift.tolist(), strict=True)):
            moved[row, by : by + len(values)] = values
        teacher[name] = moved
    labels = torch.full_like(ids, -100)
    labels[:, -inputs["labels"].shape[1] :] = inputs["labels"][rows]
    return teacher | {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "cot_kd_indices": inputs["cot_kd_indices"][rows] + shift,
        "kd_indices": torch.full((len(ids),), shared + latents + 1 + prompt_end),
        "question_length": shared,
        "thought_span": ThoughtSpan(shared, latents),
    }


def close(got: float | torch.Tensor, wanted: float | torch.Tensor, noise: float, what: str):
    got, wanted = torch.as_tensor(got).detach(), torch.as_tensor(wanted)
    excess = ((got - wanted).abs() - (10 * noise + 1e-5 * wanted.abs())).max()
    assert excess <= 0, f"{what}: off by {(got - wanted).abs().max():.2e}, noise {noise:.1e}"


def compare_logits(case, inputs, batch, output, wanted, noise, rows=slice(None)):
    """Student's and teacher's logits where a token is to be predicted from, or padding ends."""
    shared = batch["question_length"]
    start = shared + batch["thought_span"].num_latents + 1
    for row in range(len(batch["input_ids"])):
        answer = int(batch["attention_mask"][row, start:].sum())
        close(output.logits[row][:answer], wanted["answer_logits"][row][:answer], noise["answer_logits"], "student")
        length = int(inputs["cot_attention_mask"][rows][row].sum())
        question = int(batch["attention_mask"][row, :shared].sum())
        teacher = output.cot_logits[row, : length - question + 1]
        close(teacher, wanted["cot_logits"][row, question - 1 : length], noise["cot_logits"], "teacher")


def test_training_step(case):
    """Losses, logits and every parameter's gradient."""
    expected = expected_of(case)
    if expected["left_padded"]:
        pytest.skip("the original's batch is wrong here: see test_rows_of_a_padded_batch")
    model, inputs, noise = load(case), read(case, "inputs"), noise_of(case)
    batch = training_batch(case, inputs, model)
    output = model(**batch)
    for name in LOSSES:
        close(getattr(output, name), expected[name], noise[name], name)
    compare_logits(case, inputs, batch, output, read(case, "outputs"), noise)

    output.loss.backward()
    whole = read(case, "grads") if (case / "grads.safetensors").exists() else {}
    checked = 0
    for name, parameter in model.named_parameters():
        name = name.replace(f"{model.base_model_prefix}.prj.", "prj.")
        if name not in expected["grad_norms"]:
            continue
        checked += 1
        norm, grad_noise = expected["grad_norms"][name], noise["grad_norm_rel_max"]
        close(parameter.grad.norm(), norm, grad_noise * max(1, norm), name)
        if name in whole:
            close(parameter.grad, whole[name], grad_noise * max(1, float(whole[name].abs().max())), name)
    assert checked == len(expected["grad_norms"])


def test_losses_in_double_precision(case):
    """In float64 the losses agree to the last digits that the case records."""
    expected = expected_of(case)
    if expected["left_padded"] or "float64" not in expected:
        pytest.skip("no float64 values that are right")
    model = load(case, torch.float64)
    output = model(**training_batch(case, read(case, "inputs"), model))
    for name in LOSSES:
        # distillation is computed in float32, as it is under bf16
        close(getattr(output, name).double(), expected["float64"][name], noise_of(case)[name], name)


def test_rows_of_a_padded_batch(case):
    """In a left-padded batch every row has the logits that its question has alone."""
    expected = expected_of(case)
    if not expected["left_padded"]:
        pytest.skip("no left padding")
    model, inputs, noise = load(case), read(case, "inputs"), noise_of(case)
    batch = training_batch(case, inputs, model)
    output = model(**batch)
    for row, alone in enumerate(expected["alone"]):
        wanted = read(case, f"outputs_alone_{row}")
        one = {name: value[row : row + 1] if torch.is_tensor(value) else value for name, value in batch.items()}
        picked = type(output)(logits=output.logits[row : row + 1], cot_logits=output.cot_logits[row : row + 1])
        compare_logits(case, inputs, one, picked, wanted, noise, slice(row, row + 1))
        # ... and alone it has the losses of one
        single = model(**one)
        for name in LOSSES:
            close(getattr(single, name), alone["scalars"][name], noise[name], f"row {row} {name}")


@pytest.mark.parametrize("prompt", ["with the span", "question only"])
def test_answers(case, prompt):
    """Greedy tokens, up to and including the end of sequence."""
    expected, inputs = expected_of(case), read(case, "gen_inputs")
    model, settings = load(case), expected["generate"]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if prompt == "question only":
        shared = int(inputs["key_indices"][0]) - 1
        ids, mask = ids[:, :shared], mask[:, :shared]
    unused = min(set(range(model.config.vocab_size)) - set(ids.flatten().tolist()))
    pad = unused if settings["pad_token_id"] is None else settings["pad_token_id"]
    output = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=settings["max_new_tokens"],
        do_sample=False,
        eos_token_id=settings["eos_token_id"],
        pad_token_id=pad,
    )[:, ids.shape[1] :].tolist()
    wanted = settings["new_tokens"]
    if expected["left_padded"]:
        wanted = [alone["generate_new_tokens"] for alone in expected["alone"]]
    for row, (ours, theirs) in enumerate(zip(output, wanted, strict=True)):
        assert until_eos(ours, settings["eos_token_id"]) == until_eos(theirs, settings["eos_token_id"]), f"row {row}"


def until_eos(tokens: list[int], eos: int) -> list[int]:
    return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens


def blank(labels: torch.Tensor, tokens: set[int]) -> torch.Tensor:
    """Labels with -100 instead of `tokens`."""
    return labels.masked_fill(torch.isin(labels, torch.tensor(sorted(tokens))), -100)


def test_data(tokenizer_case):
    """Every tensor of the original's collator, token for token, padding aside."""
    expected = expected_of(tokenizer_case)
    args = json.loads((tokenizer_case / "pccot_args.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_case)
    assert len(tokenizer) == expected["len_tokenizer"]
    prepare_tokenizer(tokenizer, PCCoTConfigMixin.special_tokens)
    # With pad == eos the original masks the end of sequence out of its labels; ours never does.
    hidden = {-100} | ({tokenizer.eos_token_id} if expected["pad_token_id"] == expected["eos_token_id"] else set())
    prompt = tokenize_answer_prompt(args["answer_prompt"], tokenizer)
    assert prompt == expected["tokenized_answer_prompt"]

    class config:
        num_latent_tokens, latents_per_step = args["num_latent_tokens"], 1
        bot_token_id, eot_token_id = args["bot_token_id"], args["eot_token_id"]
        latent_token_id, answer_prompt_ids = args["latent_token_id"], prompt
        open_steps_with_bot, question_suffix_ids = False, None

    examples = json.loads((tokenizer_case / "examples.json").read_text())
    columns = {name: [example[name] for example in examples] for name in ("question", "steps", "answer")}
    tokenized = tokenize(columns, tokenizer)
    rows = [dict(zip(tokenized, row, strict=True)) for row in zip(*tokenized.values(), strict=True)]
    for row, feature in zip(rows, expected["features"], strict=True):
        assert {name: row[name] for name in columns} == {name: feature[name] for name in columns}

    ours, theirs = PCCoTCollator(tokenizer, config)(rows), read(tokenizer_case, "collated")
    assert ours["question_length"] + 1 == theirs["key_indices"][0]

    def strip(values, mask):
        return [row[keep.bool()].tolist() for row, keep in zip(values, mask, strict=True)]

    assert strip(ours["input_ids"], ours["attention_mask"]) == strip(theirs["input_ids"], theirs["attention_mask"])
    mask, their_mask = ours["cot_attention_mask"], theirs["cot_attention_mask"]
    assert strip(ours["cot_input_ids"], mask) == strip(theirs["cot_input_ids"], their_mask)
    assert strip(blank(ours["cot_labels"], hidden), mask) == strip(blank(theirs["cot_labels"], hidden), their_mask)
    padding = (ours["cot_attention_mask"][:, : ours["question_length"]] == 0).sum(dim=1)
    assert (ours["cot_kd_indices"] - padding).tolist() == theirs["cot_kd_indices"].tolist()
    start = ours["question_length"] + config.num_latent_tokens + 2
    ours_labels = [[token for token in row if token not in hidden] for row in ours["labels"][:, start:].tolist()]
    theirs_labels = [[token for token in row[1:] if token not in hidden] for row in theirs["labels"].tolist()]
    assert ours_labels == theirs_labels
    eot = start - 1
    assert (ours["kd_indices"] - eot == theirs["key_indices"][2]).all()


@pytest.fixture(params=["as it is", "converted"])
def published(request, published_case, tmp_path):
    """Model and tokenizer of a published checkpoint: read as it is, and after conversion."""
    if request.param == "as it is":
        return checkpoint.load(str(published_case / "checkpoint"))
    export(str(published_case / "checkpoint"), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    return model, AutoTokenizer.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("batched", [False, True])
def test_answers_of_a_published_checkpoint(published_case, published, batched):
    """Alone and in a left-padded batch."""
    model, tokenizer = published
    examples = expected_of(published_case)["examples"]
    for group in [examples] if batched else [[example] for example in examples]:
        inputs = tokenizer([example["question"] for example in group], padding=True, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=10, do_sample=False)[:, inputs.input_ids.shape[1] :]
        for example, tokens in zip(group, output.tolist(), strict=True):
            assert until_eos(tokens, tokenizer.eos_token_id) == example["new_tokens"], example["question"]


def test_logits_of_a_published_checkpoint(published_case, published):
    """From `<eot>` on after the thought, and without it (question and answer prompt, as the teacher reads them)."""
    model, tokenizer = published
    wanted = load_file(published_case / "expected_logits.safetensors")
    reload_noise = json.loads((published_case / "reload_check.json").read_text())["reload_max_abs_logit_difference"]
    prompt = model.config.answer_prompt_ids
    for number, example in enumerate(expected_of(published_case)["examples"]):
        ids = torch.tensor([example["input_ids"]])
        question = tokenizer(example["question"])["input_ids"]
        assert question + model.thought_ids() == example["input_ids"]
        with torch.no_grad():
            student = model(input_ids=ids).logits[:, -len(prompt) - 1 :]
            teacher = model(input_ids=torch.tensor([question + prompt])).logits
        close(student, wanted[f"{number}.answer_logits"], reload_noise, f"student {number}")
        close(teacher, wanted[f"{number}.cot_logits"][:, : teacher.shape[1]], reload_noise, f"teacher {number}")
