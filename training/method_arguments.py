"""Command line arguments of the methods: the written chain, the latent thought, its removal, and reward.

Flags of the original scripts keep their names.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal

from .errors import InputError
from .flags import ConfigurationFlag, check_least, option, setting, whole_numbers

# Arguments of a model that thinks, and their strengths where none is given.
ROLLOUT_NOISE = {"latents": ("latent_noise", 0.5), "dropout": ("latent_dropout", 0.1), "weights": ("value_noise", 0.6)}


@dataclass
class AnswerPromptArguments:
    """What announces an answer."""

    answer_prompt: str | None = option(None, "Text before the answer ('The answer is:' for a new model).")


@dataclass
class CoTArguments(AnswerPromptArguments):
    """Which chain of thought (`run_cot.py`)."""

    no_cot: bool = option(False, "Leave the steps out: question, answer prompt, answer.")


@dataclass
class PCCoTArguments(AnswerPromptArguments):
    """How the model thinks.

    A flag left out takes the checkpoint's (or the configuration's) setting.
    """

    num_latent_tokens: int | None = setting("c, the number of latent tokens.")
    num_iterations: int | None = setting("T, the number of Jacobi updates; from c on, thinking is sequential.")
    loss_alpha: float | None = setting("Weight of the teacher's cross-entropy.")
    loss_beta: float | None = setting("Weight of the student's cross-entropy.")
    loss_gamma: float | None = setting("Weight of the distillation of hidden states at the answer prompt.")
    loss_delta: float | None = setting("Weight of step supervision: a latent is read as the step that it stands for.")
    use_projection: bool | None = setting("Have a small network between a hidden state and the latent that it becomes.")
    use_layerwise_std: bool | None = setting(
        "Divide the distillation loss by the teacher's standard deviation layer by layer."
    )
    scale_latents: bool | None = setting(
        "Put latents on the scale of embeddings by a trained gain; on for a new model, a checkpoint's own setting otherwise."
    )
    open_steps_with_bot: bool | None = setting(
        "Open the explicit steps with the thought span's <bot>, so that latent i sits where step i would."
    )
    latents_per_step: int | None = setting("How many latents stand for one step (step supervision, mixed curriculum).")
    step_decoder_layers: int = option(
        0,
        "Read steps off the latents by a decoder of so many layers, in training only (SIM-CoT); 0: by the output head.",
    )
    num_iterations_range: str | None = option(
        None, "LOW,HIGH: draw T anew for each step, so that the model answers as well at every T between the two."
    )
    teacher_warmup_steps: int = option(0, "Train the explicit chain of thought alone for so many steps first.")
    latent_curriculum: Literal["none", "mixed"] = option(
        "none", "mixed: some batches keep their last steps explicit after <eot>, as Coconut mixes its stages."
    )
    curriculum_prob: float = option(0.3, "Share of the batches that the mixed curriculum changes.")

    def configuration_settings(self) -> dict:
        """The fields of the configuration that flags set; None leaves what is there."""
        settings = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.metadata.get("action") is ConfigurationFlag
        }
        if self.num_iterations_range is not None:
            settings["num_iterations_range"] = whole_numbers("num_iterations_range", self.num_iterations_range, count=2)
        return settings

    def __post_init__(self):
        if self.num_iterations_range is not None:
            whole_numbers("num_iterations_range", self.num_iterations_range, count=2)
        if not 0 <= self.curriculum_prob <= 1:
            raise InputError(f"--curriculum_prob must be between 0 and 1, got {self.curriculum_prob}")
        check_least(self, teacher_warmup_steps=0, step_decoder_layers=0)

    @property
    def batch_curriculum_prob(self) -> float:
        """0 unless the mixed curriculum is on."""
        return self.curriculum_prob if self.latent_curriculum == "mixed" else 0.0


@dataclass
class ICoTArguments:
    """How the chain of thought is taken away (iCoT) or turned into fillers."""

    answer_prompt: str | None = option(None, "Text between <ready> and the answer ('####' for a new model).")
    remove_per_epoch: float | None = option(
        None, "Tokens of the chain to take away in each epoch, evenly (8; none with --switch_tokens)."
    )
    remove_all_when_remove_beyond: str = option("inf", "Take all away once so many are (a number, or inf).")
    removal_smoothing_lambda: float = option(
        math.inf, "Remove o more tokens with probability (1 - exp(-l)) exp(-l o); inf for none."
    )
    removal_side: Literal["left", "right"] | None = option(
        None, "The end of the chain that tokens are taken from (the checkpoint's, or left)."
    )
    pretrain_epochs: float = option(0.0, "Epochs with the whole chain before removal starts.")
    remove_start_from: int = option(0, "Tokens that are gone from the start.")
    remove_every_n_step: int | None = option(None, "Take one token away every so many steps, instead of by epochs.")
    remove_from_n_steps: int = option(0, "The step that --remove_every_n_step counts from; nothing is removed before.")
    remove_from_n_tokens: int = option(0, "Tokens that are gone at that step (with --remove_every_n_step).")
    text_format: Literal["plain", "original", "fork"] | None = option(
        None,
        "How a sequence is written: `original` and `fork` give the tokens of the original iCoT code and of its fork with "
        "fillers, so that a removed token is the same one. Default: the checkpoint's, or plain.",
    )
    removal_gate: float | None = option(
        None, "Take one token away at each evaluation whose exact match reaches this, instead of by a schedule."
    )
    partial_removal: bool = option(False, "Allow a schedule that leaves some of the chain.")
    keep_position: bool | None = option(
        None, "What follows the removed tokens keeps its positions (the checkpoint's setting, or off)."
    )
    max_len_train: int | None = option(
        None, "Do not learn from rows of more tokens than this, removal done (at most 0: no limit)."
    )
    reset_optimizer: bool = option(False, "Forget the optimiser's moments whenever one more token goes.")
    switch_tokens: bool = option(False, "Turn the chain's tokens into fillers (<pause>) as well.")
    switch_from_n_steps: int = option(5000, "The step at which fillers start.")
    switch_from_n_rate: float = option(0.0, "Percentage of the chain that is fillers at that step.")
    switch_every_n_step: int | None = option(
        None, "Steps for one percent more; by default the share rises evenly, to all of the chain at the last step."
    )
    switch_token_ratio: float = option(1.0, "Fillers per token of the chain: n tokens in a row become ceil(n x ratio).")
    switch_mode: Literal["random", "sequential", "fixed", "depth"] = option(
        "random",
        "Which tokens turn: each with this probability; as many as that, from the front; exactly this share, from the "
        "front; or whole steps from the last.",
    )
    write_fillers: bool = option(True, "Learn to write the fillers (--no_write_fillers: they are given, in one pass).")
    reinitialize_weights: bool = option(False, "Start from random weights in the shape of --model_name_or_path.")
    truncation: int | None = option(
        None,
        "Longest sequence; longer ones lose their end (at most 0: no limit). Beyond GPT-2's positions it extends its table.",
    )


@dataclass
class RewardArguments:
    """What is rewarded (`run_grpo.py`)."""

    reward_function: str | None = option(
        None,
        "A reward of your own beside exact match, as module:function; --reward_weights weighs the two (0 1: yours alone).",
    )
    max_logprob_difference: float = option(
        1e-4,
        "Stop at the first step if the log-probabilities that answers were sampled with and those that training computes "
        "differ by more (in bfloat16 they do, by rounding).",
    )
    rollout_noise: Literal["temperature", "latents", "dropout", "weights"] = option(
        "temperature",
        "What makes the answers to a question differ beside --temperature: nothing, Gaussian noise on the latents, dropout of "
        "the latents, or noise on the singular values of the value matrices. The thought has it, the answer has not.",
    )
    rollout_noise_strength: float | None = option(
        None, "How much of it: standard deviation or probability (latents 0.5, dropout 0.1, weights 0.6)."
    )
    train_only_values: bool = option(False, "Train the value matrices and nothing else.")

    def __post_init__(self):
        strength, limit = self.rollout_noise_strength, 1 if self.rollout_noise == "dropout" else math.inf
        if strength is not None and self.rollout_noise == "temperature":
            raise InputError("--rollout_noise_strength: of the temperature pass --temperature instead")
        if strength is not None and not 0 < strength < limit:
            raise InputError(f"--rollout_noise_strength must be above 0 and below {limit}, got {strength}")
        if not self.max_logprob_difference > 0:
            raise InputError(f"--max_logprob_difference must be above 0, got {self.max_logprob_difference}")
        if self.reward_function is not None and not all(self.reward_function.partition(":")):
            raise InputError(f"--reward_function {self.reward_function}: expected module:function")

    @property
    def noise_options(self) -> dict[str, float]:
        """The model's arguments for a rollout's thought."""
        if self.rollout_noise == "temperature":
            return {}
        name, strength = ROLLOUT_NOISE[self.rollout_noise]
        return {name: strength if self.rollout_noise_strength is None else self.rollout_noise_strength}
