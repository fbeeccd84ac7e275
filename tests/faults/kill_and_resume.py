#!/usr/bin/env python
"""Kill runs at random moments, resume them, and compare the weights with those of a run that nobody killed.

    python tests/faults/kill_and_resume.py --kills 40

A third of the SIGKILLs at least come while a checkpoint or the final model is being written. docs/training.md has the
figures of the last run. Exits with 1 if any resumed run ended differently.
"""

import argparse
import hashlib
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import run_ccot  # noqa: E402
import run_cot  # noqa: E402
import run_icot  # noqa: E402

STEPS, SAVED_EVERY = 12, 2
TASK = ["--dataset_name", "chain", "--task_args", "train=48,validation=8,test=2"]
RUN = ["--use_cpu", "--report_to", "none", "--disable_tqdm", "true", "--seed", "3", "--max_steps", str(STEPS)]
RUN += ["--per_device_train_batch_size", "8", "--save_steps", str(SAVED_EVERY), "--save_total_limit", "3"]
RUN += ["--logging_steps", "1", "--max_cot_tokens", "8", "--max_new_tokens", "4", "--do_train", *TASK]
NEW = ["--tokenizer_name", "characters", "--config_name"]
MIXED = ["--latent_curriculum", "mixed", "--latents_per_step", "2", "--train_sampling_strategy", "group_by_length"]
LORA = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "c_attn-c_fc-c_proj"]
GATED = ["--removal_gate", "0", "--removal_smoothing_lambda", "2", "--partial_removal", "--reset_optimizer"]
GATED += ["--eval_strategy", "steps", "--eval_steps", "2"]
RUNS = {
    "run_ccot.py": (run_ccot, [*NEW, "configs/pccot_gpt2_tiny.json", *MIXED]),
    "run_cot.py --use_peft": (run_cot, LORA),
    "run_icot.py --removal_gate": (run_icot, [*NEW, "configs/icot_gpt2_2x2.json", *GATED]),
}
WAIT = 60.0  # seconds after which a run that should have ended counts as hanging


def start(script, argv: list[str], log: Path) -> int:
    """Run a script's `main` in a process of its own; returns its id."""
    child = os.fork()
    if child:
        return child
    with log.open("a") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
        code = 1
        try:
            script.main(argv)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(code)


def wait(child: int) -> int:
    """Its exit code."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise SystemExit("a run hangs")


def digest(folder: Path) -> str:
    """Of all weights of a finished model."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("adapter/*.safetensors")])
    assert files, f"no weights in {folder}"
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def kill(child: int, folder: Path, source: random.Random) -> str:
    """Kill a run; returns at what: "a checkpoint", "the final model", "training", or "ended" if it was faster.

    The moment is a random time after the n-th checkpoint was complete, or while the next thing is being written.
    """
    begin, unfinished = time.monotonic(), folder / ".unfinished"
    checkpoints, inside = source.randint(0, STEPS // SAVED_EVERY), source.random() < 0.6
    while time.monotonic() - begin < WAIT:
        done, _ = os.waitpid(child, os.WNOHANG)
        if done:
            return "ended"
        steps = [int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")]
        if max(steps, default=0) >= checkpoints * SAVED_EVERY and (not inside or unfinished.exists()):
            break
    time.sleep(source.uniform(0, 0.02 if inside else 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if (unfinished / "model").exists():
        return "the final model"
    return "a checkpoint" if unfinished.exists() else "training"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.chdir(ROOT)
    source, moments, wrong, killed = random.Random(args.seed), Counter(), [], 0
    with TemporaryDirectory() as place:
        base, log = Path(place) / "base", Path(place) / "log"
        config = [*NEW, "configs/gpt2_chain.json"]
        assert wait(start(run_cot, [*RUN, *config, "--output_dir", str(base)], log)) == 0, log.read_text()
        RUNS["run_cot.py --use_peft"][1].extend(["--model_name_or_path", str(base)])
        wanted = {}
        for name, (script, flags) in RUNS.items():
            folder = Path(place) / "unbroken" / str(len(wanted))
            assert wait(start(script, [*RUN, *flags, "--output_dir", str(folder)], log)) == 0, log.read_text()
            wanted[name] = digest(folder)
        tries = 0
        while killed < args.kills:
            name = list(RUNS)[tries % len(RUNS)]
            tries += 1
            (script, flags), folder = RUNS[name], Path(place) / "killed"
            shutil.rmtree(folder, ignore_errors=True)
            argv = [*RUN, *flags, "--output_dir", str(folder)]
            moment = kill(start(script, argv, log), folder, source)
            if moment == "ended":
                continue
            killed += 1
            moments[moment] += 1
            whole = any(folder.glob("checkpoint-*"))
            again = ["--resume_from_checkpoint", "true"] if whole else ["--overwrite_output_dir"]
            code = wait(start(script, [*argv, *again], log))
            leftover = (folder / ".unfinished").exists()
            if code or leftover or digest(folder) != wanted[name]:
                wrong.append(f"{name}, killed in {moment}: exit code {code}, leftover {leftover}")
            print(f"{killed:3} {name:28} killed in {moment:16} {'from a checkpoint' if whole else 'anew'}", flush=True)
        if wrong:
            print("\n".join(line for line in log.read_text().splitlines() if "Error" in line))
    print(
        f"{killed} kills ({', '.join(f'{count} in {moment}' for moment, count in moments.items())}); wrong: {len(wrong)}"
    )
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
