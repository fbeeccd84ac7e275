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

from benchmarks import gpu, gpu_answers, gpu_part, gpu_steps, gpu_tests, gpu_trainings
from benchmarks.flops import bf16_peak
from benchmarks.gpu_part import Part

ROW = "from benchmarks import gpu_part as g; from pathlib import Path; import sys, time\n"
ROW += "g.write(g.Part('steps', Path(sys.argv[1]), True, 0), 'running', [{'case': 'one', 'note': 'a row'}], {})\n"
# What a part does: it ends well, says what it lacks, dies, or does not end.
BEHAVIOURS = {
    "tests": ROW + "raise SystemExit('killed by something')",
    "steps": ROW + "time.sleep(100)",
    "answers": "import os; os.kill(os.getpid(), 9)",
    "trainings": "import json, sys; json.dump({'state': 'not run: needs x', 'rows': []}, open(sys.argv[1] + '/trainings.json', 'w'))",
}


def part(folder, seconds: float = 60, name: str = "steps") -> Part:
    return Part(name, folder, True, time.monotonic() + seconds)


def test_a_part_that_fails_is_reported_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        gpu, "command_of", lambda name, seconds, folder, *_: [sys.executable, "-c", BEHAVIOURS[name], str(folder)]
    )
    monkeypatch.setattr(gpu, "PARTS", dict.fromkeys(gpu.PARTS, 0.3))
    monkeypatch.setattr(gpu, "FOR_THE_TABLE", 0.0)
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    assert gpu.main(["--rehearse", "--minutes", "0.4", "--output_dir", str(tmp_path)]) == 1
    records = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in gpu.PARTS}
    assert records["tests"]["state"] == "failed with exit code 1: killed by something"
    assert records["steps"]["state"].startswith("out of time") and records["steps"]["seconds"] < 30
    assert records["steps"]["rows"] == [{"case": "one", "note": "a row"}]  # what was measured before its end
    assert records["answers"]["state"] == "failed with exit code -9: nothing was printed"
    assert records["trainings"]["state"] == "not run: needs x"
    assert all((tmp_path / f"{name}.log").is_file() for name in gpu.PARTS)
    assert (tmp_path / "steps.png").stat().st_size > 5000
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [f"| {name}" for name in gpu.PARTS]


def test_nothing_of_a_part_is_left(tmp_path):
    """Neither what it started in a session of its own, nor what it started in its own."""
    child = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '100']).pid, flush=True); time.sleep(100)"
    script = f"""
import signal, sys
from pathlib import Path
from benchmarks.gpu import run_logged
signal.signal(signal.SIGTERM, lambda *_: sys.exit('out of time'))
run_logged([sys.executable, '-c', {child!r}], Path({str(tmp_path / "child.log")!r}), 100, {{}})
"""
    code = gpu.run_logged([sys.executable, "-c", script], tmp_path / "log", 6, gpu.environment(True), 10)
    assert code is None
    pid = int((tmp_path / "child.log").read_text())
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


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ModuleNotFoundError("No module named 'peft'", name="peft"), "not run: needs peft"),
        (RuntimeError("CUDA error:\n an illegal access"), "failed: RuntimeError: CUDA error: an illegal access"),
        (None, "failed: 1 of 2 rows"),
    ],
)
def test_how_a_part_ends_is_in_its_file(error, state, tmp_path, monkeypatch):
    def measure(part):
        yield {"case": "one"}
        if error is not None:
            raise error
        yield {"case": "two", "failed": True}

    monkeypatch.setattr(gpu_steps, "measure", measure)
    assert gpu_part.work(part(tmp_path)) == state
    record = json.loads((tmp_path / "steps.json").read_text())
    assert record["state"] == state and record["rows"][0] == {"case": "one"}
    assert record["machine"]["device"] == "cpu"


