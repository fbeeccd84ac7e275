#!/usr/bin/env python
"""Measure what a training step keeps for its backward pass, and fit the coefficients of `training/runs/memory_estimate.py`.

    python benchmarks/memory.py --output training/memory_coefficients.json
    python benchmarks/memory.py --only "thought gpt2, LoRA"
    python benchmarks/memory.py --table

Small random models train for one step on a CPU, and every allocation is replayed (`measure.peak_memory`): the figures do not
depend on the machine. Dropout keeps one byte per element, as on a GPU; attention is sdpa, which keeps no matrix. Then models
of other shapes, which the fit has not seen, name the error. All of it takes 20 minutes on one core; needs scipy. `--table`
measures nothing: it prints the table of docs/scaling.md.
"""

import argparse
import json
import warnings
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from benchmarks.flops import needed_work
from benchmarks.measure import make_gradients, peak_memory
from benchmarks.memory_table import table
from benchmarks.workload import LORA_TARGETS, Setting, Tokens, training_batch
from latent_cot.training.arguments import LoraArguments
from latent_cot.training.checkpoints.lora import add_adapters
from latent_cot.training.runs.memory_estimate import (
    Mode,
    Shape,
    head_gradient,
    logit_bytes,
    measured,
    step_bytes,
    terms,
    weight_copies,
)
from latent_cot.training.runs.step_work import Work, sequence_work

ROOT = Path(__file__).resolve().parent.parent

CPU = torch.device("cpu")
# The model type that stands for each kind of step.
TYPES = {
    "thought gpt2": "pccot-gpt2",
    "thought llama": "pccot-llama",
    "chain gpt2": "icot-gpt2",
    "chain gpt2 gelu_new": "gpt2",
    "chain llama": "llama",
}
SETTING = Setting(batch=4, unequal=True)
SETTINGS = (
    SETTING,
    SETTING.but(iterations=0),
    SETTING.but(latents=12, iterations=10),
    SETTING.but(question=160, latents=6),
    SETTING.but(cot=150, latents=12),
)
LENGTHS = (40, 120, 240)


def gpt2(layers: int, width: int, inner: int, vocabulary: int = 12) -> dict:
    positions = {"n_positions": 1024, "attn_pdrop": 0.0}  # a CPU has no attention kernel with dropout
    return {"n_layer": layers, "n_embd": width, "n_inner": inner, "n_head": 4, "vocab_size": vocabulary} | positions


def llama(layers: int, width: int, inner: int, keys: int, vocabulary: int = 12) -> dict:
    heads = {"num_attention_heads": 8, "num_key_value_heads": keys, "max_position_embeddings": 1024}
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary}
    return sizes | heads | {"tie_word_embeddings": False}


# (fields, rank of the adapters): ranks do not grow with widths, or the fit could not tell them apart.
SHAPES = {
    "gpt2": [(gpt2(2, 64, 256), 40), (gpt2(4, 96, 192), 8), (gpt2(7, 64, 256), 8)],
    "llama": [(llama(2, 64, 192, 2), 40), (llama(4, 96, 384, 8), 8), (llama(7, 64, 256, 4), 8)],
}
# Shapes and settings that no fit has seen.
UNSEEN = {
    "gpt2": [(gpt2(12, 192, 768, 12_000), 48), (gpt2(6, 160, 640, 5000), 24)],
    "llama": [(llama(10, 192, 512, 4, 12_000), 48), (llama(6, 160, 448, 2, 5000), 24)],
}
UNSEEN_SETTINGS = (
    Setting(batch=6, unequal=True),
    Setting(question=90, cot=70, latents=16, iterations=6, batch=4, unequal=True),
)
UNSEEN_LENGTHS = (150, 90)


@dataclass
class Step:
    """A model and what it trains on."""

    model: PreTrainedModel
    batch: dict
    work: Work
    mode: Mode
    shape: Shape

    @property
    def examples(self) -> int:
        return len(self.batch["input_ids"])

    def measure(self) -> int:
        """Peak bytes of a step beside weights and gradients."""
        make_gradients(self.model)

        def run():
            with torch.autocast("cpu", torch.bfloat16, enabled=self.mode.autocast):
                loss = self.model(**self.batch).loss
            loss.backward()

        with ExitStack() as stack:
            stack.enter_context(mock.patch("torch.nn.functional.dropout", dropout_of_a_gpu))
            if self.mode.sharded:
                stack.enter_context(
                    mock.patch("latent_cot.distillation_pccot.shared_gradients", lambda _: nullcontext())
                )
            return peak_memory(run, CPU)

    def estimate(self) -> int:
        # (On one device nothing is gathered, so that weights are converted as without sharding.)
        mode = replace(self.mode, sharded=False)
        extra = weight_copies(self.model, mode, self.work) if self.mode.sharded else 0
        return extra + step_bytes(self.model, self.mode, self.shape, self.work, self.examples, "cpu")


def dropout_of_a_gpu(x, p=0.5, training=True, inplace=False):
    """Dropout whose mask has one byte per element; a CPU's has the size of its input."""
    return torch.native_dropout(x, p, True)[0] if training and p > 0 else x


