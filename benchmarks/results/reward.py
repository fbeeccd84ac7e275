"""Train an early chain model by reward, with one source of variety, until 0.995: steps and CPU seconds to 0.95 and to 0.99.

    python -m benchmarks.results.reward --source weights --strength 0.6 --seed 0   # one run: results/reward/weights-0.6-0.json
    python -m benchmarks.results.reward --pass_at --seed 0                         # of samples before training, every source
    python -m benchmarks.results.reward                                            # the tables of what is there

A run ends at 0.995 of 500 validation questions (asked every 25 steps), after 600 steps, or after 300 CPU seconds of one thread,
which count from the first evaluation on. Other flags are those of `run_grpo.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from latent_cot.commands.train_grpo import argument_classes
from latent_cot.training.cli import parse
from latent_cot.training.data.sources import load_splits
from latent_cot.training.trainers.reward import RewardTrainer
from latent_cot.training.trainers.rollout_noise import sources_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "reward"
STOPS = {0: 310, 1: 325, 2: 320}  # supervised steps: the first evaluation (every 5) that finds more than 0.6 right
EARLY = "run_ccot.py configs/recipes/chain_pccot_gpt2-2x64.yaml --lr_scheduler_type constant_with_warmup --use_cpu"
RECIPE = "configs/recipes/chain_grpo_gpt2-2x64.yaml --eval_steps 25 --eval_on_start --use_cpu --disable_tqdm true"
SAMPLES = 16
SOURCES = {"temperature": (1.0, 2.0), "latents": (0.3, 0.5), "dropout": (0.1, 0.2), "weights": (0.3, 0.6)}


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


def start(asked) -> tuple[RewardTrainer, dict]:
    """A trainer of a seed's early model, which is trained first where it is not there, and the splits."""
    early = asked.output_dir.resolve() / f"early-{asked.seed}"
    if not (early / "all_results.json").exists():
        words = f"{EARLY} --max_steps {STOPS[asked.seed]} --seed {asked.seed} --output_dir {early}".split()
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    flags = f"{RECIPE} --model_name_or_path {early} --seed {asked.seed} --output_dir {asked.output_dir / 'run'}"
    if asked.source == "temperature":
        flags += f" --temperature {asked.strength}"
    else:
        flags += f" --temperature 1 --rollout_noise {asked.source} --rollout_noise_strength {asked.strength}"
    model, reward, lora, data, evaluation, args = parse(argument_classes(), [*flags.split(), *asked.more])
    splits = load_splits(data, ("train", "validation", "test"), with_steps=False)
    rows = {"train_dataset": splits["train"], "eval_dataset": splits["validation"]}
    return RewardTrainer(model, args, **rows, reward=reward, lora=lora, evaluation=evaluation), splits


def train(asked) -> dict:
    trainer, splits = start(asked)
    trainer.add_callback(until := Until())
    trainer.train()
    test = trainer.evaluate(splits["test"], metric_key_prefix="test")["test_ccot_exact_match"]
    said = {name: getattr(asked, name) for name in ("source", "strength", "seed", "more")}
    return said | {"points": until.points, "test_exact_match": test}


@torch.no_grad()
def pass_at(asked) -> dict:
    """Of 500 validation questions, the share that one of the first k samples answers right."""
    found = {}
    for asked.source, asked.strength in [(name, strength) for name in SOURCES for strength in SOURCES[name]]:
        trainer, splits = start(asked)
        rows, model, tokenizer = splits["validation"], trainer.model.eval(), trainer.processing_class
        questions, golds = ([text for text in rows[name] for _ in range(SAMPLES)] for name in ("question", "answer"))
        prompts = tokenizer(questions, padding=True, return_tensors="pt")
        options = {"do_sample": True, "temperature": trainer.temperature, "top_k": 0, "max_new_tokens": 3}
        if trainer.reward.noise_options:
            options |= trainer.reward.noise_options | {"latent_sources": sources_of(questions, (asked.seed,))}
        torch.manual_seed(asked.seed)
        tokens = model.generate(**prompts, **options)[:, prompts["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        right = torch.tensor(trainer.reward_funcs[0](texts, golds)).view(-1, SAMPLES) == 1
        shares = {k: right[:, :k].any(dim=1).float().mean().item() for k in (1, 4, SAMPLES)}
        found[f"{asked.source} {asked.strength:g}"] = shares
    return {"seed": asked.seed, "pass_at": found}


def tables() -> None:
    print(
        "| source | flags | seed | before | steps, CPU s to 0.95 | steps, CPU s to 0.99 | at the end | after (test) |"
    )
    print("|---" * 8 + "|")
    for path in sorted(RESULTS.glob("*-*-*.json")):
        run = json.loads(path.read_text())
        points = run["points"]
        reached = [next((point[:2] for point in points if point[2] >= level), None) for level in (0.95, 0.99)]
        words = ["not reached" if at is None else f"{at[0]}, {at[1]:.0f}" for at in [*reached, points[-1]]]
        words = [f"{run['source']} {run['strength']:g}", " ".join(run["more"]), run["seed"], points[0][2], *words]
        print("|", *(f"{word} |" for word in [*words, run["test_exact_match"] or "not asked"]))
    for path in sorted(RESULTS.glob("pass_at_*.json")):
        print(json.loads(path.read_text()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=SOURCES)
    parser.add_argument("--strength", type=float, help="of the noise; of the temperature, itself")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", default="", help="for the file's name, where flags of run_grpo.py are given")
    parser.add_argument("--pass_at", action="store_true")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "reward")
    asked, asked.more = parser.parse_known_args()
    if asked.source is None and not asked.pass_at:
        return tables()
    torch.set_num_threads(1)
    name = f"pass_at_{asked.seed}" if asked.pass_at else f"{asked.source}{asked.label}-{asked.strength:g}-{asked.seed}"
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(pass_at(asked) if asked.pass_at else train(asked)) + "\n")


if __name__ == "__main__":
    main()
