"""Bad input to the scripts: one line that says what and where, and nothing is written."""

import json
import shlex
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset
from test_scripts import CHAIN, QUICK, TINY, trained  # noqa: F401  a fixture

import run_ccot
import run_cot
import run_icot
from latent_cot.training import (
    CoTTrainer,
    CoTTrainingArguments,
    DataArguments,
    ICoTTrainer,
    LatentEvaluationArguments,
    ModelArguments,
    PCCoTTrainer,
    cli,
)
from latent_cot.training.errors import InputError
from latent_cot.training.runs import stages


def fails(monkeypatch, capsys, argv, script=run_ccot) -> str:
    """Run a script that must end with one line on standard error."""
    monkeypatch.setattr(sys, "argv", ["script", *argv])
    with pytest.raises(SystemExit) as stop:
        cli.run(script.main)
    message = str(stop.value.code)
    assert message.startswith("error: ") and "\n" not in message
    return message


SMALL = ["--dataset_name", "chain", "--task_args", "train=8,validation=2,test=2"]
TRAINED = f"--model_name_or_path {shlex.quote(CHAIN)}"
# With data of their own, and with that of a small task.
BAD_DATA = {
    "missing file": ("--train_file nowhere.json", "nowhere.json: no such file"),
    "no data": ("", "no data: pass --dataset_name"),
    "unknown data set": ("--dataset_name no/such-set", "neither a task (affine, chain"),
    "settings of no task": ("--dataset_name no/such-set --task_args size=3", "only for a task (affine, chain"),
    "settings of a file": ("--train_file pyproject.toml --task_args size=3", "and a file is none"),
}
BAD = {
    "negative T": ("--config_overrides num_iterations=-1", "num_iterations must be"),
    "no latents": ("--num_latent_tokens 0", "num_latent_tokens must be"),
    "no such field": ("--config_overrides depth=3", "no field 'depth'"),
    "bad value": ("--config_overrides loss_gamma=much", "does not fit"),
    "empty answer prompt": ("--answer_prompt ''", "--answer_prompt '' is empty"),
    "too long": ("--block_size 9", "train row 0 is too long"),
    "all too long": ("--block_size 9 --drop_long", "every row is longer"),
    "missing model": ("--config_name ./nowhere", "'./nowhere': no such file"),
    "streaming": ("--streaming --max_steps -1", "needs --max_steps"),
    "flash": ("--attn_implementation flash_attention_2", "needs a GPU"),
    "liger": ("--use_liger_kernel", "needs: pip install liger-kernel"),
    "wandb": ("--report_to wandb", "needs: pip install wandb"),
    "tensorboard": ("--report_to tensorboard", "needs: pip install tensorboard"),
    "unknown tracker": ("--report_to wandbb", "--report_to: wandbb is not supported, only"),
    "two sources": ("--train_file pyproject.toml", "two sources of data"),
    "tolerance": ("--latent_tolerance -1", "--latent_tolerance must be"),
    "noise of no samples": ("--latent_noise 0.5", "that --num_samples asks for"),
    "samples of no noise": ("--num_samples 2 --latent_noise 0", "all samples are the same"),
    "samples of no thought": (
        "--num_samples 2 --latent_noise 0.5 --config_overrides num_iterations=0",
        "at T = 0 there is no thought to sample",
    ),
    "no room": ("--max_new_tokens 0", "--max_new_tokens must be"),
    "probability": ("--curriculum_prob 2", "between 0 and 1"),
    "bad number": ("--max_steps x", "invalid int value: 'x'"),
    "unknown flag": ("--lattents 3", "--lattents"),
    "columns": ("--remove_unused_columns true", "must stay off"),
    "a list": ("--config_overrides answer_prompt_ids=3", "does not fit"),
    "loss only": ("--prediction_loss_only", "evaluation is of generated answers"),
    "no steps": ("--max_steps 0", "--max_steps 0 would train nothing"),
    "no batches": ("--gradient_accumulation_steps 0", "must be at least 1, got 0"),
    "weight": ("--config_overrides loss_gamma=-1", "loss_gamma must be a number of"),
    "half a batch": (
        "--dataloader_drop_last --per_device_train_batch_size 9",
        "8 training rows do not fill a batch of 9",
    ),
    "tied head": ("--use_peft --lora_modules_to_save lm_head", "--lora_modules_to_save lm_head: it shares its matrix"),
    "tied head as a target": (
        "--use_peft --lora_target_modules c_attn-lm_head",
        "--lora_target_modules lm_head: it shares its matrix",
    ),
    "other token ids": (
        f"{TRAINED} --config_name= --tokenizer_name bytes",
        "was trained with other token ids (0 is '<unk>', and here '<eos>')",
    ),
    "other token ids under a recipe's configuration": (
        f"{TRAINED} --tokenizer_name bytes",
        "was trained with other token ids (0 is '<unk>', and here '<eos>')",
    ),
    "unknown prompt": (
        f"{TRAINED} --config_name= --tokenizer_name= --answer_prompt '!'",
        "--answer_prompt '!' holds text that the tokenizer does not know",
    ),
    "a prefix": ("--num_iterations_ran 2,3", "unknown arguments: --num_iterations_ran"),
    "a value alone": ("--seed 1 7", "unknown arguments: 7"),
    "a flag that went": ("--save_safetensors", "--save_safetensors is no flag here: use nothing"),
    "another that went": ("--on-nan=skip", "--on_nan is no flag here: use nothing"),
    "a loss's weight": ("--loss_delta -1", "loss_delta must be a number of at least 0"),
    "nothing to resume": ("--resume_from_checkpoint true", "no checkpoint in"),
}


