"""What the originals do, flag by flag and array by array (docs/from-the-originals.md).

`--parity-dir DIR` reads `DIR/icot/*.json`: what each training step of the original iCoT code was recorded to train on.
"""

import json
import math
import random
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, make_model
from safetensors.torch import load_file
from test_tokenizer_worlds import byte_level_with_bos, byte_tokenizer, sentencepiece
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import latent_cot
import run_ccot
import run_cot
import run_icot
from latent_cot.converters.convert_icot import convert
from latent_cot.training import (
    CoTTrainer,
    DataArguments,
    EvaluationArguments,
    ICoTArguments,
    ICoTTrainer,
    LoraArguments,
    ModelArguments,
    PCCoTTrainer,
)
from latent_cot.training.arguments import CoTTrainingArguments
from latent_cot.training.checkpoints.loading import set_up, set_up_text_format
from latent_cot.training.checkpoints.lora import add_adapters
from latent_cot.training.cli import SUCCESSORS, parse
from latent_cot.training.data.collators import ICoTCollator
from latent_cot.training.data.rows import format_line
from latent_cot.training.data.sources import find_split
from latent_cot.training.data.text_format import FORK_TOKENS, tokenize_spaced
from latent_cot.training.errors import InputError
from latent_cot.training.trainers.icot_removal import Internalizer, fillers_of_runs
from latent_cot.training.trainers.icot_schedule import FillerSchedule, RemovalSchedule, removal_schedule

QUIET = ["--use_cpu", "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true"]


def internalizer(**changes) -> Internalizer:
    settings = {"smoothing": math.inf, "side": "left", "keep_position": False, "switch_mode": "random"}
    settings |= {"switch_ratio": 1.0, "label_fillers": True, "pause_token_id": None, "max_length": None, "seed": 0}
    return Internalizer(**(settings | changes))


def collator(start: int, ready: int, end: int) -> ICoTCollator:
    tokenizer = SimpleNamespace(eos_token_id=end, pad_token_id=-7)
    config = SimpleNamespace(start_token_id=start, ready_token_id=ready, answer_prompt_ids=[], question_end_ids=None)
    return ICoTCollator(tokenizer, config)


# --- removal, its schedule, smoothing, kept positions, the optimiser's resets: recorded from the original's main() ---


def golden(config) -> list[Path]:
    return sorted(Path(config.getoption("--parity-dir"), "icot").glob("*.json"))


def pytest_generate_tests(metafunc):
    if "recorded" in metafunc.fixturenames:
        paths = [path for path in golden(metafunc.config) if "trained" in json.loads(path.read_text())]
        metafunc.parametrize("recorded", paths, ids=[path.stem for path in paths])
    if "switching" in metafunc.fixturenames:
        paths = [path for path in golden(metafunc.config) if "all_switched" in json.loads(path.read_text())]
        metafunc.parametrize("switching", paths, ids=[path.stem for path in paths])


def test_the_recorded_cases_are_there():
    names = {path.stem for path in (ROOT / "tests" / "fixtures" / "parity" / "icot").glob("*.json")}
    assert {"plain", "keep_left", "keep_right", "pretrain_smoothed", "beyond", "fork_switching"} <= names


