"""lm-evaluation-harness: a model class that asks our models as our own evaluation does.

    latent-cot lm_eval --model_args pretrained=checkpoints/pccot-gpt2-chain --tasks chain_latent,chain_choice

The harness encodes text by itself and reads no chain of thought. This class scores an answer with the latents in place, and
hands on what a generated text answers, as the way to answer (`models/answer_modes.py`) reads it.
"""

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

import latent_cot  # noqa: F401  registers the model types
from latent_cot.analysis.evaluation import answer_mode, token_budget
from latent_cot.answer_modes import DIRECT, EXPLICIT, AnswerMode
from latent_cot.training.data.tokenization import without_leading_space


@register_model("latent-cot")
class LatentHFLM(HFLM):
    """The harness's own `hf`, for the models that are trained here; any other is evaluated as `hf` does it.

    Args:
        mode: the way to answer: `ccot`, `cot`, `no_cot`, `icot`; the model's own if absent. A request's
            `latent_thought=False` or `explicit_steps=True` (`--gen_kwargs`) asks for another.
        max_cot_tokens: the longest answer where a chain of thought is written, in tokens.
        **kwargs: of the harness's `hf`.

    Raises:
        InputError: for a mode that the model does not have.
    """

    made = 0  # how many there are: `harness.check_class` asks

    def __init__(self, *args, mode: str | None = None, max_cot_tokens: int = 256, **kwargs):
        super().__init__(*args, **kwargs)
        LatentHFLM.made += 1
        self.max_cot_tokens = int(max_cot_tokens)
        self.ours = getattr(self.model.config, "answer_prompt_ids", None) is not None
        own = getattr(self.model, "answer_modes", (EXPLICIT,))[0]  # a stock backbone of run_cot.py writes its chain
        self.mode: AnswerMode = answer_mode(self.model, mode) if mode else own

    def mode_of(self, options: dict) -> AnswerMode:
        """The way to answer that a request's options of `generate()` ask for."""
        for mode in getattr(self.model, "answer_modes", ()):
            if mode.options.items() <= options.items() and mode.options != self.mode.options:
                return mode
        return self.mode

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of question, thought span and answer prompt, and of the answer, each encoded as in training."""
        if not self.ours:
            return super()._encode_pair(context, continuation)
        if self.mode.writes == "chain":
            raise ValueError(
                f"after {self.mode.label} an answer has no likelihood of its own: the chain has to be written first; "
                "ask a task that generates"
            )
        answer = self.tokenizer.encode(continuation.strip(), add_special_tokens=False)
        suffix = self.model.suffix_ids(**self.mode.options) if hasattr(self.model, "suffix_ids") else []
        if self.mode.name == DIRECT.name:
            suffix = suffix + list(self.model.config.answer_prompt_ids)
        return self.tok_encode(context) + suffix, without_leading_space(answer, self.tokenizer)

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """What each request's text answers; nothing where it answers nothing."""
        texts = super().generate_until(requests, disable_tqdm=disable_tqdm)
        if not self.ours:
            return texts
        config, modes = self.model.config, [self.mode_of(request.args[1]) for request in requests]
        prompt, source = self.tokenizer.decode(config.answer_prompt_ids), getattr(config, "answer_from", "prompt")
        return [mode.read(text, prompt, source) or "" for mode, text in zip(modes, texts, strict=True)]

    def _model_generate(self, context, max_length: int, stop: list[str], **options):
        """With the options of the way to answer, and as many tokens as it takes."""
        if self.ours:
            mode, asked = self.mode_of(options), context.shape[1]
            options = mode.options | options
            budget = token_budget(self.model, mode, asked, max_length - asked, self.max_cot_tokens)
            max_length = asked + budget
            if self.model.generation_config.max_new_tokens is not None:  # a checkpoint's own would win over a length
                options["max_new_tokens"] = budget
        return super()._model_generate(context, max_length, stop, **options)
