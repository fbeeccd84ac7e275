#!/usr/bin/env python
"""Train a small model to think in latent tokens, on one CPU core in a few minutes, and compare.

    python demo.py                    # what `make demo` runs
    python demo.py --seed 3           # further flags go to both trainings (run_ccot.py --help)

Two models are trained from random weights on chains of arithmetic (tasks/chain.py): one with PCCoT (recipe
chain_pccot_gpt2-2x64), one of the same size without any chain of thought. Then each question of the test split is
answered in every way, and the accuracy against the number of iterations is plotted.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from latent_cot import tasks
from latent_cot.analysis.evaluation import Answers, answer_questions, wilson_interval
from latent_cot.answer_modes import DIRECT, EXPLICIT, LATENT
from latent_cot.commands import train_cot, train_pccot
from latent_cot.training.cli import read_recipe, run

ROOT = Path(__file__).resolve().parent
LATENT_RECIPE, DIRECT_RECIPE = (
    ROOT / "configs" / "recipes" / f"chain_{method}_gpt2-2x64.yaml" for method in ("pccot", "nocot")
)
TIMED_QUESTIONS = 200


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def measure(model, tokenizer, examples: list[dict], mode: str, **options) -> tuple[float, float]:
    """Exact match over all examples in one answer mode, and the median milliseconds of an answer to one question."""
    questions = [example["question"] for example in examples]
    answers: Answers = answer_questions(model, tokenizer, questions, mode=mode, batch_size=250, **options)
    accuracy = answers.metrics(mode, [example["answer"] for example in examples])[f"{mode}_exact_match"]
    alone = [
        answer_questions(model, tokenizer, [question], mode=mode, batch_size=1, **options).seconds
        for question in questions[:TIMED_QUESTIONS]
    ]
    return accuracy, 1000 * statistics.median(alone)


def plot(path: Path, by_iterations: dict[int, float], cot: float, no_cot: float, total: int):
    """Accuracy against T, with the explicit chain and no chain as lines."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    iterations, accuracies = list(by_iterations), list(by_iterations.values())
    bounds = [wilson_interval(round(accuracy * total), total) for accuracy in accuracies]
    errors = [
        [max(0, accuracy - low) for accuracy, (low, _) in zip(accuracies, bounds, strict=True)],
        [max(0, high - accuracy) for accuracy, (_, high) in zip(accuracies, bounds, strict=True)],
    ]
    axes.axhline(cot, color="tab:green", linestyle="--", label=f"explicit chain of thought ({cot:.3f})")
    axes.axhline(no_cot, color="tab:red", linestyle=":", label=f"no chain of thought ({no_cot:.3f})")
    axes.errorbar(iterations, accuracies, yerr=errors, marker="o", capsize=3, label="latent thought (PCCoT)")
    axes.set(xlabel="Jacobi iterations T", ylabel="exact match", ylim=(0, 1.03), xticks=iterations)
    axes.legend(loc="center right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str]) -> list[tuple[str, float, float]]:
    """Train, measure, print, plot; returns the table's rows (answered after, exact match, milliseconds)."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "demo")
    known, argv = parser.parse_known_args(argv)
    folder, argv = known.output_dir, ["--overwrite_output_dir", *argv]

    torch.set_num_threads(1)  # more are no faster at this size, and wait for each other where anything else runs
    started = time.perf_counter()
    print("1/3  PCCoT: the teacher alone first, then teacher and student together")
    latent_metrics = train_pccot.main([str(LATENT_RECIPE), "--output_dir", str(folder / "pccot"), *argv])
    print("2/3  the same model without a chain of thought")
    train_cot.main([str(DIRECT_RECIPE), "--output_dir", str(folder / "no-cot"), *argv])

    print("3/3  the test split, answered in every way")
    recipe = read_recipe(LATENT_RECIPE)
    examples = tasks.generate(recipe["dataset_name"], recipe["task_args"])["test"]
    thinker, tokenizer = load(folder / "pccot")
    direct, direct_tokenizer = load(folder / "no-cot")
    limits = {"max_new_tokens": recipe["max_cot_tokens"]}
    cot = measure(thinker, tokenizer, examples, EXPLICIT.name, **limits)
    no_cot = measure(direct, direct_tokenizer, examples, DIRECT.name, **limits)
    latent = {
        iterations: measure(thinker, tokenizer, examples, LATENT.name, num_iterations=iterations, **limits)
        for iterations in range(2 * thinker.config.num_latent_tokens + 1)
    }
    rows = [(EXPLICIT.label, *cot), (DIRECT.label, *no_cot)]
    rows += [(f"{LATENT.label}, T = {iterations}", *result) for iterations, result in latent.items()]

    config = thinker.config
    told = "The latents were" if config.loss_delta else "No latent was"
    print(
        f"\n{len(examples)} unseen questions such as {examples[0]['question']} (mod 10); {config.n_layer} layers, width "
        f"{config.n_embd}, c = {config.num_latent_tokens} latent tokens.\n{told} told which step to stand for; "
        f"{recipe['teacher_warmup_steps']} teacher-only steps, steps that open with <bot>.\n"
    )
    print(f"{'answered after':28} {'exact match':>11} {'ms per answer':>14}")
    for name, accuracy, milliseconds in rows:
        print(f"{name:28} {accuracy:11.3f} {milliseconds:14.1f}")
    plot(
        folder / "accuracy_against_T.png",
        {iterations: accuracy for iterations, (accuracy, _) in latent.items()},
        cot[0],
        no_cot[0],
        len(examples),
    )
    (folder / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"\nplot: {folder / 'accuracy_against_T.png'}")
    asked = examples[:3]
    answers = answer_questions(thinker, tokenizer, [example["question"] for example in asked], batch_size=3, **limits)
    for example, answer in zip(asked, answers.answers, strict=True):
        print(f"{example['question']}  ->  {answer}   (right: {example['answer']})")
    seconds = time.perf_counter() - started
    print(f"\n{seconds / 60:.1f} minutes, of which training PCCoT {latent_metrics['train_runtime'] / 60:.1f}.")
    print(f"Ask it yourself: python example.py --model {folder / 'pccot'} '1+2*3-4+5='")
    return rows


if __name__ == "__main__":
    transformers_logging.disable_progress_bar()
    run(main)
