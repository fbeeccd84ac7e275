"""`launch` a script in several processes; `launch_runs`: several runs in one launch, which takes as long as one."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

from latent_cot.training.cli import leave_process_group

ROOT = Path(__file__).resolve().parent.parent.parent


def launch(script: str | Path, *argv: str, processes: int = 2, timeout: float = 600) -> subprocess.CompletedProcess:
    """Run a script under torchrun, from the repository's root; its output as text."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, str(script), *argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout
    )


def launch_runs(runs: list[tuple[str, list[str]]], folder: Path) -> str:
    """Run scripts, each with its arguments, one after the other in the same two processes; what they print."""
    path = folder / "runs.json"
    path.write_text(json.dumps(runs))
    done = launch(__file__, str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def main() -> None:
    for script, argv in json.loads(Path(sys.argv[1]).read_text()):
        importlib.import_module(script).main([*argv, "--ddp_backend", "gloo"])
    leave_process_group()


if __name__ == "__main__":
    main()
