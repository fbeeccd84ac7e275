"""Engines that run a model by their own attention and never call its `generate()`: they would answer without a thought."""

from transformers.cache_utils import Cache

# The names of their attention among transformers' implementations, and what they hand to `forward`.
ATTENTION = ("vllm", "sglang", "tgi")
ARGUMENTS = ("attention_instances", "forward_batch", "kv_cache", "attn_metadata")


def refuse_foreign_engine(config, cache, arguments: dict) -> None:
    """Raises ValueError where a forward pass is one of an engine that does not open prompts.

    vLLM's and SGLang's general backends build the base model from its configuration, with an attention of their own, and
    answer a question as it stands.

    Args:
        config: the model's.
        cache: what `forward` was given.
        arguments: what else it was given.
    """
    attention = getattr(config, "_attn_implementation", None) or ""
    found = [name for name in ARGUMENTS if arguments.get(name) is not None]
    found += [attention] if attention in ATTENTION else []
    if cache is not None and not isinstance(cache, Cache):
        found.append(type(cache).__name__)
    if found:
        raise ValueError(
            f"an engine that this model does not know runs it ({', '.join(found)}) and would answer without what the model adds "
            "to a question; use generate(), generate_batch(), or vLLM with the package: pip install 'latent-cot[vllm]'"
        )