def test_every_step_trains_on_what_the_original_trained_on(recorded, monkeypatch):
    """Ids, labels, positions, and when the optimiser's moments are forgotten."""
    case = json.loads(recorded.read_text())
    settings, examples, end = case["settings"], case["examples"], case["separator"]
    schedule = RemovalSchedule(
        per_epoch=settings["remove_per_epoch"],
        all_beyond=float(settings["remove_all_when_remove_beyond"]),
        pretrain_epochs=settings["pretrain_epochs"],
        start_from=settings["remove_start_from"],
    )
    apply = internalizer(
        smoothing=float(settings["removal_smoothing_lambda"]),
        side=settings["removal_side"],
        keep_position=settings["keep_position"],
    )
    steps: dict[int, list[dict]] = {}
    for row in case["trained"]:
        steps.setdefault(row["step"], []).append(row)
    resets, all_gone = [], False
    for step, rows in steps.items():
        features = [
            {"question": example["question"], "steps": [example["chain"]], "answer": example["answer"], "row": index}
            for index, example in ((row["row"], examples[row["row"]]) for row in rows)
        ]
        offsets = np.array([row.get("offset") or 0 for row in rows])
        monkeypatch.setattr(
            "latent_cot.training.trainers.icot_removal.smoothing_offsets",
            lambda smoothing, numbers, given=offsets: given * (not math.isinf(smoothing)),
        )
        batch = collator(end, end, end)(features)
        scheduled = schedule.tokens(step, settings["steps_per_epoch"])
        smooth = step >= schedule.waiting_steps(settings["steps_per_epoch"])
        if scheduled > schedule.tokens(step - 1, settings["steps_per_epoch"]) and not all_gone:
            resets.append(step)
        all_gone = apply.removes_all(batch, step, scheduled, smooth)
        got = apply(batch, step, scheduled, rate=0.0, smooth=smooth)
        for index, row in enumerate(rows):
            real = got["attention_mask"][index].bool()
            assert got["input_ids"][index][real].tolist() == row["input_ids"], (step, row["row"])
            assert got["labels"][index][real].tolist() == row["labels"], (step, row["row"])
            if not settings["keep_position"]:
                assert got["position_ids"][index][real].tolist() == list(range(len(row["input_ids"])))
                continue
            ours, theirs = got["position_ids"][index][real].tolist(), row["position_ids"]
            chain, answer = examples[row["row"]]["chain"], examples[row["row"]]["answer"]
            gone = len(features[index]["question"]) + len(chain) + len(answer) + 3 - len(row["input_ids"])
            # The token before the removed ones moves there too; ours stays. All others are the same.
            moved = len(features[index]["question"]) + (len(chain) - gone if settings["removal_side"] == "right" else 0)
            assert [p for i, p in enumerate(ours) if i != moved] == [p for i, p in enumerate(theirs) if i != moved]
            assert gone == 0 or ours[moved] == theirs[moved] - gone
    if settings["removal_side"] == "left":  # from the right the original stops resetting earlier than it means to
        assert resets == case["optimizer_resets_before_step"]


# --- fillers: recorded from the fork ---


def fork_batch(tokens: dict, chain: int, rows: int = 1) -> dict:
    """Rows as the recorded ones: question 50 51 <eos>, a chain, the answer 60."""
    features = [
        {"question": [50, 51, tokens["eos"]], "steps": [list(range(100, 100 + chain))], "answer": [60], "row": row}
        for row in range(rows)
    ]
    return collator(tokens["start"], tokens["ready"], tokens["eos"])(features)


def test_fillers_of_a_whole_chain(switching):
    """n tokens become ceil(n x ratio) fillers, which are learned."""
    case = json.loads(switching.read_text())
    for row in case["all_switched"]:
        apply = internalizer(pause_token_id=case["tokens"]["pause"], switch_ratio=row["ratio"])
        got = apply(fork_batch(case["tokens"], row["chain"]), step=0, scheduled=0, rate=1.0)
        assert got["input_ids"][0].tolist() == row["input_ids"]
        kept = row["labels"][4:]  # the fork's collator does not label the question either; the recorded stub did
        assert got["labels"][0].tolist() == [-100] * 4 + kept


def test_how_many_fillers_and_where(switching):
    """Mean and deviation of 4,000 draws, and how often the first token is one."""
    case = json.loads(switching.read_text())
    for row in case["counts"]:
        pause, draws = case["tokens"]["pause"], 4000
        apply = internalizer(pause_token_id=pause, switch_mode=row["mode"])
        ids = apply(fork_batch(case["tokens"], row["chain"], draws), 0, 0, rate=row["probability"])["input_ids"]
        counts = (ids == pause).sum(dim=1).double()
        error = math.sqrt(row["chain"] * row["probability"] * (1 - row["probability"]) / draws)
        assert counts.mean().item() == pytest.approx(row["mean"], abs=6 * error)
        assert counts.std().item() == pytest.approx(row["sd"], rel=0.1)
        assert (ids[:, 4] == pause).double().mean().item() == pytest.approx(row["first_token_switched"], abs=0.04)


def test_the_share_of_fillers_per_step(switching):
    case = json.loads(switching.read_text())["schedule"]
    schedule = FillerSchedule(case["train_steps"], case["from_step"], case["from_rate_percent"] / 100)
    for step, share in case["share"].items():
        assert schedule.rate(int(step)) == pytest.approx(share, abs=1e-9)


