"""transformers' batch engine for models that complete their prompts: `generate_batch()`, `serve --continuous-batching`.

The engine calls a model on packed batches and never its `generate()`. So a manager of ours opens each prompt as `generate()`
does and hides that from the caller again. Its passes are in `passes.py`, and what keeps a span in one batch in
`scheduler.py`.
"""

import copy
import dataclasses
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter
from transformers.generation.continuous_batching.requests import RequestState

from latent_cot.prompt_checks import check_shape, first_of
from latent_cot.spans_pccot import find_thought_spans

from .passes import PackedThinker
from .scheduler import find_span, whole_spans

# Arguments of `generate()` that no manager can follow.
NOT_BATCHABLE = (
    "latent_tolerance",
    "latent_noise",
    "latent_dropout",
    "value_noise",
    "latent_embeds",
    "filler_embeds",
    "position_gap",
)


class QuestionRouter(OutputRouter):
    """Delivers what the engine answers with the prompts that callers wrote in the place of those that the model saw."""

    def __init__(self):
        super().__init__()
        self.expected: dict[str, tuple[list[int], int]] = {}  # request: its question, and how many answers are to come

    def expect(self, request_id: str, question: list[int], answers: int) -> None:
        self.expected[request_id] = (question, answers)

    def forget(self, request_id: str) -> None:
        self.expected.pop(request_id, None)

    def deliver(self, output) -> None:
        self._hide(output)
        super().deliver(output)

    def deliver_batch(self, outputs) -> None:
        for output in outputs:
            self._hide(output)
        super().deliver_batch(outputs)

    def _hide(self, output) -> None:
        name = output.request_id
        if name not in self.expected:
            name = name.rpartition("__child#")[0]  # one of several answers to a question
        if name not in self.expected:
            return
        question, answers = self.expected[name]
        output.prompt_ids = list(question)
        if output.is_finished():
            self.expected[name] = (question, answers - 1)
            if answers == 1:
                self.forget(name)


