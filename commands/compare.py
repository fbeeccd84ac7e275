"""Train and evaluate several methods on one's own data, from several seeds, and say which is better.

    latent-cot compare --train_file train.jsonl --validation_file valid.jsonl --test_file test.jsonl
    latent-cot compare --dataset_name chain --methods cot,pccot --seeds 0,1 --output_dir outputs/chain
    latent-cot compare --model_name_or_path gpt2 --dataset_name whynlp/gsm8k-aug --dry_run       # print the plan alone

Every flag of the training commands is handed on to the methods that know it. The same command again goes on where it was cut.
"""

import gc
import json
import shlex
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path

from accelerate import PartialState
from tqdm import tqdm
from transformers import TrainerCallback

from latent_cot.analysis.plots import plot_comparison
from latent_cot.analysis.recorded_runs import (
    interval,
    markdown_table,
    measured_values,
    paired_test,
    records,
    write_record,
)
from latent_cot.answer_modes import DIRECT, EXPLICIT, INTERNALIZED, LATENT
from latent_cot.training.errors import Interrupted
from latent_cot.training.resume.find_checkpoint import fault_of, newest_first
from latent_cot.training.runs.comparison import Method, Plan, make_plan
from latent_cot.training.runs.script import run_script
from latent_cot.training.runs.stages import public_path, remove_checkpoints
from latent_cot.training.trainers.cot import CoTTrainer
from latent_cot.training.trainers.icot import ICoTTrainer
from latent_cot.training.trainers.pccot import PCCoTTrainer

from . import train_cot, train_icot, train_pccot

METHODS = {
    "cot": Method("train cot", train_cot.ARGUMENTS, CoTTrainer, EXPLICIT, ("--no_cot=false",)),
    "none": Method("train cot", train_cot.ARGUMENTS, CoTTrainer, DIRECT, ("--no_cot=true",)),
    "pccot": Method("train pccot", train_pccot.ARGUMENTS, PCCoTTrainer, LATENT, ("--explicit_cot=false",)),
    "icot": Method("train icot", train_icot.ARGUMENTS, ICoTTrainer, INTERNALIZED, ("--explicit_cot=false",)),
}
PAGE = """# Methods on {data}

Exact match of greedy answers to {questions} test questions, which chose nothing. The interval is the wider, at each end, of Student's t over
the seeds and Wilson's over the questions. `a : b` are the questions that the method answers rightly with more seeds than `{first}`, and with
fewer; p is the exact two-sided sign test on them (one seed: McNemar's test). Times are of the computer it ran on.

{table}

![exact match of the methods](comparison.png)

## What was run

```
{command}
```

```
{plan}
```

Each record (`METHOD/seed-N.json`) holds its command, which answers were right, and the versions ({versions}). The settings are these, with
`--seed` and `--output_dir`:

```
{commands}
```

To cite: latent-cot {version}, `latent-cot compare`, data {digest}.
"""
COLUMNS = ["method", "seeds", "exact match, mean", "95 % interval", "range", "training, s", "tokens"]


def main(argv: list[str]) -> Path | None:
    """Run with command line arguments (see `--help`); returns the page, or None for a plan alone."""
    plan = make_plan(argv, METHODS)
    pending, writes = plan.pending(), PartialState().is_main_process
    if writes:
        print("\n".join(f"{heading:<11}{text}" for heading, text in plan.lines), flush=True)
    if plan.dry_run:
        return None
    if writes:
        plan.keep()
    PartialState().wait_for_everyone()
    total = sum(plan.steps[name] for _, name in pending)
    with tqdm(total=total, unit="step", smoothing=0.05, disable=not writes) as bar:
        for number, (seed, name) in enumerate(pending, 1):
            bar.set_description(f"{name}, seed {seed} ({number} of {len(pending)})")
            row = run(plan, name, seed, bar)
            if writes:
                write_record(plan.record_of(name, seed), row)
                remove_checkpoints(plan.record_of(name, seed).with_suffix(""))
                bar.write(f"{name}, seed {seed}: {row['exact_match']:.4f} ({row['low']:.4f} to {row['high']:.4f})")
            gc.collect()  # a trainer holds itself
    return write_page(plan, shlex.join(["latent-cot", "compare", *map(public_path, argv)])) if writes else None


