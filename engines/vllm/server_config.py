"""What is checked and set before vLLM builds anything for one of our models."""

import logging

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor.interface import LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2

from latent_cot.configuration_prompt import LATENTS
from latent_cot.latent_update import UPDATES

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's, whose handlers show it
TOKENIZER_MODE = "latent_cot"  # chooses the renderer; the tokenizer is Hugging Face's
PER_SERVER = ("latent_thought", "num_iterations", "num_latent_tokens", "explicit_steps", "num_fillers")
PER_SERVER += ("latent_noise", "latent_dropout", "value_noise", "latent_tolerance", "position_gap")
WINDOWED = [update.name for update in UPDATES.values() if update.settles]  # what both ways to think in vLLM compute


def rules_of(config):
    """The model as `generate()` knows it, without weights, and the options of its prompts: for its rules about prompts.

    Args:
        config: of the checkpoint, after `--hf-overrides`.

    Raises:
        ValueError: for a configuration that the model's own class refuses.
    """
    fields = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "auto_map")}
    own = AutoConfig.for_model(config.model_type, **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(own)
    # What is no field of the configuration is an option that `--hf-overrides` has put beside them.
    named = (name for name in model.batch_options if not hasattr(type(own), name) and hasattr(config, name))
    return model, {name: getattr(config, name) for name in named}


def longest_chunk(scheduler_config) -> int:
    """How many tokens of one prompt vLLM computes in a step at most."""
    limits = [scheduler_config.max_num_batched_tokens, scheduler_config.max_num_scheduled_tokens]
    return min(limit for limit in [*limits, scheduler_config.long_prefill_token_threshold] if limit)


class ThoughtServerConfig(VerifyAndUpdateConfig):
    """vLLM's hook for an architecture; refuses what would answer otherwise than `generate()`."""

    @staticmethod
    def verify_and_update_model_config(model_config) -> None:
        if model_config.tokenizer_mode not in ("auto", "hf", TOKENIZER_MODE):
            raise ValueError(
                f"tokenizer_mode={model_config.tokenizer_mode!r} would not open the prompts of a "
                f"{model_config.hf_config.model_type} model: leave it out"
            )
        model_config.tokenizer_mode = TOKENIZER_MODE
        check = f"{__name__}:RequestRules"
        model_config.logits_processors = [*(model_config.logits_processors or []), check]

    @staticmethod
    def verify_and_update_config(vllm_config) -> None:
        model, parallel, scheduler = vllm_config.model_config, vllm_config.parallel_config, vllm_config.scheduler_config
        kind, update = model.hf_config.model_type, getattr(model.hf_config, "latent_update", None)
        refused = {
            "speculative decoding": vllm_config.speculative_config is not None,
            "prompt embeddings": model.enable_prompt_embeds,
            "LoRA requests": vllm_config.lora_config is not None,
            "pipeline parallelism": parallel.pipeline_parallel_size > 1,
            "context parallelism": max(
                parallel.decode_context_parallel_size, getattr(parallel, "prefill_context_parallel_size", 1)
            )
            > 1,
            "dual batch overlap": parallel.use_ubatching,
            "a KV connector": vllm_config.kv_transfer_config is not None,
            "another scheduler": scheduler.scheduler_cls not in (None, SCHEDULER),
            f"the rule latent_update={update!r}": update is not None and update not in WINDOWED,
            "pooling": model.runner_type != "generate",
        }
        for what, asked in refused.items():
            if asked:
                raise ValueError(f"{what} would answer wrongly with a {kind} model in vLLM: leave it out")
        rules, options = rules_of(model.hf_config)
        if gap := rules.gap_of(**options):
            raise ValueError(
                f"this model leaves {gap} positions free after a question (keep_position, position_gap), which vLLM "
                "cannot: use generate()"
            )
        suffix = rules.suffix_ids(**options)  # raises where the configuration has no tokens for it
        if model.max_model_len <= len(suffix):
            raise ValueError(
                f"max_model_len={model.max_model_len} has no room for a question: what follows one takes {len(suffix)} positions"
            )
        rules.check_batching(rules.generation_config, **options)
        if rules.config.between == LATENTS:
            keep_spans_whole(vllm_config, len(suffix) - len(rules.config.answer_prompt_ids or []))


SCHEDULER = "latent_cot.engines.vllm.scheduler.whole_spans_scheduler"


def keep_spans_whole(vllm_config, span: int) -> None:
    """Sets the scheduler that cuts no thought span, and where extra passes cannot be part of a CUDA graph.

    Raises:
        ValueError: for limits that no span of `span` tokens fits.
    """
    scheduler = vllm_config.scheduler_config
    if longest_chunk(scheduler) < span:
        raise ValueError(
            f"a thought span of {span} tokens is computed in one step, and the limit is {longest_chunk(scheduler)}: raise "
            "max_num_batched_tokens (and long_prefill_token_threshold)"
        )
    scheduler.scheduler_cls = SCHEDULER
    logger.info("latent_cot: thought spans are kept whole; chunks and shared prefixes end before a prompt's first span")
    if not current_platform.is_cpu():
        from vllm.config import CUDAGraphMode

        logger.warning("latent_cot: not tested on this device; CUDA graphs are used for answers alone")
        if vllm_config.compilation_config.cudagraph_mode != CUDAGraphMode.NONE:
            vllm_config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY


class RequestRules(LogitsProcessor, LogitsProcessorV2):
    """Refuses requests that ask for what is the server's to set, and keeps out of answers what the checkpoint's generation
    configuration does (`suppress_tokens`, which vLLM does not read). For both of vLLM's model runners."""

    @classmethod
    def validate_params(cls, sampling_params) -> None:
        for name in PER_SERVER:
            if name in (sampling_params.extra_args or {}):
                raise ValueError(f"{name} is set for the whole server (--hf-overrides), not per request")

    def __init__(self, vllm_config, *args):
        self.suppressed = vllm_config.model_config.try_get_generation_config().get("suppress_tokens") or []

    def apply(self, logits, context=None):
        if self.suppressed:
            logits[:, self.suppressed] = -torch.inf
        return logits

    def is_argmax_invariant(self) -> bool:
        return not self.suppressed

    def update_state(self, batch_update) -> None:
        pass

    def add_request(self, req_idx, sampling_params) -> bool:
        return bool(self.suppressed)
