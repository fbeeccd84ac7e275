"""A training step of PCCoT (arXiv 2506.18582, section 3.3, after CODI, arXiv 2502.21074).

The teacher reads question, explicit steps and answer; the student reads question, thought span and answer, with the same
weights. At the answer prompt's last token the student's hidden states are to become the teacher's.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import CausalLMOutputWithPast

from .chunked_cross_entropy import mean_cross_entropies, select_labelled
from .deferred_weight_grad import deferred_weight_gradients
from .spans_pccot import ThoughtSpan


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
        latent_scale: the root mean square of the latents' inputs, beside that of the embeddings of the batch.
    """

    cot_logits: torch.Tensor | None = None
    cot_loss: torch.Tensor | None = None
    ccot_loss: torch.Tensor | None = None
    kd_loss: torch.Tensor | None = None
    step_loss: torch.Tensor | None = None
    teacher_std: torch.Tensor | None = None
    latent_scale: torch.Tensor | None = None


def distillation_step(
    model,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    cot_input_ids: torch.Tensor,
    cot_attention_mask: torch.Tensor,
    cot_labels: torch.Tensor,
    *,
    thought_span: ThoughtSpan,
    question_length: int,
    kd_indices: torch.Tensor,
    cot_kd_indices: torch.Tensor,
    step_labels: torch.Tensor | None = None,
    read_steps: Callable | None = None,
    window_labels: torch.Tensor | None = None,
    answer_labelled: torch.Tensor | None = None,
    cot_labelled: torch.Tensor | None = None,
    num_iterations: int | None = None,
    num_items_in_batch: torch.Tensor | None = None,
    return_logits: bool | None = None,
    defer_gradients: bool = True,
) -> PCCoTOutput:
    """Teacher, student and their losses, for a batch as `latent_cot.training.data.collators.PCCoTCollator` makes it.

    Args:
        model: a causal language model with a `PCCoTModelMixin` inside.
        input_ids: `(batch, length)`: question (left padded), `<bot>`, c x `<latent>`, `<eot>`, answer prompt, answer, end
            of sequence (right padded).
        cot_input_ids: `(batch, teacher length)`. The first `question_length` columns are those of `input_ids`; then come
            steps, answer prompt, answer, end of sequence (right padded).
        attention_mask, labels, cot_attention_mask, cot_labels: as their ids; labels are -100 where nothing is to be
            predicted, and are shifted here.
        thought_span: where the thought span is, in the same columns in every row.
        question_length: how many columns the two sequences share.
        kd_indices, cot_kd_indices: `(batch,)`: the column of the answer prompt's last token in the student's and in the
            teacher's sequence, where hidden states are distilled.
        step_labels: `(batch, c)`: the token that each latent stands for, -100 for none (step supervision). It is read
            off the hidden state that becomes the latent: that of the position before it, in the last pass.
        read_steps: what reads those states `(batch, c, hidden)` first, in place of the output head alone: called with them,
            `step_labels` of whatever shape it takes and the input embeddings; gives states `(n, hidden)` for the output
            head, and their labels `(n,)`. `latent_cot.training.step_decoder.StepDecoder` is one.
        window_labels: `(batch, passes, c)`: the token that each latent stands for after each pass, -100 for none, as part of
            step supervision. It is read off the states that become latents in the next pass; see `window_targets`.
        answer_labelled, cot_labelled: `(labelled tokens,)`: where `labels` and `cot_labels`, flattened, are not -100.
            Optional: on a GPU they spare the output head what predicts nothing, without a wait for the device.
        num_iterations: T; the configuration's if absent.
        num_items_in_batch: `(4,)`: what the means divide by where this batch is one part of an optimiser step: the labelled
            tokens of teacher, student and step supervision, and the rows, of all its parts. By default those of this batch.
        return_logits: also give the logits; by default only in evaluation mode.
        defer_gradients: make one gradient per weight, where that is possible; False for a model that is compiled.
    """
    config, backbone, shared = model.config, model.base_model, question_length
    iterations = config.num_iterations if num_iterations is None else num_iterations
    if return_logits is None:
        return_logits = not model.training
    if not return_logits:  # the last column of either sequence predicts nothing
        input_ids, attention_mask = input_ids[:, :-1], attention_mask[:, :-1]
        cot_input_ids, cot_attention_mask = cot_input_ids[:, :-1], cot_attention_mask[:, :-1]
    length, bot, latents = input_ids.shape[1], thought_span.bot, thought_span.num_latents
    ids = torch.cat([input_ids, cot_input_ids[:, shared:]], dim=1)
    embeds, cot_embeds = model.get_input_embeddings()(ids).tensor_split([length], dim=1)

    with shared_gradients(backbone) if defer_gradients else nullcontext():
        # Student: question, thought, answer. Every layer's states are read in the last pass alone.
        student = backbone.passes(attention_mask, last_options={"output_hidden_states": True})
        states = config.latent_rule.think(student, embeds, bot, latents, iterations, backbone.project)
        # Teacher: the same question, already read, goes on with the explicit steps.
        question = student.first_cache.fork(shared)
        teacher = backbone.passes(cot_attention_mask, question, last_options={"output_hidden_states": True})
        teacher_states = teacher(cot_embeds, 0)

    kd_loss, teacher_std = distillation_loss(
        states_at(student.last_output.hidden_states, kd_indices - length),
        states_at(teacher.last_output.hidden_states, cot_kd_indices - shared),
        config.use_layerwise_std,
    )
    eot = bot + latents + 1
    cot_states = torch.cat([states[:, shared - 1 : shared], teacher_states], dim=1)
    parts = [
        (config.loss_alpha, *select_labelled(cot_states, cot_labels, shared, cot_labelled)),
        (config.loss_beta, *select_labelled(states[:, eot:], labels, eot + 1, answer_labelled)),
    ]
    # Step supervision: what enters a latent is the state before it, which in the teacher predicts that step's token.
    supervised = []
    if config.loss_delta and step_labels is not None:
        latent_states = states[:, bot : bot + latents]
        if read_steps is None:
            supervised.append((latent_states.flatten(0, 1), step_labels.flatten()))
        else:
            supervised.append(read_steps(latent_states, step_labels, model.get_input_embeddings()))
    if config.loss_delta and window_labels is not None and iterations > 0:
        if not config.latent_rule.settles:
            raise ValueError(
                f"labels of every pass (`windows`) need a window, and latent_update={config.latent_update!r} has none"
            )
        targets = window_targets(window_labels, iterations)
        supervised.append((window_states(student.outputs, bot, targets).flatten(0, 2), targets.flatten()))
    if supervised:
        read, wanted = map(torch.cat, zip(*supervised, strict=True))
        parts.append((config.loss_delta, read, wanted))
    counts: Any = None
    share: Any = 1.0
    if num_items_in_batch is not None:
        counts, share = num_items_in_batch[: len(parts)].unbind(), len(input_ids) / num_items_in_batch[3]
    loss, (cot_loss, ccot_loss, *step_loss) = mean_cross_entropies(model.lm_head, parts, counts)
    kd_loss, teacher_std = kd_loss * share, teacher_std * share
    with torch.no_grad():
        latent_inputs = backbone.project(states[:, bot : bot + latents])
        latent_scale = root_mean_square(latent_inputs) / root_mean_square(embeds)
    return PCCoTOutput(
        loss=loss + config.loss_gamma * kd_loss,
        logits=model.lm_head(states[:, eot:]) if return_logits else None,
        cot_logits=model.lm_head(cot_states) if return_logits else None,
        cot_loss=cot_loss,
        ccot_loss=ccot_loss,
        kd_loss=kd_loss.detach(),
        step_loss=step_loss[0] if step_loss else None,
        teacher_std=teacher_std,
        latent_scale=latent_scale * share,
    )


