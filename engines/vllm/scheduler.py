"""vLLM's scheduler with thought spans in one piece.

question question question <bot> <latent> <latent> <eot> answer prompt
------- chunk or shared -- ------------- chunk --------------------
                           from <bot> to <eot> in one step, and never from another request's cache
"""

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from .windows import find_spans


class WholeSpansMixin(Scheduler):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # vLLM's one door for ending a chunk early; named after the models that needed it first.
        self.need_mamba_block_aligned_split = True
        self.config = self.vllm_config.model_config.hf_config
        thinks = getattr(self.config, "latent_thought", True)
        self.longest_wait = min(self.config.num_iterations, self.config.num_latent_tokens) if thinks else 0
        self.waited = 0

    def schedule(self, throttle_prefills: bool = False):
        """Lets questions wait for up to T steps while more answers are written than thoughts could begin.

        The passes of a thought cost about the same for one as for many, so those that begin together share them.
        """
        could_begin = min(self.get_request_counts()[1], self.max_num_running_reqs - len(self.running))
        written = sum(not request.is_prefill_chunk for request in self.running)
        waits = 0 < could_begin < written and self.waited < self.longest_wait
        self.waited = self.waited + 1 if waits else 0
        if waits:  # vLLM's own door for it, which is shut where more are waiting than fit
            self.prefill_capacity_bound = False
        return super().schedule(throttle_prefills or waits)

    def _mamba_block_aligned_split(self, request, num_new_tokens, num_local_tokens=0, num_external_tokens=0) -> int:
        """How many tokens of a request are computed next: 0 if its span has to wait for a step with room.

        A span that the model wrote itself is text, and is cut after its `<bot>` when an answer is computed again.
        """
        start = request.num_computed_tokens + num_local_tokens + num_external_tokens
        if start >= request.num_tokens - 1:
            return num_new_tokens
        end = start + num_new_tokens
        for bot, after in find_spans(list(request.all_token_ids), self.config):
            if after > request.num_prompt_tokens and start <= bot:
                end = min(end, bot + 1)
            elif bot < end < after:
                end = bot
        return end - start

    def _get_local_prefix_cache_hit(self, request):
        """Shares what comes before the first span alone. (A span's keys and values are final only at the end of a step, and
        one that is shared in part could not be thought to its end.)"""
        found = super()._get_local_prefix_cache_hit(request)
        spans = find_spans(list(request.prompt_token_ids), self.config)
        if not spans or found[1] <= spans[0][0]:
            return found
        manager = self.kv_cache_manager
        blocks, length, _ = manager.coordinator.find_longest_cache_hit(request.block_hashes, spans[0][0])
        return manager.create_kv_cache_blocks(blocks), length, 0, False


class WholeSpansScheduler(WholeSpansMixin, Scheduler):
    pass


class WholeSpansAsyncScheduler(WholeSpansMixin, AsyncScheduler):
    pass


def whole_spans_scheduler(vllm_config, **kwargs) -> Scheduler:
    """Whether to schedule ahead is decided after the hook that names this function."""
    ahead = vllm_config.scheduler_config.async_scheduling
    return (WholeSpansAsyncScheduler if ahead else WholeSpansScheduler)(vllm_config=vllm_config, **kwargs)