class ThoughtBatchingManager(ContinuousBatchingManager):
    """transformers' manager for a model that completes its prompts. What is asked for is the same for all its requests.

    Args:
        model: the causal language model.
        generation_config: complete, as `generate()` would use it.
        given_config: as the caller gave it.
        continuous_batching_config, workload_hints: as everywhere.
        options: the values of the model's `batch_options`.

    Raises:
        ValueError: for what the batch engine cannot do for this model.
    """

    def __init__(
        self,
        model,
        generation_config,
        given_config,
        continuous_batching_config,
        workload_hints,
        options: dict[str, Any],
    ):
        model.check_batching(generation_config, **options)
        self.causal_lm, self.given_config, self.options = model, given_config, options
        self.suffix, self.iterations = model.suffix_ids(**options), model.extra_passes(**options)
        if workload_hints is not None:
            hidden = len(self.suffix) + 1
            workload_hints = dataclasses.replace(
                workload_hints, max_prompt_length=workload_hints.max_prompt_length + hidden
            )
        thinks = self.iterations is not None
        span = find_span(self.suffix, model.config) if thinks else None
        self.span_length = 0 if span is None else span[1] - span[0]
        self._check_room(continuous_batching_config.max_batch_tokens)
        asked: Any = PackedThinker(model, self.iterations) if thinks else model
        self._remember()
        try:
            super().__init__(
                model=asked,
                generation_config=generation_config,
                continuous_batching_config=continuous_batching_config,
                workload_hints=workload_hints,
            )
        except BaseException:
            self._restore()
            raise
        self.output_router = self.questions = QuestionRouter()
        if thinks:
            settings = self.continuous_batching_config  # a copy
            settings.scheduler_type = whole_spans(settings.scheduler_type)

    def check_same(self, options: dict[str, Any]) -> None:
        """Raises ValueError unless these options ask for what this manager, which was kept, does."""
        model = self.causal_lm
        if (self.suffix, self.iterations) != (model.suffix_ids(**options), model.extra_passes(**options)):
            raise ValueError(
                f"a manager that was kept for {self.options or 'the configuration'} cannot answer with "
                f"{options or 'the configuration'}: call model.destroy_cached_continuous_batching_manager() first"
            )

    def add_request(
        self,
        input_ids: list[int],
        request_id: str | None = None,
        max_new_tokens: int | None = None,
        *args,
        deliver_errors: bool = False,
        **kwargs,
    ) -> str | None:
        """transformers' own, with the prompt completed and checked as `generate()` does.

        Args:
            input_ids: the question's token ids.
            request_id, max_new_tokens, *args, **kwargs: as everywhere; without a limit there are as many new tokens as
                `generate()` writes.
            deliver_errors: a request that cannot be answered becomes a failed output instead of a ValueError.

        Raises:
            ValueError: for what `generate()` would refuse, and for options that are those of the whole manager.
        """
        if request_id is None:
            with self._request_lock:
                request_id = f"req_{self._request_counter}"
                self._request_counter += 1
        try:
            for name in (*self.causal_lm.batch_options, *NOT_BATCHABLE):
                if name in kwargs:
                    raise ValueError(f"{name} is that of the whole manager: a single request cannot have its own")
            question, prompt, limit = self._complete_prompt(input_ids, max_new_tokens)
        except ValueError as error:
            if not deliver_errors:
                raise
            self._fail(request_id, input_ids, error)
            return request_id
        self.questions.expect(request_id, question, self.num_return_sequences)
        added = None
        try:
            added = super().add_request(prompt, request_id, limit, *args, **kwargs)
        finally:
            if added is None:
                self.questions.forget(request_id)
        return added

    def add_requests(self, inputs, *args, **kwargs) -> list[str]:
        """transformers' own; a question that cannot be answered fails alone."""
        return super().add_requests(inputs, *args, deliver_errors=True, **kwargs)

    def cancel_request(self, request_id: str) -> None:
        super().cancel_request(request_id)
        self.questions.forget(request_id)

    def start(self) -> None:
        """transformers' own.

        Raises:
            ValueError: where another manager works with this model.
        """
        self.causal_lm.begin_with_manager(self)
        if self.before is None:
            self._remember()
            self.causal_lm.eval()
        super().start()

    def stop(self, *args, keep_for_next_session: bool = False, **kwargs) -> None:
        """transformers' own; the model is then as it was, also where the manager was never started."""
        started = self._generation_thread is not None
        super().stop(*args, keep_for_next_session=keep_for_next_session, **kwargs)
        if keep_for_next_session and started:
            self.causal_lm._cached_continuous_batching_manager = self  # transformers looks for it there
        if not self.is_running():
            self._restore()

    def _remember(self) -> None:
        model = self.causal_lm
        self.before: dict | None = {"training": model.training, "is_causal": vars(model.config).get("is_causal")}
        self.before["attention"] = getattr(self, "_original_attn_impl", None) or model.config._attn_implementation

    def _restore(self) -> None:
        """Undo what working with the model changed: its mode, its attention, and a configuration that a race left changed."""
        model, before, self.before = self.causal_lm, self.before, None
        if before is None:
            return
        model.train(before["training"])
        if model.config._attn_implementation != before["attention"]:
            model.set_attn_implementation(before["attention"])
            self._original_attn_impl = None
        vars(model.config).pop("is_causal", None)
        if before["is_causal"] is not None:
            model.config.is_causal = before["is_causal"]

    def _create_batch_processor(self):
        processor = super()._create_batch_processor()
        self._check_room(processor.cache.max_batch_tokens)
        return processor

    def _check_room(self, max_batch_tokens: int | None) -> None:
        if max_batch_tokens is not None and max_batch_tokens < self.span_length:
            raise ValueError(
                f"max_batch_tokens must be at least {self.span_length}, the length of a thought span, which is not divided; "
                f"got {max_batch_tokens}"
            )

    def _complete_prompt(self, input_ids, max_new_tokens: int | None) -> tuple[list[int], list[int], int]:
        """The question, the prompt as the model is to see it, and the limit of new tokens.

        Raises:
            ValueError: for what `generate()` would refuse.
        """
        model, suffix, given = self.causal_lm, self.suffix, {"max_new_tokens": max_new_tokens}
        try:
            question = torch.tensor([list(input_ids)])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"a prompt must be a list of token ids: {error}") from None
        check_shape(question)
        complete = model.has_suffix(question)
        if complete:
            self._check_own_span(question)
            suffix = []
        model._check_arguments(question, None, suffix, self.given_config, given)
        everywhere = torch.ones_like(question)
        prompt = question if complete else model._with_bos(question, everywhere)[0]
        fits = model._new_tokens_that_fit(question, prompt, None, len(suffix), 0, self.given_config, given)
        sources = [fits, *model._sources(self.given_config, given)]
        limit, length = first_of("max_new_tokens", sources), first_of("max_length", sources)
        if limit is None:
            limit = 20 if length is None else length - question.shape[1]  # transformers' own default
        if limit < 1:
            raise ValueError(f"max_length={length} leaves no new tokens after a question of {question.shape[1]}")
        return question[0].tolist(), [*prompt[0].tolist(), *suffix], limit

    def _check_own_span(self, question: torch.Tensor) -> None:
        """Raises ValueError for a span in a prompt that would not be thought as `generate()` does it."""
        spans = find_thought_spans(question, self.causal_lm.config)
        most = self.span_length - 1
        if most < 1:
            raise ValueError("the prompt holds a thought span, and this manager was asked for no latent thought")
        if len(spans) > 1 or spans[0].num_latents > most:
            raise ValueError(
                f"the prompt holds {len(spans)} thought span(s), the first of {spans[0].num_latents} latents: this manager "
                f"thinks one span of at most num_latent_tokens={most}"
            )

    def _fail(self, request_id: str, input_ids, error: Exception) -> None:
        """Deliver an error in the place of each answer to a question."""
        names = [f"{request_id}__child#{number}" for number in range(self.num_return_sequences - 1)]
        for name in (*names, request_id):
            self.output_router.fail_and_deliver(RequestState(request_id=name, initial_tokens=list(input_ids)), error)


