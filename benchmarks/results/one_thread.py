"""A run of a script in a process of its own, on one thread, and not twice."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def results_of(words: list[str], folder: Path) -> dict[str, float]:
    """The metrics that a run leaves in its output folder; made first where they are not there.

    Args:
        words: the script, from the repository's root, and its arguments, without `--output_dir`.
        folder: the run's.
    """
    path = folder / "all_results.json"
    if not path.exists():
        command = [sys.executable, *words, "--disable_tqdm", "true", "--output_dir", str(folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, check=True, env=environment, stdout=sys.stderr)
    else:
        made = datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes")
        print(f"{folder}: not run again, finished at {made}; remove it if the code has changed since", file=sys.stderr)
    return json.loads(path.read_text())
