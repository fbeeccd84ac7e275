"""vLLM's model classes with a latent thought. A backbone is a class of two lines, and an entry in `plugin.py`."""

from dataclasses import replace

import torch
from torch import nn
from vllm.config import CUDAGraphMode
from vllm.forward_context import get_forward_context, is_forward_context_available, override_forward_context
from vllm.model_executor.models.gpt2 import GPT2LMHeadModel
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadata

from latent_cot.latent_gain import LatentGain
from latent_cot.spans_pccot import latents_of_spans

from .windows import pieces_of, think


class LatentThoughtMixin(nn.Module):
    """A causal language model of vLLM that thinks the spans of its batch through, each of which is there as a whole.

    Always runs on embeddings: vLLM compiles the base model once, for the kind of inputs that it sees first.
    """

    base_model_name = "model"

    def __init__(self, *, vllm_config, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.vllm_config, self.builders, hidden = vllm_config, {}, self.config.hidden_size
        if self.config.use_projection:
            layers = nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
            self.base_model.prj = nn.Sequential(*layers)
        elif getattr(self.config, "scale_latents", False):
            self.base_model.latent_gain = LatentGain(hidden)

    @property
    def base_model(self) -> nn.Module:
        return getattr(self, self.base_model_name)

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Inputs of latents from the hidden states before them, `(latents, hidden)`."""
        for name in ("prj", "latent_gain"):
            if hasattr(self.base_model, name):
                return getattr(self.base_model, name)(states)
        return states

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        """Last hidden states `(tokens, hidden)` of a packed batch."""
        embeds = self.embed_input_ids(input_ids)
        metadata = metadata_by_layer()
        first = next(iter(metadata.values()), None)
        # Without metadata vLLM measures; one token for each request cannot hold a span.
        if first is None or first.max_query_len == 1 or self.config.num_iterations == 0:
            return self.base_model(None, positions, None, embeds)
        if isinstance(first, CPUAttentionMetadata):
            return self.think_in_windows(input_ids, positions, embeds, metadata)
        return self.think_in_whole_passes(input_ids, positions, embeds, first)

    def think_in_windows(self, input_ids, positions, embeds, metadata) -> torch.Tensor:
        """Each pass runs what can still change. Reads the ids on the host; needs a backend whose metadata are made anew."""
        first = next(iter(metadata.values()))
        tokens, starts = first.num_actual_tokens, first.query_start_loc.tolist()
        rounds = pieces_of(input_ids[:tokens].tolist(), starts, self.config)
        if not any(piece.latents for pieces in rounds for piece in pieces):
            return self.base_model(None, positions, None, embeds)
        context = get_forward_context()

        def run(inputs, columns, parts):
            parts_of = {id(slots): slots[columns] for slots in context.slot_mapping.values()}
            slots = {name: parts_of[id(slots)] for name, slots in context.slot_mapping.items()}
            changed = replace(
                context, attn_metadata=self.metadata_of(metadata, columns, parts, starts), slot_mapping=slots
            )
            with override_forward_context(changed):
                return self.base_model(None, positions[columns], None, inputs)

        states = torch.zeros_like(embeds)
        states[:tokens] = think(run, embeds[:tokens], rounds, self.config.num_iterations, self.project)
        return states

    def metadata_of(self, metadata: dict, columns: torch.Tensor, parts, starts: list[int]) -> dict:
        """Attention metadata of a part of the batch, by layer; layers that share theirs share the new ones."""
        layers, made = get_forward_context().no_compile_layers, {}
        lengths = [end - start for _, start, end in parts]
        requests = torch.tensor([request for request, _, _ in parts])
        left = torch.tensor([starts[request + 1] - end for request, _, end in parts], dtype=torch.int32)
        begins = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        for whole in {id(own): own for own in metadata.values()}.values():
            names = [name for name, own in metadata.items() if own is whole]
            if names[0] not in self.builders:
                layer = layers[names[0]]
                spec, build = layer.get_kv_cache_spec(self.vllm_config), layer.get_attn_backend().get_builder_cls()
                self.builders[names[0]] = build(spec, names, self.vllm_config, columns.device)
            seq_lens = whole.seq_lens[requests] - left
            common = CommonAttentionMetadata(
                query_start_loc=begins,
                query_start_loc_cpu=begins,
                seq_lens=seq_lens,
                num_reqs=len(parts),
                num_actual_tokens=len(columns),
                max_query_len=max(lengths),
                max_seq_len=whole.max_seq_len,
                block_table_tensor=whole.block_table[requests],
                slot_mapping=whole.slot_mapping[columns],
            )
            made |= dict.fromkeys(names, self.builders[names[0]].build(0, common))
        return made

    def think_in_whole_passes(self, input_ids, positions, embeds, metadata) -> torch.Tensor:
        """Each pass runs the whole batch and rewrites the same slots of the cache, so what was final stays the same.

        For any backend, and reads nothing on the host. The passes take no part in CUDA graphs, whose inputs and outputs
        have fixed places in memory.
        """
        tokens = metadata.num_actual_tokens
        latents = torch.zeros_like(input_ids, dtype=torch.bool)
        latents[:tokens] = latents_of_spans(input_ids[None, :tokens], self.config, metadata.query_start_loc)[0]
        with override_forward_context(replace(get_forward_context(), cudagraph_runtime_mode=CUDAGraphMode.NONE)):
            states = self.base_model(None, positions, None, embeds)
            for _ in range(self.config.num_iterations):
                inputs = torch.where(latents[:, None], self.project(states.roll(1, dims=0)), embeds)
                states = self.base_model(None, positions, None, inputs)
        return states


def metadata_by_layer() -> dict:
    """The attention metadata of this step, by layer; empty where there are none."""
    found = get_forward_context().attn_metadata if is_forward_context_available() else None
    return found[0] if isinstance(found, list) else found or {}


class LatentGPT2(LatentThoughtMixin, GPT2LMHeadModel):
    base_model_name = "transformer"


class LatentLlama(LatentThoughtMixin, LlamaForCausalLM):
    pass


class LatentMistral(LatentThoughtMixin, MistralForCausalLM):
    pass


class LatentQwen3(LatentThoughtMixin, Qwen3ForCausalLM):
    pass
