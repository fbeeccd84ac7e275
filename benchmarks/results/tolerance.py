"""How many passes questions of different depth take under `latent_tolerance`, as a Markdown table: what docs/results.md shows.

python run_ccot.py configs/recipes/chain-mixed_pccot-range_gpt2-2x64.yaml
python -m benchmarks.results.tolerance --model outputs/pccot-chain-mixed
"""

import argparse
import statistics
from collections import defaultdict
from itertools import chain
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import latent_cot  # noqa: F401  registers the model types
from latent_cot import tasks
from latent_cot.analysis.evaluation import answer_questions, same_answer
from latent_cot.training.cli import read_recipe

ROOT = Path(__file__).resolve().parents[2]

RECIPE = ROOT / "configs" / "recipes" / "chain-mixed_pccot-range_gpt2-2x64.yaml"
TOLERANCES = (None, 0.03, 0.1, 0.3, 0.5, 0.7)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=1000)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    examples = tasks.generate("chain", read_recipe(RECIPE)["task_args"])["test"][: args.questions]
    depths = sorted({len(example["steps"]) for example in examples})
    calls: list[int] = []
    model.base_model.h[0].register_forward_pre_hook(lambda *_: calls.append(1))

    print("| latent_tolerance | exact match | passes | " + " | ".join(f"{depth} operations" for depth in depths) + " |")
    print("|---" * (3 + len(depths)) + "|")
    for tolerance in TOLERANCES:
        passes, right = defaultdict(list), defaultdict(list)
        for example in examples:
            calls.clear()
            given = answer_questions(
                model, tokenizer, [example["question"]], batch_size=1, max_new_tokens=4, latent_tolerance=tolerance
            )
            depth = len(example["steps"])
            passes[depth].append(len(calls) - given.new_tokens)  # pass 0 and the answer's later tokens do not count
            right[depth].append(same_answer(given.answers[0], example["answer"]))
        total = statistics.mean(chain.from_iterable(right.values()))
        mean = statistics.mean(chain.from_iterable(passes.values()))
        each = " | ".join(f"{statistics.mean(passes[d]):.2f} ({statistics.mean(right[d]):.3f})" for d in depths)
        print(f"| {'off' if tolerance is None else tolerance} | {total:.3f} | {mean:.2f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
