"""Whatever room a batch has, a thought span is in it as a whole, and every request is answered."""

from types import SimpleNamespace

import pytest
from batching import SPAN, batched, generated, questions_of, settings
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import Scheduler

from latent_cot.engines.batching.scheduler import WholeSpansFIFOScheduler, find_span


@pytest.mark.parametrize(("scheduler", "sharing"), [("fifo", True), ("prefill_first", False)])
def test_no_span_is_divided(gpt2, monkeypatch, scheduler, sharing):
    """Nor is a request without tokens in a batch, or a shared prefix longer than what comes before the span."""
    chunks, shared = [], []
    process, infer = Scheduler._process_candidates, Scheduler._infer_request_tokens

    def note_chunks(self, *args):
        result = process(self, *args)
        chunks.extend(list(future.state.tokens_to_process) for future in result[0])
        return result

    def note_shared(self, state, removed):
        before = state.position_offset
        tokens = infer(self, state, removed)
        shared.append(state.position_offset - before)
        return tokens

    monkeypatch.setattr(Scheduler, "_process_candidates", note_chunks)
    monkeypatch.setattr(Scheduler, "_infer_request_tokens", note_shared)
    head = questions_of([24])[0]
    questions = [head + tail for tail in questions_of([1, 2, 5, 6, 7, 8, 9, 12])] + [head[:1], head]
    wanted = generated(gpt2, questions)
    for tokens in (SPAN, SPAN + 1, 11, 19):
        config = settings(max_batch_tokens=tokens, scheduler_type=scheduler, allow_block_sharing=sharing)
        assert batched(gpt2, questions, config) == wanted
    assert all(chunks) and max(shared) == (24 if sharing else 0)
    thoughts = [chunk for chunk in chunks if len(chunk) > 1 and (36 in chunk or 38 in chunk)]
    spans = [find_span(chunk, gpt2.config) for chunk in thoughts]
    assert len(spans) == 4 * len(questions) and all(end - start == SPAN for start, end in spans)


def test_a_long_queue_comes_to_its_end(gpt2):
    """More requests than a batch has room for, in a cache that is too small for all of them."""
    questions = questions_of([1 + number * 7 % 40 for number in range(18)])
    config = settings(max_batch_tokens=SPAN + 2, num_blocks=24, max_requests_per_batch=6)
    assert batched(gpt2, questions, config) == generated(gpt2, questions)


def test_none_is_begun_while_one_waits_for_room(gpt2):
    """Or requests with less to do could go ahead of it for ever."""
    scheduler = object.__new__(WholeSpansFIFOScheduler)
    scheduler.cache, scheduler.tokens_left = SimpleNamespace(config=gpt2.config), SPAN - 1
    states = [RequestState(request_id=name, initial_tokens=[9]) for name in ("writing", "halfway", "fits", "new")]
    for state, status in zip(
        states, (RequestStatus.DECODING, RequestStatus.PREFILLING, RequestStatus.PREFILLING), strict=False
    ):
        state.status = status
    states[1].remaining_prefill_tokens = gpt2.thought_ids()
    assert [state.request_id for state in scheduler._those_with_room(states)] == ["writing", "fits"]
    scheduler.tokens_left = SPAN
    assert [state.request_id for state in scheduler._those_with_room(states)] == ["writing", "halfway", "fits", "new"]
