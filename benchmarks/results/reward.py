"""Train a chain model that was stopped early by reward, with one source of variety, until 0.995: steps and CPU seconds to 0.95, 0.99.

    python -m benchmarks.results.reward --source weights --strength 0.6 --seed 0    # one run: results/reward/weights-0.6-0.json
    python -m benchmarks.results.reward --pass_at --seed 0                          # of samples before training, every source
    python -m benchmarks.results.reward                                             # the table of what is there

A run ends at 0.995 of 500 validation questions (asked every 25 steps), after 600 steps, or after 300 CPU seconds of one thread.
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
STOPS = {0: 310, 1: 325, 2: 310}  # supervised steps: the last evaluation (every 5) that finds at most 0.62 right
EARLY = "run_ccot.py configs/recipes/chain_pccot_gpt2-2x64.yaml --lr_scheduler_type constant_with_warmup --use_cpu"
RECIPE = "configs/recipes/chain_grpo_gpt2-2x64.yaml --eval_steps 25 --eval_on_start --use_cpu --disable_tqdm true"
SAMPLES = 16
SOURCES = [
    ("temperature", 1.0),
    ("temperature", 2.0),
    ("latents", 0.3),
    ("latents", 0.5),
    ("dropout", 0.1),
    ("dropout", 0.2),
]
SOURCES += [("weights", 0.3), ("weights", 0.6)]


class Until(TrainerCallback):
    """Notes step, CPU seconds and exact match of every evaluation, and ends the training."""

    def __init__(self):
        self.points, self.start = [], time.process_time()

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        right, seconds = metrics["eval_ccot_exact_match"], time.process_time() - self.start
        self.points.append((state.global_step, round(seconds, 1), right))
        print(*self.points[-1], flush=True)
        control.should_training_stop = right >= 0.995 or seconds > 300


def start(asked) -> tuple[RewardTrainer, dict]:
    """A trainer of the early model of a seed, which is trained first where it is not there."""
    early = asked.output_dir.resolve() / f"early-{asked.seed}"
    if not (early / "all_results.json").exists():
        words = [
            *EARLY.split(),
            "--max_steps",
            str(STOPS[asked.seed]),
            "--seed",
            str(asked.seed),
            "--output_dir",
            str(early),
        ]
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    flags = [
        *RECIPE.split(),
        "--model_name_or_path",
        str(early),
        "--seed",
        str(asked.seed),
        "--rollout_noise",
        asked.source,
    ]
    flags += ["--temperature", str(asked.strength if asked.source == "temperature" else asked.temperature)]
    flags += [] if asked.source == "temperature" else ["--rollout_noise_strength", str(asked.strength)]
    model, reward, lora, data, evaluation, args = parse(
        argument_classes(), [*flags, "--output_dir", str(asked.output_dir / "run"), *asked.more]
    )
    splits = load_splits(data, ("train", "validation", "test"), with_steps=False)
    given = {f"{name}_dataset": splits[split] for name, split in (("train", "train"), ("eval", "validation"))}
    return RewardTrainer(model, args, **given, reward=reward, lora=lora, evaluation=evaluation), splits


def train(asked) -> dict:
    trainer, splits = start(asked)
    until = Until()
    trainer.add_callback(until)
    trainer.train()
    test = trainer.evaluate(splits["test"], metric_key_prefix="test")["test_ccot_exact_match"]
    return vars(asked) | {"output_dir": None, "points": until.points, "test_exact_match": test}


@torch.no_grad()
def pass_at(asked) -> dict:
    """Of 500 validation questions, those answered right by one of the first k samples (token temperature 1 but for its own)."""
    found = {}
    for asked.source, asked.strength in SOURCES:
        trainer, splits = start(asked)
        rows, model, tokenizer = splits["validation"], trainer.model.eval(), trainer.processing_class
        questions = [question for question in rows["question"] for _ in range(SAMPLES)]
        prompts = tokenizer(questions, padding=True, return_tensors="pt")
        noise = trainer.reward.noise_options
        noise = noise and noise | {"latent_sources": sources_of(questions, (asked.seed,))}
        torch.manual_seed(asked.seed)
        options = {"do_sample": True, "temperature": trainer.temperature, "top_k": 0, "max_new_tokens": 3}
        tokens = model.generate(**prompts, **noise, **options)[:, prompts["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        golds = [gold for gold in rows["answer"] for _ in range(SAMPLES)]
        right = torch.tensor(trainer.reward_funcs[0](texts, golds)).view(-1, SAMPLES) == 1
        found[f"{asked.source} {asked.strength}"] = {
            k: right[:, :k].any(dim=1).float().mean().item() for k in (1, 4, SAMPLES)
        }
    return {"seed": asked.seed, "pass_at": found}


def table() -> None:
    print(
        "| source | strength | also | seed | before | steps, CPU s to 0.95 | steps, CPU s to 0.99 | steps, CPU s | after (test) |"
    )
    print("|---" * 9 + "|")
    for path in sorted(RESULTS.glob("*-*-*.json")):
        run = json.loads(path.read_text())
        reached = [
            next((f"{step}, {seconds:.0f}" for step, seconds, right in run["points"] if right >= level), "not reached")
            for level in (0.95, 0.99)
        ]
        ended = "{}, {:.0f}".format(*run["points"][-1][:2])
        words = [run["source"], run["strength"], run["label"], run["seed"], run["points"][0][2], *reached, ended]
        print("|", *(f"{word} |" for word in [*words, run["test_exact_match"]]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=sorted({name for name, _ in SOURCES}))
    parser.add_argument("--strength", type=float, help="of the noise; of the temperature, itself")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the tokens, beside noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", default="", help="what else is different, for the file's name")
    parser.add_argument("--pass_at", action="store_true")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "reward")
    asked, asked.more = parser.parse_known_args()
    if asked.source is None and not asked.pass_at:
        return table()
    torch.set_num_threads(1)
    name = f"pass_at_{asked.seed}" if asked.pass_at else f"{asked.source}{asked.label}-{asked.strength:g}-{asked.seed}"
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = pass_at(asked) if asked.pass_at else train(asked)
    (RESULTS / f"{name}.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
