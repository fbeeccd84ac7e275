"""The losses of a training step of PCCoT, each a function of the step, by the name of its weight.

`loss_alpha` of the configuration weighs `LOSSES["alpha"]`, and so on. Another loss is another entry (`register_loss`), and its
weight another field of the configuration, 0 unless it is set. It is a mean over the rows of the batch, a scalar; of the
first ones those that are cross-entropies give what the output head is to read, so that it is read once for all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from .chunked_cross_entropy import select_labelled
from .spans_pccot import ThoughtSpan


@dataclass(frozen=True)
class Step:
    """What a loss may read.

    Args:
        model: the causal language model.
        batch: labels, and what goes with them, by their names in `distillation_step`.
        thought_span, question_length: as there.
        iterations: T.
        embeds: the student's input embeddings, `(batch, length, hidden)`.
        states: its last hidden states, as long.
        cot_states: the teacher's from the question's last token on, `(batch, 1 + teacher columns, hidden)`.
        prompt_states, cot_prompt_states: hidden states of every layer at the answer prompt's last token, `(layers, batch, hidden)`,
            of the student and of the teacher.
        outputs: of every pass of the student its first column and its output.
    """

    model: Any
    batch: dict[str, Any]
    thought_span: ThoughtSpan
    question_length: int
    iterations: int
    embeds: torch.Tensor
    states: torch.Tensor
    cot_states: torch.Tensor
    prompt_states: torch.Tensor
    cot_prompt_states: torch.Tensor
    outputs: list[tuple[int, Any]]

    @property
    def latent_states(self) -> torch.Tensor:
        """The states that become latents in the last pass, `(batch, c, hidden)`."""
        return self.states[:, self.thought_span.bot : self.thought_span.bot + self.thought_span.num_latents]


Read = tuple[torch.Tensor, torch.Tensor]  # states `(n, hidden)` for the output head, and their labels `(n,)`
LOSSES: dict[str, Callable[[Step], Any]] = {}


def register_loss(name: str) -> Callable[[Callable[[Step], Any]], Callable[[Step], Any]]:
    """A decorator that makes a function a loss, with the weight `loss_NAME` in configurations that are made from then on."""

    def add(function: Callable[[Step], Any]) -> Callable[[Step], Any]:
        LOSSES[name] = function
        return function

    return add


@register_loss("alpha")
def teacher_loss(step: Step) -> Read:
    """Cross-entropy of the explicit chain."""
    batch = step.batch
    return select_labelled(step.cot_states, batch["cot_labels"], step.question_length, batch["cot_labelled"])


@register_loss("beta")
def student_loss(step: Step) -> Read:
    """Cross-entropy of the answer after the thought."""
    batch, eot = step.batch, step.thought_span.bot + step.thought_span.num_latents + 1
    return select_labelled(step.states[:, eot:], batch["labels"], eot + 1, batch["answer_labelled"])


@register_loss("gamma")
def distillation(step: Step) -> torch.Tensor:
    """The student's hidden states at the answer prompt are to become the teacher's."""
    return distillation_loss(step.prompt_states, step.cot_prompt_states, step.model.config.use_layerwise_std)


@register_loss("delta")
def step_supervision(step: Step) -> Read | None:
    """What enters a latent is the state before it, which in the teacher predicts the token of the step that it stands for."""
    batch, config, read = step.batch, step.model.config, []
    labels, reader, window_labels = (batch[name] for name in ("step_labels", "read_steps", "window_labels"))
    if labels is not None and reader is None:
        read.append((step.latent_states.flatten(0, 1), labels.flatten()))
    elif labels is not None:
        read.append(reader(step.latent_states, labels, step.model.get_input_embeddings()))
    if window_labels is not None and step.iterations > 0:
        if not config.latent_rule.settles:
            raise ValueError(
                f"labels of every pass (`windows`) need a window, and latent_update={config.latent_update!r} has none"
            )
        targets = window_targets(window_labels, step.iterations)
        states = window_states(step.outputs, step.thought_span.bot, targets)
        read.append((states.flatten(0, 2), targets.flatten()))
    if not read:
        return None
    states, labels = map(torch.cat, zip(*read, strict=True))
    return states, labels


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, layerwise: bool) -> torch.Tensor:
    """Smooth L1 between hidden states, over the teacher's standard deviation (CODI, equation 4).

    Args:
        student, teacher: `(layers, batch, hidden)`; no gradient reaches the teacher.
        layerwise: one standard deviation per layer instead of one for all.
    """
    student, teacher = student.float(), teacher.detach().float()
    loss = F.smooth_l1_loss(student, teacher, reduction="none").flatten(1)
    deviation = teacher.flatten(1).std(dim=1, keepdim=True) if layerwise else teacher.std()
    return (loss / deviation).mean()


def window_targets(window_labels: torch.Tensor, iterations: int) -> torch.Tensor:
    """Labels of what each pass before the last gives: latents t + 1 ... t + W of pass t, as `jacobi_window` has them.

    Args:
        window_labels: `(batch, passes, c)`; those of the last pass hold for later ones too.
        iterations: T, of which no more than c count; W = c - T + 1.

    Returns:
        `(batch, T, W)`.
    """
    passes, latents = window_labels.shape[1:]
    iterations = min(iterations, latents)
    width = latents - iterations + 1
    rows = [window_labels[:, min(t, passes - 1), t : t + width] for t in range(iterations)]
    return torch.stack(rows, dim=1) if rows else window_labels[:, :0]


def window_states(outputs: list[tuple[int, Any]], bot: int, targets: torch.Tensor) -> torch.Tensor:
    """The last hidden states that predict `targets` `(batch, T, W)`: `(batch, T, W, hidden)`.

    Args:
        outputs: of every pass its first column and its output (`Passes.outputs`); the first pass has the question too.
        bot: the column of `<bot>`.
    """
    iterations, width = targets.shape[1:]
    passes = enumerate(outputs[:iterations])
    return torch.stack([out.last_hidden_state[:, bot + t - start :][:, :width] for t, (start, out) in passes], dim=1)
