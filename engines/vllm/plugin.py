"""What vLLM is told: which classes run our architectures, what is checked first, and who opens prompts."""

import logging

# Our architecture -> where its class is. iCoT's thought is in its weights alone: vLLM's own class runs it.
OWN, THEIRS = "latent_cot.engines.vllm.models", "vllm.model_executor.models"
ARCHITECTURES = {
    "PCCoTGPT2LMHeadModel": f"{OWN}:LatentGPT2",
    "PCCoTLlamaForCausalLM": f"{OWN}:LatentLlama",
    "PCCoTMistralForCausalLM": f"{OWN}:LatentMistral",
    "PCCoTQwen3ForCausalLM": f"{OWN}:LatentQwen3",
    "ICoTGPT2LMHeadModel": f"{THEIRS}.gpt2:GPT2LMHeadModel",
    "ICoTLlamaForCausalLM": f"{THEIRS}.llama:LlamaForCausalLM",
    "ICoTMistralForCausalLM": f"{THEIRS}.mistral:MistralForCausalLM",
}
TESTED = (0, 32)

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's, whose handlers show it


def register():
    """Fills vLLM's registries. vLLM calls it in each of its processes, in some twice."""
    from vllm import ModelRegistry, version
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    import latent_cot  # noqa: F401  registers the configurations with transformers

    from .server_config import TOKENIZER_MODE, ThoughtServerConfig

    for architecture, model_class in ARCHITECTURES.items():
        ModelRegistry.register_model(architecture, model_class)
        MODELS_CONFIG_MAP[architecture] = ThoughtServerConfig
    if TOKENIZER_MODE not in RENDERER_REGISTRY.renderers:
        RENDERER_REGISTRY.register(TOKENIZER_MODE, "latent_cot.engines.vllm.renderer", "ThoughtRenderer")
        TokenizerRegistry.register(TOKENIZER_MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
        if tuple(version.__version_tuple__[:2]) != TESTED:
            tested = ".".join(map(str, TESTED))
            logger.warning("latent_cot was tested with vLLM %s, and this is %s", tested, version.__version__)
