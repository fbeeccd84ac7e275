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
from latent_cot.analysis.devices import synchronize

TITLE = "Answers of GPT-2 small, weights in bf16"
COMPILED_ENDING = ", compiled"
LATENT, EXPLICIT = "latent", "explicit chain"
COMPILED = LATENT + COMPILED_ENDING
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
        EXPLICIT + COMPILED_ENDING: written | static,
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
    """A row per way; one that fails, or has no time left, has a note instead of figures.

    The plain ways come first; each compiled one, which may take a minute to compile, is timed beside its plain twin.
    """
    ways = ways_to_answer(model, setting, part.rehearse)
    compiled = [name for name in ways if name.endswith(COMPILED_ENDING)]
    plain = [name for name in ways if name not in compiled]
    patience = {"rounds": 2, "least": 2} if part.rehearse else {"rounds": 15, "budget": 8.0}
    times: dict[str, list[float]] = {}
    for group in (plain, *([name.removesuffix(COMPILED_ENDING), name] for name in compiled)):
        first, notes = {}, {}
        for name in group:
            if part.seconds_left < (2 if part.rehearse else 20):
                notes[name] = {"note": "not measured: out of time"}
                continue
            try:
                first[name] = first_call(bench, ways[name])
                alternate(
                    {name: ways[name]}, bench.device, rounds=1 if part.rehearse else 3
                )  # CUDA graphs are recorded
            except Exception as error:
                notes[name] = {"note": reason(error), "failed": True}
        new = group if group is plain else group[1:]  # a plain way has its row by then
        if set(new) - set(notes):
            runs = {name: ways[name] for name in group if name not in notes}
            found = {name: values["seconds"] for name, values in alternate(runs, bench.device, **patience).items()}
            times |= {name: found[name] for name in new if name in found}
            known = times | found
        for name in new:
            row = {"batch": setting.batch, "way": name}
            yield row | (notes[name] if name in notes else figures_of(name, setting.batch, first[name], known))


def first_call(bench: Bench, answer) -> float:
    """Seconds of the first call of a way to answer, compilation included."""
    start = time.perf_counter()
    answer()
    synchronize(bench.device)
    return time.perf_counter() - start


def figures_of(way: str, batch: int, first: float, times: dict[str, list[float]]) -> dict:
    """Latency, answers per second, and shares of the time of the plain twin and of the explicit chain."""
    seconds, plain = times[way], way.removesuffix(COMPILED_ENDING)
    row = {"seconds": summary(seconds), "first_call_seconds": first}
    row["answers_per_second"] = summary([batch / one for one in seconds])
    for key, other, same in (("over_plain", plain, plain == way), ("over_explicit", EXPLICIT, plain == EXPLICIT)):
        if not same and other in times:
            rounds = min(len(seconds), len(times[other]))
            row[key] = ratio(seconds[:rounds], times[other][:rounds])
    return row


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
