"""A plugin that lets an unmodified vLLM answer as `generate()` does; found by vLLM through the entry point `vllm.general_plugins`."""
