"""The process of one part of `benchmarks/gpu.py`: measures, and writes its JSON file after every row."""

import argparse
import importlib
import json
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Part:
    """What a part is told.

    Args:
        name: of the part.
        folder: of its files.
        rehearse: tiny models on the CPU, few rounds.
        deadline: when it is to end, of `time.monotonic()`.
    """

    name: str
    folder: Path
    rehearse: bool
    deadline: float

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


def out_of_memory(error: Exception) -> bool:
    """Whether an error is the device's lack of memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def reason(error: Exception) -> str:
    """An error in one line."""
    return "out of memory" if out_of_memory(error) else " ".join(f"{type(error).__name__}: {error}".split())[:200]


def write(part: Part, state: str, rows: list[dict], facts: dict) -> None:
    """`PART.json`, which is there as a whole at any time."""
    path = part.folder / f"{part.name}.json"
    record = {"part": part.name, "rehearsal": part.rehearse, "state": state, "machine": facts, "rows": rows}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)


def work(part: Part) -> str:
    """Measure a part row by row; how it ended."""
    rows: list[dict] = []
    facts: dict = {}
    try:
        import torch

        from benchmarks.workload import machine

        facts = machine(torch.device("cpu" if part.rehearse else "cuda"))
        write(part, "running", rows, facts)
        for row in importlib.import_module(f"benchmarks.gpu_{part.name}").measure(part):
            rows.append(row)
            print(json.dumps(row), flush=True)
            write(part, "running", rows, facts)
        failed = sum(bool(row.get("failed")) for row in rows)
        state = f"failed: {failed} of {len(rows)} rows" if failed else "done"
    except ModuleNotFoundError as error:
        traceback.print_exc()
        state = f"not run: needs {error.name}"
    except Exception as error:
        traceback.print_exc()
        state = f"failed: {reason(error)}"
    write(part, state, rows, facts)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("out of time"))  # so that what the part started ends with it
    print(work(Part(args.name, args.output_dir, args.rehearse, time.monotonic() + args.seconds)), flush=True)


if __name__ == "__main__":
    main()
