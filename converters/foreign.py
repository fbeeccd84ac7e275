"""Reading other projects' checkpoints: files without running their code, and every tensor accounted for."""

import re
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors.torch import load_file

from latent_cot.complete_weights import read_header
from latent_cot.training.checkpoints.checks import LONGEST
from latent_cot.training.checkpoints.read import check_reachable, read_object
from latent_cot.training.errors import InputError

PATTERNS = ["*.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.txt", "*.model", "checkpoint*"]
# Constants that old versions of transformers saved; no weights.
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth")


@dataclass
class Source:
    """A checkpoint of another project."""

    name: str  # as it was asked for; a folder, a file or a name on the Hub
    revision: str  # of the Hub's repository, the commit; "" for local files
    folder: Path  # where its files are
    fields: dict  # of `config.json`; nothing where it is missing or empty
    weights: dict[str, torch.Tensor] = field(repr=False)  # its tensors by their names there

    def is_called(self, word: str) -> bool:
        """Whether its architecture's name begins so, or its own name holds the word."""
        kinds = [*(self.fields.get("architectures") or []), str(self.fields.get("model_type"))]
        names = f"{Path(self.name).name} {self.fields.get('_name_or_path')}".lower()
        is_named = re.search(rf"(?<![a-z]){word}(?![a-z])", names) is not None
        return is_named or any(re.match(word, str(kind).lower()) for kind in kinds)

    def has(self, *prefixes: str) -> bool:
        """Whether some tensor begins so."""
        return any(name.startswith(prefixes) for name in self.weights)


@dataclass
class Ledger:
    """What became of each tensor of a source, for the card: how many, by the beginning of their names."""

    copied: Counter = field(default_factory=Counter)  # read into the model; those that were merged are among them
    merged: Counter = field(default_factory=Counter)  # halves of adapters that were added to the matrix beside them
    left_out: Counter = field(default_factory=Counter)  # not read
    filled: list[str] = field(default_factory=list)  # what the source has not


