"""The standard setting of the benchmarks: models, batches, and the machine they run on."""

import copy
import datetime
import os
import platform
import re
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import latent_cot  # noqa: F401  registers the model types
from latent_cot.training.arguments import LoraArguments
from latent_cot.training.checkpoints.lora import add_adapters
from latent_cot.training.data.collators import PCCoTCollator

ROOT = Path(__file__).resolve().parents[2]

# Shapes have random weights and no dropout, so that two contestants compute the same thing.
GPT2 = {"model_type": "pccot-gpt2", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SHAPES = {
    "GPT-2 small": GPT2 | {"vocab_size": 50_257},
    "Llama, 4 layers": {
        "model_type": "pccot-llama",
        "vocab_size": 32_000,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    },
}
TINY = {"vocab_size": 60, "initializer_range": 0.12}
TINY_SHAPES = {
    "GPT-2 small": GPT2 | TINY | {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 512},
    "Llama, 4 layers": SHAPES["Llama, 4 layers"]
    | TINY
    | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 2},
}
LORA_TARGETS = {"pccot-gpt2": "c_attn-c_fc-c_proj", "pccot-llama": None}  # None: every linear layer of the blocks


@dataclass(frozen=True)
class Setting:
    """Lengths in tokens and the batch size.

    Args:
        question: the longest question of a batch.
        cot: what the model writes explicitly: steps, answer prompt and answer.
        prompt: the answer prompt.
        answer: the answer, its end of sequence included.
        latents: c.
        iterations: T.
        batch: examples.
        unequal: each question is 4 tokens shorter than the one before (and steps one token), the longest again
            after 8: rows are padded.
    """

    question: int = 60
    cot: int = 40
    prompt: int = 4
    answer: int = 10
    latents: int = 24
    iterations: int = 3
    batch: int = 4
    unequal: bool = False

    @property
    def steps(self) -> int:
        return self.cot - self.prompt - self.answer

    def but(self, **changes) -> "Setting":
        return replace(self, **changes)


@dataclass
class Bench:
    """What every table is told; on a CPU tables leave out what two cores have no time for.

    Args:
        device: where it runs.
        setting: the standard one.
        quick: only show that it works: tiny models, two rounds.
    """

    device: torch.device
    setting: Setting
    quick: bool = False

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def model(self, shape: str, lora: bool = False, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """A model of `SHAPES` on the device, in evaluation mode; with `lora`, with unmerged adapters inside."""
        fields = dict((TINY_SHAPES if self.quick else SHAPES)[shape])
        model = build_model(fields, self.setting, lora)
        return model.to(self.device, dtype).eval()

    def patience(self, rounds: int) -> dict:
        """Arguments of `alternate`: how many rounds, and when fewer must do."""
        if self.quick:
            return {"rounds": 2, "least": 2}
        return {"rounds": rounds, "least": 3, "budget": 60.0 if self.on_gpu else 5.0}

    def autocast(self):
        """bf16 on a GPU, with weights in float32; plain float32 on a CPU."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.on_gpu)


def build_model(fields: dict, setting: Setting, lora: bool = False) -> PreTrainedModel:
    """A random model with the tokens of the thought span; adapters and trained rows are random too.

    The answer prompt and the end of sequence (`end_token_id`) are words of its vocabulary, the first ones and the last.
    """
    fields = dict(fields)
    model_type, size = fields.pop("model_type"), fields.pop("vocab_size")
    names = ("bot_token_id", "eot_token_id", "latent_token_id", "pad_token_id")
    tokens = {name: size + i for i, name in enumerate(names)} | {"vocab_size": size + len(names)}
    # Without an end-of-sequence token in the configuration every answer has its full length.
    tokens |= {"answer_prompt_ids": list(range(setting.prompt)), "eos_token_id": None, "bos_token_id": None}
    thought = {"num_latent_tokens": setting.latents, "num_iterations": setting.iterations}
    thought |= {"num_iterations_range": [0, setting.latents]}  # a random model is as good at every T
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **fields, **tokens, **thought)
    model = AutoModelForCausalLM.from_config(config)
    if not lora:
        return model
    wrapped = add_adapters(model, LoraArguments(lora_dropout=0.0, lora_target_modules=LORA_TARGETS[model_type]))
    with torch.no_grad():
        for name, weights in wrapped.named_parameters():
            if "lora_B" in name or "trainable_tokens_delta" in name:
                weights.normal_(std=0.02)  # adapters start at zero, which would hide a mistake
    # The adapters sit inside the model itself; `merged` finds the wrapper again.
    object.__setattr__(model, "peft_wrapper", wrapped)
    return model


def end_token_id(model: PreTrainedModel) -> int:
    return model.config.bot_token_id - 1


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model from `build_model(..., lora=True)` whose adapters are part of its weights."""
    return copy.deepcopy(model.peft_wrapper).merge_and_unload()


def training_batch(model: PreTrainedModel, setting: Setting, seed: int = 0) -> dict:
    """A batch of random tokens as `PCCoTCollator` makes it, on the model's device."""
    config, device = model.config, model.device
    source, end = torch.Generator().manual_seed(seed), end_token_id(model)

    def draw(count: int) -> list[int]:
        return torch.randint(setting.prompt, end, (count,), generator=source).tolist()

    def feature(row: int) -> dict:
        missing = row % 8 if setting.unequal else 0
        steps = [draw(max(1, setting.steps - missing))]
        return {
            "question": draw(max(1, setting.question - 4 * missing)),
            "steps": steps,
            "answer": draw(setting.answer - 1),
        }

    collator = PCCoTCollator(SimpleNamespace(eos_token_id=end, pad_token_id=config.pad_token_id), config)
    batch = collator([feature(row) for row in range(setting.batch)])
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def question_batch(model: PreTrainedModel, setting: Setting) -> dict:
    """The questions of `training_batch`: `input_ids` and `attention_mask`, both `(batch, question)`."""
    batch = training_batch(model, setting)
    return {name: batch[name][:, : batch["question_length"]] for name in ("input_ids", "attention_mask")}


def machine(device: torch.device) -> dict:
    """What the figures depend on beside the code."""
    record = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    record |= {name: version(name) for name in ("torch", "transformers", "peft")}
    if device.type == "cuda":
        record |= {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        record |= {"training": "autocast to bf16, weights in float32", "answering": "weights in bf16"}
    else:
        record |= {"device": "cpu", "training": "float32", "answering": "float32"}
    return record


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", info.read_text() if info.exists() else "", flags=re.MULTILINE)
    return names[0] if names else platform.processor() or platform.machine()