def test_fillers_of_runs_are_the_plain_loop():
    source = random.Random(0)
    for _ in range(300):
        row = [source.random() < 0.6 for _ in range(source.randrange(1, 20))]
        ratio = source.choice([0.25, 0.5, 1.0, 1.3, 2.5])
        got, expected, run = fillers_of_runs(torch.tensor([row]), ratio)[0].tolist(), [], 0
        for turned in [*row, False]:
            if turned:
                run += 1
            elif run:
                expected.append(math.ceil(run * ratio))
                run = 0
        runs = [sum(part) for part in np.split(np.array(got), np.flatnonzero(~np.array(row))) if sum(part)]
        assert [int(total) for total in runs] == expected


def test_the_share_of_fillers_is_of_what_is_left():
    """Four of ten tokens are removed; half of the six that are left turn."""
    batch = fork_batch({"start": 1, "ready": 2, "eos": 0}, 10)
    got = internalizer(pause_token_id=3, switch_mode="fixed")(batch, 0, scheduled=4, rate=0.5)
    assert got["input_ids"][0].tolist() == [50, 51, 0, 1, 3, 3, 3, 107, 108, 109, 2, 60, 0]


# --- schedules and limits ---


def test_nothing_is_removed_before_the_step_that_removal_counts_from():
    schedule = RemovalSchedule(every_n_step=10, from_n_steps=100, start_from=5)
    assert [schedule.tokens(step, 7) for step in (0, 99, 100, 109, 110)] == [0, 0, 5, 5, 6]


def test_a_rows_own_length_decides_whether_it_is_learned():
    """Padding to a long question beside it does not count."""
    features = [
        {"question": [5] * 30, "steps": [[6, 7, 8]], "answer": [9], "row": 0},
        {"question": [5], "steps": [[6, 7, 8]], "answer": [9], "row": 1},  # 1 + 1 + 3 + 1 + 1 + 1 = 8 tokens
    ]
    batch = collator(1, 2, 0)(features)
    for limit, learned in ((8, [False, True]), (7, [False, False]), (37, [True, True])):
        labels = internalizer(max_length=limit)(batch, 0, 0, 0.0)["labels"]
        assert (labels != -100).any(dim=1).tolist() == learned
    removed = internalizer(max_length=5)(batch, 0, math.inf, 0.0)["labels"]
    assert (removed != -100).any(dim=1).tolist() == [False, True]


def test_truncation_counts_a_rows_own_tokens():
    from latent_cot.training.data.collators import ICoTCollator as Collator

    tokenizer = SimpleNamespace(eos_token_id=0, pad_token_id=-7)
    config = SimpleNamespace(start_token_id=1, ready_token_id=2, answer_prompt_ids=[])
    rows = [
        {"question": [5] * 6, "steps": [[6, 7]], "answer": [9]},
        {"question": [5], "steps": [[6, 7]], "answer": [9]},
    ]
    batch = Collator(tokenizer, config, truncation=7)([row | {"row": 0} for row in rows])
    assert batch["attention_mask"].sum(dim=1).tolist() == [7, 7]
    assert batch["chain_lengths"] == [0, 2]
    shorter = Collator(tokenizer, config, truncation=1)([rows[1] | {"row": 0}])
    assert shorter["input_ids"].tolist() == [[5]] and shorter["input_ids"].dtype == torch.long


# --- kept positions, asked ---

PROBLEMS = [(a, b) for a in range(4) for b in (3, 14, 25, 36, 47, 58)]  # questions of two lengths


