"""What the task files here need beside YAML, for lm-evaluation-harness.

The harness encodes text by itself. So that multiple-choice tasks score an answer with the latents in place, importing
this module makes its `hf` model put the thought between question and answer; other models are left as they are.
"""

import re
from collections.abc import Callable
from pathlib import Path

import datasets
from lm_eval.models.huggingface import HFLM

from latent_cot import tasks
from latent_cot.analysis.evaluation import same_answer
from latent_cot.training.data.files import read_file
from latent_cot.training.data.rows import Reading, examples_of
from latent_cot.training.data.tokenization import without_leading_space

# --- where questions come from ---


def source(hub_name: str | None, config: str | None, split: str, example_of: Callable) -> Callable[..., dict]:
    """A data set of the Hub, or of a local file: `--metadata '{"data_file": "test.jsonl"}'`, in the formats of
    `--test_file`."""

    def load(data_file: str | None = None, **metadata) -> dict[str, datasets.Dataset]:
        if data_file is not None:
            rows = list(examples_of(read_file(Path(data_file)), max_bad_rows=0, reading=Reading(with_steps=False)))
        elif hub_name is None:
            raise ValueError("""this task reads a local file: --metadata '{"data_file": "test.json"}'""")
        else:
            rows = [example_of(row) for row in datasets.load_dataset(hub_name, config, split=split)]
        return {"test": datasets.Dataset.from_list([{key: row[key] for key in ("question", "answer")} for row in rows])}

    return load


def task(name: str) -> Callable[..., dict]:
    """A task of `tasks/`; its settings are `--metadata '{"task_args": "operations=6"}'`."""

    def load(task_args: str | None = None, **metadata) -> dict[str, datasets.Dataset]:
        return {"test": datasets.Dataset.from_list(tasks.generate(name, task_args)["test"])}

    return load


def gsm8k_example(row: dict) -> dict:
    return {"question": row["question"], "answer": row["answer"].rpartition("####")[2].strip()}


def svamp_example(row: dict) -> dict:
    return {"question": f"{row['Body'].strip()} {row['Question'].strip()}", "answer": str(row["Answer"])}


def gsm_hard_example(row: dict) -> dict:
    return {"question": row["input"], "answer": str(row["target"])}


def multiarith_example(row: dict) -> dict:
    return {"question": row["question"].strip(), "answer": str(row["final_ans"])}


gsm8k = source("openai/gsm8k", "main", "test", gsm8k_example)
svamp = source("ChilleD/SVAMP", None, "test", svamp_example)
gsm_hard = source("reasoning-machines/gsm-hard", None, "train", gsm_hard_example)
multiarith = source("ChilleD/MultiArith", None, "test", multiarith_example)
prosqa = source(None, None, "test", dict)
chain = task("chain")
multiplication = task("multiplication")


def prosqa_choices(row: dict) -> list[str]:
    """`Is Tom a lempus or scrompus?` -> both answers."""
    name, first, second = re.search(r"Is (\w+) an? (\w+) or (\w+)\?$", row["question"].strip()).groups()
    return [f"{name} is a {kind}." for kind in (first, second)]


# --- how answers are compared ---


def exact_match(row: dict, results: list[str]) -> dict[str, float]:
    """As our own evaluation does: numbers as numbers."""
    return {"exact_match": float(same_answer(results[0].strip(), row["answer"]))}


# --- the thought, between a question and the answer that is scored ---


def encode_pair(lm: HFLM, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of question + suffix (thought span, answer prompt), and of the answer, each encoded as in training."""
    if not hasattr(lm.model, "suffix_ids"):
        return harness_encode_pair(lm, context, continuation)
    answer = lm.tokenizer.encode(continuation.strip(), add_special_tokens=False)
    return lm.tok_encode(context) + lm.model.suffix_ids(), without_leading_space(answer, lm.tokenizer)


harness_encode_pair = getattr(HFLM._encode_pair, "replaced", HFLM._encode_pair)
encode_pair.replaced = harness_encode_pair  # so that a second import does not wrap the first
HFLM._encode_pair = encode_pair