def run(plan: Plan, name: str, seed: int, bar: tqdm) -> dict:
    """Train and measure one run, or go on with it; what its record holds, in the process that writes. What it prints goes to a log."""
    method, folder = METHODS[name], plan.record_of(name, seed).with_suffix("")
    whole = any(fault_of(place, decodes) is None for place in newest_first(folder) for decodes in (False, True))
    resume = "--resume_from_checkpoint=true" if whole else "--overwrite_output_dir=true"
    flags = [*plan.argv[name], f"--seed={seed}"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        folder.with_suffix(".log").open("a", buffering=1, encoding="utf-8") as log,
        redirect_stdout(log),
        one_command(),
    ):
        argv = [*flags, f"--output_dir={folder}", resume]
        metrics = run_script(method.arguments, watched(method.trainer, bar), argv)
    if not PartialState().is_main_process:
        return {}
    answered = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    right = [str(int(row[f"{method.mode.name}_right"])) for row in answered if row["split"] == "test"]
    removed = [metrics.get(f"test_icot_{part}_tokens") for part in ("removed", "chain")]
    command = shlex.join(["latent-cot", *method.command.split(), *map(public_path, flags)])
    row = {"method": name, "seed": seed, "command": command, "data": plan.digest}
    row |= measured_values(metrics, method.mode.name)
    row |= {"train_seconds": None} if whole else {}  # they would be of the last part
    return row | {"removed": None if None in removed else removed, "right": "".join(right)}


@contextmanager
def one_command() -> Iterator[None]:
    """A run that is told to end says how all of it goes on."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(error.signum, "a checkpoint is saved; the same command goes on from there") from None


def watched(trainer: type[CoTTrainer], bar: tqdm) -> type[CoTTrainer]:
    """A trainer that moves the bar."""

    class Watched(trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, callbacks=[Progress(bar)], **kwargs)

    return Watched


class Progress(TrainerCallback):
    """Moves a bar whose total are the steps of all runs; steps that are not made are none of them."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar.total -= state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.total -= state.max_steps - state.global_step  # of a run that stopped early


def write_page(plan: Plan, command: str) -> Path:
    """Table, plot and page of what is recorded of the plan's methods; prints the table."""
    held = records(plan.folder, plan.argv)
    # With --drop_long a method may not have answered all, and then no question is known to be another method's.
    right = {
        name: {row["seed"]: row["right"] for row in rows if len(row["right"]) == plan.questions}
        for name, rows in held.items()
    }
    first, labels, rates, intervals, cells = next(iter(held)), [], [], [], []
    for name, rows in held.items():
        rates.append([row["exact_match"] for row in rows])
        intervals.append(interval(rates[-1], plan.questions))
        parts = sorted({"{} of {}".format(*row["removed"]) for row in rows if row["removed"]})
        labels.append(METHODS[name].mode.partly(" and ".join(parts) or None).label)
        test = None if name == first else paired_test(right[first], right[name])
        seconds = [row["train_seconds"] for row in rows if row["train_seconds"] is not None]
        row = [f"{labels[-1]} (`{name}`)", str(len(rows)), f"{statistics.mean(rates[-1]):.4f}"]
        row += [f"{low:.4f} to {high:.4f}" for low, high in (intervals[-1], (min(rates[-1]), max(rates[-1])))]
        row += ["" if test is None else "{1} : {0}, p = {2:.2g}".format(*test)]
        row += [f"{statistics.median(seconds):.0f}" if seconds else ""]
        cells.append([*row, f"{statistics.mean(row['new_tokens'] for row in rows):.1f}"])
    table = "\n".join(markdown_table([*COLUMNS[:5], f"against `{first}`", *COLUMNS[5:]], cells))
    plot_comparison(labels, rates, intervals, plan.folder / "comparison.png")
    lines = "\n".join(f"{heading:<11}{text}" for heading, text in plan.lines[1:])
    commands = "\n".join(f"# {name}\n{rows[0]['command']}" for name, rows in held.items())
    versions = ", ".join(" ".join(pair) for pair in held[first][0]["versions"].items())
    said = {
        "data": plan.data,
        "questions": plan.questions,
        "digest": plan.digest[:16],
        "version": version("latent-cot"),
    }
    said |= {"first": first, "table": table, "command": command, "plan": lines, "commands": commands}
    page = plan.folder / "comparison.md"
    page.write_text(PAGE.format(**said, versions=versions), encoding="utf-8")
    print(f"{table}\n\n{page}")
    return page
