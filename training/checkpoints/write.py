"""How a finished model is written: weights, configuration, code, tokenizer, `example.py`, and the list of these files."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

import latent_cot
from latent_cot.training.arguments import LoraArguments
from latent_cot.training.errors import InputError

from .lora import ADAPTER_CONFIG, finish_adapter_config, merge_adapter, save_adapters

EXAMPLE = Path(__file__).with_name("example.py")  # needs nothing of this package
MANIFEST = "latent_cot_files.json"
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# The names that a model's files have: written here, or read along with whatever model lies beside them.
RESERVED = f"""
    {MANIFEST} config.json generation_config.json *.safetensors *.safetensors.index.json adapter adapter_config.json
    pccot_args.json tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt
    tokenizer.model chat_template.* additional_chat_templates all_results.json train_results.json eval_results.json
    test_results.json trainer_state.json predictions.jsonl faithfulness.json faithfulness.txt faithfulness.png
    accuracy_against_removal.png README.md example.py
""".split()
RESERVED += [path.name for path in Path(latent_cot.__file__).parent.glob("*.py") if path.name != "__init__.py"]
# What tells our files in a folder that was written before there was a list.
OUR_EXAMPLE, OUR_CARD = "Ask a model that thinks in latent tokens", "`example.py`, in this repository, does the same"


def write_final_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    lora: LoraArguments,
    weights: dict | None = None,
) -> None:
    """A complete checkpoint: weights, configuration, code, tokenizer and `example.py`.

    A LoRA run (`model` is a `PeftModel`) saves its adapters in `adapter/`, with the base model that they belong to unless
    `--save_base false`, and beside it the merged model.

    Args:
        weights: the model's state, where it had to be collected from several processes.
    """
    # The Trainer switches the cache off for its own forward passes; answering wants it.
    model.config.use_cache = True
    if lora.use_peft:
        adapter = folder / "adapter"
        save_adapters(model, adapter, weights)  # the resized vocabulary is in the base model
        model, weights = model.unload(), None
        if getattr(model, "is_quantized", False):
            model = as_loaded_whole(model)
        finish_adapter_config(adapter / ADAPTER_CONFIG, model)
        write_model_files(model, tokenizer, adapter, weights=None if lora.save_base else {})
        if not lora.save_merged:
            return
        model = merge_adapter(model, adapter)
    write_model_files(model, tokenizer, folder, weights)


def as_loaded_whole(model: PreTrainedModel) -> PreTrainedModel:
    """A model that was loaded in 4 bits (`--load_in_4bit`) in the usual format, with the numbers that it was trained with.

    Its linear layers stay `nn.Linear`, whose matrices GPT-2's class would read as transposed ones: those are put back.
    """
    model = model.dequantize()
    with torch.device("meta"):
        usual = dict(type(model)(model.config).named_modules())
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and isinstance(usual[name], Conv1D):
            transposed = Conv1D(layer.out_features, layer.in_features)
            transposed.weight, transposed.bias = nn.Parameter(layer.weight.T.contiguous()), layer.bias
            model.set_submodule(name, transposed)
    return model


def write_model_files(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, weights: dict | None = None
) -> None:
    """Weights, configuration, code, tokenizer, `example.py` and the list of them: all that a checkpoint is.

    Args:
        weights: the model's state, where it had to be collected from several processes; `{}` writes none.
    """
    settings = model.generation_config
    settings.do_sample = False  # unless it is said, a pipeline samples
    for name in SAMPLING:  # of a backbone that samples by default: beside that no configuration can be saved
        setattr(settings, name, None)
    model.save_pretrained(folder, state_dict=weights)
    if weights == {}:
        (folder / "model.safetensors").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "tokenizer_config.json"):
        drop_foreign_code(folder / name)
    shutil.copy(EXAMPLE, folder / EXAMPLE.name)
    write_manifest(folder, files_in(folder))


def drop_foreign_code(path: Path) -> None:
    """Take out of a configuration file what would have transformers fetch code that is not beside it."""
    fields = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not fields.keys() & {"auto_map", "custom_pipelines"}:
        return

    def is_here(name) -> bool:
        names = [name] if isinstance(name, str) else [part for part in name if part]
        return all((path.parent / f"{part.rpartition('.')[0]}.py").is_file() for part in names)

    own = {key: value for key, value in fields.pop("auto_map", {}).items() if is_here(value)}
    fields.pop("custom_pipelines", None)
    text = json.dumps(fields | ({"auto_map": own} if own else {}), indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


# --- the list of a model's files ---


def files_in(folder: Path) -> set[str]:
    """All files in a folder, by their names from there."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def write_manifest(folder: Path, names: Iterable[str]) -> None:
    """Write which files of a folder belong to the model in it."""
    part = folder / f".{MANIFEST}.part"
    part.write_text(json.dumps({"files": sorted({*names, MANIFEST})}, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / MANIFEST)


def add_to_manifest(folder: Path, names: Iterable[str]) -> None:
    """Add files that were written beside a model, or without one, to the list."""
    write_manifest(folder, model_files(folder) | set(names))


def model_files(folder: Path) -> set[str]:
    """The files that this project wrote into a folder, as its manifest names them.

    Where there is none, a folder with our `example.py` holds a model from before there were manifests.

    Raises InputError for a damaged manifest, or one that names anything outside its folder.
    """
    path = folder / MANIFEST
    if path.is_file():
        try:
            names = json.loads(path.read_text(encoding="utf-8"))["files"]
            if not all(is_inside(name) for name in names):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{path}: damaged, no list of a model's files in it; choose another folder") from None
        return set(names)
    if not holds(folder / "example.py", OUR_EXAMPLE):
        return set()
    found = [path for pattern in RESERVED for path in folder.glob(pattern)]
    files = {path.relative_to(folder).as_posix() for path in found if path.is_file()}
    files |= {f"{path.name}/{name}" for path in found if path.is_dir() for name in files_in(path) if is_reserved(name)}
    return files if holds(folder / "README.md", OUR_CARD) else files - {"README.md"}


def is_inside(name: str) -> bool:
    """Whether a name is one of a plain file in a folder, or in a folder of that."""
    parts = PurePosixPath(name).parts
    return bool(parts) and "\\" not in name and not any(part.startswith((".", "/")) for part in parts)


def is_reserved(name: str) -> bool:
    return any(PurePosixPath(name).match(pattern) for pattern in RESERVED)


def holds(path: Path, text: str) -> bool:
    return path.is_file() and text.encode() in path.read_bytes()


def refuse_foreign_files(folder: Path, names: Iterable[str] = ()) -> None:
    """Raises InputError where a model's files would take the place of a file that this project did not write.

    Args:
        names: further files and folders to be written or removed, beside those of `RESERVED`.
    """
    own = model_files(folder)
    places = {path.name for pattern in RESERVED for path in folder.glob(pattern)} | set(names)
    for place in sorted(places | {name.partition("/")[0] for name in own}):
        path = folder / place
        if path.is_dir() and not path.is_symlink():
            found = {f"{place}/{name}" for name in files_in(path)}
        else:  # a link stands for what was there
            linked = path.is_symlink() and any(name.startswith(f"{place}/") for name in own)
            found = {place} if (path.is_file() or path.is_symlink()) and not linked else set()
        for name in sorted(found - own):
            raise InputError(
                f"{folder / name} was not written by this project, and a model saved in {folder} would take its place: "
                "choose another folder"
            )
