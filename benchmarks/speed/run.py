"""Measure everything: each table as Markdown on the screen, as JSON and as a plot.

    python -m benchmarks.speed.run
    python -m benchmarks.speed.run training scaling --device cuda --output_dir outputs/bench-gpu

Each table is compared with the last recorded run in docs/performance (`--output_dir docs/performance` records this one).
Two cores take less than ten minutes. `--quick` only shows that everything runs: its models are tiny, its figures mean
nothing.
"""

import argparse
import dataclasses
import os
import time
import traceback
import warnings
from pathlib import Path

import torch
from transformers.utils import logging

from . import report, table_answering, table_batching, table_scaling, table_training
from .measure import keep_memory
from .workload import Bench, Setting, machine

ROOT = Path(__file__).resolve().parents[2]

TABLES = {table.NAME: table for table in (table_training, table_answering, table_batching, table_scaling)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="table", help=f"of {', '.join(TABLES)}; all by default")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="threads on the CPU")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "outputs" / "bench")
    parser.add_argument("--quick", action="store_true", help="tiny models, for a test")
    args = parser.parse_args()
    if unknown := set(args.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}: there are {', '.join(TABLES)}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device here")

    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    device = torch.device(args.device)
    allocator = "its own" if device.type == "cuda" else "glibc, keeping what it has" if keep_memory() else "default"
    setting = Setting(batch=32 if device.type == "cuda" else 4)
    if args.quick:
        setting = setting.but(question=8, cot=12, latents=6, batch=2)
    bench = Bench(device, setting, args.quick)
    record = machine(device) | {"allocator": allocator}
    print("\n".join(f"{name}: {value}" for name, value in record.items()))
    failed: list[str] = []
    for name in args.tables or TABLES:
        start, load = time.perf_counter(), os.getloadavg()[0]
        try:
            rows = TABLES[name].measure(bench)
        except Exception:  # a compiler or an engine that fails must not cost the other tables
            traceback.print_exc()
            failed.append(name)
            continue
        facts = {
            "table": name,
            "quick": args.quick,
            "setting": dataclasses.asdict(setting),
            "machine": record | {"load_before": round(load, 2), "load_after": round(os.getloadavg()[0], 2)},
            "minutes": round((time.perf_counter() - start) / 60, 2),
        }
        changes = report.moved(TABLES[name], rows, facts)
        report.write(TABLES[name], rows, facts, args.output_dir)
        head = "Moved by more than 5 % since the recorded run:" if changes else "Nothing moved by 5 %."
        print("\n".join([head, *changes]))
        print(f"{facts['minutes']} minutes; load of the machine {load:.1f} before", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