@pytest.fixture(scope="module")
def memorised_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("kept") / "rows.txt"
    rows = [
        {"question": f"{a}+{b}", "steps": [f"{a + b:03d}", f"{7 * a + b:03d}"], "answer": str(a * b)}
        for a, b in PROBLEMS
    ]
    path.write_text("".join(format_line(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("side", "removed"),
    [
        ("left", "inf"),
        ("right", "3"),
        pytest.param("left", "0", marks=pytest.mark.slow),
        pytest.param("left", "3", marks=pytest.mark.slow),
        pytest.param("right", "0", marks=pytest.mark.slow),
        pytest.param("right", "inf", marks=pytest.mark.slow),
    ],
)
def test_memorised_rows_are_answered_with_kept_positions(side, removed, memorised_file, tmp_path):
    """24 rows, learned with the chain whole, partly and wholly removed; asked in left-padded batches and alone."""
    train = ["--config_name", "configs/icot_gpt2_chain.json", "--tokenizer_name", "characters", *QUIET]
    train += ["--train_file", memorised_file, "--validation_file", memorised_file, "--do_train", "--do_eval"]
    train += ["--max_steps", "80", "--per_device_train_batch_size", "24", "--per_device_eval_batch_size", "24"]
    train += ["--config_overrides", "n_layer=2"]
    train += ["--learning_rate", "0.002", "--warmup_steps", "20", "--keep_position", "--removal_side", side]
    train += ["--remove_per_epoch", "0", "--partial_removal", "--max_cot_tokens", "24", "--max_new_tokens", "8"]
    count = "0" if removed == "0" else "1000" if removed == "inf" else removed
    train += ["--remove_start_from", count, "--explicit_cot", "false", "--adam_beta2", "0.98"]
    folder = tmp_path / "model"
    metrics = run_icot.main([*train, "--output_dir", str(folder)])
    config = json.loads((folder / "config.json").read_text())
    assert config["position_gap"] == {"0": 0, "3": 3, "inf": 7}[removed]
    assert metrics["eval_icot_exact_match"] == 1.0
    ask = ["--model_name_or_path", str(folder), "--validation_file", memorised_file, "--do_eval", *QUIET]
    ask += ["--per_device_eval_batch_size", "1", "--max_cot_tokens", "24", "--explicit_cot", "false"]
    again = run_icot.main([*ask, "--output_dir", str(tmp_path / "again")])  # the checkpoint knows all that training did
    assert again["eval_icot_exact_match"] == 1.0
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=0.5, abs=0.01)


ICOT = ["--config_name", "configs/icot_gpt2_chain.json", "--tokenizer_name", "characters", *QUIET, "--do_train"]
ICOT += ["--explicit_cot", "false", "--max_cot_tokens", "24", "--max_new_tokens", "8"]


def test_what_is_asked_and_saved_goes_by_the_last_step(memorised_file, tmp_path):
    """Not by the next one, which would remove a token that no weights have learned to do without."""
    argv = [*ICOT, "--train_file", memorised_file, "--validation_file", memorised_file, "--do_eval", "--max_steps", "4"]
    argv += ["--remove_every_n_step", "2", "--partial_removal", "--eval_strategy", "steps", "--eval_steps", "2"]
    run_icot.main([*argv, "--output_dir", str(tmp_path)])
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [entry["removed_tokens"] for entry in history if "eval_loss" in entry] == [0, 1]
    assert json.loads((tmp_path / "config.json").read_text())["num_internalized_tokens"] == 1


def test_limits_of_at_most_nothing_are_none(memorised_file, tmp_path):
    """As the original's defaults, -1, say; and rows that are all too long cost nothing."""
    argv = [*ICOT, "--train_file", memorised_file, "--max_steps", "2", "--partial_removal", "--logging_steps", "1"]
    run_icot.main([*argv, "--max_len_train", "-1", "--truncation", "-1", "--output_dir", str(tmp_path / "none")])
    # Evaluation, of each row by itself here, does not go by the limit, as the original's does not.
    asked = ["--validation_file", memorised_file, "--max_eval_samples", "2", "--do_eval"]
    asked += ["--per_device_eval_batch_size", "1"]
    metrics = run_icot.main([*argv, *asked, "--max_len_train", "3", "--output_dir", str(tmp_path / "all")])
    assert math.isfinite(metrics["eval_loss"]) and metrics["eval_loss"] > 0
    for folder, learned in (("none", True), ("all", False)):
        history = json.loads((tmp_path / folder / "trainer_state.json").read_text())["log_history"]
        losses = [entry["loss"] for entry in history if "loss" in entry]
        assert all(math.isfinite(loss) and (loss > 0) == learned for loss in losses), losses


def test_answers_with_commas_are_compared_as_they_are_written(tmp_path):
    """A text format that leaves commas out leaves them out of the gold too."""
    rows = [{"question": f"{n}?", "steps": ["x"], "answer": f"{n},{n}"} for n in range(4)]
    trainer = ICoTTrainer(
        ModelArguments(config_name="configs/icot_gpt2_chain.json", tokenizer_name="bytes"),
        CoTTrainingArguments(str(tmp_path), use_cpu=True, report_to="none"),
        eval_dataset=rows,
        method=ICoTArguments(text_format="original"),
    )
    assert trainer.splits["validation"]["answer_text"][:2] == ["00", "11"]


def test_fillers_that_outgrow_the_positions_are_named(memorised_file, tmp_path):
    argv = [*ICOT, "--train_file", memorised_file, "--max_steps", "2", "--switch_tokens", "--switch_from_n_steps", "0"]
    with pytest.raises(InputError, match=r"train row 0 is too long: 1\d\d tokens, and the limit is 64"):
        run_icot.main([*argv, "--switch_token_ratio", "20", "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--remove_from_n_tokens", "5"], "is for schedules with --remove_every_n_step"),
        (["--remove_every_n_step", "5", "--pretrain_epochs", "1"], "for schedules without --remove_every_n_step"),
        (["--pretrain_epochs", "-3"], "--pretrain_epochs must be at least 0"),
        (["--remove_all_when_remove_beyond", "nan"], "must be a number or inf"),
        (["--streaming"], "unknown arguments: --streaming"),
    ],
)
def test_schedules_that_would_say_something_else(flags, said, memorised_file, tmp_path):
    argv = [*ICOT, "--train_file", memorised_file, "--max_steps", "2", "--partial_removal", *flags]
    with pytest.raises(InputError, match=said):
        run_icot.main([*argv, "--output_dir", str(tmp_path)])


