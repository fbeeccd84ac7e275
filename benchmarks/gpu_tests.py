"""Part `tests` of `benchmarks/gpu.py`: the tests of `tests/gpu/`, on the GPU; in a rehearsal their twins on the CPU."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec

from benchmarks.gpu_part import Part
from benchmarks.report import panels
from benchmarks.workload import ROOT

TITLE = "Tests on the device"
FOLDER = "tests/gpu"


def measure(part: Part):
    """A row per test.

    Raises:
        ModuleNotFoundError: without pytest.
        RuntimeError: if no test ran.
    """
    if find_spec("pytest") is None:
        raise ModuleNotFoundError("No module named 'pytest'", name="pytest")
    report = part.folder / "tests.xml"
    report.unlink(missing_ok=True)
    # The tests need less than the others do: `--confcutdir` leaves tests/conftest.py aside.
    command = [sys.executable, "-m", "pytest", FOLDER, "-m", "not gpu" if part.rehearse else "gpu", "-rs", "--tb=short"]
    command += ["-p", "no:cacheprovider", f"--confcutdir={FOLDER}", f"--junitxml={report}"]
    code = subprocess.run(command, cwd=ROOT, env=dict(os.environ)).returncode
    rows = read(report.read_text()) if report.is_file() else []
    if not any(row["outcome"] != "skipped" for row in rows):
        raise RuntimeError(f"pytest ended with {code}, and no test ran")
    yield from rows


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
    colours = {"passed": "tab:green", "skipped": "tab:gray"}
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
