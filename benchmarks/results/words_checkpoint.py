"""Make checkpoints/pccot-gpt2-words: the recipe's run on two to four steps, then a short one that adds questions of one step.

    python -m benchmarks.results.words_checkpoint --output_dir outputs/words

There are few questions of one step that differ in more than names and things (319), so they would drown among the others. Each is
told here about other names and things, 10,000 times in all, but for the 90 that are kept for validation and test. The questions of
two to four steps are the recipe's training split, so its test split stays unseen.
"""

import argparse
import json
import random
from pathlib import Path

from latent_cot import tasks
from latent_cot.tasks.word_sentences import template_of
from latent_cot.training.cli import read_recipe

from . import runs

RECIPE = "configs/recipes/word-problems_pccot_gpt2-3x128.yaml"
LONG, SHORT = 24_000, 10_000  # questions of two to four steps, and of one
FLAGS = (
    "--answer_prompt # --keep_last_step true --do_train --do_eval --do_predict --max_steps 500 --per_device_train_batch_size 64 "
    "--learning_rate 0.0002 --lr_scheduler_type cosine --warmup_steps 20 --adam_beta2 0.98 --weight_decay 0.01 --max_grad_norm 1.0 "
    "--seed 0 --logging_steps 50 --save_strategy no --per_device_eval_batch_size 250 --max_new_tokens 4 --max_cot_tokens 32"
)


def mixed_rows(settings: str) -> dict[str, list[dict]]:
    """Rows for the second run; `one_step` are questions of one step that no training row is like.

    Args:
        settings: the recipe's `task_args`.
    """
    recipe = tasks.generate("word_problems", settings)
    one_step = settings.replace("steps=4,min_steps=2", "steps=1,min_steps=1").rpartition(",train=")[0]
    unseen = tasks.generate("word_problems", f"{one_step},train=200,validation=30,test=60")
    kept = {template_of(row["question"]) for split in ("validation", "test") for row in unseen[split]}
    short: list[dict] = []
    for seed in range(100):
        drawn = tasks.generate("word_problems", f"{one_step},train=250,validation=0,test=0,seed={seed}")["train"]
        short += [row for row in drawn if template_of(row["question"]) not in kept]
    rows = recipe["train"][:LONG] + short[:SHORT]
    random.Random(0).shuffle(rows)
    return {
        "train": rows,
        "validation": recipe["validation"][:400] + unseen["validation"],
        "test": recipe["test"],
        "one_step": unseen["test"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    folder = parser.parse_args().output_dir.resolve()
    first, last = folder / "two-to-four", folder / "pccot-gpt2-words"
    runs.metrics_of(["run_ccot.py", RECIPE], first)
    files = {name: folder / f"{name}.jsonl" for name in ("train", "validation", "test", "one_step")}
    for name, rows in mixed_rows(read_recipe(runs.ROOT / RECIPE)["task_args"]).items():
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    one_step = files.pop("one_step")
    given = [word for name, path in files.items() for word in (f"--{name}_file", str(path))]
    runs.metrics_of(["run_ccot.py", "--model_name_or_path", str(first), *given, *FLAGS.split()], last)
    asked = ["run_ccot.py", "--model_name_or_path", str(last), "--test_file", str(one_step), "--do_predict"]
    runs.metrics_of([*asked, "--keep_last_step", "true", "--max_new_tokens", "4"], folder / "one-step")


if __name__ == "__main__":
    main()