# --- means over labelled tokens ---


def step_of(kind: str, batch: int, accumulated: int, out: Path, processes: int = 1) -> tuple[dict, dict]:
    """One optimiser step on 16 unequal rows under SGD: its log, and the weights after it."""
    source, path = random.Random(0), out.parent / "rows.txt"
    lines = []
    for _ in range(64):
        steps = [f"<<{source.randrange(99)}+1={source.randrange(99)}>>" for _ in range(source.randrange(1, 4))]
        question = f"{'7+' * source.randrange(1, 6)}{source.randrange(99)}"
        lines.append(format_line({"question": question, "steps": steps, "answer": str(source.randrange(9999))}) + "\n")
    path.write_text("".join(lines))
    script = {"ccot": run_ccot, "cot": run_cot, "icot": run_icot}[kind]
    config = {"ccot": "pccot_gpt2_tiny", "cot": "gpt2_chain", "icot": "icot_gpt2_chain"}[kind]
    argv = ["--config_name", f"configs/{config}.json", "--tokenizer_name", "characters", *QUIET, "--do_train"]
    argv += ["--train_file", str(path), "--max_steps", "1", "--learning_rate", "0.1", "--optim", "sgd"]
    argv += ["--lr_scheduler_type", "constant"]
    argv += ["--logging_steps", "1", "--per_device_train_batch_size", str(batch), "--max_grad_norm", "1000"]
    argv += ["--gradient_accumulation_steps", str(accumulated), "--output_dir", str(out)]
    if kind == "ccot":
        argv += ["--keep_last_step", "--config_overrides", "loss_gamma=0,loss_delta=1"]
    if kind == "icot":
        argv += ["--partial_removal", "--removal_smoothing_lambda", "0.5", "--remove_start_from", "3"]
    if processes == 1:
        script.main(argv)
    else:
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command = [*launch, f"run_{kind}.py", *argv, "--ddp_backend", "gloo"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    log = json.loads((out / "trainer_state.json").read_text())["log_history"][0]
    return log, load_file(out / "model.safetensors")


@pytest.mark.parametrize("kind", ["ccot", "cot", "icot"])
def test_a_batch_may_be_accumulated(kind, tmp_path):
    compare_steps(step_of(kind, 16, 1, tmp_path / "whole"), step_of(kind, 8, 2, tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ccot", "cot", "icot"])
def test_a_batch_may_be_spread_over_processes(kind, tmp_path):
    compare_steps(step_of(kind, 16, 1, tmp_path / "whole"), step_of(kind, 8, 1, tmp_path / "two", processes=2))


def compare_steps(whole: tuple[dict, dict], parts: tuple[dict, dict]) -> None:
    """The same step but for rounding: loss, its parts, gradient norm, weights."""
    names = {"loss", "grad_norm", "cot_loss", "ccot_loss", "step_loss"} & whole[0].keys()
    assert {"loss", "grad_norm"} <= names
    for name in names:
        assert parts[0][name] == pytest.approx(whole[0][name], rel=1e-5), name
    for name, weights in whole[1].items():
        assert (parts[1][name] - weights).abs().max() <= 1e-5, name


def test_label_smoothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="label_smoothing_factor is not supported"):
        run_cot.main(["--do_train", "--label_smoothing_factor", "0.1", "--output_dir", str(tmp_path), *QUIET])


# --- chains, text, data ---


def test_run_cot_keeps_the_last_step():
    rows = [{"question": "3 and 4, twice?", "steps": ["<<3+4=7>>", "<<7*2=14>>"], "answer": "14"}] * 4
    source = ModelArguments(config_name="configs/gpt2_chain.json", tokenizer_name="bytes")
    args = CoTTrainingArguments("unused", use_cpu=True, report_to="none")
    trainer = CoTTrainer(source, args, train_dataset=rows)
    features = trainer.splits["train"][0]
    assert (
        trainer.processing_class.decode([token for step in features["steps"] for token in step])
        == "<<3+4=7>><<7*2=14>>"
    )
    source = ModelArguments(config_name="configs/pccot_gpt2_tiny.json", tokenizer_name="bytes")
    features = PCCoTTrainer(source, args, train_dataset=rows).splits["train"][0]
    assert len(features["steps"]) == 1  # PCCoT's teacher does not see it, there and here


TEXTS = [
    {"question": "Tom has 3 pens", "steps": ["<<3+4=7>>", "<<7*200=1400>>"], "answer": "1,400"},
    {"question": "5 6 * 7 4", "steps": ["1 2 + 3 ( 4 ) + 5"], "answer": "2 3 4"},
    {"question": "no chain?", "steps": [], "answer": "0"},
]


@pytest.mark.parametrize("make", [byte_tokenizer, sentencepiece, byte_level_with_bos])
@pytest.mark.parametrize("form", ["original", "fork"])
def test_text_is_written_as_the_original_writes_it(make, form):
    """Token for token the original's line (`src/data.py` of either), encoded in one piece."""
    tokenizer, config = make(), latent_cot.ICoTGPT2Config()
    set_up_text_format(config, tokenizer, form)
    set_up(config, tokenizer, "####")
    features = tokenize_spaced(
        {name: [row[name] for row in TEXTS] for name in ("question", "steps", "answer")},
        tokenizer,
        keep_last_step=True,
        answer_prompt_ids=config.answer_prompt_ids,
    )
    rows = [dict(zip(features, row, strict=True)) | {"row": 0} for row in zip(*features.values(), strict=True)]
    there, eos = make(), make().eos_token
    there.add_special_tokens({"extra_special_tokens": list(FORK_TOKENS.values()) if form == "fork" else []})
    for text, row in zip(TEXTS, rows, strict=True):
        answer = "#### " + text["answer"].replace(",", "")
        line = f" {text['question']} {eos} {' '.join(text['steps'])} {eos} {answer} {eos}"
        if form == "fork":
            line = f" {text['question']} {eos}<|start|> {' '.join(text['steps'])} <|ready|> {answer} {eos}"
        batch = ICoTCollator(tokenizer, config)([row])
        names = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
        assert names == there.convert_ids_to_tokens(there(line)["input_ids"])
        # ... and the question alone, as a user asks it, is what the line begins with.
        asked = tokenizer(text["question"])["input_ids"]
        assert asked == batch["input_ids"][0][: len(asked)].tolist()


def test_splits_by_any_usual_name():
    source = {"train": [], "valid": [], "test": []}
    assert find_split(DataArguments(), "validation", source) == "valid"
    assert find_split(DataArguments(), "validation", {"dev": []}) == "dev"
    assert find_split(DataArguments(validation_split="test"), "validation", source) == "test"
    with pytest.raises(InputError, match="there are: train, valid, test"):
        find_split(DataArguments(dataset_name="x", train_split="training"), "train", source)


def test_gold_answers_that_cannot_fit_are_named_before_training(tmp_path, caplog):
    """9 x 9 digits take 267 tokens: more than the limit that a recipe must raise."""
    argv = ["--config_name", "configs/icot_gpt2_chain.json", "--config_overrides", "n_positions=512", *QUIET]
    argv += ["--tokenizer_name", "words", "--dataset_name", "multiplication", "--do_train", "--do_eval"]
    argv += ["--task_args", "digits=9,train=4,validation=2,test=1", "--max_steps", "1", "--partial_removal"]
    argv += ["--output_dir", str(tmp_path), "--explicit_cot", "false"]
    run_icot.main(argv)
    said = (
        r"2 of 2 gold answers .* take more than --max_cot_tokens 256, so they count as wrong; the longest takes 26\d "
    )
    assert re.search(said, caplog.text)
    recipe = (ROOT / "configs" / "recipes" / "multiplication-9x9_icot_gpt2.yaml").read_text()
    assert "max_cot_tokens: 800" in recipe


# --- LoRA, checkpoints of the fork, configurations, flags ---


def test_lora_trains_the_originals_rows():
    """Those of bot, eot, latent, pad and eos."""
    model = make_model("gpt2")
    adapted = add_adapters(model, LoraArguments(lora_r=2))
    config = model.config
    (rows,) = adapted.peft_config["default"].trainable_token_indices.values()
    assert rows == [config.bot_token_id, config.eot_token_id, config.latent_token_id, config.pad_token_id, 1]
    stock = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=40, eos_token_id=3, pad_token_id=4))
    (rows,) = add_adapters(stock, LoraArguments(lora_r=2)).peft_config["default"].trainable_token_indices.values()
    assert rows == [4, 3]


