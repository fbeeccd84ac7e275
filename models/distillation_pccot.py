"""A training step of PCCoT (arXiv 2506.18582, section 3.3, after CODI, arXiv 2502.21074).

The teacher reads question, explicit steps and answer; the student reads question, thought span and answer, with the same
weights. At the answer prompt's last token the student's hidden states are to become the teacher's.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from .chunked_cross_entropy import mean_cross_entropies, select_labelled
from .deferred_weight_grad import deferred_weight_gradients
from .losses_pccot import LOSSES, Step
from .spans_pccot import ThoughtSpan

ALWAYS = ("alpha", "beta", "gamma")  # which are told whatever their weights
COUNTED = {
    "alpha": "cot_loss",
    "beta": "ccot_loss",
    "delta": "step_loss",
}  # means over the tokens that a trainer counts


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
        other_losses: those that were registered beside these, as `NAME_loss`; None for none.
    """

    cot_logits: torch.Tensor | None = None
    cot_loss: torch.Tensor | None = None
    ccot_loss: torch.Tensor | None = None
    kd_loss: torch.Tensor | None = None
    step_loss: torch.Tensor | None = None
    teacher_std: torch.Tensor | None = None
    latent_scale: torch.Tensor | None = None
    other_losses: dict[str, torch.Tensor] | None = None


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
        states = backbone.latent_rule.think(student, embeds, bot, latents, iterations, backbone.project)
        # Teacher: the same question, already read, goes on with the explicit steps.
        question = student.first_cache.fork(shared)
        teacher = backbone.passes(cot_attention_mask, question, last_options={"output_hidden_states": True})
        teacher_states = teacher(cot_embeds, 0)

    step = Step(
        model=model,
        batch={
            "labels": labels,
            "answer_labelled": answer_labelled,
            "cot_labels": cot_labels,
            "cot_labelled": cot_labelled,
            "step_labels": step_labels,
            "read_steps": read_steps,
            "window_labels": window_labels,
        },
        thought_span=thought_span,
        question_length=shared,
        iterations=iterations,
        embeds=embeds,
        states=states,
        prompt_states=states_at(student.last_output.hidden_states, kd_indices - length),
        cot_prompt_states=states_at(teacher.last_output.hidden_states, cot_kd_indices - shared),
        cot_states=torch.cat([states[:, shared - 1 : shared], teacher_states], dim=1),
        outputs=student.outputs,
    )
    parts, means = {}, {}
    for name, function in LOSSES.items():
        weight = getattr(config, f"loss_{name}", 0.0)
        found = function(step) if weight or name in ALWAYS else None
        if isinstance(found, tuple):
            parts[name] = (weight, *found)
        elif found is not None:
            means[name] = found
    if not parts.keys() <= COUNTED.keys():
        raise ValueError(
            f"a loss of one's own must be a mean over rows, a scalar: {', '.join(parts.keys() - COUNTED.keys())}"
        )
    counts: Any = None
    share: Any = 1.0
    if num_items_in_batch is not None:
        counts, share = num_items_in_batch[: len(parts)].unbind(), len(input_ids) / num_items_in_batch[3]
    loss, entropies = mean_cross_entropies(model.lm_head, list(parts.values()), counts)
    for name, mean in means.items():
        means[name] = mean * share
        loss = loss + getattr(config, f"loss_{name}") * means[name]
    with torch.no_grad():
        latent_scale = root_mean_square(backbone.project(step.latent_states)) / root_mean_square(embeds)
    return PCCoTOutput(
        loss=loss,
        logits=model.lm_head(states[:, bot + latents + 1 :]) if return_logits else None,
        cot_logits=model.lm_head(step.cot_states) if return_logits else None,
        kd_loss=means.pop("gamma").detach(),
        **{COUNTED[name]: entropy for name, entropy in zip(parts, entropies, strict=True)},
        teacher_std=step.cot_prompt_states.detach().float().std() * share,
        latent_scale=latent_scale * share,
        other_losses={f"{name}_loss": mean.detach() for name, mean in means.items()} or None,
    )


def root_mean_square(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().square().mean().sqrt()


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
