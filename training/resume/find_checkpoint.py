"""Which checkpoint a run can be resumed from: the newest that is whole.

A checkpoint that lacks its optimiser would go on with fresh moments and another learning rate, one that lacks its
random state with other dropout: the run would end without an error and with other weights. Neither is whole.
"""

import json
import logging
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from latent_cot.training.errors import InputError
from latent_cot.training.step_decoder import STEP_DECODER

logger = logging.getLogger(__name__)

# As `Trainer._save_checkpoint` and the engines below it name them; of each group one must be there.
OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_[0-9]*", "global_step*")  # plain, FSDP (two kinds), DeepSpeed
SCHEDULER = ("scheduler.pt", "global_step*")
RANDOM = ("rng_state*.pth",)
SHARDED_WEIGHTS = ("pytorch_model_fsdp*", "global_step*")


def checkpoint_to_resume(asked: str | bool, folder: Path, decodes: bool = False) -> Path:
    """The checkpoint that `--resume_from_checkpoint` means. Raises InputError if there is none, or the named one is not
    whole.

    Args:
        asked: a checkpoint's folder; or true, for the newest whole one in `folder`. Newer ones that are not whole are named.
        decodes: see `fault_of`.
    """
    if str(asked).lower() != "true":
        fault = fault_of(Path(asked), decodes)
        if fault is not None:
            raise InputError(f"--resume_from_checkpoint {asked}: {fault}")
        return Path(asked)
    passed_over = []
    for checkpoint in newest_first(folder):
        fault = fault_of(checkpoint, decodes)
        if fault is None:
            for other, why in passed_over:
                logger.warning("%s is passed over: %s", other, why)
            logger.info("resuming from %s", checkpoint)
            return checkpoint
        passed_over.append((checkpoint, fault))
    reasons = "; ".join(f"{checkpoint.name}: {why}" for checkpoint, why in passed_over)
    raise InputError(
        f"--resume_from_checkpoint: no whole checkpoint in {folder}{f' ({reasons})' if reasons else ''}; without the flag, "
        "and with --overwrite_output_dir, the run starts anew"
    )


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by their steps."""
    numbered = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*")]
    steps = [(int(match[1]), path) for match, path in numbered if match and path.is_dir()]
    return [path for _, path in sorted(steps, reverse=True)]


def fault_of(checkpoint: Path, decodes: bool = False, thorough: bool = True) -> str | None:
    """Why training cannot go on from a checkpoint; None if it can.

    Args:
        decodes: whether the run has a step decoder, whose weights must then be there (and otherwise must not).
        thorough: read every file to its end: are all weights finite, and all checksums right?
    """
    if not checkpoint.is_dir():
        return "no such folder"
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
            return "trainer_state.json holds no step"
    except FileNotFoundError:
        return "trainer_state.json is missing"
    except ValueError:
        return "trainer_state.json is damaged"
    if not decodes and (checkpoint / STEP_DECODER).is_file():
        return f"{STEP_DECODER} is in it: its run had --step_decoder_layers, and this one has not"
    fault = fault_of_weights(checkpoint, decodes, thorough)
    if fault is not None:
        return fault
    for names in (OPTIMIZER, SCHEDULER, RANDOM):
        found = [path for name in names for path in checkpoint.glob(name)]
        if not found:
            return f"{names[0]} is missing (a checkpoint of --save_only_model has none)"
        for path in found:
            if path.is_file() and not is_whole_archive(path, thorough):
                return f"{path.name} is damaged"
    return None


def fault_of_weights(checkpoint: Path, decodes: bool, thorough: bool) -> str | None:
    """What is wrong with the weights, or with the adapters of a LoRA run, or with the step decoder; None if nothing is."""
    if any(path for name in SHARDED_WEIGHTS for path in checkpoint.glob(name)):
        return None
    index = checkpoint / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if (checkpoint / "adapter_config.json").is_file():
        names = ["adapter_model.safetensors"]
    elif index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError):
            return f"{index.name} is damaged"
    for name in [*names, STEP_DECODER] if decodes else names:
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        try:
            with safe_open(checkpoint / name, framework="pt") as tensors:
                keys = list(tensors.keys()) if thorough else []
                broken = next((key for key in keys if not torch.isfinite(tensors.get_tensor(key)).all()), None)
        except SafetensorError:
            return f"{name} is damaged"
        if broken is not None:
            return f"{broken} in {name} is not finite"
    return None


def is_whole_archive(path: Path, thorough: bool) -> bool:
    """Whether a file of `torch.save` is whole, by its directory or by the checksums in it; nothing in it is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            return not thorough or archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError):
        return False
