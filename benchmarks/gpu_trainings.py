"""Part `trainings` of `benchmarks/gpu.py`: runs that two cores cannot do; a later call goes on from their checkpoints."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu import environment, run_logged
from benchmarks.gpu_part import Part
from benchmarks.report import panels
from benchmarks.workload import ROOT
from latent_cot import tasks

TITLE = "Trainings"
SAVING = 45.0  # seconds: to end a step or an evaluation, and write a checkpoint
LEAST = 180.0  # seconds of a training in one call, if there are so many: its start is paid each time
RESULTS = "all_results.json"  # of a run that came to its end


def task(name: str) -> Callable[[], str | None]:
    """What lacks for a training on a task: the task."""
    return lambda: None if name in tasks.TASKS else f"the task {name!r} of tasks/"


def files(*paths: str) -> Callable[[], str | None]:
    """What lacks for a training from files and folders: the first that is not there."""
    return lambda: next((path for path in paths if not (ROOT / path).exists()), None)


@dataclass(frozen=True)
class Training:
    """A run of one of the scripts.

    Args:
        name: of its folder and log.
        published: what a paper reports, in words.
        command: the script and its arguments.
        small: arguments after them in a rehearsal.
        lacks: what it needs and does not find; None if it can run.
    """

    name: str
    published: str
    command: tuple[str, ...]
    small: tuple[str, ...] = ()
    lacks: Callable[[], str | None] = field(default=lambda: None)


CHECKPOINTS = ("--save_strategy", "steps", "--save_steps", "1000", "--save_total_limit", "1")
FEW_STEPS = ("--use_cpu", "--bf16", "false", "--max_steps", "2", "--save_steps", "1", "--logging_steps", "1")
FEW_STEPS += ("--per_device_train_batch_size", "4", "--eval_strategy", "no", "--max_cot_tokens", "4")
TINY = "n_layer=1,n_embd=32,n_head=2"
RECIPES = "configs/recipes/"
SMOLLM_FILES = ("outputs/smollm2", "data/gsm8k/train.txt", "data/gsm8k/valid.txt")  # `make smollm`; docs/training.md
SMOLLM_RUN = (
    *("--model_name_or_path", SMOLLM_FILES[0], "--train_file", SMOLLM_FILES[1], "--validation_file", SMOLLM_FILES[2]),
    *("--block_size", "384", "--drop_long", "--do_train", "--do_eval", "--bf16", "--num_train_epochs", "10"),
    *("--per_device_train_batch_size", "32", "--learning_rate", "1e-4", "--lr_scheduler_type", "cosine"),
    *("--warmup_steps", "0.03", "--max_cot_tokens", "128", "--max_new_tokens", "16", "--logging_steps", "10"),
)
SMOLLM_THOUGHT = ("--num_latent_tokens", "12", "--config_overrides", "num_iterations=3")
GRAPH = "graph"
TRAININGS = (
    Training(
        "multiplication-4x4-icot",
        "1.00; without a chain below 0.01 (arXiv 2405.14838)",
        ("run_icot.py", f"{RECIPES}multiplication-4x4_icot_gpt2-2x768.yaml", *CHECKPOINTS),
        (
            "--config_overrides",
            TINY,
            "--task_args",
            "digits=4,train=16,validation=4,test=4",
            *FEW_STEPS,
            "--partial_removal",
        ),
    ),
    Training(  # measures the explicit chain of the same weights too
        "graph-search",
        "latent about 0.99, explicit about 0.75 (arXiv 2505.12514)",
        ("run_ccot.py", f"{RECIPES}graph_pccot_gpt2-2x768.yaml", *CHECKPOINTS),
        (
            "--config_overrides",
            TINY,
            "--task_args",
            "symbols=1,train=16,validation=4,test=4",
            *FEW_STEPS,
            "--teacher_warmup_steps",
            "1",
        ),
        task(GRAPH),
    ),
    *(
        Training(f"smollm2-gsm8k-{way}", "–", (*command, *SMOLLM_RUN, *CHECKPOINTS), FEW_STEPS, files(*SMOLLM_FILES))
        for way, command in {
            "explicit": ("run_cot.py",),
            "none": ("run_cot.py", "--no_cot"),
            "pccot": ("run_ccot.py", *SMOLLM_THOUGHT),
        }.items()
    ),
)


def measure(part: Part):
    """A row per training. So many as `LEAST` allows share the time left in their order; what one leaves, the next have."""
    if missing := next((name for name in ("datasets", "peft", "accelerate", "yaml") if find_spec(name) is None), None):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
    (part.folder / "trainings").mkdir(exist_ok=True)
    waiting = [training for training in TRAININGS if training.lacks() is None]
    for training in TRAININGS:
        row = {"training": training.name, "published": training.published}
        if lacking := training.lacks():
            yield row | {"state": f"not run: needs {lacking}"}
            continue
        together = len(waiting) if part.rehearse else max(1, min(len(waiting), int(part.seconds_left / LEAST)))
        seconds = part.seconds_left / together - (2 if part.rehearse else SAVING)
        waiting.remove(training)
        yield row | (train(part, training, seconds) if seconds > 5 else {"state": "not run: out of time"})


def train(part: Part, training: Training, seconds: float) -> dict:
    """Start a training, or go on with it, and end it when its time is up."""
    place, began = part.folder / "trainings" / training.name, time.monotonic()
    if (place / RESULTS).is_file():
        return {"state": "finished in an earlier call"} | progress(place)
    script, *arguments = training.command
    command = [sys.executable, script, *arguments, "--output_dir", str(place), "--report_to", "none"]
    command += training.small if part.rehearse else ()
    resumed = any(place.glob("checkpoint-*"))
    command += ["--resume_from_checkpoint", "true"] if resumed else []
    log = place.with_name(f"{place.name}.log")
    grace = 5.0 if part.rehearse else SAVING
    code = run_logged(command, log, seconds, environment(part.rehearse), grace)
    row = {"seconds": round(time.monotonic() - began, 1), "resumed": resumed} | progress(place)
    if (place / RESULTS).is_file():
        return {"state": "finished"} | row
    if code is None and row["step"]:
        return {"state": f"out of time after step {row['step']}; the next call goes on"} | row
    if code is None:
        return {"state": "out of time before a checkpoint"} | row
    lines = log.read_text(errors="replace").strip().splitlines()
    return {"state": f"failed with exit code {code}: {lines[-1] if lines else ''}"[:300], "failed": True} | row


def progress(place: Path) -> dict:
    """The last step, the metrics of a finished run, and what was logged on the way: `(step, name, value)`."""
    states = sorted(place.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    if (place / "trainer_state.json").is_file():
        states.append(place / "trainer_state.json")
    state = json.loads(states[-1].read_text()) if states else {"global_step": 0, "max_steps": 0, "log_history": []}
    results = json.loads((place / RESULTS).read_text()) if (place / RESULTS).is_file() else {}
    curve = [
        (entry["step"], name, value)
        for entry in state["log_history"]
        for name, value in entry.items()
        if name == "loss" or (name.startswith("eval") and name.endswith("exact_match"))
    ]
    metrics = {name: value for name, value in results.items() if name.endswith("exact_match")}
    return {"step": state["global_step"], "of": state["max_steps"], "metrics": metrics, "curve": curve}


def figures(rows: list[dict]) -> list[str]:
    """One line per training."""
    lines = []
    for row in rows:
        parts = [f"{row['training']}: {row['state']}"]
        if row.get("step"):
            parts.append(f"step {row['step']} of {row['of']}")
        if row.get("curve"):
            latest = {name: value for _, name, value in row["curve"]}
            parts += [f"{name} {value:.3f}" for name, value in latest.items()]
        parts += [f"{name} {value:.4f}" for name, value in row.get("metrics", {}).items()]
        lines.append(", ".join(parts) + f" (published: {row['published']})")
    return lines


def plot(rows: list[dict]):
    figure, axes = panels(1, 2, width=5.5)
    for row in rows:
        curve = row.get("curve", [])
        for one, wanted in zip(axes, ("loss", "exact_match"), strict=True):
            for name in dict.fromkeys(name for _, name, _ in curve if name.endswith(wanted)):
                points = [(step, value) for step, found, value in curve if found == name]
                one.plot(*zip(*points, strict=True), marker=".", label=f"{row['training']}: {name}")
    for one, title in zip(axes, ("loss", "exact match in evaluation"), strict=True):
        one.set(xlabel="step", ylabel=title)
        if one.get_legend_handles_labels()[0]:
            one.legend(fontsize=7)
    return figure
