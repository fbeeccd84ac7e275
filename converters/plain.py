"""Writing a converted checkpoint: a plain folder of ours, and a card that says what it was made of."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from tokenizers import Regex, normalizers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from latent_cot.answer_modes import ANSWER_SOURCES
from latent_cot.training.checkpoints.checks import check_finite
from latent_cot.training.checkpoints.loading import family_config
from latent_cot.training.checkpoints.write import write_model_files
from latent_cot.training.data.tokenization import prepare_tokenizer, set_special_ids, starts_with_bos
from latent_cot.training.errors import InputError
from latent_cot.training.families import PCCOT

from .foreign import Ledger, Source

logger = logging.getLogger(__name__)

NEWLINE = "\n"
ENDINGS = ("a", "1", "?", ".", "!", ")", '"', "?)", "$5", "%")  # of questions, and what a newline could merge with


def thinking_config(
    base: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    tokens: tuple[str, str, str],
    rows: int,
    answer_from: str,
    **fields,
) -> PreTrainedConfig:
    """A `pccot-*` configuration of a backbone's, for a tokenizer that gets the tokens of a thought where it lacks them.
    Raises InputError for a backbone or a field that is none.

    Args:
        tokens: what opens a thought, ends it, and stands for a latent.
        rows: how many tokens the source has embeddings of.
        answer_from: how an answer is read (`answer_modes.ANSWER_SOURCES`); the model writes by itself what announces it.
    """
    config = family_config(base, PCCOT.name)
    named = dict(zip(("bot_token_id", "eot_token_id", "latent_token_id"), tokens, strict=True))
    prepare_tokenizer(tokenizer, named)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    fields |= {"answer_prompt_ids": [], "answer_from": answer_from}
    fields |= ids | {"vocab_size": max(rows, len(tokenizer)), "questions_start_with_bos": starts_with_bos(tokenizer)}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    try:
        return type(config).from_dict(config.to_dict() | fields | special)
    except ValueError as error:
        raise InputError(f"the configuration does not fit: {error}") from error


def newline_after_questions(tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """The `question_suffix_ids` of a model whose questions end with a newline; None where the tokenizer writes it.

    Some tokenizers (Llama 3's) make one token of `?` and a newline, so that ids after a question's own would be others than
    those that the model was trained on. Such a one is changed, in place: it puts a newline after every text.
    """
    encode = {"add_special_tokens": False}
    newline = tokenizer(NEWLINE, **encode)["input_ids"]
    alone = [tokenizer(text, **encode)["input_ids"] for text in ENDINGS]
    ended = [tokenizer(text + NEWLINE, **encode)["input_ids"] for text in ENDINGS]
    if all(whole == ids + newline for ids, whole in zip(alone, ended, strict=True)):
        return newline
    backend = tokenizer.backend_tokenizer
    after = normalizers.Replace(Regex(r"\z"), NEWLINE)
    backend.normalizer = normalizers.Sequence([after] + [backend.normalizer] * (backend.normalizer is not None))
    return None


@dataclass(frozen=True)
class Converted:
    """A source as a model of ours.

    Rows of embeddings that the vocabulary has and `weights` lack become the mean of the others, which no answer begins with
    by chance.
    """

    weights: dict[str, torch.Tensor]  # under the model's own names
    ledger: Ledger  # what became of the source's tensors
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    family: str  # what the source is, for the card
    max_new_tokens: int  # how long an answer is unless asked otherwise
    suppressed: tuple[int, ...] = ()  # tokens that an answer may not hold
    base_model: str | None = None  # where configuration and tokenizer come from, if not from the source


def write_converted(source: Source, converted: Converted, out: Path) -> None:
    """Write the checkpoint; a run that fails leaves none. Raises InputError for a missing tensor, one with no place, of
    another shape, or with numbers that are not finite.
    """
    weights, ledger, tokenizer = converted.weights, converted.ledger, converted.tokenizer
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(converted.config)
    grow_rows(source, weights, ledger, model)
    check_fit(source, weights, model)
    dtype = weights[name_of_embeddings(model)].dtype
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, strict=False, assign=True)
    model.tie_weights()
    check_finite(model, source.name)
    set_special_ids(model, tokenizer)
    model.generation_config.max_new_tokens = converted.max_new_tokens
    model.generation_config.suppress_tokens = list(converted.suppressed) or None
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_model_files(model, tokenizer, part)
        (part / "README.md").write_text(
            card(source, ledger, model, converted.family, converted.base_model, out), encoding="utf-8"
        )
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    logger.info("wrote %s", out)


def check_rows(source: Source, weights: dict[str, torch.Tensor], config: PreTrainedConfig) -> None:
    """Raises InputError for embeddings that end before the tokens of a thought: a row filled in would not be trained."""
    last = max(config.bot_token_id, config.eot_token_id, config.latent_token_id)
    for name in ("transformer.wte.weight", "model.embed_tokens.weight", "lm_head.weight"):
        if name in weights and len(weights[name]) <= last:
            raise InputError(
                f"{source.name}: {name} has {len(weights[name])} rows, and the tokens of a thought go up to {last}; if the "
                "base model is another, name it: --base_model"
            )


def name_of_embeddings(model: PreTrainedModel) -> str:
    embeddings = model.get_input_embeddings().weight
    return next(name for name, weight in model.named_parameters() if weight is embeddings)


def grow_rows(source: Source, weights: dict[str, torch.Tensor], ledger: Ledger, model: PreTrainedModel) -> None:
    """Leave out a head that is the embeddings, and fill the rows of embeddings and head that the source lacks, in place."""
    tables = [name_of_embeddings(model), "lm_head.weight"]
    if model.config.tie_word_embeddings and tables[1] in weights:
        # One matrix under two names, of which a file of safetensors keeps one.
        weights.setdefault(tables[0], weights[tables[1]])
        del weights[tables.pop()]
    for name in tables:
        if name in weights and weights[name].ndim == 2 and (new := model.config.vocab_size - len(weights[name])) > 0:
            mean = weights[name].float().mean(dim=0, keepdim=True).to(weights[name].dtype)
            weights[name] = torch.cat([weights[name], mean.expand(new, -1)])
            ledger.filled.append(f"the last {new} rows of `{name}`, by the mean of the others")


def check_fit(source: Source, weights: dict[str, torch.Tensor], model: PreTrainedModel) -> None:
    """Raises InputError unless these are exactly the model's weights."""
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    for name in sorted(wanted.keys() - weights.keys()):
        raise InputError(f"{source.name}: the checkpoint lacks the tensor {name}")
    for name in sorted(weights.keys() - wanted.keys()):
        raise InputError(f"{source.name}: a {model.config.model_type} has no place for the checkpoint's tensor {name}")
    for name, shape in wanted.items():
        if list(weights[name].shape) != shape:
            raise InputError(
                f"{source.name}: {name} has the shape {list(weights[name].shape)}, and this model's is {shape}; if the base "
                "model is another, name it"
            )


def card(source: Source, ledger: Ledger, model: PreTrainedModel, family: str, base_model: str | None, out: Path) -> str:
    """The text of a converted checkpoint's card."""
    config, total = model.config, len(source.weights)
    words = ANSWER_SOURCES[config.answer_from]
    origin = source.name if source.revision else source.folder.name
    data = ModelCardData(
        license="other",
        license_name="that-of-the-source",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["latent-chain-of-thought", config.model_type],
        base_model=origin if source.revision else None,
    )

    def listed(counts: dict[str, int]) -> str:
        return "".join(f"\n  - {count} x `{name}`" for name, count in counts.items()) or " none"

    return f"""---
{data.to_yaml()}
---

# {out.name}

{family}, converted from `{origin}`{f" at revision `{source.revision}`" if source.revision else ""}.
{config.describe()}
Where in its text the answer is: {words} (`answer_from`).
{f"Configuration and tokenizer are those of `{base_model}`." if base_model else ""}

All {total} tensors of the source:

- read, {sum(ledger.copied.values())}:{listed(ledger.copied)}
- merged in float32, which are among them, {sum(ledger.merged.values())}:{listed(ledger.merged)}
- left out, {sum(ledger.left_out.values())}:{listed(ledger.left_out)}

Added: {"; ".join(ledger.filled) or "nothing"}. Numbers are stored as {str(model.dtype).removeprefix("torch.")}.

Nothing was measured here, and what others published is not repeated. With this project's package installed:

```
latent-cot lm_eval --model_args pretrained={out.name} --tasks gsm8k_last_number
```
"""
