"""transformers' batch engine (`generate_batch()`, continuous batching) for models that add tokens of their own after a prompt."""

import inspect
from importlib import import_module
from typing import Any
from weakref import WeakValueDictionary

import torch

from .mixin_base import ModelBase

MANAGERS: WeakValueDictionary[int, Any] = (
    WeakValueDictionary()
)  # by a model's id: the batch manager that was started last


class BatchEngineMixin(ModelBase):
    """Makes the batch engine answer as `generate()` does, or refuse; the engine's side is in `engines/batching/`."""

    # The arguments of `generate_batch()`, or attributes of a batch engine's generation configuration, that a family adds.
    batch_options: tuple[str, ...] = ()

    def gap_of(self, **options) -> int:
        """Positions that `generate(**options)` leaves free between a question and its answer."""
        return 0

    def extra_passes(self, **options) -> int | None:
        """How many passes over a packed batch follow the first one; None where the model itself does all that is needed."""
        return None

    def check_batching(self, generation_config, **options) -> None:
        """Raises ValueError where a batch engine would answer otherwise than `generate(**options)`."""
        if self.gap_of(**options):
            raise ValueError(
                "continuous batching cannot leave positions free (keep_position, position_gap): use generate() on "
                "left-padded batches"
            )

    def working_manager(self):
        """The batch manager that works with this model; None where there is none."""
        manager = MANAGERS.get(id(self))
        return manager if manager is not None and manager.is_running() else None

    def begin_with_manager(self, manager) -> None:
        """Note which batch manager works with this model from now on.

        Raises:
            ValueError: where another one does.
        """
        if self.working_manager() not in (None, manager):
            raise ValueError("another batch manager works with this model: stop it first")
        MANAGERS[id(self)] = manager

    def refuse_beside_manager(self, arguments: dict) -> None:
        """Raises ValueError for a forward pass while a batch manager works with this model.

        A pass of the manager's thread changes the configuration while it lasts (attention that looks ahead, without masks), and a
        pass beside it computes with that and leaves it so.

        Args:
            arguments: of the pass; the manager's own are known by theirs.
        """
        if torch.compiler.is_compiling() or "cu_seq_lens_q" in arguments:
            return
        paged = (self.config._attn_implementation or "").startswith("paged|")
        if paged or self.working_manager() is not None:
            raise ValueError(
                "a batch manager works with this model, and answers beside it would be wrong: send the questions to it, or stop it "
                "first (manager.stop())"
            )

    @torch.no_grad()
    def init_continuous_batching(self, generation_config=None, *args, **kwargs):
        """transformers' batch engine with a manager that completes prompts and thinks, as `generate()` does.

        Args:
            generation_config: may name the options that `generate_batch()` takes, for all requests alike.
            *args, **kwargs: as everywhere.

        Raises:
            ValueError: for what the engine cannot do for this model, or where a manager is kept for other options.
        """
        engine = engine_of_the_package(self.config.model_type)
        kept = getattr(self, "_cached_continuous_batching_manager", None)
        if kept is None:
            return engine.make_manager(self, generation_config, *args, **kwargs)
        kept.check_same(engine.options_of(self, self._prepare_generation_config(generation_config)[0]))
        return super().init_continuous_batching(generation_config, *args, **kwargs)

    @torch.no_grad()
    def generate_batch(self, inputs, generation_config=None, *args, **kwargs):
        """transformers' own, as `generate()` answers.

        Args:
            inputs: questions, each a list of token ids.
            generation_config, *args: as everywhere.
            **kwargs: those of transformers' `generate_batch()`; for PCCoT models `num_iterations`, `num_latent_tokens` and
                `latent_thought`, for iCoT models `explicit_steps` and `num_fillers`.

        Returns:
            As everywhere: a dictionary of outputs by request, with the questions as `prompt_ids`. A question that
            `generate()` would refuse has an `error`.

        Raises:
            ValueError: for an argument that is none, and for what the engine cannot do for this model.
        """
        engine = engine_of_the_package(self.config.model_type)
        known = {*inspect.signature(super().generate_batch).parameters, "max_new_tokens", *self.batch_options} - {
            "kwargs"
        }
        if unknown := [name for name in kwargs if name not in known]:
            raise ValueError(
                f"generate_batch() of a {self.config.model_type} model has no argument {unknown[0]}: what transformers' "
                "generation_config holds belongs there"
            )
        config = engine.config_with_options(self, generation_config, kwargs)
        return super().generate_batch(inputs, config, *args, **kwargs)


def engine_of_the_package(model_type: str):
    """The engine's side, which is no part of a checkpoint's own code.

    Raises:
        ImportError: where the package is not installed: transformers' own engine would answer without a thought.
    """
    try:
        return import_module("latent_cot.engines.batching.manager")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"continuous batching (generate_batch) of a {model_type} model needs the package latent-cot, which this checkpoint's "
            "own code is a part of: install it (see the model's card), or use generate() on left-padded batches"
        ) from error
