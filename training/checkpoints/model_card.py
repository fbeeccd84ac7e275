"""The card of a checkpoint, written from what was measured."""

import platform
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from latent_cot.answer_modes import ANSWER_MODES, mode_named

SPLITS = {"eval": "validation", "test": "test"}
TABLE = (
    "| split | answer after | exact match (95 % interval) | ms per answer | new tokens |",
    "|---|---|---|---|---|",
)


@dataclass
class Card:
    """What a model card says."""

    name: str  # of the model; on the Hub, its repository
    task: str  # the data it was trained on
    method: str  # one line on how it was trained
    config: PreTrainedConfig  # the model's configuration
    metrics: dict  # as `Trainer.evaluate` returns them: `eval_ccot_exact_match`, `test_...`
    seed: int  # of the training
    batch_size: int  # of the evaluation, of one process
    device: torch.device  # that it was evaluated on
    judging: str  # how answers were read and compared
    base_model: str | None = None  # the checkpoint it was fine-tuned from, if any
    splits: dict[str, str] = field(default_factory=dict)  # names of other data that it was evaluated on
    license: str | None = None  # as its author gave it
    command: str | None = None  # that trained it, without secrets; None for a program that is no script of ours
    questions: list[str] = field(default_factory=list)  # examples to try
    sections: list[str] = field(default_factory=list)  # further ones, each with its heading

    def data_of(self, split: str) -> str:
        return self.splits.get(split, self.task)

    def text(self) -> str:
        """The whole card."""
        measured, named = measured_modes(self.metrics), self.base_model and not Path(self.base_model).exists()
        data = ModelCardData(
            # None is claimed that nobody gave: what a model learns from may not be for everyone.
            **({"license": self.license} if self.license else base_license(self.base_model)),
            library_name="transformers",
            pipeline_tag="text-generation",
            tags=["latent-chain-of-thought", self.config.model_type],
            base_model=self.base_model if named else None,
            model_name=self.name,
            eval_results=[self.result(split, mode) for split, mode in measured] or None,
            widget=[{"text": question} for question in self.questions] or None,
        )
        table = "\n".join([*TABLE, *(self.table_row(split, mode) for split, mode in measured)])
        others = dict.fromkeys(split for split, _ in measured if self.data_of(split) != self.task)
        evaluated = "".join(f", {SPLITS[split]} data {self.data_of(split)}" for split in others)
        return f"""---
{data.to_yaml()}
---

# {self.name}

{self.method}
{self.config.describe() if hasattr(self.config, "describe") else ""}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{self.name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{self.name}", trust_remote_code=True)
inputs = tokenizer({(self.questions[:1] or ["your question"])!r}, padding=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=32)
print(tokenizer.decode(output[0, inputs.input_ids.shape[1]:], skip_special_tokens=True))
```

`example.py`, in this repository, does the same from the command line.

{table if measured else "It was not evaluated."}

Trained on {self.task}{evaluated}. Answers are generated greedily, in batches of {self.batch_size}, on \
{describe_hardware(self.device)};
the time of an answer is that of one process. {self.judging} Trained from seed {self.seed}{describe_commit()}\
{f" by:{chr(10)}{chr(10)}```{chr(10)}{self.command}{chr(10)}```" if self.command else "."}
{"".join(f"{chr(10)}{section}" for section in self.sections)}"""

    def label_of(self, split: str, mode: str) -> str:
        """What stands before an answer, for people; of a chain that is not all gone also how much of it is."""
        removed, chain = (self.metrics.get(f"{split}_{mode}_{name}_tokens") for name in ("removed", "chain"))
        return mode_named(mode).partly(None if removed is None else f"{removed} of {chain}").label

    def table_row(self, split: str, mode: str) -> str:
        names = ("exact_match", "exact_match_low", "exact_match_high", "ms_per_answer", "new_tokens")
        rate, low, high, time, tokens = (self.metrics[f"{split}_{mode}_{name}"] for name in names)
        cells = SPLITS[split], self.label_of(split, mode), f"{rate:.3f} ({low:.3f} to {high:.3f})"
        return f"| {' | '.join(cells)} | {time:.1f} | {tokens:.1f} |"

    def result(self, split: str, mode: str) -> EvalResult:
        return EvalResult(
            task_type="text-generation",
            dataset_type=self.data_of(split),
            dataset_name=self.data_of(split),
            dataset_split=SPLITS[split],
            metric_type="exact_match",
            metric_name=f"exact match, {self.label_of(split, mode)}",
            metric_value=round(self.metrics[f"{split}_{mode}_exact_match"], 4),
        )


def write_card(folder: Path, card: Card) -> None:
    ModelCard(card.text()).save(folder / "README.md")


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
    measured = []
    for split in SPLITS:
        names = [found[1] for name in metrics if (found := re.fullmatch(rf"{split}_(.+)_exact_match", name))]
        if unknown := [name for name in names if mode_named(name) is None]:
            raise KeyError(f"a card has no label for {', '.join(sorted(unknown))}")
        order = list(ANSWER_MODES).index
        measured += [(split, mode) for mode in sorted(names, key=lambda name: order(name.partition("_T")[0]))]
    return measured


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
