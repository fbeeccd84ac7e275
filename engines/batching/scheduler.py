"""Schedulers for transformers' batch engine that keep a thought span in one piece.

The engine divides a prompt into chunks, of as many tokens as a batch has room for:

    question question question <bot> <latent> <latent> <latent> <eot> answer prompt
    --------- chunk ---------- ------------------------ chunk ---------------------
                               what must be in one chunk: up to the last latent
"""

from collections.abc import Iterator

from transformers.generation.continuous_batching.requests import RequestStatus
from transformers.generation.continuous_batching.scheduler import (
    SCHEDULER_MAPPING,
    FIFOScheduler,
    PrefillFirstScheduler,
    Scheduler,
)

from latent_cot.spans_pccot import spans_of_row


def find_span(tokens: list[int], config) -> tuple[int, int] | None:
    """The column of a prompt's first `<bot>` before a latent, and the one after the last latent there; None without one."""
    return next(((span.bot, span.end) for span in spans_of_row(tokens, config)), None)


class WholeSpansMixin(Scheduler):
    """Ends a chunk before a span that it would cut, and leaves a request out of a batch that has no room for its span.

    While a request waits for such room, no new one is begun: those being answered come to their end, so the room comes.
    """

    def _process_candidates(self, candidates, token_budget, *args, **kwargs):
        self.tokens_left = token_budget
        return super()._process_candidates(self._those_with_room(candidates), token_budget, *args, **kwargs)

    def _those_with_room(self, candidates) -> Iterator:
        """The candidates but for those left out. The loop asks for the next one when those before it are scheduled."""
        config, one_waits = self.cache.config, False
        for state in candidates:
            tokens = [] if state.status == RequestStatus.DECODING else state.remaining_prefill_tokens
            span = find_span(tokens, config) if tokens[:1] == [config.bot_token_id] else None
            if span is not None and span[0] == 0 and span[1] > self.tokens_left:
                one_waits = True
            elif not (one_waits and state.status == RequestStatus.PENDING):
                yield state

    def _infer_request_tokens(self, state, *args, **kwargs):
        """Looks for a shared prefix in what comes before the span alone: shared blocks could end inside it."""
        tokens = state.remaining_prefill_tokens
        span = find_span(tokens, self.cache.config) if state.status == RequestStatus.PENDING else None
        if span is None:
            return super()._infer_request_tokens(state, *args, **kwargs)
        state.remaining_prefill_tokens = tokens[: span[0]]
        super()._infer_request_tokens(state, *args, **kwargs)
        state.remaining_prefill_tokens = state.remaining_prefill_tokens + tokens[span[0] :]
        return state.remaining_prefill_tokens

    def _schedule_request(self, state, request_tokens, token_budget, *args, **kwargs):
        budget = token_budget
        if token_budget < len(request_tokens):
            span = find_span(request_tokens, self.cache.config)
            if span is not None and span[0] < token_budget < span[1]:
                budget = span[0]
        super()._schedule_request(state, request_tokens, budget, *args, **kwargs)
        self.tokens_left = token_budget - len(state.tokens_to_process)


class WholeSpansFIFOScheduler(WholeSpansMixin, FIFOScheduler):
    pass


class WholeSpansPrefillFirstScheduler(WholeSpansMixin, PrefillFirstScheduler):
    pass


def whole_spans(scheduler_type: str) -> str:
    """The name of our scheduler in the place of one of transformers' (of "fifo" if it has none of that name)."""
    SCHEDULER_MAPPING["fifo, whole spans"] = WholeSpansFIFOScheduler
    SCHEDULER_MAPPING["prefill_first, whole spans"] = WholeSpansPrefillFirstScheduler
    name = f"{scheduler_type}, whole spans"
    return name if name in SCHEDULER_MAPPING else "fifo, whole spans"
