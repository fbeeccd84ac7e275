"""What concerns a run in several processes: whether the launch gave what was asked for, and who speaks of an error."""

import os
import signal
import time

from transformers import TrainingArguments

from .errors import InputError, check_installed

SECONDS_FOR_MAIN_PROCESS = 2.0


def launched_with(engine: str) -> bool:
    """Whether `accelerate launch` asks for "FSDP" or "DEEPSPEED"."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true"


def asks_for_sharding(args: TrainingArguments) -> bool:
    """Whether a flag or `accelerate launch` spreads the weights over processes."""
    return bool(args.fsdp or args.deepspeed or launched_with("FSDP") or launched_with("DEEPSPEED"))


def check_packages(args: TrainingArguments) -> None:
    """Raises InputError for DeepSpeed, asked for by a flag or by the launcher, where it is not installed.

    For `__post_init__`: transformers reads the configuration there, and fails without saying what to install.
    """
    if args.deepspeed or launched_with("DEEPSPEED"):
        check_installed("deepspeed", "--deepspeed" if args.deepspeed else "--use_deepspeed")


def check_launch(args: TrainingArguments) -> None:
    """Refuse a launch that would quietly be another one than was asked for. Raises InputError for `--fsdp` on a CPU,
    where nothing would be sharded, or without training, and where `accelerate launch` was to start several processes
    and started one.
    """
    flag = "--fsdp" if args.fsdp else "--use_fsdp" if launched_with("FSDP") else None
    if flag and not args.do_train:
        raise InputError(f"{flag} shards a model that is trained: leave it out, or pass --do_train")
    if flag and args.device.type == "cpu":
        raise InputError(f"{flag} needs an accelerator: on a CPU nothing would be sharded; leave it out")
    # accelerate's launcher sets the address for more than one process, and then starts several only on accelerators or
    # through MPI. Nothing else tells how many were asked for.
    by_accelerate = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if by_accelerate and "WORLD_SIZE" not in os.environ and args.world_size == 1:
        raise InputError(
            "accelerate launch was to start several processes and started one (on a CPU it does): use torchrun "
            "--nproc_per_node N run_*.py ... --use_cpu --ddp_backend gloo; for one process, pass --num_processes 1 and "
            "unset MASTER_ADDR"
        )


def wait_for_main_process() -> str:
    """Called where a run fails, before it says so: lets one process speak for all that fail alike.

    The main process speaks and exits at once, upon which the launcher ends the others, who wait here for that. Where it does
    not come, the error is theirs alone, and they say so one after the other.

    Returns:
        What a message starts with: nothing, or the process that it is from.
    """
    rank, place = (int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK"))
    if rank == 0:
        return ""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever training does at the launcher's signal
    time.sleep(SECONDS_FOR_MAIN_PROCESS + place)
    return f"process {rank}: "
