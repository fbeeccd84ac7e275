"""The other projects' models, from their description: about 40 lines each, without a cache, one question at a time.

And their weights, random, in the layouts that they publish.
"""

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

WIDTH = {"initializer_range": 0.3}
RANK, SCALE = 128, 32 / 128


def backbone(kind: str, rows: int, tied: bool = True):
    """A random GPT-2 or Llama of two layers."""
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(n_embd=32, n_head=4, n_layer=2, n_positions=256, vocab_size=rows, **WIDTH)
        return GPT2LMHeadModel(config).eval()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "vocab_size": rows, "max_position_embeddings": 512}
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=tied, **shape, **WIDTH)).eval()


def projection(width: int = 32) -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))
    for weight in layers.parameters():
        nn.init.normal_(weight, std=0.4)
    return layers.eval()


@torch.no_grad()
def sequential(
    model, project, prompt: list[int], latents: int, end: int, stop: int, most: int, forbidden=()
) -> list[int]:
    """Coconut's and CODI's thought: each latent's input is the (projected) state of the position before it.

    Args:
        prompt: up to what opens the thought.
        end: the token that ends it.
        stop: the token that ends an answer.
        most: tokens of an answer.
        forbidden: tokens that are no part of one.
    """
    embed = model.get_input_embeddings()
    inputs = embed(torch.tensor([prompt]))
    for _ in range(latents):
        state = model.base_model(inputs_embeds=inputs).last_hidden_state[:, -1:]
        inputs = torch.cat([inputs, project(state)], dim=1)
    inputs = torch.cat([inputs, embed(torch.tensor([[end]]))], dim=1)
    return write(model, inputs, stop, most, forbidden)


@torch.no_grad()
def looped(
    model, prompt: list[int], latent: int, latents: int, passes: int, end: int, stop: int, most: int
) -> list[int]:
    """LOTUS' thought: each latent's input is the embedding of `<|latent|>` plus its own state in the pass before."""
    embed = model.get_input_embeddings()
    own = embed(torch.tensor([[latent] * latents]))
    question, thought = embed(torch.tensor([prompt])), own
    for _ in range(passes):
        states = model.base_model(inputs_embeds=torch.cat([question, thought], dim=1)).last_hidden_state
        thought = own + states[:, len(prompt) :]
    inputs = torch.cat([question, thought, embed(torch.tensor([[end]]))], dim=1)
    return write(model, inputs, stop, most)


def write(model, inputs: torch.Tensor, stop: int, most: int, forbidden=()) -> list[int]:
    """Greedy tokens after embeddings `(1, length, hidden)`, up to and with `stop`."""
    answer: list[int] = []
    while len(answer) < most and (not answer or answer[-1] != stop):
        logits = model(inputs_embeds=inputs).logits[0, -1]
        logits[list(forbidden)] = -torch.inf
        answer.append(int(logits.argmax()))
        inputs = torch.cat([inputs, model.get_input_embeddings()(torch.tensor([answer[-1:]]))], dim=1)
    return answer


def unmerged(model, kind: str) -> dict[str, torch.Tensor]:
    """The model's weights with random adapters beside them, as PEFT names them; the model then has the merged ones."""
    torch.manual_seed(2)
    adapted = ("c_attn", "c_proj", "c_fc") if kind == "gpt2" else ("q_", "k_", "v_", "o_", "up_", "down_", "gate_")
    layout = {}
    for name, module in model.named_modules():
        if not name or list(module.children()):
            continue
        is_adapted = name.rpartition(".")[2].startswith(adapted)
        for part, weight in module.named_parameters():
            layout[f"{name}.base_layer.{part}" if is_adapted else f"{name}.{part}"] = weight.detach().clone()
        if is_adapted:
            wide, high = module.weight.shape if kind == "gpt2" else module.weight.shape[::-1]
            down, up = 0.1 * torch.randn(RANK, wide), 0.1 * torch.randn(high, RANK)
            layout[f"{name}.lora_A.default.weight"], layout[f"{name}.lora_B.default.weight"] = down, up
            change = SCALE * (up @ down)
            module.weight.data += change.T if kind == "gpt2" else change
    return layout
