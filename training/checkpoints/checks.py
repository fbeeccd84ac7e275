"""What our loaders check beyond `from_pretrained`, and how they say what a library says in many lines or as a traceback."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from torch import nn
from transformers.utils import logging

from latent_cot.complete_weights import read_header
from latent_cot.training.errors import InputError

LONGEST = 200  # characters of a library's message that are shown


def find_file(name: str, filename: str, revision: str = "main") -> Path | None:
    """A file of a checkpoint, downloaded if `name` is one on the Hub; None if there is no such file."""
    if Path(name).exists():
        path = Path(name) / filename
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, filename, revision=revision))
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None


def refuse_model(folder: Path) -> None:
    """Raises InputError for an output folder that holds weights, a checkpoint or an adapter."""
    if any(path for pattern in ("*.safetensors", "checkpoint-*", "adapter") for path in folder.glob(pattern)):
        raise InputError(
            f"--output_dir {folder} already holds a model: choose another, or pass --overwrite_output_dir or "
            "--resume_from_checkpoint true"
        )


@contextmanager
def one_clear_error(name: str, what: str) -> Iterator[None]:
    """Turns whatever libraries raise over a damaged file into an InputError of one line that names the file, if it is local.

    An OSError is handed on: it says what is not there.
    """
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # no table before the one line
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:  # tokenizers, safetensors, dataclasses and torch have errors of their own
        message = " ".join(str(error).split())[:LONGEST] or type(error).__name__
        if isinstance(error, ValueError) and name in message:
            raise InputError(message) from error
        raise InputError(f"{damaged_file(name) or name}: the {what} cannot be read: {message}") from error
    finally:
        logging.set_verbosity(before)


def damaged_file(name: str) -> Path | None:
    """The first file of a folder that cannot be parsed; None if there is none, or no folder."""
    for path in sorted(Path(name).glob("*.json")) + sorted(Path(name).glob("*.safetensors")):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            else:
                read_header(path)
        except (ValueError, RecursionError):
            return path
    return None


def check_finite(model: nn.Module, name: str) -> None:
    """Raises InputError for a weight that is NaN or infinite; names the tensor. Reads every weight once."""
    tensors = {key: tensor for key, tensor in model.state_dict().items() if tensor.is_floating_point()}
    # One number per tensor and one read on the host; the sum of finite numbers may be infinite, so look again then.
    sums = torch.stack([tensor.sum(dtype=torch.float32).cpu() for tensor in tensors.values()])
    for (key, tensor), total in zip(tensors.items(), sums.tolist(), strict=True):
        if total - total != 0 and not bool(tensor.isfinite().all()):
            raise InputError(f"{name}: {key} holds numbers that are not finite, so the model cannot answer")


def load_adapter(adapted: nn.Module, folder: Path, path: Path) -> None:
    """Load a folder's adapter into a `PeftModel`, tensor by tensor. Raises InputError for a tensor that is missing, of
    another shape or kind, or fits nowhere, which PEFT does not mind.
    """
    from peft import get_peft_model_state_dict

    header = read_header(path)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for name in sorted(set(expected) - set(header)):
        raise InputError(f"{path}: the adapter lacks the tensor {name}, which this model needs")
    for name, tensor in header.items():
        if not tensor["dtype"].startswith(("F", "BF")):
            raise InputError(f"{path}: {name} is of the type {tensor['dtype']}, and weights are floating-point numbers")
        if name in expected and list(expected[name].shape) != tensor["shape"]:
            raise InputError(
                f"{path}: {name} has the shape {tensor['shape']}, the model's is {list(expected[name].shape)}"
            )
    for name in sorted(adapted.load_adapter(folder, "default", is_trainable=False).unexpected_keys):
        if name.endswith("trainable_tokens_delta"):
            continue  # rows that tied matrices share are named for both
        raise InputError(f"{path}: the adapter's tensor {name} fits nowhere in this model")
