"""Part `answers` of `benchmarks/gpu.py`: an answer after a latent thought, plain and compiled, against a written chain."""

import time
from functools import partial

import torch
from transformers import CompileConfig

from benchmarks import table_batching
from benchmarks.gpu_part import Part, reason
from benchmarks.measure import alternate, ratio, summary
from benchmarks.report import draw, panels
from benchmarks.workload import Bench, Setting, question_batch
from training.devices import synchronize

TITLE = "Answers of GPT-2 small, weights in bf16"
LATENT, COMPILED, EXPLICIT = "latent", "latent, compiled", "explicit chain"
AIMS = {"over_plain": (COMPILED, 0.25), "over_explicit": (LATENT, 0.30)}  # at batch 1


def ways_to_answer(model, setting: Setting, rehearse: bool) -> dict:
    """By name, a function that writes the answers of one batch.

    A static cache is compiled by transformers on a GPU, with CUDA graphs; in a rehearsal with torch's eager backend.
    """
    questions = question_batch(model, setting)
    static: dict = {"cache_implementation": "static"}
    if rehearse:
        static["compile_config"] = CompileConfig(backend="eager")
        static["compile_config"]._compile_all_devices = True
    written = {"latent_thought": False, "max_new_tokens": setting.cot}
    ways = {
        LATENT: {},
        COMPILED: static,
        EXPLICIT: written,
        "explicit chain, compiled": written | static,
        "no chain": {"latent_thought": False},
    }

    def answer(options: dict) -> None:
        with torch.inference_mode():
            model.generate(**questions, **({"do_sample": False, "max_new_tokens": setting.answer} | options))

    return {name: partial(answer, options) for name, options in ways.items()}


def measure(part: Part):
    """A row per batch size and way, and then one per way to answer many questions of mixed lengths."""
    device = torch.device("cpu" if part.rehearse else "cuda")
    setting = Setting(question=8, cot=12, latents=6, batch=2) if part.rehearse else Setting()
    bench = Bench(device, setting, quick=part.rehearse, whole=False)
    model = bench.model("GPT-2 small", dtype=torch.float32 if part.rehearse else torch.bfloat16)
    for batch in (1,) if part.rehearse else (1, 32):
        yield from measure_batch(part, bench, model, setting.but(batch=batch))
    del model
    if part.seconds_left < (2 if part.rehearse else 45):
        yield {"way": "continuous batching", "note": "not measured: out of time"}
        return
    try:
        for row in table_batching.measure(bench):
            yield {"batch": f"{row.pop('questions')} questions"} | row
    except Exception as error:
        yield {"way": "continuous batching", "note": reason(error), "failed": True}
    if not part.rehearse and part.seconds_left > 60:
        model = bench.model("GPT-2 small", dtype=torch.bfloat16)
        yield from measure_batch(part, bench, model, setting.but(batch=128))


def measure_batch(part: Part, bench: Bench, model, setting: Setting):
    """A row per way; one that fails, or does not compile in time, has a note instead of figures."""
    ways, first, notes = ways_to_answer(model, setting, part.rehearse), {}, []
    for name in list(ways):
        start = time.perf_counter()
        try:
            ways[name]()
            synchronize(bench.device)
            first[name] = time.perf_counter() - start
            alternate({name: ways[name]}, bench.device, rounds=1 if part.rehearse else 3)  # CUDA graphs are recorded
        except Exception as error:
            notes.append({"batch": setting.batch, "way": name, "note": reason(error), "failed": True})
            del ways[name]
    patience = (
        {"rounds": 2, "least": 2} if part.rehearse else {"rounds": 15, "budget": min(15.0, part.seconds_left / 3)}
    )
    times = {name: values["seconds"] for name, values in alternate(ways, bench.device, **patience).items()}
    for name, seconds in times.items():
        row = {"batch": setting.batch, "way": name, "seconds": summary(seconds), "first_call_seconds": first[name]}
        row["answers_per_second"] = summary([setting.batch / one for one in seconds])
        plain = name.removesuffix(", compiled")
        if name != plain and plain in times:
            row["over_plain"] = ratio(seconds, times[plain])
        if plain != EXPLICIT and EXPLICIT in times:
            row["over_explicit"] = ratio(seconds, times[EXPLICIT])
        yield row
    yield from notes


def figures(rows: list[dict]) -> list[str]:
    """One line per way that was measured; the aims beside what has one."""
    lines = []
    for row in rows:
        if "answers_per_second" not in row:
            lines.append(f"{row['way']}, batch {row.get('batch', '–')}: {row['note']}")
            continue
        parts = [f"{row['answers_per_second']['median']:.1f} answers/s"]
        if "seconds" in row:
            parts.append(f"{row['seconds']['median'] * 1000:.1f} ms")
        for key, words in (("over_plain", "of plain"), ("over_explicit", "of the explicit chain")):
            if key in row:
                way, aim = AIMS[key]
                wanted = f" (aim ≤ {aim})" if (row["way"], row["batch"]) == (way, 1) else ""
                # A table of `benchmarks/run.py` says how many times as fast, here it is the share of the time.
                times_as_fast = "seconds" not in row
                value = 1 / row[key]["median"] if times_as_fast else row[key]["median"]
                parts.append(f"{value:.2f} {words}{wanted}")
        lines.append(f"{row['way']}, batch {row['batch']}: {', '.join(parts)}")
    return lines


def plot(rows: list[dict]):
    own = [row for row in rows if "answers_per_second" in row]
    groups = list(dict.fromkeys(row["batch"] for row in own)) or ["–"]
    figure, axes = panels(1, len(groups), width=3.6, height=4.2)
    for one, group in zip(axes, groups, strict=True):
        bars = [row for row in own if row["batch"] == group]
        colours = ["tab:blue" if "latent" in row["way"] else "tab:gray" for row in bars]
        draw(one, range(len(bars)), [row["answers_per_second"] for row in bars], "bar", color=colours)
        one.set_xticks(
            range(len(bars)), [row["way"].replace(", ", ",\n") for row in bars], rotation=60, ha="right", fontsize=8
        )
        one.set_title(f"batch {group}" if isinstance(group, int) else group, fontsize=10)
    axes[0].set(ylabel="answers per second")
    return figure
