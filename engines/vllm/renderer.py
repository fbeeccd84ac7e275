"""Opens the prompts that vLLM is given: BOS, question, and what `generate()` adds after it."""

import torch
from vllm.renderers.hf import HfRenderer

from latent_cot.configuration_prompt import LATENTS
from latent_cot.spans_pccot import find_thought_spans

from .server_config import longest_chunk, rules_of


class ThoughtRenderer(HfRenderer):
    """vLLM's renderer for Hugging Face tokenizers; completions, chats and `LLM.generate()` all pass `_process_tokens`."""

    def __init__(self, config, tokenizer):
        super().__init__(config, tokenizer)
        self.rules, self.options = rules_of(config.model_config.hf_config)
        self.longest_span = longest_chunk(config.scheduler_config)

    def opened(self, ids: list[int]) -> list[int]:
        """A prompt as the model sees it; one that holds a span stays as it is.

        Raises:
            ValueError: for a prompt that is empty, holds a cut span or ids that the model does not have, or is too long.
        """
        if not ids:
            raise ValueError("the prompt is empty: a question needs at least one token")
        question = torch.tensor([list(ids)])
        prompt = self.rules.open_prompt(question, torch.ones_like(question), **self.options)["input_ids"]
        limit, added = self.model_config.max_model_len, prompt.shape[1] - len(ids)
        if prompt.shape[1] >= limit:
            raise ValueError(
                f"the question has {len(ids)} tokens, and what follows it needs {added} positions and an answer at least "
                f"one: more than the {limit} positions of the server (max_model_len)"
            )
        if self.rules.config.between == LATENTS:
            for span in find_thought_spans(prompt, self.rules.config):
                if span.num_latents + 2 > self.longest_span:
                    raise ValueError(
                        f"the prompt holds a thought span of {span.num_latents + 2} tokens, and the server computes at most "
                        f"{self.longest_span} in one step (max_num_batched_tokens)"
                    )
        return prompt[0].tolist()

    def _process_tokens(self, prompt, **kwargs):
        return super()._process_tokens(prompt | {"prompt_token_ids": self.opened(prompt["prompt_token_ids"])}, **kwargs)

    async def _process_tokens_async(self, prompt, **kwargs):
        prompt = prompt | {"prompt_token_ids": self.opened(prompt["prompt_token_ids"])}
        return await super()._process_tokens_async(prompt, **kwargs)
