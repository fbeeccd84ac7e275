"""How many passes questions of different depth take under `latent_tolerance`, and how many are right: a Markdown table.

python run_ccot.py configs/recipes/chain-mixed_pccot-range_gpt2-2x64.yaml
python -m benchmarks.results.tolerance --model outputs/pccot-chain-mixed
python -m benchmarks.results.tolerance --model checkpoints/pccot-gpt2-chain --recipe configs/recipes/chain_pccot_gpt2-2x64.yaml
"""

import argparse
import statistics
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import latent_cot  # noqa: F401  registers the model types
from latent_cot import tasks
from latent_cot.analysis.evaluation import answer_questions, same_answer
from latent_cot.analysis.recorded_runs import markdown_table
from latent_cot.training.cli import read_recipe

from . import runs

RECIPE = runs.ROOT / "configs" / "recipes" / "chain-mixed_pccot-range_gpt2-2x64.yaml"
TOLERANCES = (None, 0.03, 0.1, 0.3, 0.5, 0.7, 1, 3)


def measure(model, tokenizer, examples: list[dict], tolerance: float | None) -> list[tuple[int, int, bool]]:
    """Of each example, asked by itself: how many steps it has, passes after pass 0, and whether the answer is right."""
    calls: list[int] = []
    handle = model.base_model.h[0].register_forward_pre_hook(lambda *_: calls.append(1))
    found = []
    for example in examples:
        calls.clear()
        options = {"batch_size": 1, "max_new_tokens": 4, "latent_tolerance": tolerance}
        given = answer_questions(model, tokenizer, [example["question"]], **options)
        passes = len(calls) - given.new_tokens  # pass 0 and the answer's later tokens do not count
        found.append((len(example["steps"]), passes, same_answer(given.answers[0], example["answer"])))
    handle.remove()
    return found


def table(model, tokenizer, examples: list[dict]) -> str:
    depths = sorted({len(example["steps"]) for example in examples})
    cells = []
    for tolerance in TOLERANCES:
        found = measure(model, tokenizer, examples, tolerance)
        _, passes, right = (statistics.mean(values) for values in zip(*found, strict=True))
        cells.append(["off" if tolerance is None else str(tolerance), f"{right:.3f}", f"{passes:.2f}"])
        for depth in depths:
            _, passes, right = (
                statistics.mean(v) for v in zip(*(one for one in found if one[0] == depth), strict=True)
            )
            cells[-1].append(f"{passes:.2f} ({right:.3f})")
    heads = ["latent_tolerance", "exact match", "passes", *(f"{depth} operations" for depth in depths)]
    return "\n".join(markdown_table(heads, cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="whose test split is asked")
    parser.add_argument("--questions", type=int, default=1000)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    examples = tasks.generate("chain", read_recipe(args.recipe)["task_args"])["test"][: args.questions]
    print(table(model, tokenizer, examples))


if __name__ == "__main__":
    main()
