"""Part `steps` of `benchmarks/gpu.py`: a training step's time and memory, against the reference and the device's peak."""

import gc
import itertools
import json
from dataclasses import dataclass

import torch

from benchmarks.flops import bf16_peak, needed_work, step_flops
from benchmarks.gpu_part import Part, out_of_memory, reason
from benchmarks.measure import MIB, alternate, make_gradients, matrix_product, peak_memory, ratio, summary
from benchmarks.report import draw, panels
from benchmarks.table_training import contestants
from benchmarks.workload import ROOT, SHAPES, TINY_SHAPES, Bench, Setting, build_model

TITLE = "Training step: forward and backward, bf16 autocast"
GPT2, LLAMA = "GPT-2 small", "Llama-3.2-1B"
AIMS = {  # (model, T, batch): ours / reference, MFU; all weights are trained
    (GPT2, 3, 128): (0.60, 0.40),
    (GPT2, 24, 128): (0.25, None),
    (LLAMA, 3, 32): (0.60, 0.50),
    (LLAMA, 24, 32): (0.25, None),
}


@dataclass(frozen=True)
class Case:
    """One row: a model, what of it is trained, T and the batch."""

    shape: str
    lora: bool
    iterations: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.shape}, {'LoRA' if self.lora else 'all weights'}, T = {self.iterations}, batch {self.batch}"


def fields_of(shape: str, rehearse: bool) -> dict:
    """Arguments of `build_model`."""
    if rehearse:
        return TINY_SHAPES[GPT2 if shape == GPT2 else "Llama, 4 layers"]
    if shape == GPT2:
        return SHAPES[GPT2]
    fields = json.loads((ROOT / "configs" / "pccot_llama3.2_1b.json").read_text())
    return {name: value for name, value in fields.items() if name not in ("bos_token_id", "eos_token_id")}


def cases(rehearse: bool, latents: int) -> list[Case]:
    """Those with an aim first, then all others, model by model."""
    if rehearse:
        return [
            Case(GPT2, False, 3, 2),
            Case(GPT2, True, latents, 2),
            Case(LLAMA, False, latents, 2),
            Case(LLAMA, True, 3, 2),
        ]
    aimed = [Case(shape, False, iterations, batch) for shape, iterations, batch in AIMS]
    grid = itertools.product((GPT2, LLAMA), (False, True), (3, 24), (32, 64, 128))
    others = [Case(*case) for case in grid]
    return aimed + [case for case in others if case not in aimed]


def measure(part: Part):
    """A row per case; what does not fit into the device's memory says so, and what does not fit into the time too."""
    device = torch.device("cpu" if part.rehearse else "cuda")
    setting = Setting(question=8, cot=12, latents=6, batch=2) if part.rehearse else Setting(batch=32)
    bench = Bench(device, setting, quick=part.rehearse, whole=False)
    peak = None if part.rehearse else bf16_peak(torch.cuda.get_device_name(device))
    product, product_flops = matrix_product(device, 64 if part.rehearse else 8192)
    times = alternate({"product": product}, device, rounds=5)["product"]["seconds"]
    rate = product_flops / min(times)
    model, kind = None, None
    for case in cases(part.rehearse, setting.latents):
        row = {"case": case.name, "shape": case.shape, "trained": "LoRA" if case.lora else "all"}
        row |= {"iterations": case.iterations, "batch": case.batch, "product_rate": rate, "peak": peak}
        if part.seconds_left < (2 if part.rehearse else 20):
            yield row | {"note": "not measured: out of time"}
            continue
        try:
            if kind != (case.shape, case.lora):
                model = kind = None
                free_memory(device)
                model, kind = make_model(part, bench, case), (case.shape, case.lora)
            yield row | measure_case(part, bench, model, case, peak or rate)
        except Exception as error:  # the next case may do
            yield row | {"note": reason(error), "failed": not out_of_memory(error)}
        free_memory(device)


def make_model(part: Part, bench: Bench, case: Case):
    """A random model on the device, with its gradients."""
    with bench.device:  # a CPU would take long over a billion random numbers
        model = build_model(fields_of(case.shape, part.rehearse), bench.setting, case.lora)
    model = model.to(bench.device).train()
    make_gradients(model)
    return model


def free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure_case(part: Part, bench: Bench, model, case: Case, peak: float) -> dict:
    """Seconds, tokens per second, MFU and memory of ours and the reference.

    Args:
        peak: FLOP/s that the model's FLOP utilisation refers to: of the data sheet, or those of a large matrix product.
    """
    setting = bench.setting.but(iterations=case.iterations, batch=case.batch)
    row: dict = {}
    runs = contestants(bench, model, setting)
    for name in list(runs):
        try:
            alternate({name: runs[name]}, bench.device, rounds=2)
            row[f"{name}_bytes"] = peak_memory(runs[name], bench.device)
        except torch.OutOfMemoryError:
            del runs[name]
            row["note"] = f"out of memory: {name}" if "note" not in row else "out of memory"
            free_memory(bench.device)
    if not runs:
        return row
    patience = {"rounds": 2, "least": 2} if part.rehearse else {"rounds": 9, "budget": min(8.0, part.seconds_left / 2)}
    times = {name: values["seconds"] for name, values in alternate(runs, bench.device, **patience).items()}
    row |= {f"{name}_seconds": summary(seconds) for name, seconds in times.items()}
    if "ours" in times:
        flops = step_flops(model, needed_work(setting, setting.iterations), setting.batch)
        tokens = setting.batch * (setting.question + setting.cot)
        row["flops"] = flops
        row["tokens_per_second"] = summary([tokens / seconds for seconds in times["ours"]])
        row["mfu"] = summary([flops / seconds / peak for seconds in times["ours"]])
    if len(times) == 2:
        row["over_reference"] = ratio(times["ours"], times["reference"])
    return row


def figures(rows: list[dict]) -> list[str]:
    """One line per case that was measured; the aims beside what has one."""
    lines = []
    for row in rows:
        if "ours_seconds" not in row:
            lines.append(f"{row['case']}: {row.get('note')}")
            continue
        key = (row["shape"], row["iterations"], row["batch"])
        aims = AIMS.get(key, (None, None)) if row["trained"] == "all" else (None, None)
        wanted = ["" if aim is None else f" (aim {sign} {aim})" for aim, sign in zip(aims, ("≤", "≥"), strict=True)]
        memory, tokens = row["ours_bytes"] / MIB, row["tokens_per_second"]["median"]
        parts = [f"{row['ours_seconds']['median']:.3f} s", f"{tokens:.0f} tokens/s", f"{memory:.0f} MiB"]
        parts.append(f"MFU {row['mfu']['median']:.2f}{wanted[1]}" + ("" if row["peak"] else " of the product's rate"))
        if "over_reference" in row:
            parts.append(f"{row['over_reference']['median']:.2f} of the reference{wanted[0]}")
        lines.append(f"{row['case']}: {', '.join(parts)}" + (f" ({row['note']})" if "note" in row else ""))
    return lines


def plot(rows: list[dict]):
    figure, axes = panels(1, 2, width=6, height=1.5 + 0.3 * max(6, len(rows)))
    for one, key, title in zip(axes, ("mfu", "over_reference"), ("MFU", "ours / reference, time"), strict=True):
        own = [row for row in rows if key in row]
        draw(one, range(len(own)), [row[key] for row in own], linestyle="")
        one.set_xticks(
            range(len(own)), [row["case"].replace(", T", ",\nT") for row in own], rotation=60, ha="right", fontsize=7
        )
        one.set(ylabel=title, ylim=(0, None))
    return figure
