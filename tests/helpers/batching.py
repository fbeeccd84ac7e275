"""Helpers for tests of continuous batching: questions, and their answers by `generate()` and by the batch engine."""

import dataclasses

import torch
from conftest import THOUGHT, question_batch
from transformers import ContinuousBatchingConfig

SPAN = THOUGHT["num_latent_tokens"] + 1  # <bot> and the latents: what must not be divided


def settings(**changes) -> ContinuousBatchingConfig:
    known = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    fields = {"page_size" if "page_size" in known else "block_size": 8, "num_blocks": 128, "max_batch_tokens": 64}
    fields |= {"max_requests_per_batch": 32} | (
        {"auto_switch_to_flash": False} if "auto_switch_to_flash" in known else {}
    )
    return ContinuousBatchingConfig(**(fields | changes))


def questions_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    ids, mask = question_batch(lengths, seed)
    return [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]


def generated(model, questions, **options) -> list[list[int]]:
    """Question and answer of each question alone, without padding after the end."""
    return [model.generate(torch.tensor([question]), **(LIMIT | options))[0].tolist() for question in questions]


LIMIT = {"max_new_tokens": 6, "do_sample": False}


def batched(model, questions, config=None, generation_config=None, **options) -> list[list[int]]:
    options = options if generation_config is not None else {"max_new_tokens": 6} | options
    outputs = list(model.generate_batch(questions, generation_config, config or settings(), **options).values())
    assert [output.error for output in outputs] == [None] * len(questions)
    assert [output.prompt_ids for output in outputs] == questions
    return [output.prompt_ids + output.generated_tokens for output in outputs]
