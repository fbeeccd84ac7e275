"""Which project published a checkpoint, and what converts it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latent_cot.training.checkpoints.read import SETTINGS
from latent_cot.training.errors import InputError
from latent_cot.training.families import PCCOT, family_in

from .coconut import TOKENS, convert_coconut
from .codi import convert_codi
from .convert_icot import convert as convert_icot
from .convert_icot import recognizes
from .export import export
from .foreign import Source, open_source
from .latent_tts import convert_latent_tts, is_latent_tts
from .lotus import convert_lotus
from .plain import Converted, write_converted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """A project's layout."""

    is_it: Callable[[Source], bool]  # whether a source has it
    convert: Callable[[Source, str | None], Converted]  # given a base model's name or None


def is_plain_lotus(source: Source) -> bool:
    """Whether a folder holds an ordinary model whose tokenizer has the tokens of a thought."""
    files = [source.folder / name for name in ("tokenizer.json", "added_tokens.json", "vocab.json")]
    held = "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    plain = source.fields.get("model_type") in ("llama", "gpt2") and source.has("model.", "transformer.")
    return plain and all(f'"{token}"' in held for token in TOKENS)


# The first that fits counts.
FAMILIES = {
    "codi": Family(lambda source: source.has("codi."), convert_codi),
    "latent_tts": Family(is_latent_tts, convert_latent_tts),
    "lotus": Family(lambda source: source.has("ia_decoder.") or is_plain_lotus(source), convert_lotus),
    "coconut": Family(lambda source: source.has("expainable_llm."), convert_coconut),
}
# Patterns in names and classes that tell what cannot be read, and why.
REFUSED = {
    "colar": "CoLaR's thoughts come from a head that is sampled, and have no set length",
    "latent[-_]sft": "Latent-SFT thinks in mixtures of embeddings",
    "latent[-_]grpo": "Latent-GRPO thinks in mixtures of embeddings",
    "slpo": "SLPO ends its thoughts by a stop gate",
    "huginn": "Huginn iterates over layers, not latents, and loads by itself",
    "ouro": "Ouro iterates over layers, not latents, and loads by itself",
}
GATES = ("gate", "stop_head", "halt")  # parts of names of tensors: an adaptive end of the thought


def convert(
    source: str,
    out: Path,
    revision: str = "main",
    base_model: str | None = None,
    family: str | None = None,
    num_internalized_tokens: int | None = None,
) -> None:
    """Write a published checkpoint as a plain folder that `AutoModelForCausalLM.from_pretrained` loads.

    The original PCCoT's and iCoT's layouts are read, too.

    Args:
        source: a folder, a file of weights, or a name on the Hub.
        out: a new or empty folder.
        base_model: whose configuration and tokenizer are taken where a source has none, instead of the one that its
            project names.
        family: one of `FAMILIES`, where files alone do not tell.
        num_internalized_tokens: of the original iCoT's; see `convert_icot.convert`.

    Raises:
        InputError: for a source of no known family, or of one that is not read; one that does not fit; a folder in use.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; choose another folder")
    if family is not None and family not in FAMILIES:
        raise InputError(f"--family must be one of {', '.join(FAMILIES)}, got {family!r}")
    found = open_source(source, revision, read=False)
    refuse(found)
    of_icot = recognizes(str(found.folder))
    if num_internalized_tokens is not None and not of_icot:
        raise InputError(f"--num_internalized_tokens is of the original iCoT's checkpoints, and {source} is none")
    if (found.folder / SETTINGS).is_file() or family_in(found.fields.get("model_type")) is PCCOT:
        return export(source, out, revision, base_model)
    if of_icot:
        return convert_icot(found.folder, out, num_internalized_tokens)
    found = open_source(source, revision)
    for key in found.weights:
        parts = [part for part in key.split(".") if part.startswith(GATES) and not part.startswith("gate_")]
        if parts:
            raise InputError(f"{source}: not read, since {key} is of a gate that ends its thoughts by itself")
    name = family or family_of(found)
    logger.info("%s: %s", source, name)
    write_converted(found, FAMILIES[name].convert(found, base_model), out)


def refuse(source: Source) -> None:
    """Raises InputError for a family that is known, and known not to be one of ours with other switches."""
    for word, why in REFUSED.items():
        if source.is_called(word):
            raise InputError(f"{source.name}: not read, since {why}")


def family_of(source: Source) -> str:
    """The name of a source's family in `FAMILIES`. Raises InputError if there is none, or files do not tell."""
    found = next((name for name, family in FAMILIES.items() if family.is_it(source)), None)
    if found is not None:
        return found
    if source.has("base_causallm."):
        raise InputError(f"{source.name}: Coconut and LOTUS share this layout; say which: --family coconut or lotus")
    first = next(iter(source.weights), "none")
    raise InputError(
        f"{source.name}: of no family that is known ({', '.join(FAMILIES)}, PCCoT, iCoT); its first tensor is {first}"
    )
