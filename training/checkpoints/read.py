"""How a checkpoint is read, of whatever kind.

Some hold adapters instead of whole weights: those of a LoRA run, and those of the original PCCoT code, which publishes an
adapter, a `config.json` that lacks half of the settings, the other half in `pccot_args.json`, and a tokenizer; the base
model is elsewhere and its vocabulary too small.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import file_exists
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME

import latent_cot  # noqa: F401  registers the model types
from latent_cot.complete_weights import CompleteWeightsMixin, check_files, read_header
from latent_cot.training.data.tokenization import (
    prepare_tokenizer,
    set_special_ids,
    starts_with_bos,
    tokenize_answer_prompt,
)
from latent_cot.training.errors import InputError
from latent_cot.training.families import stock_config

from .checks import check_finite, find_file, one_clear_error
from .lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, merge_adapter

SETTINGS = "pccot_args.json"
NAME_IT = "name it yourself: load(FOLDER, base_model=PATH), or latent-cot convert --model FOLDER OUT --base_model PATH"
# What tells other projects' checkpoints, which `converters/` reads: classes, beginnings of tensors' names, a token.
FOREIGN_CLASSES = {"COCONUTGPT2", "CODIGPT2", "ColarLlama"}
FOREIGN_TENSORS = ("codi.", "base_causallm.", "module.codi.", "module.base_causallm.")
FOREIGN_TOKEN = "<|start-latent|>"


def read_config(name: str, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedConfig:
    """A checkpoint's configuration, completed from the file in which the original keeps the other settings."""
    with one_clear_error(name, "configuration"):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    path = find_file(name, SETTINGS, revision)
    if path is None:
        return config
    settings = read_object(path)
    fields = ("num_latent_tokens", *getattr(config, "special_tokens", {}))
    missing = [field for field in (*fields, "answer_prompt") if field not in settings]
    if missing:
        raise InputError(f"{path}: no {missing[0]} in it")
    if not isinstance(settings["answer_prompt"], str):
        raise InputError(f"{path}: answer_prompt must be text, got {settings['answer_prompt']!r}")
    tokenizer = read_tokenizer(name, revision)
    answer_prompt_ids = tokenize_answer_prompt(settings["answer_prompt"], tokenizer)
    try:  # checked as a configuration file's values are
        return type(config).from_dict(
            config.to_dict() | {field: settings[field] for field in fields} | {"answer_prompt_ids": answer_prompt_ids}
        )
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def read_object(path: Path) -> dict:
    """The object in a JSON file. Raises InputError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, no JSON in it: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold names and values, not a {type(content).__name__}")
    return content


def read_tokenizer(name: str, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer. Raises InputError for a damaged one."""
    with one_clear_error(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        tokenizer("1")  # what a damaged file lacks may show only now
        return tokenizer


def load_weights(
    name: str,
    config: PreTrainedConfig,
    revision: str = "main",
    trust_remote_code: bool = False,
    base_model: str | None = None,
    **options,
) -> PreTrainedModel:
    """The model of a checkpoint; adapters are merged into it. Raises InputError for damaged, missing or infinite
    weights, or ones that do not fit; for adapters of another kind, pickled ones, or a base model that cannot be found.

    Args:
        config: the checkpoint's configuration, or its backbone's counterpart.
        base_model: what the adapters are added to, instead of the checkpoint's own word for it.
    """
    options |= {"use_safetensors": True}
    adapter = find_file(name, ADAPTER_CONFIG, revision)
    if adapter is None:
        model = read_weights(name, config, revision=revision, trust_remote_code=trust_remote_code, **options)
        check_finite(model, name)
        return model
    fields = read_object(adapter)
    if fields.get("peft_type") != "LORA":
        raise InputError(f"{adapter}: adapters of type {fields.get('peft_type')!r} cannot be read, only LORA")
    if find_file(name, ADAPTER_WEIGHTS, revision) is None:
        raise InputError(f"{name}: no {ADAPTER_WEIGHTS} in it")

    has_base = any((adapter.parent).glob("model*.safetensors"))
    base = base_model or (str(adapter.parent) if has_base else base_beside(adapter, fields))
    rows, pad = config.vocab_size, config.pad_token_id
    base_config = read_base(base, adapter)
    if base_config.model_type not in (config.model_type, stock_config(config).model_type):
        raise InputError(f"{name}: a {config.model_type} cannot be built on {base!r}, a {base_config.model_type}")
    # A padding id beyond the base's smaller vocabulary crashes Llama's embedding.
    config.vocab_size, config.pad_token_id = base_config.vocab_size, None
    with without_adapter(base) as alone:
        model = read_weights(alone, config, **options)
    if rows > base_config.vocab_size:
        model.resize_token_embeddings(rows, mean_resizing=False)
    model.config.pad_token_id = pad
    if (settings := find_file(name, GENERATION_CONFIG_NAME, revision)) is not None:
        model.generation_config = GenerationConfig.from_pretrained(settings.parent)
    merged = merge_adapter(model, adapter.parent)
    check_finite(merged, name)
    return merged


def read_weights(name: str, config: PreTrainedConfig, **options) -> PreTrainedModel:
    """`AutoModelForCausalLM.from_pretrained`, which for a stock model fills what is missing with random numbers. Raises
    InputError, instead.
    """
    with one_clear_error(name, "weights"):
        model, info = AutoModelForCausalLM.from_pretrained(name, config=config, output_loading_info=True, **options)
        if not isinstance(model, CompleteWeightsMixin):  # ours have been checked, and may lack a new projection
            for missing in sorted(info["missing_keys"]):
                raise InputError(f"{name}: the checkpoint lacks the tensor {missing}")
            if Path(name).is_dir():
                check_files(model, sorted(Path(name).glob("model*.safetensors")))
    return model


@contextmanager
def without_adapter(name: str) -> Iterator[str]:
    """A folder as it would be without the adapter in it, which transformers would load along; other names as they are."""
    if not (Path(name) / ADAPTER_CONFIG).is_file():
        yield name
        return
    with TemporaryDirectory() as alone:
        for path in Path(name).resolve().iterdir():
            if not path.name.startswith("adapter_"):
                (Path(alone) / path.name).symlink_to(path)
        yield alone


def read_base(base: str, adapter: Path) -> PreTrainedConfig:
    """The configuration of an adapter's base model."""
    try:
        with one_clear_error(base, "configuration"):
            return AutoConfig.from_pretrained(base)
    except OSError as error:
        raise InputError(
            f"{adapter}: its base model {base!r} is neither in this folder, nor beside it, nor on the Hub; {NAME_IT}"
        ) from error


def base_beside(adapter: Path, fields: dict) -> str:
    """Where an adapter's base model is: a folder beside the adapter's own, or a name on the Hub.

    `./name`, as `lora.finish_adapter_config` writes it, is never a name on the Hub.
    """
    base = str(fields.get("base_model_name_or_path") or "")
    if not base or Path(base).is_absolute() or ".." in Path(base).parts:
        raise InputError(f"{adapter}: the base model {base!r} is not looked for there; {NAME_IT}")
    beside = adapter.resolve().parent.parent / base
    if base.startswith("./") and not beside.is_dir():
        raise InputError(f"{adapter}: its base model was in a folder {base[2:]!r}, and {beside} is none; {NAME_IT}")
    return str(beside) if beside.is_dir() else base


def base_tokenizer(
    name: str, config: PreTrainedConfig, revision: str, base_model: str | None
) -> PreTrainedTokenizerBase:
    """The tokenizer of adapters that were saved without one: their base model's, with the family's tokens. Raises
    InputError if it gives them other ids than the configuration.
    """
    adapter = find_file(name, ADAPTER_CONFIG, revision)
    tokenizer = read_tokenizer(base_model or base_beside(adapter, read_object(adapter)))
    tokens = getattr(config, "special_tokens", {})
    prepare_tokenizer(tokenizer, tokens)
    for field, token in tokens.items():
        if tokenizer.convert_tokens_to_ids(token) != getattr(config, field):
            raise InputError(
                f"{name}: no tokenizer in it, and the base model's gives {token} another id; save the run's own there "
                "(trainer.processing_class.save_pretrained)"
            )
    return tokenizer


def load(
    name: str, revision: str = "main", base_model: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of any checkpoint, ready for `generate()`; adapters are merged.

    Args:
        name: a folder or a name on the Hub.
        revision: branch, tag or commit.
        base_model: of an adapter, instead of the one that the checkpoint names.
        trust_remote_code: run code that the checkpoint brings along.

    Raises:
        InputError: if something is missing or does not fit.
    """
    check_reachable(name, "model")
    if is_foreign(name, revision):
        raise InputError(
            f"{name}: another project's weights, which do not think when they are loaded as they are: convert them first "
            f"(latent-cot convert --model {name} FOLDER)"
        )
    config = read_config(name, revision, trust_remote_code)
    if find_file(name, ADAPTER_CONFIG, revision) and not find_file(name, "tokenizer_config.json", revision):
        tokenizer = base_tokenizer(name, config, revision, base_model)
    else:
        tokenizer = read_tokenizer(name, revision, trust_remote_code)
    model = load_weights(name, config, revision, trust_remote_code, base_model)
    if find_file(name, SETTINGS, revision) is not None:
        prepare_tokenizer(tokenizer, config.special_tokens)
        set_special_ids(model, tokenizer)
        model.config.questions_start_with_bos = starts_with_bos(tokenizer)
    most, rows = max(tokenizer.get_vocab().values(), default=-1), model.get_input_embeddings().num_embeddings
    if most >= rows:
        raise InputError(f"{name}: the tokenizer has a token {most}, and the model's vocabulary ends at {rows - 1}")
    return model.eval(), tokenizer


def is_foreign(name: str, revision: str = "main") -> bool:
    """Whether a checkpoint is of a project whose weights have to be converted; damaged files are left to others to tell."""
    config = find_file(name, "config.json", revision)
    fields = {}
    with suppress(InputError):
        fields = read_object(config) if config is not None else {}
    if not fields:
        if not Path(name).exists():
            with suppress(OSError, ValueError):
                return any(
                    file_exists(name, file, revision=revision) for file in ("pytorch_model.bin", "model.safetensors")
                )
            return False
        if any((Path(name) / file).is_file() for file in ("pytorch_model.bin", "pytorch_model.bin.index.json")):
            return True
        with suppress(ValueError):
            for path in Path(name).glob("*.safetensors"):
                return any(key.startswith(FOREIGN_TENSORS) for key in read_header(path))
        return any(path.is_file() and not path.suffix for path in Path(name).glob("checkpoint_*"))
    kind = str(fields.get("model_type", ""))
    classes = fields.get("architectures")
    if (isinstance(classes, list) and not FOREIGN_CLASSES.isdisjoint(map(str, classes))) or (
        "base_model" in fields and not kind
    ):
        return True
    tokenizer = find_file(name, "tokenizer.json", revision) if kind in ("gpt2", "llama") else None
    return tokenizer is not None and f'"{FOREIGN_TOKEN}"' in tokenizer.read_text(encoding="utf-8", errors="replace")


def check_reachable(name: str, what: str) -> None:
    """Raises InputError for something that looks like a path and does not exist."""
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith(".json") or name.count("/") > 1
    looks_like_path |= "/" in name and Path(name).parent.is_dir()
    if looks_like_path and not Path(name).expanduser().exists():
        raise InputError(f"{what} {name!r}: no such file or folder")