@pytest.mark.parametrize("name", [*BAD_DATA, *BAD])
def test_bad_input(name, monkeypatch, capsys, tmp_path):
    """One line that says what and where; nothing is written."""
    flags, message = (BAD_DATA | BAD)[name]
    argv = [*TINY, *QUICK, *(SMALL if name in BAD else []), "--do_train", *shlex.split(flags)]
    output = tmp_path / "out"
    assert message in fails(monkeypatch, capsys, [*argv, "--output_dir", str(output)])
    assert not output.exists()


ELSEWHERE = {
    "samples of no thought": (run_cot, "--num_samples=4"),
    "tolerance of no thought": (run_icot, "--latent_tolerance=0.1"),
    "a chain of a chain": (run_cot, "--explicit_cot"),
    "faithfulness of no thought": (run_cot, "--faithfulness"),
    "a stream of chains": (run_icot, "--streaming"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_flag_of_another_script(name, monkeypatch, capsys):
    script, flag = ELSEWHERE[name]
    assert f"unknown arguments: {flag}" in fails(monkeypatch, capsys, [flag], script)


def test_trainers_refuse_it_too(tmp_path):
    """In Python there is no `--help`."""
    rows = Dataset.from_list([{"question": "1+2=", "steps": ["3"], "answer": "3"}] * 4)
    args = CoTTrainingArguments(str(tmp_path / "out"), use_cpu=True, max_steps=1, report_to=[])
    models = [
        ModelArguments(config_name=f"configs/{name}_chain.json", tokenizer_name="characters")
        for name in ("gpt2", "icot_gpt2")
    ]
    for asked in ({"num_samples": 2}, {"eval_iterations": "1,3"}, {"latent_tolerance": 0.1}):
        with pytest.raises(InputError, match=f"--{next(iter(asked))}: about latent thoughts"):
            CoTTrainer(models[0], args, train_dataset=rows, evaluation=LatentEvaluationArguments(**asked))
    with pytest.raises(InputError, match="a gpt2 model has no thoughts that could be changed"):
        CoTTrainer(models[0], args, train_dataset=rows, evaluation=LatentEvaluationArguments(faithfulness=True))
    thinks, changed = ModelArguments(CHAIN), LatentEvaluationArguments(faithfulness=True)
    with pytest.raises(InputError, match="this trainer trains no thought"):
        CoTTrainer(thinks, args, train_dataset=rows, test_dataset=rows, evaluation=changed)
    trainer = PCCoTTrainer(thinks, args, train_dataset=rows, test_dataset=rows, evaluation=changed)
    trainer.is_fsdp_enabled = True
    with pytest.raises(InputError, match="--faithfulness needs whole weights"):
        trainer.check_faithfulness()
    with pytest.raises(InputError, match=r"--streaming: run_icot\.py has to know every chain"):
        ICoTTrainer(models[1], args, train_dataset=rows.to_iterable_dataset())


NOWHERE = ["--config_name", "nowhere.json", "--dataset_name", "nowhere"]
EARLY = {
    "no test data": (["--faithfulness", "--do_train"], "asks the questions of the test data: pass --do_predict"),
    "one row": (["--faithfulness", "--do_predict", "--max_predict_samples", "1"], "with two rows or more"),
    "a decoder that is not trained": (
        ["--step_decoder_layers", "1", "--do_eval"],
        "a decoder exists in training alone",
    ),
}


@pytest.mark.parametrize("name", EARLY)
def test_arguments_are_checked_before_anything_is_loaded(name, monkeypatch, capsys):
    """Neither the model nor the data is there."""
    flags, message = EARLY[name]
    assert message in fails(monkeypatch, capsys, [*NOWHERE, "--use_cpu", *flags])


@pytest.mark.parametrize("asked", [{"fsdp": "full_shard"}, {"deepspeed": "a.json"}, {}])
def test_what_needs_whole_weights(asked, monkeypatch):
    """Where a flag shards them, or the launcher."""
    args = SimpleNamespace(**({"fsdp": "", "deepspeed": None, "do_train": True, "do_predict": True} | asked))
    if not asked:
        stages.check_faithfulness(args, DataArguments())
        stages.check_step_decoder(args)
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="--faithfulness needs whole weights"):
        stages.check_faithfulness(args, DataArguments())
    with pytest.raises(InputError, match="--step_decoder_layers is not supported with FSDP and DeepSpeed"):
        stages.check_step_decoder(args)


def test_unknown_backbone(monkeypatch, capsys, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    argv = ["--config_name", str(tmp_path), "--tokenizer_name", "bytes", "--dataset_name", "chain", "--do_train"]
    assert "unknown backbone 'bloom'; there are: gpt2, llama" in fails(monkeypatch, capsys, argv)


def test_an_existing_model_is_not_overwritten(monkeypatch, capsys, trained):  # noqa: F811
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    argv = [*TINY, *QUICK, "--dataset_name", "chain", "--do_train", "--output_dir", str(trained)]
    assert "already holds a model" in fails(monkeypatch, capsys, argv)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


MISSING = ["--train_file", "nowhere.json", "--do_train", "--config_name", TINY[1]]


def test_a_traceback_with_debug_alone(monkeypatch, capsys):
    assert fails(monkeypatch, capsys, MISSING) == "error: nowhere.json: no such file"
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["run_ccot.py", *MISSING, "--debug"])
    with pytest.raises(SystemExit) as stop:
        cli.run(run_ccot.main)
    assert stop.value.code == 1 and "Traceback" in capsys.readouterr().err
