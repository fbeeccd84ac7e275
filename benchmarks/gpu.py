"""Everything that wants a GPU, in the minutes that there are: tests, speed and memory, trainings.

    python -m benchmarks.gpu --minutes 9
    python -m benchmarks.gpu --minutes 9 --parts tests,speed
    python -m benchmarks.gpu --rehearse

It uses the packages that are installed and downloads nothing. Each part is a process with a time limit and leaves `PART.json` and
`PART.log`; one that fails, or is ended because its time is up, is reported, and the next one runs. A second call goes on with the
trainings from their checkpoints. `--rehearse` runs every part with tiny models on the CPU, and its figures mean nothing.
What ran so far: docs/performance.md.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# In order of value, with the share of the time left that each may take at most; the next part has what it leaves.
PARTS = {"tests": 0.3, "speed": 0.5, "multiplication": 0.5, "graph": 1.0}
RECIPES = {  # what papers report: 1.00, without a chain below 0.01 (arXiv 2405.14838); about 0.99 (arXiv 2505.12514)
    "multiplication": ("run_icot.py", "multiplication-4x4_icot_gpt2-2x768"),
    "graph": ("run_ccot.py", "graph_pccot_gpt2-2x768"),
}
CHECKPOINTS = "--save_strategy steps --save_steps 1000 --save_total_limit 1 --report_to none"
REHEARSAL = "--use_cpu --bf16 false --max_steps 2 --save_steps 1 --logging_steps 1 --per_device_train_batch_size 4 "
REHEARSAL += "--eval_strategy no --max_cot_tokens 4 --config_overrides n_layer=1,n_embd=32,n_head=2 --task_args "
SMALL = {
    "multiplication": REHEARSAL + "digits=4,train=16,validation=4,test=4 --partial_removal",
    "graph": REHEARSAL + "symbols=1,train=16,validation=4,test=4 --teacher_warmup_steps 1",
}
NEEDS = {"tests": ("pytest",), "speed": ("peft", "matplotlib")}
TRAINING_NEEDS = ("datasets", "peft", "accelerate", "yaml")
GRACE = 20.0  # seconds between the request to end and the end: a step, an evaluation, a checkpoint
RESULTS = "all_results.json"  # of a training that came to its end


def command_of(name: str, folder: Path, rehearse: bool) -> list[str]:
    """What runs a part, with the Python that runs this."""
    if name == "tests":
        # Compiling takes long, so it comes last. `--confcutdir` leaves tests/conftest.py aside, which needs more packages.
        tests = ROOT / "tests" / "gpu"
        files = sorted(tests.glob("test_*.py"), key=lambda path: (path.stem == "test_compiled", path.name))
        words = ["-m", "pytest", *map(str, files), "-m", "not gpu" if rehearse else "gpu", "-rs", "--tb=short"]
        words += ["-p", "no:cacheprovider", f"--confcutdir={tests}", f"--junitxml={folder / 'tests.xml'}"]
    elif name == "speed":
        words = ["-m", "benchmarks.speed.run", "--output_dir", str(folder / "speed")]
        words += ["--quick"] if rehearse else ["--device", "cuda"]
    else:
        script, recipe = RECIPES[name]
        place = folder / name
        words = [script, f"configs/recipes/{recipe}.yaml", *CHECKPOINTS.split(), "--output_dir", str(place)]
        words += SMALL[name].split() if rehearse else []
        words += ["--resume_from_checkpoint", "true"] if any(place.glob("checkpoint-*")) else []
    return [sys.executable, *words]


def figures(name: str, folder: Path) -> list[str]:
    """What a part has left, ended or not, in words."""
    if name == "tests":
        path = folder / "tests.xml"
        return read_tests(path.read_text()) if path.is_file() else []
    if name == "speed":
        tables = {path: json.loads(path.read_text())["rows"] for path in sorted((folder / "speed").glob("*.json"))}
        return [f"{path.stem}: {len(rows)} rows, in speed/{path.name}" for path, rows in tables.items()]
    place, lines = folder / name, []
    states = sorted(place.glob("checkpoint-*/trainer_state.json"), key=lambda path: int(path.parent.name[11:]))
    for path in [*states, *place.glob("trainer_state.json")][-1:]:
        state = json.loads(path.read_text())
        lines.append(f"step {state['global_step']} of {state['max_steps']}")
    metrics = json.loads((place / RESULTS).read_text()) if (place / RESULTS).is_file() else {}
    return lines + [f"{key} {value:.4f}" for key, value in metrics.items() if key.endswith("exact_match")]


def read_tests(xml: str) -> list[str]:
    """Of a JUnit report: how many tests passed, and what became of each of the others."""
    passed, others = 0, []
    for case in ElementTree.fromstring(xml).iter("testcase"):
        faults = [child for child in case if child.tag in ("failure", "error", "skipped")]
        if not case.get("name"):  # where pytest was interrupted
            others.append("not run: this test and those after it, out of time")
            continue
        passed += not faults
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        others += [f"{fault.tag}: {name}: {(fault.get('message') or '')[:200]}" for fault in faults[:1]]
    return [f"{passed} passed", *others]


def run_logged(command: list[str], log: Path, seconds: float, rehearse: bool, grace: float) -> int | None:
    """Run a command and all that it starts, with its output in `log`; its exit code, or None if its time was up."""
    # Nothing is downloaded, and batches of many sizes share the device's memory.
    env = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    env |= {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | dict(os.environ)
    env |= {"CUDA_VISIBLE_DEVICES": ""} if rehearse else {}
    with open(log, "w", encoding="utf-8") as file:
        # What a shell started in the background (`make gpu &`) ignores SIGINT, and would hand that on.
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest reports what it has, a training saves a checkpoint
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
            return None
        finally:  # nothing of a part is left when the next one starts, whoever ended it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_part(name: str, seconds: float, folder: Path, rehearse: bool) -> dict:
    """Run a part and write its JSON file; what is in the file."""
    began, log = time.monotonic(), folder / f"{name}.log"
    lacking = next((need for need in NEEDS.get(name, TRAINING_NEEDS) if find_spec(need) is None), None)
    if lacking or seconds < GRACE:
        state = f"not run: needs {lacking}" if lacking else "not run: out of time"
    elif (folder / name / RESULTS).is_file():
        state = "done in an earlier call"
    else:
        stale = {"tests": [folder / "tests.xml"], "speed": (folder / "speed").glob("*.json")}
        for path in stale.get(name, ()):
            path.unlink(missing_ok=True)
        code = run_logged(command_of(name, folder, rehearse), log, seconds - GRACE, rehearse, GRACE)
        said = log.read_text(errors="replace").strip().splitlines() or ["nothing was printed"]
        state = "done" if code == 0 else f"failed with exit code {code}: {said[-1][:200]}"
        state = f"out of time after {seconds - GRACE:.0f} s" if code is None else state
    lines = [] if state.startswith("not run") else figures(name, folder)
    if state == "done" and name == "tests" and (not lines or lines[0] == "0 passed"):
        state = "failed: no test ran"
    record = {"part": name, "rehearsal": rehearse, "state": state, "seconds": round(time.monotonic() - began, 1)}
    record |= {"figures": lines}
    partial = folder / f"{name}.partial"
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(folder / f"{name}.json")
    return record


def table(records: list[dict]) -> str:
    """One row per part and figure."""
    lines = ["| part | state | seconds | figures |", "|---|---|---|---|"]
    for record in records:
        cells = [record["part"], record["state"], f"{record['seconds']:.0f}"]
        for figure in record["figures"] or ["–"]:
            lines.append(
                "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in [*cells, figure]) + " |"
            )
            cells = ["", "", ""]
    return "\n".join(lines)


def check_machine(rehearse: bool) -> str | None:
    """What is lacking altogether, in one line."""
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        return f"{sys.executable} has no {error.name}: `make gpu PYTHON=...` takes another Python"
    if find_spec("latent_cot") is None:
        return f"{sys.executable} has no latent_cot: pip install --no-deps -e ."
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that the part that runs ends with it
    folder = (args.output_dir or ROOT / "outputs" / ("gpu-rehearsal" if args.rehearse else "gpu")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    records, names = [], [name for name in PARTS if name in asked]
    for name in names:
        left = args.minutes * 60 - (time.monotonic() - began)
        seconds = left if name == names[-1] else left * PARTS[name]
        print(f"{name}: at most {seconds:.0f} s, see {folder / name}.log", flush=True)
        records.append(run_part(name, seconds, folder, args.rehearse))
        print(f"{name}: {records[-1]['state']}", flush=True)
    print("\n" + table(records), flush=True)
    (folder / "table.md").write_text(table(records) + "\n")
    return int(any(record["state"].startswith("failed") for record in records))


if __name__ == "__main__":
    sys.exit(main())