def make_manager(model, generation_config=None, continuous_batching_config=None, workload_hints=None):
    """A manager for `model`; the arguments are those of transformers' `init_continuous_batching`.

    Raises:
        ValueError: for what the batch engine cannot do.
    """
    config, _ = model._prepare_generation_config(generation_config)  # as generate() completes it
    for name in NOT_BATCHABLE:
        if first_of(name, model._sources(config, {})):
            raise ValueError(f"continuous batching has no {name}: use generate() for it")
    if (config.num_beams or 1) > 1:
        raise ValueError("continuous batching has no beams: use generate() for num_beams above 1")
    if config.eos_token_id is None:
        config.eos_token_id = -1  # how the engine writes that no token ends an answer
    settings = continuous_batching_config or getattr(config, "continuous_batching_config", None)
    return ThoughtBatchingManager(
        model,
        config,
        generation_config,
        settings or ContinuousBatchingConfig(),
        workload_hints,
        options_of(model, config),
    )


def options_of(model, generation_config) -> dict[str, Any]:
    """Those of the model's `batch_options` that a complete generation configuration names."""
    options = model.own_options_of(generation_config)
    return {name: value for name, value in options.items() if name in model.batch_options}


def config_with_options(model, generation_config, arguments: dict[str, Any]) -> GenerationConfig:
    """A copy of a generation configuration that names the options among `arguments`, which loses them."""
    config = GenerationConfig() if generation_config is None else copy.deepcopy(generation_config)
    for name in model.batch_options:
        if (value := arguments.pop(name, None)) is not None:
            setattr(config, name, value)
    if config.num_return_sequences is None:
        config.num_return_sequences = model.generation_config.num_return_sequences
    return config
