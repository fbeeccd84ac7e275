"""The table of docs/scaling.md: the memory of larger models by `training/runs/memory_estimate.py`, from their shapes alone."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.workload import LORA_TARGETS
from latent_cot.training.arguments import LoraArguments
from latent_cot.training.checkpoints.lora import add_adapters
from latent_cot.training.runs.memory_estimate import GIB, Mode, Sharding, device_memory, kind_of
from latent_cot.training.runs.step_work import thought_work

RANK, EXAMPLES, ROOM = 128, 16, 72 * GIB
# A batch padded to these lengths: question, steps, and answer prompt with answer and end of sequence.
QUESTION, CHAIN, ENDING = 100, 60, 14
THOUGHTS = ((24, 3), (24, 24))
LLAMA = {"num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True}
MODELS = {
    "GPT-2": ("pccot-gpt2", {"vocab_size": 50_262}),
    "Llama-3.2-1B": (
        "pccot-llama",
        LLAMA
        | {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "head_dim": 64,
        },
    ),
    "Llama-3.2-3B": (
        "pccot-llama",
        LLAMA
        | {
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "head_dim": 128,
        },
    ),
    "Mistral-7B": ("pccot-mistral", {"vocab_size": 32_005, "tie_word_embeddings": False}),
}
HEADER = (
    "| model | trained | c, T | positions | one GPU | checkpointed | FSDP2 over 8 | FSDP2, checkpointed |\n"
    "|---|---|---|---|---|---|---|---|"
)


def meta_model(model_type: str, fields: dict, lora: bool) -> torch.nn.Module:
    """A model without numbers: all weights in float32, or adapters (which are in float32) on bf16 weights."""
    tokens = {"bot_token_id": 3, "eot_token_id": 4, "latent_token_id": 5, "pad_token_id": 0, "eos_token_id": 1}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields, **tokens))
        if not lora:
            return model
        arguments = LoraArguments(lora_r=RANK, lora_target_modules=LORA_TARGETS.get(model_type))
        return add_adapters(model.to(torch.bfloat16), arguments)


def cell(model, mode: Mode, work, sharding: Sharding) -> str:
    """GiB for `EXAMPLES` examples per GPU, and how many fit."""

    def total(batch: int) -> int:
        rank = RANK if mode.adapters else 0
        return device_memory(model, mode, work, batch, rank=rank, sharding=sharding).total

    if total(1) is None:
        return "not measured"
    most, step = 0, 2**12
    while step:
        if total(most + step) <= ROOM:
            most += step
        step //= 2
    return f"{total(EXAMPLES) / GIB:.0f} ({most:,})" if most else f"{total(EXAMPLES) / GIB:.0f} (none)"


def table() -> str:
    """Markdown."""
    lines = [HEADER]
    for name, (model_type, fields) in MODELS.items():
        for lora in (False, True):
            model = meta_model(model_type, fields, lora)
            for latents, iterations in THOUGHTS:
                work = thought_work(QUESTION, CHAIN, ENDING, latents, iterations)
                cells = [
                    cell(
                        model,
                        Mode(kind_of(model_type, True), lora, True, lora, checkpointed, sharding.weights > 1),
                        work,
                        sharding,
                    )
                    for sharding in (Sharding(), Sharding(8, 8, 8))
                    for checkpointed in (False, True)
                ]
                trained = f"LoRA, rank {RANK}" if lora else "all weights"
                lines.append(
                    f"| {name} | {trained} | {latents}, {iterations} | {work.positions} | " + " | ".join(cells) + " |"
                )
    return "\n".join(lines)
