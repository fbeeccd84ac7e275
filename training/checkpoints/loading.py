"""Tokenizer, configuration and model: from a checkpoint, from a backbone's checkpoint, or from random weights."""

import copy
import logging
from collections.abc import Iterable
from itertools import chain, islice

import torch
from datasets import Dataset, IterableDataset
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_flash_attn_2_available

import latent_cot
from latent_cot import PromptConfigMixin
from latent_cot.complete_weights import NEW_PARTS
from latent_cot.training.arguments import ModelArguments
from latent_cot.training.data.small_tokenizers import byte_tokenizer, character_tokenizer, word_tokenizer
from latent_cot.training.data.text_format import family_tokens, write_spaces
from latent_cot.training.data.tokenization import (
    prepare_tokenizer,
    set_special_ids,
    starts_with_bos,
    tokenize_answer_prompt,
)
from latent_cot.training.errors import InputError
from latent_cot.training.families import check_family
from latent_cot.training.flags import pairs

from .gguf_file import GGUFFile, gguf_config, load_gguf, load_gguf_tokenizer
from .read import check_reachable, load_weights, read_config, read_tokenizer

logger = logging.getLogger(__name__)


def load_tokenizer(args: ModelArguments, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """The tokenizer, as it comes; `texts` are read only for `--tokenizer_name characters` and `words`."""
    name = args.tokenizer_name or args.model_name_or_path
    if name is None:
        raise InputError("no tokenizer: pass --tokenizer_name (a name or folder, or `characters`, `words`, `bytes`)")
    if name in ("characters", "words"):
        texts = iter(texts)
        first = list(islice(texts, 2))
        if len(first) < 2:
            raise InputError(f"--tokenizer_name {name} is made from the training data: pass --do_train")
        texts = chain(first, texts)
        return character_tokenizer(texts) if name == "characters" else word_tokenizer(texts)
    if name == "bytes":
        return byte_tokenizer()
    check_reachable(name, "tokenizer")
    if args.gguf_file is not None and args.tokenizer_name is None:
        return load_gguf_tokenizer(GGUFFile(name, args.gguf_file, args.model_revision))
    return read_tokenizer(name, args.model_revision, args.trust_remote_code)


def own_tokenizer(args: ModelArguments, given: bool = False) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint of ours that a run begins from with another; None if there is none.

    Args:
        given: the other one is an object (`processing_class`) instead of `--tokenizer_name`.
    """
    other = given or args.tokenizer_name is not None
    if args.model_name_or_path is None or not other or args.gguf_file is not None:
        return None
    # The checkpoint's own configuration: --config_name, which a recipe has, does not know that it was trained.
    if not is_set_up(read_config(args.model_name_or_path, args.model_revision, args.trust_remote_code)):
        return None
    return read_tokenizer(args.model_name_or_path, args.model_revision, args.trust_remote_code)


def texts_of(examples: Dataset | IterableDataset | None, answer_prompt: str | None) -> Iterable[str]:
    """Every text of the training data and the answer prompt, for a tokenizer made from them."""
    yield PromptConfigMixin.default_answer_prompt if answer_prompt is None else answer_prompt
    for batch in () if examples is None else examples.iter(batch_size=1000):
        yield from (*batch["question"], *chain.from_iterable(batch["steps"]), *batch["answer"])


def load_config(
    args: ModelArguments, family: str | None = None, settings: dict | None = None, new: dict | None = None
) -> PreTrainedConfig:
    """The model's configuration, with the flags that change it applied.

    A backbone's configuration becomes its counterpart of the family, if one is asked for.

    Args:
        settings: fields that flags set; None leaves the checkpoint's (or the configuration's) value.
        new: fields of a model that was not trained yet, where neither a flag nor an override sets them.

    Raises:
        InputError: without a model or configuration, for an unknown backbone, or for an override that does not fit.
    """
    source = args.config_name or args.model_name_or_path
    if source is None:
        raise InputError("no model: pass --model_name_or_path, or --config_name for random weights")
    check_reachable(source, "model" if args.config_name is None else "configuration")
    if args.gguf_file is not None and args.model_name_or_path is None:
        raise InputError("--gguf_file names a file in --model_name_or_path: pass both")
    if args.gguf_file is not None and args.config_name is None:
        config = gguf_config(GGUFFile(source, args.gguf_file, args.model_revision))
    else:
        config = read_config(source, args.model_revision, args.trust_remote_code)
    if family is not None and getattr(config, "family", None) != family:
        config = family_config(config, family)
    trained, was = is_set_up(config), {name: getattr(config, name, None) for name in NEW_PARTS}
    apply_overrides(config, args.config_overrides, trained)
    overridden = {pair.partition("=")[0] for pair in (args.config_overrides or "").split(",")}
    for name, value in (new or {}).items():
        if not trained and name not in overridden:
            setattr(config, name, value)
    for name, value in (settings or {}).items():
        if value is not None and value != getattr(config, name):
            if name in pairs(args.config_overrides):
                raise InputError(f"{name} is {value}, and config_overrides say {getattr(config, name)}: leave one out")
            if trained:
                logger.warning("--%s %s replaces the checkpoint's %s", name, value, getattr(config, name))
            setattr(config, name, value)
    if trained and was["use_projection"] and getattr(config, "scale_latents", None) != was["scale_latents"]:
        raise InputError(
            f"scale_latents={config.scale_latents}: the checkpoint's projection has its size from training, so it would change "
            "nothing; leave it out"
        )
    has_gain = args.model_name_or_path is not None and trained and was["scale_latents"] and not was["use_projection"]
    if has_gain and (config.use_projection or not config.scale_latents):
        raise InputError(
            "the checkpoint's latents have a trained gain (scale_latents), which has no place beside a projection or without "
            "scale_latents: leave both as they are"
        )
    if family is not None:
        type(config).from_dict(config.to_dict())  # check the values as a configuration file's
    return config


def family_config(config: PreTrainedConfig, family: str) -> PreTrainedConfig:
    """A family's configuration of a backbone's. Raises InputError for a backbone that has none, and a model of another
    family.
    """
    if hasattr(config, "family"):
        check_family(config, family, "this command")
    model_type = f"{family}-{config.model_type}"
    if model_type not in CONFIG_MAPPING:
        known = [name.removeprefix(f"{family}-") for name in registered_types() if name.startswith(family)]
        raise InputError(
            f"unknown backbone {config.model_type!r}; there are: {', '.join(known)} (docs/adding-a-backbone.md)"
        )
    fields = config.to_dict()
    for name in ("model_type", "architectures", "auto_map", "transformers_version"):
        fields.pop(name, None)
    return CONFIG_MAPPING[model_type](**fields)


def registered_types() -> list[str]:
    """The model types that this project adds to transformers."""
    classes = (getattr(latent_cot, name) for name in latent_cot.__all__ if name.endswith("Config"))
    return [config_class.model_type for config_class in classes]


def apply_overrides(config: PreTrainedConfig, overrides: str | None, trained: bool = False) -> None:
    """Set fields from `name=value,name=value`; the value takes the type of the field's present one. Raises InputError
    for an unknown field or a value that does not fit.

    Args:
        trained: the configuration is a checkpoint's, so that a change is worth a warning.
    """
    for name, text in pairs(overrides).items():
        if text is None or not hasattr(config, name):
            raise InputError(f"--config_overrides: the {config.model_type} configuration has no field {name!r}")
        old = getattr(config, name)
        try:
            if isinstance(old, list) or name.endswith("_ids"):
                raise ValueError
            if isinstance(old, bool):
                value = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
            elif isinstance(old, int) and text.lstrip("-").isdigit():
                value = int(text)
            elif isinstance(old, int | float):
                value = float(text)
            elif old is None or isinstance(old, str):
                value = int(text) if text.lstrip("-").isdigit() else text
            else:
                raise ValueError
        except (ValueError, KeyError):
            raise InputError(f"--config_overrides: {name}={text!r} does not fit a field like {old!r}") from None
        if trained and value != old:
            logger.warning("--config_overrides %s=%s replaces the checkpoint's %s", name, value, old)
        setattr(config, name, value)


def load_model(
    args: ModelArguments,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    added: int = 0,
    in_4bit: bool = False,
) -> PreTrainedModel:
    """The model of a complete configuration, its vocabulary as large as the tokenizer's. Raises InputError where
    `in_4bit` or the attention that is asked for cannot be.

    Args:
        added: how many of the tokenizer's last tokens are new.
    """
    check_attention(args.attn_implementation)
    options = {"dtype": args.torch_dtype or "auto"}
    if args.attn_implementation is not None:
        options["attn_implementation"] = args.attn_implementation
    if in_4bit:
        if args.model_name_or_path is None or args.gguf_file is not None:
            raise InputError("--load_in_4bit needs a checkpoint in --model_name_or_path, and no GGUF file")
        dtype = getattr(torch, str(args.torch_dtype), torch.bfloat16 if torch.cuda.is_available() else torch.float32)
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    name = args.model_name_or_path
    if name is None or args.gguf_file is not None:
        options["dtype"] = getattr(torch, args.torch_dtype or "float32", torch.float32)
    if name is None:
        config.vocab_size = len(tokenizer)
        config.pad_token_id = tokenizer.pad_token_id
        config._name_or_path = ""  # a file of the repository is no base model
        model = AutoModelForCausalLM.from_config(config, **options)
    else:
        if args.gguf_file is not None:
            model = load_gguf(GGUFFile(name, args.gguf_file, args.model_revision), config, **options)
        else:
            model = load_weights(name, config, args.model_revision, args.trust_remote_code, **options)
        extend_vocabulary(model, tokenizer, added)
    set_special_ids(model, tokenizer)
    # Where a class's name does not say so, as GPT-2's, transformers takes this one too, with a warning.
    model.loss_type = model.loss_type or "ForCausalLM"
    return model


def extend_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, added: int = 0) -> None:
    """Give a tokenizer's new tokens rows that start as draws around the mean of the rows in use.

    That keeps a model's predictions as they are. Some matrices have rows to spare, which were never trained (Qwen3): a token
    that took one as it is would start with gradients 300 times as large.

    Args:
        added: how many of the tokenizer's last tokens are new.
    """
    there = model.get_input_embeddings().weight.shape[0]
    in_use = len(tokenizer) - added
    spare = slice(in_use, min(len(tokenizer), there))
    if spare.start < spare.stop:
        matrices = {
            id(layer.weight): layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        }
        for matrix in matrices.values():
            used = matrix.data[:in_use].float()
            drawn = used.mean(dim=0) + 1e-4 * used.std(dim=0) * torch.randn_like(used[: spare.stop - spare.start])
            matrix.data[spare] = drawn.to(matrix.dtype)
    if len(tokenizer) > there:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=True)


def is_set_up(config: PreTrainedConfig) -> bool:
    """Whether a configuration is one of a checkpoint that was trained here: it knows special tokens or an answer prompt."""
    names = (*getattr(config, "special_tokens", {}), "answer_prompt_ids")
    return any(getattr(config, name, None) is not None for name in names)


def set_up(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, answer_prompt: str | None) -> None:
    """Make tokenizer and configuration fit: the family's tokens, added where they are missing, and the answer prompt.

    Everything that the weights depend on ends up in the configuration.

    Args:
        answer_prompt: replaces the checkpoint's, with a warning; for a new model None means "The answer is:".
    """
    tokens = family_tokens(config, tokenizer)
    prepare_tokenizer(tokenizer, tokens)
    set_answer_prompt(config, tokenizer, answer_prompt)
    for name, token in tokens.items():
        setattr(config, name, tokenizer.convert_tokens_to_ids(token))
    if tokens:
        config.questions_start_with_bos = starts_with_bos(tokenizer)


def set_up_text_format(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, form: str
) -> PreTrainedTokenizerBase | None:
    """Have an iCoT configuration and its tokenizer write as a format of `text_format.py` does.

    Returns:
        The tokenizer as it was before it learned to write spaces, with the format's tokens; None for the plain format.
    """
    config.text_format = form
    if form == "plain":
        return None
    prepare_tokenizer(tokenizer, family_tokens(config, tokenizer))
    before = copy.deepcopy(tokenizer)
    write_spaces(tokenizer)
    if form == "fork":
        config.question_end_ids = [tokenizer.eos_token_id]
    return before


def set_answer_prompt(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, text: str | None) -> None:
    """Put the answer prompt's ids into the configuration, unless it has some and no flag replaces them."""
    old = getattr(config, "answer_prompt_ids", None)
    if text is None and old is not None:
        return
    new = tokenize_answer_prompt(PromptConfigMixin.default_answer_prompt if text is None else text, tokenizer)
    if old is not None and new != old:
        logger.warning("--answer_prompt %r replaces the checkpoint's %r", text, tokenizer.decode(old))
        config.answer_from = "prompt"
    config.answer_prompt_ids = new


