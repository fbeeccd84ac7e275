"""What the original iCoT code and its fork train on, step by step, and how such a model answers.

`--parity-dir DIR` reads `DIR/icot/*.json`: what each training step of the original iCoT code was recorded to train on.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_originals import QUIET
from transformers import AutoModelForCausalLM

import latent_cot
import run_icot
from latent_cot.training import CoTTrainingArguments, ICoTArguments, ICoTTrainer, ModelArguments
from latent_cot.training.data.collators import ICoTCollator
from latent_cot.training.data.rows import format_line
from latent_cot.training.errors import InputError
from latent_cot.training.trainers.icot_removal import Internalizer
from latent_cot.training.trainers.icot_schedule import FillerSchedule, RemovalSchedule


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
    tokenizer = SimpleNamespace(eos_token_id=0, pad_token_id=-7)
    config = SimpleNamespace(start_token_id=1, ready_token_id=2, answer_prompt_ids=[])
    rows = [
        {"question": [5] * 6, "steps": [[6, 7]], "answer": [9]},
        {"question": [5], "steps": [[6, 7]], "answer": [9]},
    ]
    batch = ICoTCollator(tokenizer, config, truncation=7)([row | {"row": 0} for row in rows])
    assert batch["attention_mask"].sum(dim=1).tolist() == [7, 7]
    assert batch["chain_lengths"] == [0, 2]
    shorter = ICoTCollator(tokenizer, config, truncation=1)([rows[1] | {"row": 0}])
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
        pytest.param(side, removed, marks=[] if (side, removed) == ("right", "3") else pytest.mark.slow)
        for side in ("left", "right")
        for removed in ("0", "3", "inf")
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