def root_mean_square(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().square().mean().sqrt()


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


def teacher_step(
    model,
    cot_input_ids: torch.Tensor,
    cot_attention_mask: torch.Tensor,
    cot_labels: torch.Tensor,
    *,
    question_length: int,
    cot_labelled: torch.Tensor | None = None,
    num_items_in_batch: torch.Tensor | None = None,
    return_logits: bool | None = None,
    **student,
) -> PCCoTOutput:
    """The explicit chain alone (teacher warm-up): arguments as those of `distillation_step`, of which the student's are
    left aside."""
    if return_logits is None:
        return_logits = not model.training
    if not return_logits:
        cot_input_ids, cot_attention_mask = cot_input_ids[:, :-1], cot_attention_mask[:, :-1]
    teacher = model.base_model.passes(cot_attention_mask)
    states = teacher(model.get_input_embeddings()(cot_input_ids), 0)[:, question_length - 1 :]
    part = (model.config.loss_alpha, *select_labelled(states, cot_labels, question_length, cot_labelled))
    counts = None if num_items_in_batch is None else [num_items_in_batch[0]]
    loss, (cot_loss,) = mean_cross_entropies(model.lm_head, [part], counts)
    return PCCoTOutput(loss=loss, cot_logits=model.lm_head(states) if return_logits else None, cot_loss=cot_loss)


def shared_gradients(backbone):
    """A context in which a step's passes make one gradient per weight, where that is possible.

    Not where the step is traced (`torch.compile`): a traced graph would hold the weights without their gradients.
    """
    if torch.compiler.is_compiling():
        return nullcontext()
    checkpointed = backbone.training and backbone.check_checkpointing()
    possible = backbone.training and torch.is_grad_enabled() and not checkpointed
    return deferred_weight_gradients(backbone) if possible else nullcontext()


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, layerwise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth L1 between hidden states, over the teacher's standard deviation (CODI, equation 4).

    Args:
        student, teacher: `(layers, batch, hidden)`; no gradient reaches the teacher.
        layerwise: one standard deviation per layer instead of one for all.

    Returns:
        The loss and the teacher's overall standard deviation, two scalars.
    """
    student, teacher = student.float(), teacher.detach().float()
    loss = F.smooth_l1_loss(student, teacher, reduction="none").flatten(1)
    deviation = teacher.flatten(1).std(dim=1, keepdim=True) if layerwise else teacher.std()
    return (loss / deviation).mean(), teacher.std()


def states_at(hidden_states: tuple[torch.Tensor, ...], columns: torch.Tensor) -> torch.Tensor:
    """Every layer's hidden state at one column per row.

    Args:
        hidden_states: the embeddings and each layer's output, each `(batch, length, hidden)`.
        columns: `(batch,)`; negative ones count from the end.

    Returns:
        `(layers, batch, hidden)`, without the embeddings.
    """
    rows = torch.arange(columns.shape[0], device=columns.device)
    return torch.stack([layer[rows, columns] for layer in hidden_states[1:]])