def make_step(mode: Mode, fields: dict, rank: int, setting: Setting, length: int, model_type: str = "") -> Step:
    """One step of a random model; `setting` is for a thought, `length` for a chain."""
    model_type, fields = model_type or TYPES[mode.kind], dict(fields)
    thinks = mode.kind.startswith("thought")
    tokens = Tokens(fields.pop("vocab_size"), setting.prompt).special
    if not thinks:
        names = ("vocab_size", "pad_token_id", "eos_token_id", "bos_token_id")
        tokens = {name: tokens[name] for name in names} | {"use_cache": False}
    thought = {"num_latent_tokens": setting.latents, "num_iterations": setting.iterations} if thinks else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields, **tokens, **thought))
    if mode.half:
        model = model.to(torch.bfloat16)
    if mode.adapters:
        targets = LORA_TARGETS["pccot-gpt2"] if "gpt2" in model_type else None
        wrapped = add_adapters(model, LoraArguments(lora_r=rank, lora_target_modules=targets))
        object.__setattr__(model, "peft_wrapper", wrapped)
    if mode.checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    shape = Shape.of(model.config, rank if mode.adapters else 0)
    if thinks:
        return Step(
            model.train(), training_batch(model, setting), needed_work(setting, setting.iterations), mode, shape
        )
    ids = torch.randint(0, 8, (setting.batch, length))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    batch = {"input_ids": ids, "labels": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    return Step(model.train(), batch, sequence_work(length), mode, shape)


def steps(mode: Mode, shapes, settings, lengths):
    """Every step of a grid, made one after the other."""
    for fields, rank in shapes:
        if mode.kind.startswith("thought"):
            for setting in settings:
                yield make_step(mode, fields, rank, setting, 0)
        else:
            for length in lengths:
                yield make_step(mode, fields, rank, SETTING, length)


def fit(mode: Mode) -> dict[str, float]:
    """Coefficients of `terms` in bytes, at least 0, with the smallest relative errors."""
    import numpy
    from scipy.optimize import nnls

    rows = []
    for step in steps(mode, SHAPES["llama" if "llama" in mode.kind else "gpt2"], SETTINGS, LENGTHS):
        known = head_gradient(step.model, mode) + logit_bytes(mode, step.shape, step.work, step.examples, "cpu")
        if mode.kind.startswith("thought") or not mode.checkpointed:
            known += weight_copies(step.model, mode, step.work)
        rows.append((step.measure() - known, step.examples, terms(step.shape, step.work)))
    # With one pass there are as many keys as positions; where layers are recomputed, nothing of the adapters is kept.
    left_out = " keys " if not mode.kind.startswith("thought") else "rank" if mode.checkpointed else "nothing"
    names = [name for name in rows[0][2] if left_out not in name]
    products = numpy.array([[batch * row[name] / held for name in names] for held, batch, row in rows])
    values, _ = nnls(products, numpy.ones(len(rows)))
    return {name: round(float(value), 3) for name, value in zip(names, values, strict=True) if value > 0}


def errors(mode: Mode) -> list[float]:
    """Estimate / measured - 1 on the shapes that no fit has seen."""
    backbone = "llama" if "llama" in mode.kind else "gpt2"
    pairs = zip(UNSEEN[backbone], UNSEEN_SETTINGS, UNSEEN_LENGTHS, strict=True)
    found = []
    for unseen, setting, length in pairs:
        (step,) = steps(mode, [unseen], [setting], [length])
        found.append(round(step.estimate() / step.measure() - 1, 3))
    return found


def modes() -> list[Mode]:
    """All that are measured, the usual ones first. With two-byte weights and no autocast all is half of float32; LoRA in float32
    is not measured."""
    found = []
    usual, others = (
        ((False, True, False), (True, True, True)),
        ((False, False, False), (False, True, True), (True, True, False)),
    )
    for adapters, autocast, half in usual + others:
        for kind in TYPES:
            if adapters and kind == "chain gpt2":  # `icot-*` has no LoRA
                continue
            found += [Mode(kind, adapters, autocast, half, checkpointed) for checkpointed in (False, True)]
            if kind.startswith("thought") and (adapters, autocast, half) in usual:
                found.append(Mode(kind, adapters, autocast, half, sharded=True))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure the modes whose name begins so")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "memory_coefficients.json")
    parser.add_argument("--table", action="store_true", help="print the table of docs/scaling.md")
    args = parser.parse_args()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    if args.table:
        print(table())
        return
    torch.set_num_threads(1)
    record = {"source": {name: version(name) for name in ("torch", "transformers", "peft")}, "coefficients": {}}
    record["errors"] = {}
    for mode in modes():
        if mode.name.startswith(args.only):
            record["coefficients"][mode.name] = measured()["coefficients"][mode.name] = fit(mode)
            record["errors"][mode.name] = errors(mode)
            print(mode.name, record["errors"][mode.name], record["coefficients"][mode.name], flush=True)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
