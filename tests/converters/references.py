"""The other projects' models, from their description: about 40 lines each, without a cache, one question at a time.

And their weights, random, in the layouts that they publish.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from test_tokenizer_worlds import byte_level_with_bos
from tokenizers import pre_tokenizers
from torch import nn
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from latent_cot.training.data.small_tokenizers import byte_tokenizer

NEW = 8
START, END, LATENT = "<|start-latent|>", "<|end-latent|>", "<|latent|>"
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


# --- their checkpoints, as they are published ---


def save_base(folder: Path, kind: str, tied: bool = True):
    """A base model's configuration and tokenizer; no weights."""
    tokenizer = byte_tokenizer() if kind == "gpt2" else byte_level_with_bos()
    if kind != "gpt2":
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    backbone(kind, len(tokenizer), tied).config.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


class CodiCase:
    """CODI, and SIM-CoT on CODI: a torch file, or safetensors beside an empty config.json."""

    def __init__(self, root: Path, kind: str, sim_cot: bool):
        self.source, self.base = root / "published", root / "base"
        self.tokenizer = save_base(self.base, kind, tied=kind == "gpt2" or sim_cot)
        rows = len(self.tokenizer)
        self.model, self.project = backbone(kind, rows + 3, tied=kind == "gpt2" or sim_cot), projection()
        self.model.lm_head.weight.data[rows + 2] *= 4  # <eot> would be written, were it allowed
        prefix = "codi.base_model.model."
        weights = {prefix + name: tensor for name, tensor in unmerged(self.model, kind).items()}
        names = {"0": "1", "2": "3", "3": "ln"}
        for name, tensor in self.project.state_dict().items():
            number, _, part = name.partition(".")
            weights[f"prj.{names[number]}.{part}"] = tensor
        weights["decoder.lm_head.weight" if sim_cot else "dynamic_cls.0.weight"] = torch.ones(4, 4)
        if sim_cot:
            weights |= {"pj_in.weight": torch.ones(2, 3), "pj_out.down.weight": torch.ones(2, 3)}
        if kind == "gpt2":
            weights[f"{prefix}transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
        self.source.mkdir()
        if sim_cot:
            del weights[f"{prefix}lm_head.weight"]
            save_file(
                {name: tensor.contiguous() for name, tensor in weights.items()}, self.source / "model.safetensors"
            )
            (self.source / "config.json").write_text("{}")
        else:
            torch.save(weights, self.source / "pytorch_model.bin")
        self.bot, self.eot = rows + 1, rows + 2

    def answer(self, question: str) -> list[int]:
        prompt = [*self.tokenizer(question)["input_ids"], self.bot]
        stop = self.tokenizer.eos_token_id
        return sequential(self.model, self.project, prompt, 6, self.eot, stop, NEW, forbidden=[self.eot])


class CoconutCase:
    """SIM-CoT on Coconut: a torch file without an ending."""

    def __init__(self, root: Path, kind: str = "gpt2"):
        self.source, self.base = root / "published", root / "base"
        self.tokenizer = save_base(self.base, kind)
        rows = len(self.tokenizer)
        self.model = backbone(kind, rows + 3)
        weights = {f"base_causallm.{name}": tensor for name, tensor in self.model.state_dict().items()}
        weights |= {f"expainable_llm.{name}": 0 * tensor for name, tensor in self.model.state_dict().items()}
        self.source.mkdir()
        torch.save(weights, self.source / "checkpoint_30")
        self.start, self.end = rows, rows + 1

    def answer(self, question: str) -> list[int]:
        prompt = [*self.tokenizer(question + "\n")["input_ids"], self.start]
        return sequential(self.model, lambda state: state, prompt, 10, self.end, self.tokenizer.eos_token_id, NEW)


class LatentTTSCase:
    """LatentTTS and SVP: a folder of transformers with other class names, and the tokens among the ordinary ones."""

    base = None

    def __init__(self, root: Path, projects: bool):
        self.source, self.projects = root / "published", projects
        self.tokenizer = byte_tokenizer()
        self.tokenizer.add_tokens([LATENT, START, END])  # in another order than the other projects'
        self.tokenizer.save_pretrained(self.source)
        self.model, self.project = backbone("gpt2", len(self.tokenizer)), projection()
        weights = dict(self.model.state_dict())
        names = {"0": "1", "2": "3", "3": "4"}
        for name, tensor in self.project.state_dict().items() if projects else ():
            number, _, part = name.partition(".")
            weights[f"projector.{names[number]}.{part}"] = tensor
        save_file({name: tensor.clone() for name, tensor in weights.items()}, self.source / "model.safetensors")
        fields = self.model.config.to_dict() | {"latent_id": -100, "latent_start_id": -100, "latent_end_id": -100}
        fields |= {"architectures": ["COCONUTGPT2"], "target_id": 3}
        if projects:
            fields |= {"architectures": ["CODIGPT2"], "projector": True, "projector_dropout": 0.1}
            fields |= {"projector_hidden_size": 32}
        (self.source / "config.json").write_text(json.dumps(fields))

    def answer(self, question: str) -> list[int]:
        start, end = self.tokenizer.convert_tokens_to_ids([START, END])
        project = self.project if self.projects else lambda state: state
        prompt = [*self.tokenizer(question + ("" if self.projects else "\n"))["input_ids"], start]
        return sequential(self.model, project, prompt, 6, end, self.tokenizer.eos_token_id, NEW)


class LotusCase:
    """LOTUS: a plain Llama with a tokenizer, whose newline merges with a question mark."""

    base = None

    def __init__(self, root: Path):
        self.source = root / "published"
        self.tokenizer = byte_level_with_bos()
        self.tokenizer.pad_token = self.tokenizer.eos_token
        merging(self.tokenizer)
        self.tokenizer.add_tokens([START, END, LATENT])
        self.tokenizer.save_pretrained(self.source)
        self.model = backbone("llama", len(self.tokenizer))
        self.model.save_pretrained(self.source)

    def answer(self, question: str) -> list[int]:
        start, end, latent = self.tokenizer.convert_tokens_to_ids([START, END, LATENT])
        prompt = [*self.tokenizer(question + "\n")["input_ids"], start]
        return looped(self.model, prompt, latent, 150, 6, end, self.tokenizer.eos_token_id, NEW)


def merging(tokenizer) -> None:
    """Have a byte-level tokenizer make one token of `?` and a newline, as Llama 3's does; in place."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    newline = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("\n")[0][0]
    vocabulary = state["model"]["vocab"]
    vocabulary[f"?{newline}"] = len(vocabulary)
    state["model"]["merges"] = [["?", newline]]
    tokenizer._tokenizer = tokenizer.backend_tokenizer.from_str(json.dumps(state))


CASES = {
    "codi gpt2": lambda root: CodiCase(root, "gpt2", sim_cot=False),
    "codi llama": lambda root: CodiCase(root, "llama", sim_cot=False),
    "sim-cot codi gpt2": lambda root: CodiCase(root, "gpt2", sim_cot=True),
    "sim-cot codi llama": lambda root: CodiCase(root, "llama", sim_cot=True),
    "sim-cot coconut": CoconutCase,
    "latent-tts coconut": lambda root: LatentTTSCase(root, projects=False),
    "latent-tts codi": lambda root: LatentTTSCase(root, projects=True),
    "lotus": LotusCase,
}
