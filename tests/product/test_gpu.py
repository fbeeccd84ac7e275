"""`make gpu`: how its parts are run, ended and reported. What they ask of a device is in tests/gpu/."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

from benchmarks import gpu

# What a part does: it does not end, dies, ends well, or saves a checkpoint when it is asked to end.
BEHAVIORS = {
    "tests": "import time; time.sleep(100)",
    "speed": "import os; os.kill(os.getpid(), 9)",
    "multiplication": "import os; os.makedirs(FOLDER); open(FOLDER + '/all_results.json', 'w').write('{\"test_exact_match\": 1.0}')",
    "graph": "raise SystemExit('error: no such flag')",
}


@pytest.fixture
def parts(monkeypatch):
    """Parts that take no time."""

    def command_of(name, folder, rehearse):
        return [sys.executable, "-c", BEHAVIORS[name].replace("FOLDER", repr(str(folder / name)))]

    monkeypatch.setattr(gpu, "command_of", command_of)
    monkeypatch.setattr(gpu, "GRACE", 1.0)


def test_a_part_that_fails_is_reported_and_the_next_one_runs(parts, tmp_path, capsys):
    assert gpu.main(["--rehearse", "--minutes", "0.2", "--output_dir", str(tmp_path)]) == 1
    records = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in gpu.PARTS}
    assert records["tests"]["state"] == "out of time after 3 s" and records["tests"]["seconds"] < 6
    assert records["speed"]["state"] == "failed with exit code -9: nothing was printed"
    assert records["multiplication"]["state"] == "done"
    assert records["multiplication"]["figures"] == ["test_exact_match 1.0000"]
    assert records["graph"]["state"] == "failed with exit code 1: error: no such flag"
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [f"| {name}" for name in gpu.PARTS]
    assert gpu.run_part("multiplication", 9, tmp_path, True)["state"] == "done in an earlier call"
    assert gpu.run_part("speed", 0.5, tmp_path, True)["state"] == "not run: out of time"


def test_what_is_not_installed_is_said(parts, tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.NEEDS, "tests", ("no_such_package",))
    assert gpu.run_part("tests", 9, tmp_path, True)["state"] == "not run: needs no_such_package"


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def test_tests_that_take_too_long_are_not_lost(handler, tmp_path, monkeypatch):
    """Those that ended before are in the report; also of a run that a shell has put in the background."""
    begun, wait = tmp_path / "begun", subprocess.Popen.wait
    lines = ["import pathlib, time", "def test_one(): pass", "def test_two():"]
    lines += [f"    pathlib.Path({str(begun)!r}).touch()", "    time.sleep(100)"]
    (tmp_path / "test_a.py").write_text("\n".join(lines))

    def until_begun(process, timeout=None):
        """The time is up once the second test has begun, however slow the machine is."""
        while timeout == 99 and not begun.exists():
            time.sleep(0.05)
        return wait(process, 0.1 if timeout == 99 else timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", until_begun)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # which would take most of its time
    command = [sys.executable, "-m", "pytest", str(tmp_path / "test_a.py"), f"--junitxml={tmp_path / 'tests.xml'}"]
    before = signal.signal(signal.SIGINT, handler)
    try:
        assert gpu.run_logged([*command, "-p", "no:cacheprovider"], tmp_path / "log", 99, True, 15) is None
    finally:
        signal.signal(signal.SIGINT, before)
    assert gpu.figures("tests", tmp_path) == ["1 passed", "not run: this test and those after it, out of time"]


def test_nothing_of_a_part_is_left(tmp_path):
    child = "import subprocess, time; print(subprocess.Popen(['sleep', '100']).pid, flush=True); time.sleep(100)"
    assert gpu.run_logged([sys.executable, "-c", child], tmp_path / "log", 2, True, 1) is None
    pid = int((tmp_path / "log").read_text().split()[0])
    for _ in range(50):
        if not is_running(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("a process of the part still runs")


def is_running(pid: int) -> bool:
    try:
        return open(f"/proc/{pid}/stat").read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_training_goes_on_in_the_next_call(tmp_path):
    assert "--resume_from_checkpoint" not in gpu.command_of("graph", tmp_path, False)
    (tmp_path / "graph" / "checkpoint-7").mkdir(parents=True)
    state = {"global_step": 7, "max_steps": 9, "log_history": [{"step": 7, "loss": 0.5}]}
    (tmp_path / "graph" / "checkpoint-7" / "trainer_state.json").write_text(json.dumps(state))
    assert gpu.command_of("graph", tmp_path, False)[-2:] == ["--resume_from_checkpoint", "true"]
    assert gpu.figures("graph", tmp_path) == ["step 7 of 9"]


def test_a_report_of_tests_is_read():
    xml = '<testsuites><testsuite><testcase classname="tests.gpu.test_a" name="one" time="0.5"/>'
    xml += '<testcase classname="a" name="two" time="1"><skipped message="needs flash-attn"/></testcase>'
    xml += '<testcase classname="a" name="three" time="1"><failure message="assert 1 == 2"/></testcase></testsuite></testsuites>'
    lines = ["1 passed", "skipped: a::two: needs flash-attn", "failure: a::three: assert 1 == 2"]
    assert gpu.read_tests(xml) == lines


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--parts", "tests,x"], "no part x: there are tests, speed, multiplication, graph"),
        (["--minutes", "0", "--rehearse"], "--minutes must be above 0"),
        ([], "no CUDA device here: --rehearse"),
    ],
)
def test_what_is_refused(argv, said, capsys):
    if not argv and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        gpu.main(argv)
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_rehearsal(tmp_path):
    """Every part with tiny models, as `make gpu` starts them."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--minutes", "14", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in gpu.PARTS:
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["state"] == "done" and record["figures"], record
        assert (tmp_path / f"{name}.log").stat().st_size > 0
        assert f"| {name} | done |" in done.stdout
    assert "test_ccot_exact_match" in done.stdout


@pytest.mark.slow
def test_what_needs_no_data_sets_runs_without_them():
    """A GPU machine may have torch, transformers and peft only: `datasets` is for trainings, matplotlib for plots."""
    lines = ["import sys", "sys.modules['datasets'] = sys.modules['matplotlib'] = None", "sys.path.append('tests/gpu')"]
    lines += ["import test_attention, test_compiled, test_number_formats, test_training_step"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, check=True, timeout=120)
