"""Several processes by DistributedDataParallel, on a CPU: the same weights, answers and figures as one."""

import importlib
import importlib.util
import json
import subprocess
import sys
from itertools import product

import pytest
from conftest import ROOT, chain_model
from safetensors.torch import load_file
from several_processes import launch, launch_runs

from latent_cot import tasks
from latent_cot.training.arguments import CoTTrainingArguments, EvaluationArguments
from latent_cot.training.errors import InputError
from latent_cot.training.method_arguments import CoTArguments, PCCoTArguments
from latent_cot.training.processes import check_launch
from latent_cot.training.trainers.cot import CoTTrainer
from latent_cot.training.trainers.pccot import PCCoTTrainer

TINY = ["--config_name", "configs/pccot_gpt2_tiny.json", "--tokenizer_name", "characters", "--dataset_name", "chain"]
TINY += ["--task_args", "train=32,validation=5,test=4", "--answer_prompt", "#", "--use_cpu", "--report_to", "none"]
TINY += ["--save_strategy", "no", "--disable_tqdm", "true", "--max_cot_tokens", "12", "--max_new_tokens", "6"]
SGD = ["--do_train", "--optim", "sgd", "--learning_rate", "0.1", "--lr_scheduler_type", "constant", "--max_steps", "2"]
SGD += ["--max_grad_norm", "1000"]
LORA = ["--use_peft", "--lora_r", "2", "--lora_dropout", "0"]
OPTIONS = {
    "checkpointing": ["--gradient_checkpointing"],
    "warm-up": ["--teacher_warmup_steps", "1"],
    "projection": ["use_projection=true"],
    "LoRA": LORA,
}


def argv_of(chosen: tuple[str, ...]) -> list[str]:
    """The arguments of a run with some of the options; its loss is one whose mean is over tokens alone."""
    overrides = ["loss_gamma=0", *(OPTIONS["projection"] if "projection" in chosen else [])]
    flags = [flag for name in chosen if name != "projection" for flag in OPTIONS[name]]
    return [*TINY, *SGD, *flags, "--config_overrides", ",".join(overrides)]


def compare_with_one_process(cases: dict[str, tuple[str, list[str]]], folder) -> None:
    """Run each case (script, arguments) in two processes and in one, which has batches of both: the same weights."""
    both = [
        (script, [*argv, "--per_device_train_batch_size", "4", "--output_dir", str(folder / "two" / name)])
        for name, (script, argv) in cases.items()
    ]
    launch_runs(both, folder)
    for name, (script, argv) in cases.items():
        alone = ["--per_device_train_batch_size", "8", "--output_dir", str(folder / "one" / name)]
        importlib.import_module(script).main([*argv, *alone])
        for path in sorted((folder / "one" / name).rglob("*.safetensors")):
            spread = load_file(folder / "two" / path.relative_to(folder / "one"))
            for weight, values in load_file(path).items():
                assert (spread[weight] - values).abs().max() <= 1e-5, (name, path.name, weight)


@pytest.mark.slow
def test_weights_are_those_of_one_process(tmp_path):
    """Two steps of every combination; what is left unused in the first step made the second one fail."""
    chosen = [
        tuple(name for name, on in zip(OPTIONS, switches, strict=True) if on)
        for switches in product((False, True), repeat=len(OPTIONS))
    ]
    compare_with_one_process({"-".join(names) or "plain": ("run_ccot", argv_of(names)) for names in chosen}, tmp_path)


