"""Other projects' weights: each family against a reference written from its description, and every damage told in one line."""

import json
from pathlib import Path

import pytest
import torch
from references import backbone, looped, projection, sequential, unmerged
from safetensors.torch import save_file
from test_tokenizer_worlds import byte_level_with_bos
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from latent_cot import PCCoTConfigMixin
from latent_cot.converters.detect import convert
from latent_cot.training.data.small_tokenizers import byte_tokenizer

QUESTIONS = [f"Tom has {n} apples and buys {n * 7 % 23}{' more' * (n % 4)}. How many{'?' * (n % 2)}" for n in range(50)]
NEW = 12
START, END, LATENT = "<|start-latent|>", "<|end-latent|>", "<|latent|>"
needs_add = pytest.mark.skipif(not hasattr(PCCoTConfigMixin, "latent_update"), reason="needs latent_update")


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
    "lotus": pytest.param(LotusCase, marks=needs_add),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_a_family_answers_as_its_reference(make, tmp_path):
    """50 questions, token by token: each asked singly, and all in one left-padded batch."""
    case, out = make(tmp_path), tmp_path / "out"
    convert(str(case.source), out, base_model=case.base and str(case.base))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def written(inputs) -> list[list[int]]:
        rows = model.generate(**inputs, max_new_tokens=NEW)[:, inputs["input_ids"].shape[1] :].tolist()
        return [[*row[: row.index(stop)], stop] if stop in row else row for row in rows]

    expected = [case.answer(question) for question in QUESTIONS]
    assert len({tuple(answer) for answer in expected}) > 25
    batch = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    assert (batch["input_ids"][:, 0] == pad).any()
    assert written(batch) == expected
    assert [written(tokenizer([question], return_tensors="pt"))[0] for question in QUESTIONS] == expected
