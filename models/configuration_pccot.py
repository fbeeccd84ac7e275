"""Configurations of the PCCoT family: a backbone's own configuration plus the fields of the latent thought."""

from dataclasses import dataclass
from typing import ClassVar

from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

from .configuration_prompt import LATENTS, PromptConfigMixin, check_apart, check_choice, check_count, is_number
from .latent_update import UPDATES, LatentUpdate
from .losses_pccot import LOSSES


@dataclass(kw_only=True)
class PCCoTConfigMixin(PromptConfigMixin):
    """The fields that every `pccot-*` configuration adds to its backbone's.

    Everything that the weights depend on is here, so that `config.json` alone describes a checkpoint.

    Args:
        num_latent_tokens: c, the number of latent tokens in a thought span (at least 1).
        num_iterations: T, the number of Jacobi updates (at least 0). T = 0 leaves the latents as plain filler
            tokens; T >= c is the sequential continuous thought.
        num_iterations_range: the lowest and the highest T that training draws from, anew for each step; `None` trains at
            `num_iterations` alone. The answers are then about as good at every T between the two.
        loss_alpha: weight of the teacher's cross-entropy (PCCoT, arXiv 2506.18582, section 3.3; CODI, 2502.21074).
        loss_beta: weight of the student's cross-entropy.
        loss_gamma: weight of the hidden-state distillation.
        loss_delta: weight of step supervision (after LOTUS, arXiv 2606.31779, and SIM-CoT, 2509.20317); 0 is off.
        use_layerwise_std: divide the distillation loss by the teacher's standard deviation layer by layer
            (otherwise by that of all layers together).
        use_projection: pass a hidden state through a small network before it becomes a latent's input.
        latent_update: how a pass makes the latents' inputs: "shift" (a latent is the state of the position before it) or "add" (its
            own state is added to its embedding, after LOTUS, arXiv 2606.31779, where T is not bounded by c).
        scale_latents: multiply a latent's input by a trained gain that starts at the scale of embeddings: a vector of the
            hidden size, or with a projection the weight of its norm. Off where it is absent, as in all published checkpoints.
        bot_token_id, eot_token_id, latent_token_id: the tokens of the thought span; `None` until a tokenizer is set up.
        open_steps_with_bot: the model's explicit steps open with the same `<bot>` as its thought span.
        keep_last_step: the explicit chain that the model was trained on holds the last step too, which usually repeats the answer.
        latents_per_step: how many latents stand for one explicit step under step supervision and the mixed curriculum.
        question_suffix_ids: tokens between a question and what follows it, such as a newline.
        answer_prompt_ids, questions_start_with_bos: see `PromptConfigMixin`.

    Raises:
        ValueError: for c < 1, T < 0, latents_per_step < 1, counts beyond the positions, or a token that stands for two things.
    """

    family: ClassVar[str] = "pccot"
    between: ClassVar[str] = LATENTS
    special_tokens: ClassVar[dict[str, str]] = {
        "bot_token_id": "<pcot.bot>",
        "eot_token_id": "<pcot.eot>",
        "latent_token_id": "<pcot.latent>",
    }

    num_latent_tokens: int = 6
    num_iterations: int = 6
    num_iterations_range: list[int] | None = None
    loss_alpha: float | int = 1.0
    loss_beta: float | int = 1.0
    loss_gamma: float | int = 1.0
    loss_delta: float | int = 0.0
    use_layerwise_std: bool = True
    use_projection: bool = False
    scale_latents: bool = False
    latent_update: str = "shift"
    bot_token_id: int | None = None
    eot_token_id: int | None = None
    latent_token_id: int | None = None
    open_steps_with_bot: bool = False
    keep_last_step: bool = False
    latents_per_step: int = 1
    question_suffix_ids: list[int] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        positions = self.max_position_embeddings
        check_count("num_latent_tokens", self.num_latent_tokens, 1, positions)
        check_count("num_iterations", self.num_iterations, 0)
        check_choice("latent_update", self.latent_update, tuple(UPDATES))
        self.check_range()
        for name in (f"loss_{name}" for name in LOSSES):
            weight = getattr(self, name, None)
            if weight is None:
                setattr(self, name, 0.0)  # of a loss of one's own
            elif not (is_number(weight) and weight >= 0):
                raise ValueError(f"{name} must be a number of at least 0, got {weight!r}")
        check_count("latents_per_step", self.latents_per_step, 1, positions)
        others = ("eos_token_id", "pad_token_id", "answer_prompt_ids", "question_suffix_ids")
        check_apart(self, self.special_tokens, others)

    def check_range(self) -> None:
        """Raises ValueError for a range of T that is none, or that `num_iterations` lies outside."""
        bounds = self.num_iterations_range
        if bounds is None:
            return
        if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1]:
            raise ValueError(
                f"num_iterations_range must be a lower and a higher whole number of at least 0, got {bounds}"
            )
        if not bounds[0] <= self.num_iterations <= bounds[1]:
            raise ValueError(f"num_iterations must lie in num_iterations_range {bounds}, got {self.num_iterations}")

    def was_trained_at(self, iterations: int) -> bool:
        """Whether training computed what `iterations` passes compute; c and more of them are the same computation."""
        low, high = self.num_iterations_range or (self.num_iterations, self.num_iterations)
        low, asked, high = (
            self.latent_rule.passes(number, self.num_latent_tokens) for number in (low, iterations, high)
        )
        return low <= asked <= high

    @property
    def latent_rule(self) -> LatentUpdate:
        """The rule that `latent_update` names."""
        return UPDATES[self.latent_update]

    @property
    def has_latent_weights(self) -> bool:
        """Whether the latents' inputs are made with weights that nothing else uses."""
        return self.use_projection or self.scale_latents or self.latent_rule.weights is not None

    def describe(self) -> str:
        trained = self.num_iterations_range
        also = f" (trained with {trained[0]} to {trained[1]})" if trained else ""
        return (
            f"It thinks in c = {self.num_latent_tokens} latent tokens that are refined in parallel "
            f"T = {self.num_iterations} times{also} (PCCoT, arXiv 2506.18582) before it answers."
        )


class PCCoTGPT2Config(PCCoTConfigMixin, GPT2Config):
    model_type = "pccot-gpt2"


class PCCoTLlamaConfig(PCCoTConfigMixin, LlamaConfig):
    model_type = "pccot-llama"


class PCCoTMistralConfig(PCCoTConfigMixin, MistralConfig):
    model_type = "pccot-mistral"


class PCCoTQwen3Config(PCCoTConfigMixin, Qwen3Config):
    model_type = "pccot-qwen3"
