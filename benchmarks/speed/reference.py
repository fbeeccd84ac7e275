"""PCCoT as straightforward research code does it, on the weights of a loaded `pccot-*` model: what ours is timed against.

Written from the paper (arXiv 2506.18582, section 3; losses as in CODI, arXiv 2502.21074) and from what is known of how
the published implementation spends its time, nothing slowed down and nothing sped up:

    teacher    question + steps + answer prompt + answer; logits at every position
    pass 0     question + <bot> + c latent embeddings (the question is read again)
    pass 1..T  all c latents, after the cached question and <bot>
    answer     <eot> + answer prompt + answer, after the latents of the last pass; logits at every position

Logits are float32, hidden states are kept for whole sequences, each loss part is read on the host in every step,
answering runs the teacher too, LoRA adapters stay unmerged, and layers are transformers' and PEFT's own where ours have
a faster form. One thing differs from the published code, which gets
it wrong: padding is masked, and positions skip it, in every pass.
"""

import copy

import torch
from peft import get_peft_model
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.activations import ACT2FN

from latent_cot.distillation_pccot import states_at
from latent_cot.jacobi_pccot import jacobi
from latent_cot.losses_pccot import distillation_loss
from latent_cot.positions import positions_from_mask
from latent_cot.transformers_versions import CACHE


def plain_twin(model: nn.Module) -> nn.Module:
    """A model of the same weights (the very same parameters) in transformers' and PEFT's own layers.

    Args:
        model: a `pccot-*` causal language model (inside a `PeftModel`: `peft_model.base_model.model`).
    """
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(model.config)
        if hasattr(model, "peft_wrapper"):
            adapters = copy.copy(model.peft_wrapper.peft_config["default"])
            adapters._custom_modules = None
            twin = get_peft_model(twin, adapters).base_model.model
    if getattr(model.config, "activation_function", None) == "gelu_new":
        for block in twin.base_model.h:
            block.mlp.act = ACT2FN["gelu_new"]
    own = dict(model.named_modules(remove_duplicate=False))
    for name, module in twin.named_modules(remove_duplicate=False):
        module._parameters.update(own[name]._parameters)
        module._buffers.update(own[name]._buffers)
    return twin