@pytest.mark.slow
def test_every_script_and_curriculum_in_two_processes(tmp_path):
    """... of one process too. The mixed curriculum is only run: each process draws its own."""
    flat = ["--config_name", "configs/gpt2_chain.json"]
    icot = ["--config_name", "configs/icot_gpt2_chain.json", "--partial_removal", "--remove_start_from", "2"]
    projection = ["--config_overrides", "loss_gamma=0,use_projection=true"]
    compare_with_one_process(
        {
            "cot": ("run_cot", [*TINY, *SGD, *flat]),
            "no cot": ("run_cot", [*TINY, *SGD, *flat, "--no_cot"]),
            "cot of a model with a projection": ("run_cot", [*TINY, *SGD, "--config_overrides", "use_projection=true"]),
            "cot, LoRA": ("run_cot", [*TINY, *SGD, *flat, *LORA]),
            "icot": ("run_icot", [*TINY, *SGD, *icot]),
            "icot, checkpointed": ("run_icot", [*TINY, *SGD, *icot, "--gradient_checkpointing"]),
            "T = 0": (
                "run_ccot",
                [*TINY, *SGD, "--config_overrides", "num_iterations=0,loss_gamma=0,use_projection=true"],
            ),
            "T from 0, which is drawn first": (
                "run_ccot",
                [*TINY, *SGD, *projection, "--num_iterations_range", "0,3", "--seed", "1"],
            ),
        },
        tmp_path,
    )
    mixed = ["--latent_curriculum", "mixed", "--curriculum_prob", "0.5", "--keep_last_step"]
    mixed += ["--teacher_warmup_steps", "1"]
    mixed += ["--latents_per_step", "2", "--config_overrides", "use_projection=true,loss_delta=0.5"]
    launch_runs(
        [
            ("run_ccot", [*TINY, *SGD, *mixed, *more, "--output_dir", str(tmp_path / f"mixed-{index}")])
            for index, more in enumerate(([], ["--gradient_checkpointing"], LORA))
        ],
        tmp_path,
    )


@pytest.mark.parametrize(
    ("changes", "warmup", "flag", "searches"),
    [
        ({}, 0, None, False),
        ({}, 3, None, False),
        ({"use_projection": True}, 0, None, False),
        ({"use_projection": True}, 3, None, True),
        ({"use_projection": True, "num_iterations": 0}, 0, None, True),
        ({"scale_latents": True, "num_iterations_range": [0, 3]}, 0, None, True),
        ({"use_projection": True, "num_iterations_range": [0, 3]}, 0, None, True),
        ({"use_projection": True, "num_iterations_range": [1, 3]}, 0, None, False),
        ({"scale_latents": True}, 0, None, False),
        ({"scale_latents": True}, 3, None, True),
        ({}, 0, True, True),
        ({"use_projection": True}, 3, False, False),
    ],
)
def test_unused_weights_are_searched_for_only_where_there_are_some(
    changes, warmup, flag, searches, characters, tmp_path
):
    args = CoTTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", ddp_find_unused_parameters=flag)
    rows = tasks.generate("chain", "train=4,validation=1,test=1")["train"]
    trainer = PCCoTTrainer(
        chain_model(characters, **changes),
        args,
        train_dataset=rows,
        processing_class=characters,
        method=PCCoTArguments(teacher_warmup_steps=warmup),
    )
    assert trainer.accelerator.ddp_handler.find_unused_parameters is searches


def test_an_explicit_chain_leaves_what_makes_latents_unused(characters, tmp_path):
    args = CoTTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    rows = tasks.generate("chain", "train=4,validation=1,test=1")["train"]
    for part, there in (("use_projection", True), ("scale_latents", True), ("scale_latents", False)):
        model = chain_model(characters, **{part: there})
        trainer = CoTTrainer(model, args, train_dataset=rows, processing_class=characters, method=CoTArguments())
        assert trainer.accelerator.ddp_handler.find_unused_parameters is there


def test_batches_of_answers_may_stay_apart(tmp_path):
    """`--eval_do_concat_batches false`: answers of unequal widths, in lists, are the same."""
    results = []
    for concat in ("true", "false"):
        argv = [*TINY, "--do_train", "--max_steps", "1", "--do_eval", "--do_predict"]
        argv += ["--per_device_eval_batch_size", "2"]
        argv += ["--eval_do_concat_batches", concat, "--output_dir", str(tmp_path / concat)]
        metrics = importlib.import_module("run_ccot").main(argv)
        results.append({name: value for name, value in metrics.items() if "exact_match" in name or "tokens" in name})
        results.append((tmp_path / concat / "predictions.jsonl").read_text())
    assert results[:2] == results[2:]