@pytest.fixture
def fork_checkpoint(tmp_path) -> Path:
    """A folder as the fork saves it: a GPT-2, and a tokenizer with its three tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(FORK_TOKENS.values()))
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 256, "initializer_range": 0.3}
    model = GPT2LMHeadModel(GPT2Config(**shape, vocab_size=len(tokenizer), eos_token_id=0, bos_token_id=0))
    model.save_pretrained(tmp_path / "fork")
    tokenizer.save_pretrained(tmp_path / "fork")
    return tmp_path / "fork"


def test_a_checkpoint_of_the_fork_is_converted(fork_checkpoint, tmp_path):
    """The converted model answers a question as the fork's would: ` question <eos>`, `<|start|>`, and what it writes."""
    from latent_cot.training.checkpoints.read import load

    convert(fork_checkpoint, tmp_path / "out")
    model, tokenizer = load(str(tmp_path / "out"))
    assert (model.config.text_format, model.config.pause_token_id) == ("fork", 258)
    assert 258 not in tokenizer("<|pause|>")["input_ids"]  # text stays text
    inputs = tokenizer(["3+4", "a longer one"], padding=True, return_tensors="pt")
    answers = model.generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs.input_ids.shape[1] :]
    there, stock = byte_tokenizer(), GPT2LMHeadModel.from_pretrained(fork_checkpoint)
    there.add_tokens(list(FORK_TOKENS.values()))
    for question, answer in zip(["3+4", "a longer one"], answers, strict=True):
        ids = torch.tensor([there(f" {question} <eos><|start|>", split_special_tokens=False)["input_ids"]])
        alone = stock.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        wanted = alone[0, ids.shape[1] :].tolist()
        assert answer.tolist()[: len(wanted)] == wanted