class Reference:
    """The method over a model's own weights, in plain layers; adapters inside them are used as they are.

    Args:
        model: as of `plain_twin`.
    """

    def __init__(self, model: nn.Module):
        self.original, self.model, self.config = model, plain_twin(model), model.config
        self.backbone = self.model.base_model
        self.embed, self.head = self.model.get_input_embeddings(), self.model.get_output_embeddings()

    def step(self, batch: dict, num_iterations: int) -> tuple[torch.Tensor, dict[str, float]]:
        """A training step's forward pass.

        Args:
            batch: what `PCCoTCollator` makes.
            num_iterations: T.

        Returns:
            The loss, a scalar with its graph, and its parts as numbers on the host.
        """
        self.model.train(self.original.training)
        output = self.forward(batch, num_iterations, batch["question_length"], batch["thought_span"].num_latents)
        return output["loss"], output["parts"]

    def forward(self, batch: dict, iterations: int, bot: int, latents: int) -> dict:
        """Teacher and student with their losses; without `labels` the student has none.

        Args:
            batch: `input_ids`, `attention_mask`, `kd_indices` and their `cot_` twins, and `cot_labels`.
            iterations: T.
            bot: the column of `<bot>`.
            latents: c.
        """
        config = self.config

        teacher = self.run(self.embed(batch["cot_input_ids"]), batch["cot_attention_mask"], output_hidden_states=True)
        cot_logits = self.head(teacher.last_hidden_state).float()
        parts = {"cot_loss": next_token_loss(cot_logits, batch["cot_labels"])}

        eot = bot + 1 + latents
        run = PlainPasses(self, batch["attention_mask"])
        states = jacobi(run, self.embed(batch["input_ids"]), bot, latents, iterations, self.backbone.project)
        student, cache = run.output, run.cache
        logits = self.head(states[:, eot:]).float()
        if "labels" in batch:
            parts["ccot_loss"] = next_token_loss(logits, batch["labels"][:, eot:])

        prompt_states = states_at(student.hidden_states, batch["kd_indices"] - eot)
        cot_prompt_states = states_at(teacher.hidden_states, batch["cot_kd_indices"])
        parts["kd_loss"] = distillation_loss(prompt_states, cot_prompt_states, config.use_layerwise_std)
        weights = {"cot_loss": config.loss_alpha, "ccot_loss": config.loss_beta, "kd_loss": config.loss_gamma}
        loss = sum(weights[name] * part for name, part in parts.items())
        logged = {name: part.item() for name, part in parts.items()}
        logged["teacher_std"] = cot_prompt_states.float().std().item()
        return {"loss": loss, "parts": logged, "logits": logits, "cache": cache}

    def run(self, embeds: torch.Tensor, mask: torch.Tensor, cache: DynamicCache | None = None, **kwargs):
        """One pass of the plain backbone over `embeds` `(batch, length, hidden)`, which follow what the cache holds."""
        start = 0 if cache is None else cache.get_seq_length()
        end = start + embeds.shape[1]
        positions = positions_from_mask(mask)
        return self.backbone.plain_forward(
            inputs_embeds=embeds,
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
            use_cache=cache is not None,
            **{CACHE: cache},
            **kwargs,
        )

    @torch.no_grad()
    def answer(
        self, question_ids: torch.Tensor, mask: torch.Tensor, tokens: int, num_iterations: int, end_token_id: int
    ) -> torch.Tensor:
        """Greedy answers `(batch, tokens)`; an end of sequence does not stop them.

        As published: the first token comes out of the training step's forward pass, teacher and losses included (over
        question, answer prompt and end of sequence: the steps are not known), the others out of `generate()`.

        Args:
            question_ids, mask: `(batch, question)`, left padded.
            tokens: how many an answer has.
            num_iterations: T.
            end_token_id: ends the teacher's sequence.
        """
        bot, prompt, thought = question_ids.shape[1], self.config.answer_prompt_ids, self.model.thought_ids()
        cot_ids, cot_mask = append(question_ids, mask, [*prompt, end_token_id])
        ids, mask = append(question_ids, mask, thought)
        last = question_ids.new_full((len(question_ids),), -1)
        batch = {"input_ids": ids, "attention_mask": mask, "kd_indices": last + ids.shape[1]}
        batch |= {"cot_input_ids": cot_ids, "cot_attention_mask": cot_mask, "cot_kd_indices": last + bot + len(prompt)}
        batch["cot_labels"] = F.pad(cot_ids[:, bot:], (bot, 0), value=-100)
        self.model.train(self.original.training)
        output = self.forward(batch, num_iterations, bot, self.config.num_latent_tokens)
        first = output["logits"][:, -1:].argmax(dim=-1)
        if tokens == 1:
            return first
        whole = self.model.generate(
            torch.cat([ids, first], dim=1),
            attention_mask=F.pad(mask, (0, 1), value=1),
            past_key_values=output["cache"],
            max_new_tokens=tokens - 1,
            do_sample=False,
        )
        return whole[:, ids.shape[1] :]


class PlainPasses:
    """A `run` for `jacobi`: each pass over a cache that is cut back to where the pass starts."""

    def __init__(self, reference: Reference, mask: torch.Tensor):
        self.reference, self.mask, self.cache, self.output = reference, mask, DynamicCache(), None

    def __call__(self, inputs: torch.Tensor, start: int) -> torch.Tensor:
        beyond = self.cache.get_seq_length() - start
        if beyond > 0:
            self.cache.crop(-beyond)
        last = start + inputs.shape[1] == self.mask.shape[1]
        self.output = self.reference.run(inputs, self.mask, self.cache, output_hidden_states=last)
        return self.output.last_hidden_state


def append(ids: torch.Tensor, mask: torch.Tensor, tail: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same tokens after every row of `ids` and its mask, both `(batch, length)`."""
    tail = torch.tensor(tail, device=ids.device).expand(len(ids), -1)
    return torch.cat([ids, tail], dim=1), F.pad(mask, (0, tail.shape[1]), value=1)


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of logits `(batch, length, vocabulary)`; labels `(batch, length)` are shifted here."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
