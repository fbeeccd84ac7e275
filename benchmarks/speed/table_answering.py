"""Answers a second and the wait for an answer's first token: latent thought, reference, explicit chain, none."""

import time
from contextlib import contextmanager

import torch

from latent_cot.analysis.devices import synchronize

from .measure import alternate, ratio, summary
from .reference import Reference
from .report import Column, draw, panels
from .workload import Bench, Setting, Tokens, merged, question_batch

NAME = "answering"
TITLE = "Answering"
COLUMNS = [
    Column("trained", "trained"),
    Column("batch", "batch"),
    Column("way", "way"),
    Column("answers / s", "answers_per_second", "{:.2f}"),
    Column("first answer token, ms", "first_token_seconds", "{:.0f}", 1000),
    Column("times as fast as the reference", "over_reference", "{:.2f}"),
    Column("... as the explicit chain", "over_explicit", "{:.2f}"),
]
EXPLICIT = "explicit chain"


@contextmanager
def head_calls(model, device):
    """The times at which the output head has been called: one a token written."""
    times = []

    def note(*_):
        synchronize(device)
        times.append(time.perf_counter())

    handle = model.get_output_embeddings().register_forward_hook(note)
    try:
        yield times
    finally:
        handle.remove()


def timed(bench: Bench, model, answer):
    """A contestant: `answer()`, which ends with an answer's tokens, and the wait for the first of these."""

    def run():
        synchronize(bench.device)
        start = time.perf_counter()
        with head_calls(model, bench.device) as times, torch.inference_mode():
            answer()
        return {"first_token_seconds": times[-bench.setting.answer] - start}

    return run


def latent_name(iterations: int, setting: Setting) -> str:
    return f"latent, T = {iterations}" + (" = c (one after the other)" if iterations == setting.latents else "")


def contestants(bench: Bench, ours, theirs, setting: Setting) -> dict:
    """Every way to answer; with LoRA (`ours` is a merged copy of `theirs`) only ours and the reference."""
    questions, tokens = question_batch(ours, setting), setting.answer
    reference, end = Reference(theirs), Tokens(theirs.config.bot_token_id, setting.prompt).end
    prompt = torch.tensor(ours.config.answer_prompt_ids, device=bench.device).expand(setting.batch, -1)
    prompted = {
        "input_ids": torch.cat([questions["input_ids"], prompt], dim=1),
        "attention_mask": torch.cat([questions["attention_mask"], torch.ones_like(prompt)], dim=1),
    }

    def generate(inputs, tokens, **options):
        return timed(bench, ours, lambda: ours.generate(**inputs, max_new_tokens=tokens, do_sample=False, **options))

    def refer(count):
        return timed(bench, reference.model, lambda: reference.answer(*questions.values(), tokens, count, end))

    ways = {}
    for count in (setting.iterations, setting.latents):
        ways[latent_name(count, setting)] = generate(questions, tokens, num_iterations=count)
        ways[f"reference, T = {count}"] = refer(count)
    if ours is theirs:
        ways[EXPLICIT] = generate(questions, setting.cot, latent_thought=False)
        ways["no chain"] = generate(prompted, tokens, latent_thought=False)
    return ways


def measure(bench: Bench) -> list[dict]:
    rows = []
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    for lora in (False, True):
        theirs = bench.model("GPT-2 small", lora, dtype)
        ours = merged(theirs) if lora else theirs
        for batch in (1, 8, 32) if bench.whole or not lora else (1,):
            setting = bench.setting.but(batch=batch)
            ways = contestants(bench, ours, theirs, setting)
            if batch == 32 and not bench.whole:  # two cores take over half a minute for these two
                del ways[f"reference, T = {setting.latents}"], ways[latent_name(setting.latents, setting)]
            if bench.on_gpu or batch == 1:
                alternate(ways, bench.device, rounds=1 + bench.on_gpu)
            patience = bench.patience(15 if bench.on_gpu else 7)
            times = alternate(
                ways, bench.device, **(patience if batch < 32 or bench.whole else patience | {"least": 2})
            )
            rows += [row | {"trained": "LoRA" if lora else "all", "batch": batch} for row in compare(times, setting)]
    if bench.on_gpu:
        rows += static_rows(bench, bench.setting.but(batch=1))
    return rows


def compare(times: dict, setting: Setting) -> list[dict]:
    """A row per contestant, beside the reference of its T and the explicit chain."""
    rows = []
    for way, own in times.items():
        count = next((n for n in (setting.iterations, setting.latents) if way == latent_name(n, setting)), None)
        rivals = {"over_reference": times.get(f"reference, T = {count}"), "over_explicit": times.get(EXPLICIT)}
        rows.append(
            {
                "way": way,
                "answers_per_second": summary([setting.batch / seconds for seconds in own["seconds"]]),
                "first_token_seconds": summary(own["first_token_seconds"]) if "first_token_seconds" in own else None,
                **{
                    k: ratio(rival["seconds"], own["seconds"])
                    for k, rival in rivals.items()
                    if rival not in (None, own)
                },
            }
        )
    return rows


def static_rows(bench: Bench, setting: Setting) -> list[dict]:
    """A static cache, whose decoding transformers compiles on a GPU, beside the ordinary cache; batch 1."""
    model = bench.model("GPT-2 small", dtype=torch.bfloat16)
    questions = question_batch(model, setting)

    def answer(**options):
        with torch.inference_mode():
            model.generate(**questions, max_new_tokens=setting.answer, do_sample=False, **options)

    ways = {
        "latent, ordinary cache": answer,
        "latent, static cache, compiled": lambda: answer(cache_implementation="static"),
    }
    try:
        alternate(ways, bench.device, rounds=3)  # compiles
        times = alternate(ways, bench.device, rounds=15)
    except Exception as error:  # a compiler that fails must not cost the rest of the table
        return [{"trained": "all", "batch": 1, "way": f"static cache: {type(error).__name__}: {error}"[:200]}]
    return [row | {"trained": "all", "batch": 1} for row in compare(times, setting)]


def plot(rows: list[dict]):
    rows = [row for row in rows if "answers_per_second" in row]
    groups = list(dict.fromkeys((row["trained"], row["batch"]) for row in rows))
    figure, axes = panels(1, len(groups), width=3.6, height=4.2)
    for one, group in zip(axes, groups, strict=True):
        own = [row for row in rows if (row["trained"], row["batch"]) == group]
        colours = ["tab:blue" if "latent" in row["way"] else "tab:gray" for row in own]
        draw(one, range(len(own)), [row["answers_per_second"] for row in own], "bar", color=colours)
        names = [row["way"].replace(" (", "\n(").replace(", static", ",\nstatic") for row in own]
        one.set_xticks(range(len(own)), names, rotation=60, ha="right", fontsize=8)
        one.set_title(f"batch {group[1]}" + (", trained with LoRA" if group[0] == "LoRA" else ""), fontsize=10)
    axes[0].set(ylabel="answers a second")
    return figure