def test_a_case_that_does_not_fit_is_a_row(tmp_path, monkeypatch):
    """Ours or the reference out of memory, another error, and no time left."""
    memory, cases = torch.OutOfMemoryError("CUDA out of memory"), iter(range(9))

    def contestants(*args):
        runs, number = dict.fromkeys(("ours", "reference"), lambda: None), next(cases)

        def fail(error):
            raise error

        if number == 0:
            runs["reference"] = lambda: fail(memory)
        elif number == 1:
            runs = dict.fromkeys(runs, lambda: fail(memory))
        elif number == 2:
            fail(RuntimeError("no kernel"))
        return runs

    monkeypatch.setattr(gpu_steps, "contestants", contestants)
    monkeypatch.setattr(gpu_steps, "peak_memory", lambda run, device: 1)  # which a CPU measures slowly
    rows = list(gpu_steps.measure(part(tmp_path)))
    assert [row.get("note") for row in rows] == [
        "out of memory: reference", "out of memory", "RuntimeError: no kernel", None
    ]  # fmt: skip
    assert "ours_seconds" in rows[0] and "over_reference" not in rows[0] and "over_reference" in rows[3]
    assert [bool(row.get("failed")) for row in rows] == [False, False, True, False]
    lines = gpu_steps.figures(rows)
    assert "out of memory" in lines[1] and "of the reference" in lines[3]
    late = list(gpu_steps.measure(part(tmp_path, seconds=0)))
    assert {row["note"] for row in late} == {"not measured: out of time"}
    assert gpu_steps.plot(late)


def test_a_way_to_answer_that_fails_is_a_row(tmp_path, monkeypatch):
    """A compiler that fails costs its own row alone; so does a lack of time."""

    def answer(seconds):
        return lambda: time.sleep(seconds)

    def fail():
        raise RuntimeError("no compiler")

    latent, explicit, ending = gpu_answers.LATENT, gpu_answers.EXPLICIT, gpu_answers.COMPILED_ENDING
    ways = {latent: answer(0.01), latent + ending: fail, explicit: answer(0.04), explicit + ending: answer(0.02)}
    monkeypatch.setattr(gpu_answers, "ways_to_answer", lambda *_: ways)
    setting = gpu_answers.Setting(batch=1)
    bench = gpu_answers.Bench(torch.device("cpu"), setting, quick=True)
    rows = {row["way"]: row for row in gpu_answers.measure_batch(part(tmp_path), bench, None, setting)}
    assert list(rows) == [latent, explicit, latent + ending, explicit + ending]
    assert rows[latent + ending] == {
        "batch": 1,
        "way": latent + ending,
        "note": "RuntimeError: no compiler",
        "failed": True,
    }
    assert rows[latent]["over_explicit"]["median"] < 0.6 and "over_plain" not in rows[latent]
    assert rows[explicit + ending]["over_plain"]["median"] < 0.9 and "over_explicit" not in rows[explicit + ending]
    assert len(gpu_answers.figures(list(rows.values()))) == 4
    late = list(gpu_answers.measure_batch(part(tmp_path, 0), bench, None, setting))
    assert {row["note"] for row in late} == {"not measured: out of time"} and len(late) == 4
    assert gpu_answers.plot(late)


def test_the_cases_of_a_gpu():
    """Those with an aim come first; both shapes are those of the published models."""
    cases = gpu_steps.cases(False, 24)
    assert len(set(cases)) == len(cases) == 24
    assert [(case.shape, case.iterations, case.batch) for case in cases[:4]] == list(gpu_steps.AIMS)
    assert bf16_peak("NVIDIA H100 80GB HBM3") == 989e12 > bf16_peak("NVIDIA H100 PCIe") and bf16_peak("x") is None
    with torch.device("meta"):
        sizes = [
            gpu_steps.build_model(gpu_steps.fields_of(name, False), gpu_steps.Setting()).num_parameters()
            for name in (gpu_steps.GPT2, gpu_steps.LLAMA)
        ]
    assert [round(size / 1e6) for size in sizes] == [124, 1236]


# --- trainings, with a script that takes no time ---

SCRIPT = """
import json, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
checkpoint = folder / "checkpoint-7"
def save(*_):
    checkpoint.mkdir(parents=True)
    state = {"global_step": 7, "max_steps": 9, "log_history": [{"step": 7, "loss": 0.5}, {"step": 7, "eval_exact_match": 0.25}]}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    raise SystemExit(143)
signal.signal(signal.SIGTERM, save)
if sys.argv[-2:] == ["--resume_from_checkpoint", "true"]:
    assert checkpoint.is_dir()
    (folder / "all_results.json").write_text('{"test_exact_match": 1.0}')
    raise SystemExit
time.sleep(100)
"""


