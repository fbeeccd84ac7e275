"""What the task files here need beside YAML, for lm-evaluation-harness."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
from transformers import PreTrainedConfig

from latent_cot import tasks
from latent_cot.analysis.evaluation import same_answer
from latent_cot.answer_modes import LATENT
from latent_cot.training.data.files import read_file
from latent_cot.training.data.rows import Reading, examples_of

# --- where questions come from ---


def source(hub_name: str | None, config: str | None, split: str, example_of: Callable) -> Callable[..., dict]:
    """A data set of the Hub, or of a local file: `--metadata '{"data_file": "test.jsonl"}'`, in the formats of
    `--test_file`."""

    def load(data_file: str | None = None, **metadata) -> dict[str, datasets.Dataset]:
        check_class(**metadata)
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
        check_class(**metadata)
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
prosqa = own = source(None, None, "test", dict)
chain = task("chain")
multiplication = task("multiplication")


def prosqa_choices(row: dict) -> list[str]:
    """`Is Tom a lempus or scrompus?` -> both answers."""
    name, first, second = re.search(r"Is (\w+) an? (\w+) or (\w+)\?$", row["question"].strip()).groups()
    return [f"{name} is a {kind}." for kind in (first, second)]


# --- which class asks the model ---


def check_class(pretrained: str | None = None, revision: str | None = None, **_) -> None:
    """Refuse a model of ours in a class of the harness's own, which scores without its thought and reads no chain.
    Raises ValueError for such a model.
    """
    loaded = sys.modules.get("latent_cot.evals.latent_lm")
    if not isinstance(pretrained, str) or (loaded is not None and loaded.LatentHFLM.made):
        return
    if PreTrainedConfig.get_config_dict(pretrained, revision=revision)[0].get("answer_prompt_ids") is not None:
        raise ValueError(
            f"{pretrained} answers after a thought or a chain of its own: ask it by latent-cot lm_eval ... or "
            "--model latent-cot"
        )


# --- how answers are compared ---


def exact_match(row: dict, results: list[str]) -> dict[str, float]:
    """As our own evaluation does: numbers as numbers."""
    return {"exact_match": float(same_answer(results[0].strip(), row["answer"]))}


def last_number(row: dict, results: list[str]) -> dict[str, float]:
    """The same of the last number that is written, for any model."""
    return exact_match(row, [LATENT.read(results[0], "", "last_number") or ""])
