"""Train an early model by reward, with one source of variety, until 0.995: steps and CPU seconds to 0.95 and to 0.99.

    python -m benchmarks.results.reward --source weights --strength 0.6 --seeds 0   # one run: results/reward/chain/weights-0.6-0.json
    python -m benchmarks.results.reward --task affine --source latents --strength 0.3
    python -m benchmarks.results.reward --source weights --strength 0.6 --seeds 0 --of samples   # pass@k before it
    python -m benchmarks.results.reward --tables                                    # the tables of what is there

Its supervised training ends at the first evaluation (every 5 steps) that finds more than 0.6 of 500 validation questions right.
A run ends at 0.995 of them (asked every 25 steps), after 600 steps, or after 300 CPU seconds of one thread, which count from
the first evaluation on. With `--label`, other flags are those of `run_grpo.py`.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import TrainerCallback

import run_ccot
from latent_cot.analysis.recorded_runs import markdown_table
from latent_cot.training import PCCoTTrainer
from latent_cot.training.cli import read_recipe

from . import runs

RECIPES = {  # of the supervised training, and flags
    "chain": "chain_pccot_gpt2-2x64",
    "chain-off": "chain_pccot_gpt2-2x64 --scale_latents false",
    "chain6": "chain6_pccot_gpt2-2x64",
    "affine": "affine_pccot_gpt2-2x64",
}
EARLY = "--loss_delta 1 --lr_scheduler_type constant_with_warmup --use_cpu --explicit_cot false --eval_steps 5"
REWARD = "configs/recipes/chain_grpo_gpt2-2x64.yaml --eval_steps 25 --eval_on_start --use_cpu"
SAMPLES = 16
PASS_AT = tuple(f"pass@{k}" for k in (1, 4, SAMPLES))
SOURCES = ("temperature", "latents", "dropout", "weights")
LEVELS = (0.95, 0.99)
COLUMNS = ["task", "source", "seeds", "before", "steps to 0.95", "CPU s", "steps to 0.99", "CPU s", "after (test)"]


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


class Early(PCCoTTrainer):
    """Ends at the first evaluation that finds more than 0.6 right."""

    def evaluate(self, *args, **kwargs):
        metrics = super().evaluate(*args, **kwargs)
        self.control.should_training_stop |= metrics.get("eval_ccot_exact_match", 0) > 0.6
        return metrics


def early() -> None:
    run_ccot.main(sys.argv[1:], Early)


def start() -> tuple:
    """The trainer that the arguments of `run_grpo.py` describe, and the splits."""
    from latent_cot.commands.train_grpo import argument_classes
    from latent_cot.training.cli import parse
    from latent_cot.training.data.sources import load_splits
    from latent_cot.training.trainers.reward import RewardTrainer

    model, reward, lora, data, evaluation, args = parse(argument_classes(), sys.argv[1:])
    splits = load_splits(data, ("train", "validation", "test"), with_steps=False)
    rows = {"train_dataset": splits["train"], "eval_dataset": splits["validation"]}
    return RewardTrainer(model, args, **rows, reward=reward, lora=lora, evaluation=evaluation), splits


def leave(folder: str, found: dict) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "all_results.json").write_text(json.dumps(found))


def train() -> None:
    """`run_grpo.py` until then; leaves the points and the exact match on the test split as its metrics."""
    trainer, splits = start()
    trainer.add_callback(until := Until())
    trainer.train()
    test = trainer.evaluate(splits["test"], metric_key_prefix="test")["test_ccot_exact_match"]
    leave(trainer.args.output_dir, {"points": until.points, "test_exact_match": test})


@torch.no_grad()
def pass_at() -> None:
    """Before any training: of the validation questions the share that one of the first k samples answers right."""
    from latent_cot.training.trainers.rollout_noise import sources_of

    trainer, splits = start()
    rows, model, tokenizer = splits["validation"], trainer.model.eval(), trainer.processing_class
    questions, golds = ([text for text in rows[name] for _ in range(SAMPLES)] for name in ("question", "answer"))
    options = {"do_sample": True, "temperature": trainer.temperature, "top_k": 0, "max_new_tokens": 3}
    if trainer.reward.noise_options:
        options |= trainer.reward.noise_options
        options["latent_sources"] = sources_of(questions, (trainer.args.seed,))
    prompts = tokenizer(questions, padding=True, return_tensors="pt")
    torch.manual_seed(trainer.args.seed)
    tokens = model.generate(**prompts, **options)[:, prompts["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    right = torch.tensor(trainer.reward_funcs[0](texts, golds)).view(-1, SAMPLES) == 1
    shares = {name: right[:, : int(name[5:])].any(dim=1).float().mean().item() for name in PASS_AT}
    leave(trainer.args.output_dir, shares)


def call(function: Callable) -> list[str]:
    return ["-c", f"from benchmarks.results.reward import {function.__name__} as of; of()"]


def runs_of(
    task: str, source: str, strength: float, seed: int, of: str, label: str | None = None, more: Sequence[str] = ()
) -> list[runs.Run]:
    name, *flags = RECIPES[task].split()
    path = f"configs/recipes/{name}.yaml"
    recipe = read_recipe(runs.ROOT / path)
    words = [path, *EARLY.split(), "--eval_delay", str(recipe["teacher_warmup_steps"]), *flags, "--seed", str(seed)]
    before = runs.Run(f"early/{task}/{seed}", [*call(early), *words])
    noise = f"--temperature 1 --rollout_noise {source} --rollout_noise_strength {strength}"
    noise = f"--temperature {strength}" if source == "temperature" else noise
    data = ["--dataset_name", recipe["dataset_name"], "--task_args", recipe["task_args"]]
    function = {"training": train, "samples": pass_at}[of]
    words = [*call(function), *REWARD.split(), *data, *noise.split(), "--seed", str(seed), *more]
    about = {"task": task, "source": source, "strength": strength, "seed": seed, "more": list(more)}
    folder = f"reward/{task}" if of == "training" else f"reward/{task}/samples"
    return [runs.Run(f"{folder}/{source}{label or ''}-{strength:g}-{seed}", words, about, measured, before)]


def measured(metrics: dict) -> dict:
    return {name: metrics[name] for name in ("points", "test_exact_match", *PASS_AT) if name in metrics}


def tables() -> list[str]:
    """What is recorded of trainings, and of samples before them: a row per task and source, from the lowest to the highest seed."""
    trained, sampled = [], []
    for place, runs_there in grouped("reward/*/*-*-*"):
        points = [run["points"] for run in runs_there]
        cells = [span([of_one[0][2] for of_one in points])]
        for level in LEVELS:
            reached = [next((point for point in of_one if point[2] >= level), (None, None)) for of_one in points]
            cells += [span([at[0] for at in reached]), span([at[1] and round(at[1]) for at in reached])]
        trained.append([*place, str(len(points)), *cells, span([run["test_exact_match"] for run in runs_there])])
    for place, runs_there in grouped("reward/*/samples/*-*-*"):
        shares = [span([round(run[name], 3) for run in runs_there]) for name in PASS_AT]
        sampled.append([*place, str(len(runs_there)), *shares])
    lines = markdown_table(COLUMNS, trained), markdown_table(["task", "source", "seeds", *PASS_AT], sampled)
    return ["\n".join(table) for table in lines]


def grouped(pattern: str) -> list[tuple[list[str], list[dict]]]:
    """Recorded runs by task and source, in this order."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for run in runs.recorded(pattern):
        groups.setdefault((run["task"], f"{run['source']} {run['strength']:g}"), []).append(run)
    return [(list(place), groups[place]) for place in sorted(groups)]


def span(values: Sequence[float | None]) -> str:
    """Lowest and highest; how many there are, if not all."""
    known = sorted(value for value in values if value is not None)
    text = " to ".join(dict.fromkeys((str(known[0]), str(known[-1])))) if known else "none"
    return text if len(known) in (0, len(values)) else f"{text} ({len(known)} of {len(values)})"


def show() -> None:
    print("\n\n".join(tables()))


AXES = {
    "task": (RECIPES, ["chain"]),
    "source": (SOURCES, ["temperature"]),
    "strength": ((), [2.0]),
    "seeds": ((), range(3)),
    "of": (("training", "samples"), ["training"]),
}

if __name__ == "__main__":
    runs.command_line(__doc__, AXES, runs_of, show, takes_flags=True)