def test_scripts_recognise_a_checkpoint_of_the_fork(fork_checkpoint, tmp_path, caplog):
    """Trained on, it keeps its tokens and its text format; nothing but padding is added."""
    argv = ["--model_name_or_path", str(fork_checkpoint), "--dataset_name", "chain", *QUIET, "--do_train"]
    argv += ["--task_args", "train=8,validation=1,test=1", "--max_steps", "1", "--partial_removal"]
    run_icot.main([*argv, "--output_dir", str(tmp_path / "on")])
    config = AutoConfig.from_pretrained(tmp_path / "on")
    assert (config.text_format, config.start_token_id, config.question_end_ids) == ("fork", 257, [0])
    assert config.vocab_size == 257 + 3 + 1 and "fork" in caplog.text
    # A checkpoint brings its format along, and another one is refused.
    argv[1] = str(tmp_path / "on")
    run_icot.main([*argv, "--output_dir", str(tmp_path / "further")])
    assert AutoConfig.from_pretrained(tmp_path / "further").vocab_size == 261
    with pytest.raises(InputError, match="the checkpoint was trained with 'fork'"):
        run_icot.main([*argv, "--text_format", "plain", "--output_dir", str(tmp_path / "other")])


LLAMA = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "initializer_range": 0.02, "vocab_size": 32000}
LLAMA |= {"max_position_embeddings": 1024, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
SHAPES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
ONE_B = dict(zip(SHAPES, (2048, 8192, 16, 32, 8), strict=True)) | {"vocab_size": 128256, "tie_word_embeddings": True}
ONE_B |= {"max_position_embeddings": 131072, "head_dim": 64, "bos_token_id": 128000, "eos_token_id": 128001}
# The original's nine sample configurations, as far as they say something.
SAMPLES = {
    "llama_small": ("llama", LLAMA | dict(zip(SHAPES, (768, 2048, 12, 12, 6), strict=True))),
    "llama_tiny": ("llama", LLAMA | dict(zip(SHAPES, (512, 1024, 8, 8, 4), strict=True))),
    "tinyllama": ("llama", LLAMA | dict(zip(SHAPES, (2048, 5632, 22, 32, 4), strict=True)) | {"max_position_embeddings": 2048}),
    "pccot_llama3.2_1b": ("pccot-llama", ONE_B),
    "pccot_llama3.2_1b_inst": ("pccot-llama", ONE_B | {"eos_token_id": [128001, 128008, 128009]}),
    "pccot_gpt2_small": ("pccot-gpt2", {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "eos_token_id": 50256}),
}  # fmt: skip
SAMPLES |= {f"pccot_{name}": ("pccot-llama", SAMPLES[name][1]) for name in ("llama_small", "llama_tiny", "tinyllama")}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_originals_configurations_mean_the_same(name):
    """Its nine files have the same shapes here; what they leave out has the original's defaults."""
    model_type, values = SAMPLES[name]
    config = AutoConfig.from_pretrained(ROOT / "configs" / f"{name}.json")
    assert config.model_type == model_type
    for field, value in values.items():
        assert getattr(config, field) == value, field
    if model_type.startswith("pccot"):
        defaults = {"num_iterations": 6, "num_latent_tokens": 6, "use_projection": False, "use_layerwise_std": True}
        for field, value in (defaults | {"loss_alpha": 1, "loss_beta": 1, "loss_gamma": 1, "loss_delta": 0}).items():
            assert getattr(config, field) == value, field
    if "3.2" in name:
        rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0}
        rope |= {"high_freq_factor": 4.0}
        assert rope.items() <= config.rope_parameters.items()