def test_a_training_goes_on_in_the_next_call(tmp_path, monkeypatch):
    (tmp_path / "trainings").mkdir()
    slow = gpu_trainings.Training("slow", "0.9", ("-c", SCRIPT))
    row = gpu_trainings.train(part(tmp_path), slow, 2)
    assert row["state"] == "out of time after step 7; the next call goes on" and not row["resumed"]
    assert row["curve"] == [(7, "loss", 0.5), (7, "eval_exact_match", 0.25)]
    row = gpu_trainings.train(part(tmp_path), slow, 60)
    assert row["state"] == "finished" and row["resumed"] and row["metrics"] == {"test_exact_match": 1.0}
    row = gpu_trainings.train(part(tmp_path), slow, 60)
    assert row["state"] == "finished in an earlier call"
    (line,) = gpu_trainings.figures([{"training": "slow", "published": "0.9"} | row])
    assert "step 7 of 9" in line and "test_exact_match 1.0000" in line and "published: 0.9" in line
    broken = gpu_trainings.Training("broken", "-", ("-c", "raise SystemExit('error: no such flag')"))
    row = gpu_trainings.train(part(tmp_path), broken, 60)
    assert row["failed"] and row["state"] == "failed with exit code 1: error: no such flag"

    ours = (slow, broken, gpu_trainings.Training("x", "-", (), (), gpu_trainings.files("configs", "outputs/nowhere")))
    monkeypatch.setattr(gpu_trainings, "TRAININGS", ours)
    states = [row["state"] for row in gpu_trainings.measure(part(tmp_path))]
    assert states[0] == "finished in an earlier call" and states[1].startswith("failed")
    assert states[2] == "not run: needs outputs/nowhere"


def test_a_report_of_tests_is_read():
    xml = '<testsuites><testsuite><testcase classname="tests.gpu.test_a" name="one" time="0.5"/>'
    xml += '<testcase classname="a" name="two" time="1"><skipped message="needs flash-attn"/></testcase>'
    xml += '<testcase classname="a" name="three" time="1"><failure message="assert 1 == 2"/></testcase></testsuite></testsuites>'
    rows = gpu_tests.read(xml)
    assert [row["outcome"] for row in rows] == ["passed", "skipped", "failure"]
    assert [row.get("failed", False) for row in rows] == [False, False, True]
    assert gpu_tests.figures(rows) == [
        "1 of 3 passed", "skipped: a::two: needs flash-attn", "failure: a::three: assert 1 == 2"
    ]  # fmt: skip


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def test_tests_that_take_too_long_are_not_lost(handler, tmp_path, monkeypatch):
    """Those that ended before have their rows; also of a run that a shell has put in the background."""
    (tmp_path / "test_a.py").write_text("import time\ndef test_one(): pass\ndef test_two(): time.sleep(100)\n")
    monkeypatch.setattr(gpu_tests, "FOLDER", tmp_path)
    before = signal.signal(signal.SIGINT, handler)
    try:
        rows = list(gpu_tests.measure(part(tmp_path, gpu_tests.ENDING + 5)))
    finally:
        signal.signal(signal.SIGINT, before)
    assert rows[0]["test"].endswith("::test_one") and rows[0]["outcome"] == "passed"
    assert rows[-1] == {"test": "the others", "outcome": "not run", "seconds": 0.0, "note": "out of time"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--parts", "tests,x"], "no part x: there are tests, steps, answers, trainings"),
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
    command = [sys.executable, "benchmarks/gpu.py", "--rehearse", "--minutes", "14", "--output_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in gpu.PARTS:
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["state"] == "done", record
        assert len(record["rows"]) >= 4 and not [figure for figure in record["figures"] if "no plot" in figure]
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
        assert (tmp_path / f"{name}.log").stat().st_size > 0
        assert f"| {name} | done |" in done.stdout
    assert "multiplication-4x4-icot: finished" in done.stdout


@pytest.mark.slow
def test_what_needs_no_data_sets_runs_without_them():
    """A GPU machine may have torch, transformers and peft alone: `datasets` is for trainings, matplotlib for plots."""
    lines = ["import sys", "sys.modules['datasets'] = sys.modules['matplotlib'] = None"]
    lines += ["import benchmarks.gpu_tests, benchmarks.gpu_steps, benchmarks.gpu_answers"]
    lines += [
        "sys.path.append('tests/gpu')",
        "import test_attention, test_compiled, test_number_formats, test_training_step",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, check=True, timeout=120)
