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
from latent_cot.training.data.sources import numbered

# --- where questions come from ---


def source(hub_name: str | None = None, config: str | None = None, split: str = "test") -> Callable[..., dict]:
    """A data set of the Hub, or of a local file: `--metadata '{"data_file": "test.jsonl"}'`, in the formats of
    `--test_file`."""

    def load(data_file: str | None = None, **metadata) -> dict[str, datasets.Dataset]:
        check_class(**metadata)
        if data_file is not None:
            rows = read_file(Path(data_file))
        elif hub_name is None:
            raise ValueError("""this task reads a local file: --metadata '{"data_file": "test.json"}'""")
        else:
            rows = numbered(datasets.load_dataset(hub_name, config, split=split), f"{hub_name}, ")
        examples = examples_of(rows, max_bad_rows=0, reading=Reading(with_steps=False))
        keys = ("question", "answer")
        return {"test": datasets.Dataset.from_list([{key: row[key] for key in keys} for row in examples])}

    return load


def task(name: str) -> Callable[..., dict]:
    """A task of `tasks/`; its settings are `--metadata '{"task_args": "operations=6"}'`."""

    def load(task_args: str | None = None, **metadata) -> dict[str, datasets.Dataset]:
        check_class(**metadata)
        return {"test": datasets.Dataset.from_list(tasks.generate(name, task_args)["test"])}

    return load


gsm8k = source("openai/gsm8k", "main")
svamp = source("ChilleD/SVAMP")
gsm_hard = source("reasoning-machines/gsm-hard", split="train")
multiarith = source("ChilleD/MultiArith")
prosqa = own = source()
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
