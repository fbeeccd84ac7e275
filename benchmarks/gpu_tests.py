"""Part `tests` of `benchmarks/gpu.py`: the tests of `tests/gpu/`, on the GPU; in a rehearsal their twins on the CPU."""

import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec

from benchmarks.gpu_part import Part
from benchmarks.report import panels
from benchmarks.workload import ROOT

TITLE = "Tests on the device"
FOLDER = ROOT / "tests" / "gpu"
ENDING = 8.0  # seconds: pytest's report, and a test that is interrupted


def measure(part: Part):
    """A row per test, and one for those that there was no time for.

    Raises:
        ModuleNotFoundError: without pytest.
        RuntimeError: if no test ran.
    """
    if find_spec("pytest") is None:
        raise ModuleNotFoundError("No module named 'pytest'", name="pytest")
    report = part.folder / "tests.xml"
    report.unlink(missing_ok=True)
    # Compiling takes long, so it comes last.
    files = sorted(FOLDER.glob("test_*.py"), key=lambda path: (path.name == "test_compiled.py", path.name))
    # The tests need less than the others do: `--confcutdir` leaves tests/conftest.py aside.
    command = [sys.executable, "-m", "pytest", *map(str, files), "-m", "not gpu" if part.rehearse else "gpu"]
    command += ["-rs", "--tb=short", "-p", "no:cacheprovider", f"--confcutdir={FOLDER}", f"--junitxml={report}"]
    process, late = subprocess.Popen(command, cwd=ROOT, preexec_fn=can_be_interrupted), False
    try:
        process.wait(max(1.0, part.seconds_left - ENDING))
    except subprocess.TimeoutExpired:
        late = True
        process.send_signal(signal.SIGINT)  # pytest ends, and reports what it has
        process.wait(ENDING)
    rows = read(report.read_text()) if report.is_file() else []
    if not any(row["outcome"] != "skipped" for row in rows):
        raise RuntimeError(f"pytest ended with {process.returncode}, and no test ran")
    yield from rows
    if late:
        yield {"test": "the others", "outcome": "not run", "seconds": 0.0, "note": "out of time"}


def can_be_interrupted() -> None:
    """In the new process: what a shell started in the background (`make gpu &`) ignores SIGINT, and would hand that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def read(xml: str) -> list[dict]:
    """Of a JUnit report: each test's name, outcome, seconds, and why it was skipped or failed."""
    rows = []
    for case in ElementTree.fromstring(xml).iter("testcase"):
        faults = [(child.tag, child) for child in case if child.tag in ("failure", "error", "skipped")]
        outcome, fault = faults[0] if faults else ("passed", None)
        file = case.get("classname", "").rpartition(".")[2]
        row = {"test": f"{file}::{case.get('name')}", "outcome": outcome, "seconds": float(case.get("time", 0))}
        if fault is not None:
            row |= {"note": (fault.get("message") or "")[:300], "failed": outcome != "skipped"}
        rows.append(row)
    return rows


def figures(rows: list[dict]) -> list[str]:
    """How many passed; every other one with its reason."""
    passed = sum(row["outcome"] == "passed" for row in rows)
    others = [f"{row['outcome']}: {row['test']}: {row['note']}" for row in rows if row["outcome"] != "passed"]
    return [f"{passed} of {len(rows)} passed", *others]


def plot(rows: list[dict]):
    colours = {"passed": "tab:green", "skipped": "tab:gray", "not run": "tab:gray"}
    figure, (axes,) = panels(1, 1, width=8, height=1 + 0.2 * max(4, len(rows)))
    axes.barh(
        range(len(rows)),
        [row["seconds"] for row in rows],
        color=[colours.get(row["outcome"], "tab:red") for row in rows],
    )
    axes.set_yticks(range(len(rows)), [f"{row['test']}: {row['outcome']}" for row in rows], fontsize=6)
    axes.invert_yaxis()
    axes.set(xlabel="seconds")
    return figure