def open_source(name: str, revision: str = "main", read: bool = True) -> Source:
    """A checkpoint in a folder, a file or on the Hub. Raises InputError for one that is not there, is damaged, or whose
    weights cannot be told from other files, or not be read without running code.
    """
    check_reachable(name, "model")
    path, commit = Path(name).expanduser(), ""
    if not path.exists():
        try:
            path = Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS))
        except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
            words = " ".join(str(error).split())[:LONGEST]
            raise InputError(f"{name}: no folder, and not on the Hub as {revision!r} either: {words}") from error
        commit = path.name
    folder = path if path.is_dir() else path.parent
    config = folder / "config.json"
    fields = read_object(config) if config.is_file() and config.read_text(encoding="utf-8").strip() else {}
    weights: dict[str, torch.Tensor] = {}
    for file in (weight_files(folder) if path.is_dir() else [path]) if read else ():
        tensors = read_tensors(file)
        for key in sorted(weights.keys() & tensors.keys()):
            raise InputError(f"{file}: holds {key}, which another file holds too")
        weights |= tensors
    if weights and all(key.startswith("module.") for key in weights):  # of a model under DistributedDataParallel
        weights = {key.removeprefix("module."): tensor for key, tensor in weights.items()}
    return Source(name, commit, folder, fields, weights)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights. Raises InputError where there are none, or several that could."""
    for index in (folder / "model.safetensors.index.json", folder / "pytorch_model.bin.index.json"):
        if index.is_file():
            named = {str(file) for file in read_object(index).get("weight_map", {}).values()}
            files = [folder / Path(file).name for file in sorted(named)]
            for file in files:
                if not file.is_file():
                    raise InputError(f"{file}: no such file, and {index.name} names it")
            return files
    safe = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_"))
    names = {path.name: path for path in folder.iterdir() if path.is_file() and path.name not in NOT_WEIGHTS}
    other = [
        path
        for name, path in sorted(names.items())
        if path.suffix in (".bin", ".pt", ".pth") or (not path.suffix and name.startswith("checkpoint"))
    ]
    for usual in ("model.safetensors", "pytorch_model.bin"):
        if usual in names:
            return [names[usual]]
    files = safe or other
    if not files:
        raise InputError(f"{folder}: no weights in it (*.safetensors, *.bin, *.pt, *.pth, checkpoint_*)")
    if len(files) > 1 and not all("-of-" in path.name for path in files):
        raise InputError(f"{folder}: {files[0].name} and {files[1].name} may both be the weights; name one")
    return files


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file, by name; no code in it is run. Raises InputError for a damaged file, one that holds
    anything but tensors by name, or one that is a pickle with code.
    """
    if path.suffix == ".safetensors":
        try:
            read_header(path)
        except ValueError as error:
            raise InputError(str(error)) from error
        return load_file(path)
    try:
        # weights_only: a pickle from elsewhere must not run code
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        raise InputError(
            f"{path}: a pickle that holds more than tensors, which is not opened since its code would run; save its state "
            "dict as safetensors first"
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: damaged or cut off, its tensors cannot be read") from error
    if not isinstance(held, dict) or not held:
        raise InputError(f"{path}: must hold tensors by name, not a {type(held).__name__}")
    for key, value in held.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise InputError(f"{path}: must hold tensors by name, and {key!r} is a {type(value).__name__}")
    return held


def take(
    source: Source, family: str, copied: dict[str, str], left_out: tuple[str, ...] = ()
) -> tuple[dict[str, torch.Tensor], Ledger]:
    """A source's tensors under our names, and what became of each. Raises InputError for a tensor that is neither, or
    that holds no floating-point numbers.

    Args:
        copied: our beginning of a name by the source's; the longest that fits counts.
        left_out: beginnings of the names that are not read.
    """
    taken: dict[str, torch.Tensor] = {}
    ledger = Ledger()
    for key, tensor in source.weights.items():
        ours = max((prefix for prefix in copied if key.startswith(prefix)), key=len, default=None)
        gone = next((prefix for prefix in left_out if key.startswith(prefix)), None)
        if gone is not None:
            ledger.left_out[f"{gone}*"] += 1
        elif key.endswith(BUFFERS):
            ledger.left_out["constants of the attention"] += 1
        elif ours is None:
            raise InputError(f"{source.name}: holds a tensor that no {family} checkpoint is known to have: {key}")
        elif not tensor.is_floating_point():
            raise InputError(f"{source.name}: {key} is of the type {tensor.dtype}, and weights are floating-point")
        else:
            taken[copied[ours] + key.removeprefix(ours)] = tensor
            ledger.copied[f"{ours}*"] += 1
    return taken, ledger


def merge_adapters(
    source: Source, weights: dict[str, torch.Tensor], ledger: Ledger, rank: int, scale: float, transposed: bool
) -> dict[str, torch.Tensor]:
    """PEFT's unmerged LoRA (`.base_layer`, `.lora_A.default`, `.lora_B.default`) made plain weights, in float32. Raises
    InputError for half an adapter, or one of another shape.

    Args:
        rank: the only one whose scale is known.
        transposed: the backbone's matrices are `(in, out)`, as GPT-2's.
    """
    merged = {key.replace(".base_layer.", "."): tensor for key, tensor in weights.items() if ".lora_" not in key}
    halves = (".lora_A.default.weight", ".lora_B.default.weight")
    modules = {key.partition(".lora_")[0] for key in weights if ".lora_" in key}
    modules |= {key.partition(".base_layer.")[0] for key in weights if ".base_layer." in key}
    for module in sorted(modules):
        for key in (f"{module}.base_layer.weight", *(module + half for half in halves)):
            if key not in weights:
                raise InputError(f"{source.name}: the checkpoint lacks the tensor {key}")
        base, down, up = (weights[module + half] for half in (".base_layer.weight", *halves))
        wide, high = base.shape if transposed else base.shape[::-1]
        if down.shape != (rank, wide) or up.shape != (high, rank):
            raise InputError(
                f"{source.name}: the adapter of {module} has the shapes {list(down.shape)} and {list(up.shape)}, and "
                f"{[rank, wide]} and {[high, rank]} are those of the published rank {rank}"
            )
        change = scale * (up.float() @ down.float())
        merged[f"{module}.weight"] = (base.float() + (change.T if transposed else change)).to(base.dtype)
    known = len(merged) + 2 * len(modules)
    if known != len(weights):
        odd = next(key for key in weights if ".lora_" in key and not key.endswith(halves))
        raise InputError(f"{source.name}: {odd} is of no adapter that can be merged")
    ledger.merged[f"adapters of rank {rank}, times {scale}"] += 2 * len(modules)
    return merged
