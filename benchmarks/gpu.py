#!/usr/bin/env python
"""Everything that wants a GPU, in the minutes that there are: tests, training steps, answers, trainings.

    python benchmarks/gpu.py --minutes 9
    python benchmarks/gpu.py --minutes 9 --parts trainings
    python benchmarks/gpu.py --rehearse

It uses the packages that are installed and downloads nothing. Each part is a process of its own and leaves `PART.json`,
`PART.log` and `PART.png`; one that fails, or is ended because its time is up, is reported, and the next one runs. A second call
goes on with the trainings from their checkpoints. `--rehearse` runs every part with tiny models on the CPU, and its figures
mean nothing. What ran so far: docs/gpu.md.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# In order of value, with the share of the time left that each may take at most; the next part has what it leaves.
PARTS = {"tests": 0.3, "steps": 0.5, "answers": 0.6, "trainings": 1.0}
FOR_THE_TABLE = 15.0  # seconds
GRACE = 10.0  # seconds between the request to end and the end
STATES = ("done", "out of time", "not run", "failed")


def environment(rehearse: bool) -> dict[str, str]:
    """Of every part: nothing is downloaded, and batches of many sizes share the device's memory."""
    env = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    env |= {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | dict(os.environ)
    return env | ({"CUDA_VISIBLE_DEVICES": ""} if rehearse else {})


def command_of(name: str, seconds: float, folder: Path, rehearse: bool) -> list[str]:
    """What runs a part; it knows its time and ends by itself a little before."""
    own = max(1.0, seconds - GRACE)
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_part",
        name,
        "--seconds",
        f"{own:.0f}",
        "--output_dir",
        str(folder),
    ]
    return [*command, "--rehearse"] if rehearse else command


def run_logged(command: list[str], log: Path, seconds: float, env: dict[str, str], grace: float = GRACE) -> int | None:
    """Run a command and all that it starts, with its output in `log`; its exit code, or None if its time was up."""
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
            return None
        finally:  # nothing of a part is left when the next one starts, whoever ended it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_part(name: str, seconds: float, folder: Path, rehearse: bool) -> dict:
    """Run a part and complete its JSON file; what is in the file."""
    path, log, began = folder / f"{name}.json", folder / f"{name}.log", time.monotonic()
    path.unlink(missing_ok=True)
    command = command_of(name, seconds, folder, rehearse)
    code = run_logged(command, log, max(1.0, seconds), environment(rehearse))
    record = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    record = {"part": name, "rehearsal": rehearse} | record
    if code is None:
        record["state"] = f"out of time after {seconds:.0f} s"
    elif not record.get("state", "").startswith(STATES):  # it could not say so itself
        lines = log.read_text(errors="replace").strip().splitlines()
        record["state"] = f"failed with exit code {code}: {lines[-1] if lines else 'nothing was printed'}"
    record["seconds"] = round(time.monotonic() - began, 1)
    conclude(record, folder)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)
    return record


def conclude(record: dict, folder: Path) -> None:
    """Draw a part's plot, and put its main figures into its record."""
    record["figures"] = []
    try:
        module = importlib.import_module(f"benchmarks.gpu_{record['part']}")
        record["figures"] = module.figures(record["rows"])
        figure = module.plot(record["rows"])
        figure.suptitle(
            module.TITLE + (" (rehearsal: figures mean nothing)" if record["rehearsal"] else ""), fontsize=10
        )
        figure.savefig(folder / f"{record['part']}.png", dpi=120)
    except ModuleNotFoundError as error:
        record["figures"].append(f"no plot: needs {error.name}")
    except Exception as error:
        record["figures"].append(f"no plot: {type(error).__name__}: {error}")


def table(records: list[dict]) -> str:
    """One row per part and figure."""
    lines = ["| part | state | seconds | figures |", "|---|---|---|---|"]
    for record in records:
        name, state, seconds = record["part"], record["state"], f"{record['seconds']:.0f}"
        for figure in record["figures"] or ["–"]:
            cells = [name, state, seconds, figure]
            lines.append("| " + " | ".join(" ".join(cell.replace("|", "/").split())[:200] for cell in cells) + " |")
            name = state = seconds = ""
    return "\n".join(lines)


def check_machine(rehearse: bool) -> str | None:
    """What is lacking altogether, in one line."""
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        return f"{sys.executable} has no {error.name}: `make gpu PYTHON=...` takes another Python"
    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 17):
        return f"transformers {transformers.__version__} is too old: 5.17 or later is needed"
    if not rehearse and not torch.cuda.is_available():
        return "no CUDA device here: --rehearse runs every part on the CPU"
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything together (9)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {','.join(PARTS)}; all by default")
    parser.add_argument("--rehearse", action="store_true", help="tiny models on the CPU: shows that every part runs")
    parser.add_argument("--output_dir", type=Path, help="outputs/gpu, or outputs/gpu-rehearsal")
    args = parser.parse_args(argv)
    began, asked = time.monotonic(), [name.strip() for name in args.parts.split(",")]
    if unknown := set(asked) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    if args.minutes <= 0:
        parser.error("--minutes must be above 0")
    if lacking := check_machine(args.rehearse):
        parser.error(lacking)
    folder = args.output_dir or ROOT / "outputs" / ("gpu-rehearsal" if args.rehearse else "gpu")
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    names = [name for name in PARTS if name in asked]
    for name in names:
        left = args.minutes * 60 - FOR_THE_TABLE - (time.monotonic() - began)
        seconds = left if name == names[-1] else left * PARTS[name]
        if seconds < GRACE:
            records.append({"part": name, "state": "not run: out of time", "seconds": 0, "figures": []})
            continue
        print(f"{name}: at most {seconds:.0f} s, see {folder / name}.log", flush=True)
        records.append(run_part(name, seconds, folder.resolve(), args.rehearse))
        print(f"{name}: {records[-1]['state']}", flush=True)
    print("\n" + table(records), flush=True)
    (folder / "table.md").write_text(table(records) + "\n")
    return int(any(record["state"].startswith("failed") for record in records))


if __name__ == "__main__":
    sys.exit(main())