@pytest.mark.parametrize("flag", SUCCESSORS)
def test_flags_that_are_none_name_their_successor(flag):
    """Where another script has the flag, it is one."""
    for script in (run_ccot, run_cot, run_icot):
        known = {field.name for group in script.ARGUMENTS for field in fields(group)}
        assert flag not in known
        with pytest.raises(InputError, match=f"--{flag} is no flag here: use "):
            parse(script.ARGUMENTS, [f"--{flag}", "1", "--output_dir", "x"])
        for successor in re.findall(r"--(\w+)", SUCCESSORS[flag]):
            assert successor in {name for group in run_icot.ARGUMENTS for name in (f.name for f in fields(group))}


def test_defaults_are_the_originals():
    """What `run_ccot.py` does when a flag is left out (`models/pccot_arguments.py` there), and the fork's fillers."""
    lora = LoraArguments()
    assert (lora.lora_r, lora.lora_alpha, lora.lora_dropout) == (128, 32, 0.1)
    method = ICoTArguments()
    assert removal_schedule(method, SimpleNamespace(eval_strategy="no")).per_epoch == 8
    config = latent_cot.ICoTGPT2Config()
    assert (method.removal_side or config.removal_side, method.pretrain_epochs) == ("left", 0)
    assert (method.switch_mode, method.switch_from_n_steps, method.switch_token_ratio) == ("random", 5000, 1.0)
    assert method.write_fillers and EvaluationArguments().max_new_tokens == 32


def test_answers_take_the_gap_that_most_rows_have():
    """A model that kept positions is asked where most of its rows were; `position_gap` asks elsewhere."""
    fields = {"start_token_id": 36, "ready_token_id": 38, "answer_prompt_ids": [5], "keep_position": True}
    fields |= {"num_internalized_tokens": -1, "position_gap": 7, "n_embd": 32, "n_head": 4, "n_layer": 2}
    fields |= {"vocab_size": 40, "n_positions": 64, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.3}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(latent_cot.ICoTGPT2Config(**fields)).eval()
    ids, mask = torch.tensor([[0, 0, 9, 10], [11, 12, 13, 14]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    answers = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)[:, 4:]
    for row in range(2):
        prompt = [*ids[row][mask[row].bool()].tolist(), 36, 38, 5]
        positions = [*range(len(prompt) - 2), len(prompt) - 2 + 7, len(prompt) - 1 + 7]
        written = []
        for _ in range(5):
            logits = model(torch.tensor([prompt]), position_ids=torch.tensor([positions])).logits[0, -1]
            prompt, positions = [*prompt, int(logits.argmax())], [*positions, positions[-1] + 1]
            written.append(prompt[-1])
            if written[-1] == 1:
                break
        assert answers[row].tolist()[: len(written)] == written
    elsewhere = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, position_gap=0)[:, 4:]
    assert not torch.equal(elsewhere, answers)
    with pytest.raises(ValueError, match="more than the model's 64"):
        model.generate(ids, attention_mask=mask, position_gap=60)