def test_the_time_of_an_answer_is_one_process_own(characters, tmp_path, monkeypatch):
    """Two processes with 3 s and 5 s for two answers each: 4 answers within 5 s, and 2 s for an answer."""
    taken = [({"ccot": 3.0, "cot": 6.0}, 2), ({"ccot": 5.0, "cot": 6.0}, 2)]
    monkeypatch.setattr("latent_cot.training.trainers.answer_evaluation.gather_object", lambda own: taken)
    trainer = PCCoTTrainer(
        chain_model(characters),
        CoTTrainingArguments(str(tmp_path), use_cpu=True, report_to="none"),
        eval_dataset=tasks.generate("chain", "train=1,validation=4,test=1")["validation"],
        processing_class=characters,
        evaluation=EvaluationArguments(max_new_tokens=2, max_cot_tokens=2),
    )
    metrics = trainer.evaluate()
    assert (metrics["eval_ccot_examples_per_second"], metrics["eval_ccot_ms_per_answer"]) == (0.8, 2000.0)
    assert metrics["eval_cot_ms_per_answer"] == 3000.0


@pytest.mark.slow
def test_the_card_times_one_process(tmp_path):
    """Two processes that answer 5 questions, 3 each: their own seconds over 3 answers."""
    out = tmp_path / "out"
    launch_runs(
        [("run_ccot", [*TINY, *SGD, "--do_eval", "--per_device_eval_batch_size", "1", "--output_dir", str(out)])],
        tmp_path,
    )
    metrics = json.loads((out / "all_results.json").read_text())
    throughput, each = metrics["eval_ccot_examples_per_second"], metrics["eval_ccot_ms_per_answer"] / 1000
    # 5 answers in the slower one's seconds, of which the mean process needs no more, for 3 answers.
    assert 3 * each <= 5 / throughput <= 2 * 3 * each
    assert f"| {1000 * each:.1f} |" in (out / "README.md").read_text()


# --- errors ---

FAILING = """
import os, time
from latent_cot.training.cli import run
from latent_cot.training.errors import InputError

def main(argv):
    if os.environ["RANK"] in {failing!r}:
        raise InputError("data.json: row 3: no answer")
    time.sleep(60)

run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("failing", "said"), [("012", "error: data.json"), ("2", "error: process 2: data.json")])
def test_an_error_is_said_once(failing, said, tmp_path):
    """The main process speaks for three that fail alike; an error of another one alone is seen too."""
    script = tmp_path / "failing.py"
    script.write_text(FAILING.format(failing=failing))
    done = launch(script, processes=3, timeout=60)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "row 3: no answer" in line]
    assert lines == [f"{said}: row 3: no answer"]


def test_a_launch_of_fewer_processes_is_refused(monkeypatch, tmp_path):
    args = CoTTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"):
        check_launch(args)
        monkeypatch.setenv(name, "29500")
    with pytest.raises(InputError, match="was to start several processes and started one"):
        check_launch(args)


@pytest.mark.slow
def test_accelerate_launch_on_a_cpu(tmp_path):
    """What the launcher leaves in the environment is what `check_launch` looks for."""
    argv = ["run_ccot.py", *TINY, *SGD, "--output_dir", str(tmp_path / "out")]
    for processes, code in (("2", 1), ("1", 0)):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", processes, *argv]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert ("was to start several processes" in done.stderr) == bool(code)


def test_sharding_that_would_not_happen_is_refused(monkeypatch, tmp_path):
    options = {"use_cpu": True, "report_to": "none", "fsdp": "full_shard"}
    with pytest.raises(InputError, match="--fsdp needs an accelerator"):
        check_launch(CoTTrainingArguments(str(tmp_path), do_train=True, **options))
    with pytest.raises(InputError, match="pass --do_train"):
        check_launch(CoTTrainingArguments(str(tmp_path), **options))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    args = CoTTrainingArguments(str(tmp_path), do_train=True, use_cpu=True, report_to="none")
    with pytest.raises(InputError, match="--use_fsdp needs an accelerator"):
        check_launch(args)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_deepspeed_is_named(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="--deepspeed needs: pip install deepspeed"):
        CoTTrainingArguments(str(tmp_path), use_cpu=True, deepspeed="zero3.json")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="--use_deepspeed needs: pip install deepspeed"):
        CoTTrainingArguments(str(tmp_path), use_cpu=True)
