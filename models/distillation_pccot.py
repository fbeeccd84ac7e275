"""The training losses of PCCoT (arXiv 2506.18582, section 3.3, after CODI, arXiv 2502.21074)."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast


@dataclass
class PCCoTOutput(CausalLMOutputWithPast):
    """What a training step returns.

    Args:
        loss: the weighted sum of the parts below, a scalar.
        logits: the student's, `(batch, answer columns, vocabulary)`: from `<eot>` on; None in training.
        cot_logits: the teacher's, `(batch, 1 + teacher columns, vocabulary)`: from the question's last token on; None
            in training.
        cot_loss: cross-entropy of the teacher (weight `loss_alpha`).
        ccot_loss: cross-entropy of the student (weight `loss_beta`).
        kd_loss: distillation of the hidden states at the answer prompt's last token (weight `loss_gamma`).
        step_loss: cross-entropy of the latents, read as words (weight `loss_delta`); None where that is 0 or off.
        teacher_std: standard deviation of the teacher's hidden states that are distilled.
    """

    cot_logits: torch.FloatTensor | None = None
    cot_loss: torch.FloatTensor | None = None
    ccot_loss: torch.FloatTensor | None = None
    kd_loss: torch.FloatTensor | None = None
    step_loss: torch.FloatTensor | None = None
    teacher_std: torch.FloatTensor | None = None


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, layerwise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth L1 between hidden states, over the teacher's standard deviation (CODI, equation 4).

    Args:
        student, teacher: `(layers, batch, hidden)`; no gradient reaches the teacher.
        layerwise: one standard deviation a layer instead of one for all.

    Returns:
        The loss and the teacher's overall standard deviation, two scalars.
    """
    student, teacher = student.float(), teacher.detach().float()
    loss = F.smooth_l1_loss(student, teacher, reduction="none").flatten(1)
    deviation = teacher.flatten(1).std(dim=1, keepdim=True) if layerwise else teacher.std()
    return (loss / deviation).mean(), teacher.std()


def states_at(hidden_states: tuple[torch.Tensor, ...], columns: torch.Tensor) -> torch.Tensor:
    """Every layer's hidden state at one column a row.

    Args:
        hidden_states: the embeddings and each layer's output, each `(batch, length, hidden)`.
        columns: `(batch,)`; negative ones count from the end.

    Returns:
        `(layers, batch, hidden)`, without the embeddings.
    """
    rows = torch.arange(columns.shape[0], device=columns.device)
    return torch.stack([layer[rows, columns] for layer in hidden_states[1:]])