def check_attention(implementation: str | None) -> None:
    """Raises InputError where flash attention is asked for and cannot work."""
    if implementation in ("flash_attention_2", "flash_attention_3"):
        if not torch.cuda.is_available():
            raise InputError(f"--attn_implementation {implementation} needs a GPU; use sdpa")
        if implementation == "flash_attention_2" and not is_flash_attn_2_available():
            raise InputError("--attn_implementation flash_attention_2 needs: pip install '.[gpu]'")


def reinitialize(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same configuration with random weights."""
    model.config._name_or_path = ""  # adapters could not be put on what it names
    fresh = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    fresh.generation_config = model.generation_config
    return fresh


def extend_positions(model: PreTrainedModel, positions: int) -> None:
    """Make GPT-2's table of positions at least so long; new rows start as copies of the last one. Raises InputError for
    a model without such a table, if it is too short.
    """
    if positions <= model.config.max_position_embeddings:
        return
    table = getattr(model.base_model, "wpe", None)
    if table is None:
        raise InputError(f"--truncation {positions} is beyond the positions of {model.config.model_type}")
    old = table.weight.data
    longer = torch.nn.Embedding(positions, old.shape[1], device=old.device, dtype=old.dtype)
    longer.weight.data[: len(old)] = old
    longer.weight.data[len(old) :] = old[-1]
    model.base_model.wpe = longer
    model.config.max_position_embeddings = positions
    model.name_or_path = ""  # adapters could not be put on what it names
