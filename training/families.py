"""The families of models, each described once: trainers, analysis, engines, converters and the reference ask here.

What a checkpoint has to know of its family are class attributes of its configuration (`PromptConfigMixin`: `family`,
`special_tokens`, `between`); here is what only training knows. Another family is another entry of `FAMILIES`.
"""

from dataclasses import dataclass

from transformers import CONFIG_MAPPING, PreTrainedConfig

from latent_cot import ICoTConfigMixin, PCCoTConfigMixin, PromptConfigMixin

from .errors import InputError


@dataclass(frozen=True)
class Family:
    """One family."""

    title: str  # for people
    config: type[PromptConfigMixin]  # what its configurations add to a backbone's
    script: str  # train its models
    trainer: str
    is_baseline: bool = False  # `run_cot.py` trains its models too, as it trains a stock backbone

    @property
    def name(self) -> str:
        """The first part of its model types."""
        return self.config.family


PCCOT = Family("PCCoT", PCCoTConfigMixin, "run_ccot.py", "PCCoTTrainer", is_baseline=True)
ICOT = Family("iCoT", ICoTConfigMixin, "run_icot.py", "ICoTTrainer")
FAMILIES = {family.name: family for family in (PCCOT, ICOT)}


def check_family(config: PreTrainedConfig, wanted: str | None, trainer: str) -> None:
    """Raises InputError for a model that a trainer would train as something that it is not.

    Args:
        wanted: the trainer's family; None for the one of the baselines.
    """
    name = getattr(config, "family", None)
    known = FAMILIES.get(name)
    if name == wanted or (wanted is None and known is not None and known.is_baseline):
        return
    if name is not None and known is None:
        hint = f"no trainer here is for the family {name!r}"
    else:
        hint = "use run_cot.py (CoTTrainer)" if known is None else f"use {known.script} ({known.trainer})"
    raise InputError(f"{trainer} cannot train a {config.model_type} model: {hint}")


def between(config: PreTrainedConfig, *known: str, cannot: str) -> str:
    """What stands between question and answer of a model (`PromptConfigMixin.between`). Raises InputError for a stock
    model, and for a family with something else there.

    Args:
        known: what the caller can do something with.
        cannot: the end of the sentence that refuses all else: "has no thoughts that could be changed".
    """
    found = getattr(config, "between", "")
    if found not in known:
        ours = (f"{name}-*" for name, family in FAMILIES.items() if family.config.between in known)
        raise InputError(f"a {config.model_type} model {cannot}: pass a {' or '.join(ours)} model")
    return found


def stock_config(config: PreTrainedConfig) -> type[PreTrainedConfig]:
    """The class of the configuration that a family's adds to: `GPT2Config` of `icot-gpt2`, and of `gpt2` itself."""
    return next(
        base for base in type(config).__mro__ if issubclass(base, PreTrainedConfig) and not hasattr(base, "family")
    )


def has_family(config: PreTrainedConfig) -> bool:
    """Whether a model, or one of ours on its backbone, is known here."""
    backbone = stock_config(config).model_type
    return any(f"{name}-{backbone}" in CONFIG_MAPPING for name in FAMILIES)


def family_in(model_type: object) -> Family | None:
    """The family of a `model_type` that stands in a file, which may hold anything."""
    return FAMILIES.get(str(model_type).partition("-")[0])
