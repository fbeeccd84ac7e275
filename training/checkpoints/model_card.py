"""The card of a checkpoint, written from what was measured."""

import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from latent_cot.answer_modes import ANSWER_MODES, mode_named

SPLITS = {"eval": "validation", "test": "test"}
TABLE = (
    "| split | answer after | exact match (95 % interval) | ms per answer | new tokens |",
    "|---|---|---|---|---|",
)


@dataclass
class Card:
    """What a model card says beside what was measured.

    Args:
        task: the data it was trained on.
        method: one line on how it was trained.
        base_model: the checkpoint it was fine-tuned from, if any.
        splits: the names of other data that it was evaluated on, by `SPLITS`.
        license: as its author gave it.
        judging: how answers were read and compared.
    """

    task: str
    method: str
    base_model: str | None
    splits: dict[str, str] = field(default_factory=dict)
    license: str | None = None
    judging: str = "Numbers are compared as numbers."

    def data_of(self, split: str) -> str:
        return self.splits.get(split, self.task)


def write_card(
    folder: Path,
    card: Card,
    *,
    name: str,
    command: str | None,
    seed: int,
    batch_size: int,
    device: torch.device,
    config,
    metrics: dict,
    questions: list[str],
    sections: list[str] | None = None,
) -> None:
    """Write `README.md` into a checkpoint's folder.

    Args:
        folder: of the checkpoint.
        card: what it is.
        name: of the model; on the Hub, its repository.
        command: that trained it, without secrets; None for a program that is no script of ours.
        seed: of the training.
        batch_size: of the evaluation, of one process.
        device: that it was evaluated on.
        config: the model's configuration.
        metrics: as `Trainer.evaluate` returns them: `eval_ccot_exact_match`, `test_...`.
        questions: examples to try.
        sections: further ones, each with its heading.
    """
    measured = measured_modes(metrics)
    rows = [table_row(metrics, split, mode) for split, mode in measured]
    base_model = card.base_model if card.base_model and not Path(card.base_model).exists() else None
    data = ModelCardData(
        # None is claimed that nobody gave: what a model learns from may not be for everyone.
        **({"license": card.license} if card.license else base_license(card.base_model)),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["latent-chain-of-thought", config.model_type],
        base_model=base_model,
        model_name=name,
        eval_results=[result(metrics, split, mode, card.data_of(split)) for split, mode in measured] or None,
        widget=[{"text": question} for question in questions] or None,
    )
    text = f"""---
{data.to_yaml()}
---

# {name}

{card.method}
{config.describe() if hasattr(config, "describe") else ""}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
inputs = tokenizer({(questions[:1] or ["your question"])!r}, padding=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=32)
print(tokenizer.decode(output[0, inputs.input_ids.shape[1]:], skip_special_tokens=True))
```

`example.py`, in this repository, does the same from the command line.

{chr(10).join([*TABLE, *rows]) if rows else "It was not evaluated."}

Trained on {card.task}{evaluated_on(card, measured)}. Answers are generated greedily, in batches of {batch_size}, on \
{describe_hardware(device)};
the time of an answer is that of one process. {card.judging} Trained from seed {seed}{describe_commit()}\
{f" by:{chr(10)}{chr(10)}```{chr(10)}{command}{chr(10)}```" if command else "."}
{"".join(f"{chr(10)}{section}" for section in sections or [])}"""
    ModelCard(text).save(folder / "README.md")


def base_license(base_model: str | None) -> dict[str, str]:
    """What the base model's own card says of its licence; nothing where it cannot be asked, or says nothing."""
    if not base_model:
        return {}
    path = Path(base_model) / "README.md"
    try:
        data = ModelCard.load(path if Path(base_model).exists() else base_model).data.to_dict()
    except Exception:  # whatever can happen on the way to the Hub, or in a card
        return {}
    return {name: data[name] for name in ("license", "license_name", "license_link") if isinstance(data.get(name), str)}


def evaluated_on(card: Card, measured: list[tuple[str, str]]) -> str:
    """Names the data of each split that was measured and is another than the training data."""
    splits = dict.fromkeys(split for split, _ in measured if card.data_of(split) != card.task)
    return "".join(f", {SPLITS[split]} data {card.data_of(split)}" for split in splits)


def replace_section(card: Path, section: str) -> None:
    """Write a section into a card: in the place of the one with the same heading, or at the end."""
    text, heading = card.read_text(encoding="utf-8"), section.splitlines()[0]
    before, found, rest = text.partition(f"\n{heading}\n")
    _, next_heading, after = rest.partition("\n## ")
    after = f"\n## {after}" if found and next_heading else ""
    card.write_text(f"{before.rstrip()}\n\n{section.rstrip()}\n{after}", encoding="utf-8")


def measured_modes(metrics: dict) -> list[tuple[str, str]]:
    """The splits and answer modes that metrics are about. Raises KeyError for a mode that `models/answer_modes.py` does
    not describe.
    """
    found = []
    for split in SPLITS:
        names = [
            name.removeprefix(f"{split}_").removesuffix("_exact_match")
            for name in metrics
            if name.startswith(f"{split}_") and name.endswith("_exact_match")
        ]
        if unknown := [name for name in names if mode_named(name) is None]:
            raise KeyError(f"a card has no label for {', '.join(sorted(unknown))}")
        order = [*ANSWER_MODES]
        found += [(split, mode) for mode in sorted(names, key=lambda name: order.index(name.partition("_T")[0]))]
    return found


def label_of(metrics: dict, split: str, mode: str) -> str:
    """What stands before an answer, for people; of a chain that is not all gone also how much of it is."""
    removed, chain = (metrics.get(f"{split}_{mode}_{name}_tokens") for name in ("removed", "chain"))
    return mode_named(mode).partly(None if removed is None else f"{removed} of {chain}").label


def table_row(metrics: dict, split: str, mode: str) -> str:
    prefix = f"{split}_{mode}"
    low, high = metrics[f"{prefix}_exact_match_low"], metrics[f"{prefix}_exact_match_high"]
    return (
        f"| {SPLITS[split]} | {label_of(metrics, split, mode)} | {metrics[f'{prefix}_exact_match']:.3f} ({low:.3f} to {high:.3f}) | "
        f"{metrics[f'{prefix}_ms_per_answer']:.1f} | {metrics[f'{prefix}_new_tokens']:.1f} |"
    )


def result(metrics: dict, split: str, mode: str, task: str) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=task,
        dataset_name=task,
        dataset_split=SPLITS[split],
        metric_type="exact_match",
        metric_name=f"exact match, {label_of(metrics, split, mode)}",
        metric_value=round(metrics[f"{split}_{mode}_exact_match"], 4),
    )


def describe_hardware(device: torch.device) -> str:
    """The processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(named or [platform.processor() or platform.machine()])[0]} ({torch.get_num_threads()} threads)"


def describe_commit() -> str:
    """The commit of this repository, where it is one."""
    git = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f", at commit {done.stdout.strip()}," if done.returncode == 0 else ""
