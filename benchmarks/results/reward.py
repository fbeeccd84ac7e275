"""Train an early chain model by reward, with one source of variety, until 0.995: steps and CPU seconds to 0.95 and to 0.99.

    python -m benchmarks.results.reward --source weights --strength 0.6 --seeds 0   # one run: results/reward/weights-0.6-0.json
    python -m benchmarks.results.reward --tables                                    # the table of what is there

A run ends at 0.995 of 500 validation questions (asked every 25 steps), after 600 steps, or after 300 CPU seconds of one thread,
which count from the first evaluation on. With `--label`, other flags are those of `run_grpo.py`.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback

from latent_cot.analysis.recorded_runs import markdown_table

from . import runs

STOPS = {0: 310, 1: 325, 2: 320}  # supervised steps: the first evaluation (every 5) that finds more than 0.6 right
EARLY = "run_ccot.py configs/recipes/chain_pccot_gpt2-2x64.yaml --lr_scheduler_type constant_with_warmup --use_cpu"
RECIPE = "configs/recipes/chain_grpo_gpt2-2x64.yaml --eval_steps 25 --eval_on_start --use_cpu"
SOURCES = ("temperature", "latents", "dropout", "weights")
COLUMNS = ["source", "flags", "seed", "before", "steps, CPU s to 0.95", "steps, CPU s to 0.99"]
COLUMNS += ["at the end", "after (test)"]


class Until(TrainerCallback):
    """Notes step, CPU seconds and exact match of every evaluation, and ends the training."""

    def __init__(self):
        self.points, self.start = [], time.process_time()

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        right, seconds = metrics.get("eval_ccot_exact_match"), time.process_time() - self.start
        if right is not None:  # of the test questions there is none
            self.points.append((state.global_step, round(seconds, 1), right))
            print(*self.points[-1], flush=True)
            control.should_training_stop |= right >= 0.995 or seconds > 300


def train() -> None:
    """`run_grpo.py` until then; leaves the points and the exact match on the test split as its metrics."""
    from latent_cot.commands.train_grpo import argument_classes
    from latent_cot.training.cli import parse
    from latent_cot.training.data.sources import load_splits
    from latent_cot.training.trainers.reward import RewardTrainer

    model, reward, lora, data, evaluation, args = parse(argument_classes(), sys.argv[1:])
    splits = load_splits(data, ("train", "validation", "test"), with_steps=False)
    rows = {"train_dataset": splits["train"], "eval_dataset": splits["validation"]}
    trainer = RewardTrainer(model, args, **rows, reward=reward, lora=lora, evaluation=evaluation)
    trainer.add_callback(until := Until())
    trainer.train()
    test = trainer.evaluate(splits["test"], metric_key_prefix="test")["test_ccot_exact_match"]
    found = {"points": until.points, "test_exact_match": test}
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    (Path(args.output_dir) / "all_results.json").write_text(json.dumps(found))


def runs_of(
    source: str, strength: float, seed: int, label: str | None = None, more: Sequence[str] = ()
) -> list[runs.Run]:
    noise = f"--temperature 1 --rollout_noise {source} --rollout_noise_strength {strength}"
    flags = f"--temperature {strength}" if source == "temperature" else noise
    words = ["-c", "from benchmarks.results.reward import train; train()", *RECIPE.split(), *flags.split()]
    about = {"source": source, "strength": strength, "seed": seed, "more": list(more)}
    early = runs.Run(f"early/{STOPS[seed]}-{seed}", f"{EARLY} --max_steps {STOPS[seed]} --seed {seed}".split())
    name = f"reward/{source}{label or ''}-{strength:g}-{seed}"
    return [runs.Run(name, [*words, "--seed", str(seed), *more], about, measured, early)]


def measured(metrics: dict) -> dict:
    return {name: metrics[name] for name in ("points", "test_exact_match")}


def show() -> None:
    cells = []
    for run in runs.recorded("reward/*-*-*"):
        points = run["points"]
        reached = [next((point[:2] for point in points if point[2] >= level), None) for level in (0.95, 0.99)]
        words = ["not reached" if at is None else f"{at[0]}, {at[1]:.0f}" for at in [*reached, points[-1]]]
        words = [f"{run['source']} {run['strength']:g}", " ".join(run["more"]), run["seed"], points[0][2], *words]
        cells.append(list(map(str, [*words, run["test_exact_match"] or "not asked"])))
    print("\n".join(markdown_table(COLUMNS, cells)))


AXES = {"source": (SOURCES, ["temperature"]), "strength": ((), [2.0]), "seeds": (STOPS, STOPS)}

if __name__ == "__main__":
    runs.command_line(__doc__, AXES, runs_of, show, takes_flags=True)
