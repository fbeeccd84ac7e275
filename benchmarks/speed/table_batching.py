"""Answers per second on questions of mixed lengths: batches of `generate()`, continuous batching, the explicit chain."""

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from .measure import alternate, ratio, summary
from .report import Column
from .workload import Bench

NAME = "batching"
TITLE = "Many questions of mixed lengths"
COLUMNS = [
    Column("questions", "questions"),
    Column("way", "way"),
    Column("answers / s", "answers_per_second", "{:.2f}", plotted=True),
    Column("times as fast as the explicit chain", "over_explicit", "{:.2f}"),
]
EXPLICIT = "explicit chain, in batches"


def mixed_questions(bench: Bench, count: int) -> list[list[int]]:
    """Random questions of 1 to `setting.question` tokens."""
    source = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, bench.setting.question + 1, (count,), generator=source).tolist()
    return [torch.randint(bench.setting.prompt, 50, (length,), generator=source).tolist() for length in lengths]


def measure(bench: Bench) -> list[dict]:
    setting = bench.setting
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    # Nothing answers beside a batch manager: three models of the same weights.
    model, *served = (bench.model("GPT-2 small", dtype=dtype) for _ in range(3))
    questions = mixed_questions(bench, 6 if bench.quick else 1000 if bench.on_gpu else 24)
    size, pad = 128 if bench.on_gpu else 8, model.config.pad_token_id

    def in_batches(tokens: int, **options):
        for start in range(0, len(questions), size):
            rows = questions[start : start + size]
            longest = max(map(len, rows))
            ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=bench.device)
            mask = (ids != pad).long()
            with torch.inference_mode():
                model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, **options)

    # As a server has it: the engine runs already. (`generate_batch()` takes about a second to start and stop it.)
    settings = None if bench.on_gpu else ContinuousBatchingConfig(page_size=32, num_blocks=128, max_batch_tokens=512)
    managers = [
        own.init_continuous_batching(GenerationConfig(do_sample=False, max_new_tokens=tokens, **options), settings)
        for own, tokens, options in zip(
            served, (setting.answer, setting.cot), ({}, {"latent_thought": False}), strict=True
        )
    ]

    def by_engine(manager):
        manager.add_requests(questions)
        outputs = [manager.get_result(timeout=300) for _ in questions]
        assert all(len(output.generated_tokens) == manager.generation_config.max_new_tokens for output in outputs)

    ways = {
        "latent, generate() in batches": lambda: in_batches(setting.answer),
        "latent, continuous batching": lambda: by_engine(managers[0]),
        EXPLICIT: lambda: in_batches(setting.cot, latent_thought=False),
        "explicit chain, continuous batching": lambda: by_engine(managers[1]),
    }
    for manager in managers:
        manager.start()
    try:
        times = alternate(ways, bench.device, **bench.patience(7))
    finally:
        for manager in managers:
            manager.stop(block=True)
    return [
        {
            "questions": len(questions),
            "way": way,
            "answers_per_second": summary([len(questions) / seconds for seconds in own["seconds"]]),
            "over_explicit": ratio(times[EXPLICIT]["seconds"], own["seconds"]),
        }
        for way, own in times.items()
    ]
