"""Answers per second: latent thought, reference, explicit chain, none."""

from functools import partial

import torch

from .measure import alternate, ratio, summary
from .reference import Reference, append
from .report import Column
from .workload import Bench, Setting, end_token_id, merged, question_batch

NAME = "answering"
TITLE = "Answering"
COLUMNS = [
    Column("trained", "trained"),
    Column("batch", "batch"),
    Column("way", "way"),
    Column("answers / s", "answers_per_second", "{:.2f}", plotted=True),
    Column("times as fast as the reference", "over_reference", "{:.2f}"),
    Column("... as the explicit chain", "over_explicit", "{:.2f}"),
]
EXPLICIT = "explicit chain"


def latent_name(iterations: int, setting: Setting) -> str:
    return f"latent, T = {iterations}" + (" = c (one after the other)" if iterations == setting.latents else "")


def contestants(bench: Bench, ours, theirs, setting: Setting) -> dict:
    """Every way to answer; with LoRA (`ours` is a merged copy of `theirs`) only ours and the reference."""
    questions, tokens = question_batch(ours, setting), setting.answer
    reference, end = Reference(theirs), end_token_id(theirs)
    generate, ways = partial(ours.generate, do_sample=False), {}
    for count in (setting.iterations, setting.latents):
        ways[latent_name(count, setting)] = partial(generate, **questions, max_new_tokens=tokens, num_iterations=count)
        ways[f"reference, T = {count}"] = partial(reference.answer, *questions.values(), tokens, count, end)
    if ours is theirs:
        ids, mask = append(*questions.values(), ours.config.answer_prompt_ids)
        direct = {"attention_mask": mask, "max_new_tokens": tokens, "latent_thought": False}
        ways[EXPLICIT] = partial(generate, **questions, max_new_tokens=setting.cot, latent_thought=False)
        ways["no chain"] = partial(generate, ids, **direct)
        if bench.on_gpu and setting.batch == 1:  # there transformers compiles thought and answer
            static = {"max_new_tokens": tokens, "cache_implementation": "static"}
            ways["latent, static cache, compiled"] = partial(generate, **questions, **static)
    return ways


def measure(bench: Bench) -> list[dict]:
    rows = []
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    for lora in (False, True):
        theirs = bench.model("GPT-2 small", lora, dtype)
        ours = merged(theirs) if lora else theirs
        for batch in (1, 8, 32) if bench.on_gpu or not lora else (1,):
            setting = bench.setting.but(batch=batch)
            ways, patience = contestants(bench, ours, theirs, setting), bench.patience(15 if bench.on_gpu else 7)
            if batch == 32 and not bench.on_gpu:  # two cores take over half a minute for these two
                del ways[f"reference, T = {setting.latents}"], ways[latent_name(setting.latents, setting)]
                patience |= {"least": 2}
            with torch.inference_mode():
                if bench.on_gpu or batch == 1:
                    alternate(ways, bench.device, rounds=3 if bench.on_gpu else 1)  # compiles, warms up
                times = alternate(ways, bench.device, **patience)
            rows += [row | {"trained": "LoRA" if lora else "all", "batch": batch} for row in compare(times, setting)]
    return rows


def compare(times: dict, setting: Setting) -> list[dict]:
    """A row per contestant, beside the reference of its T and the explicit chain."""
    references = {
        latent_name(count, setting): f"reference, T = {count}" for count in (setting.iterations, setting.latents)
    }
    rows = []
    for way, own in times.items():
        row = {"way": way, "answers_per_second": summary([setting.batch / seconds for seconds in own["seconds"]])}
        for key, rival in (("over_reference", references.get(way)), ("over_explicit", EXPLICIT)):
            if rival in times and rival != way:
                row[key] = ratio(times[rival]["seconds"], own["seconds"])
        rows.append(row)
    return rows
