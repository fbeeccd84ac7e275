"""The files of configs/accelerate/: accelerate reads them, and makes of them what their comments say. Nothing here needs a GPU."""

import os
import re
import subprocess

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from conftest import ROOT, make_model
from torch.distributed.fsdp import StateDictType

FOLDER = ROOT / "configs" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
SLURM = FOLDER / "multi_node.slurm"


def launch_arguments(path, *flags: str):
    """What `accelerate launch` makes of a file and the flags after it."""
    args = launch_command_parser().parse_args(["--config_file", str(path), *flags, "run_ccot.py", "recipe.yaml"])
    return _validate_launch_command(args)[0]


def test_all_files_are_here():
    names = {"one_gpu", "multi_gpu", "fsdp2", "deepspeed_zero2", "deepspeed_zero3", "multi_node"}
    assert {path.stem for path in FILES} == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_is_read(path):
    """No unknown key, bf16, and a comment with the command that uses this very file."""
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "bf16" and not config.use_cpu
    comment = path.read_text().partition("compute_environment")[0]
    assert f"accelerate launch --config_file configs/accelerate/{path.name} " in comment
    assert all(line.startswith("#") for line in comment.splitlines())
    for recipe in re.findall(r"configs/recipes/[\w.-]+", comment):
        assert (ROOT / recipe).is_file()


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [
        ("one_gpu", "NO", 1),
        ("multi_gpu", "MULTI_GPU", 2),
        ("multi_node", "MULTI_GPU", 16),
        ("fsdp2", "FSDP", 8),
        ("deepspeed_zero2", "DEEPSPEED", 8),
        ("deepspeed_zero3", "DEEPSPEED", 8),
    ],
)
def test_what_a_file_asks_for(name, kind, processes):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert (config.distributed_type.value, config.num_processes) == (kind, processes)


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
def test_fsdp2_shards_every_block(backbone, monkeypatch):
    """The plugin that a launched process builds: version 2, each block by itself, sharded checkpoints; the Trainer recomputes."""
    env = prepare_multi_gpu_env(launch_arguments(FOLDER / "fsdp2.yaml"))
    for name in list(os.environ):
        if name.startswith("FSDP_"):
            monkeypatch.delenv(name)
    for name, value in env.items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert env["ACCELERATE_USE_FSDP"] == "true" and env["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
    assert plugin.activation_checkpointing is False and not plugin.cpu_ram_efficient_loading
    model = make_model(backbone)
    plugin.set_auto_wrap_policy(model)
    is_wrapped = fsdp2_prepare_auto_wrap_policy(plugin, model)
    blocks = model.base_model.h if backbone == "gpt2" else model.base_model.layers
    wrapped = [module for module in model.modules() if is_wrapped(module)]
    assert len(blocks) == 2 and wrapped == list(blocks)


@pytest.mark.parametrize(("name", "stage"), [("deepspeed_zero2", "2"), ("deepspeed_zero3", "3")])
def test_deepspeed_stage(name, stage):
    """DeepSpeed itself is not installed here: what accelerate would hand it."""
    args = launch_arguments(FOLDER / f"{name}.yaml")
    args.deepspeed_fields_from_accelerate_config = ""  # set by `accelerate launch` for files of DeepSpeed alone
    _, env = prepare_deepspeed_cmd_env(args)
    assert env["ACCELERATE_USE_DEEPSPEED"] == "true" and env["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == stage
    assert env["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"


def test_several_machines():
    args = launch_arguments(FOLDER / "multi_node.yaml", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    prepare_multi_gpu_env(args)
    assert (int(args.nnodes), int(args.nproc_per_node), int(args.node_rank)) == (2, 8, 1)
    assert args.rdzv_endpoint == "10.0.0.1:29500"


def test_slurm_starts_torchrun(tmp_path):
    """The file with stand-ins for Slurm's programs: one torchrun per machine, the script and its flags after it."""
    for name, text in {"scontrol": "echo node1; echo node2", "srun": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[1-2]"}
    env |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "7"}
    command = ["bash", str(SLURM), "run_ccot.py", "recipe.yaml", "--seed", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    words = done.stdout.split()
    assert words[:5] == ["torchrun", "--nnodes", "2", "--nproc_per_node", "8"]
    assert words[words.index("--rdzv_endpoint") + 1] == "node1:29500"
    assert words[-5:] == ["run_ccot.py", "recipe.yaml", "--seed", "1", "--bf16"]
