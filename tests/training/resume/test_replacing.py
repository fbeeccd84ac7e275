"""What a run or `save_model` writes over: the files of the model that was there, and nothing of anybody else."""

import json
import multiprocessing
import os
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, chain_model
from safetensors.torch import load_file
from test_interruptions import contents
from test_resuming import PCCOT, RUN

import run_ccot
from latent_cot.training import CoTTrainingArguments, DataArguments, LoraArguments, PCCoTTrainer
from latent_cot.training.checkpoints.lora import add_adapters
from latent_cot.training.checkpoints.write import (
    MANIFEST,
    RESERVED,
    files_in,
    model_files,
    write_final_model,
    write_model_files,
)
from latent_cot.training.errors import InputError
from latent_cot.training.resume.run_lock import LOCK, locked
from latent_cot.training.resume.whole_folders import replacing_model
from latent_cot.training.runs.stages import check_arguments, public_command

ROWS = [{"question": f"{i}+1=", "steps": [f"{i}+1={i + 1}"], "answer": str(i + 1)} for i in range(8)]
STALE = ("pccot_args.json", "special_tokens_map.json", "adapter_config.json", "faithfulness.json", "faithfulness.png")


def save(folder: Path, tokenizer, seed: int = 0, more: tuple[str, ...] = ()) -> None:
    with replacing_model(folder) as new:
        write_model_files(chain_model(tokenizer, seed=seed), tokenizer, new)
        for name in more:
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text("{}")


def make_trainer(folder: Path, tokenizer, **options) -> PCCoTTrainer:
    args = CoTTrainingArguments(
        str(folder), use_cpu=True, report_to="none", max_steps=1, save_strategy="no", disable_tqdm=True, **options
    )
    data = {"train_dataset": ROWS, "eval_dataset": ROWS[:2]}
    return PCCoTTrainer(chain_model(tokenizer), args, processing_class=tokenizer, **data)


# --- whose files ---


def test_a_model_names_its_files(characters, tmp_path):
    save(tmp_path, characters)
    assert model_files(tmp_path) == files_in(tmp_path)
    assert {"config.json", "model.safetensors", "modeling_pccot.py", "example.py", MANIFEST} <= files_in(tmp_path)
    assert all(any(Path(name).match(pattern) for pattern in RESERVED) for name in files_in(tmp_path))


def test_a_new_model_keeps_nothing_of_the_older_one(characters, tmp_path):
    """What would be read along with it, or tells of the older one; what no manifest names stays."""
    save(tmp_path, characters, more=(*STALE, "adapter/adapter_config.json", "test_results.json", "other.bin"))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "adapter" / MANIFEST).exists()
    save(tmp_path, characters, seed=1)
    left = {path.name for path in tmp_path.iterdir()}
    assert not left & {*STALE, "adapter", "test_results.json", "other.bin"} and "notes.txt" in left
    assert model_files(tmp_path) == files_in(tmp_path) - {"notes.txt"}


@pytest.mark.parametrize("name", ["README.md", "example.py", "config.json", "adapter/notes.txt", "test_results.json"])
@pytest.mark.parametrize("beside_a_model", [False, True])
def test_a_file_of_somebody_else_is_refused_before_anything_is_touched(
    name, beside_a_model, characters, tmp_path, monkeypatch
):
    if beside_a_model:
        save(tmp_path, characters)
        names = json.loads((tmp_path / MANIFEST).read_text())["files"]
        (tmp_path / MANIFEST).write_text(json.dumps({"files": [other for other in names if other != name]}))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"{name} was not written by this project.*choose another folder"):
        save(Path("."), characters, seed=1)
    args = CoTTrainingArguments(".", do_train=True, overwrite_output_dir=True, use_cpu=True)
    with pytest.raises(InputError, match="was not written by this project"):
        check_arguments(args, DataArguments())
    assert contents(tmp_path) == before


def test_save_model_here_leaves_other_files_alone(characters, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "out", characters)
    (tmp_path / "README.md").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"README\.md was not written by this project"):
        trainer.save_model(".")
    assert contents(tmp_path).keys() == {"README.md"}
    trainer.save_model("here")
    trainer.save_model("here")
    assert model_files(Path("here")) == files_in(Path("here"))


def test_a_folder_from_before_manifests_is_still_ours(characters, tmp_path):
    save(tmp_path, characters, more=STALE)
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "notes.txt").write_text("mine")
    save(tmp_path, characters, seed=1)
    left = {path.name for path in tmp_path.iterdir()}
    assert not left & {*STALE} and "notes.txt" in left
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"README\.md was not written"):
        save(tmp_path, characters)


@pytest.mark.parametrize("files", [["../mine"], ["/mine"], ["a/../../mine"], [".env"], [3], "mine", None])
def test_a_manifest_names_nothing_outside(files, characters, tmp_path):
    folder = tmp_path / "model"
    save(folder, characters)
    (tmp_path / "mine").write_text("mine")
    (folder / MANIFEST).write_text(json.dumps({"files": files}))
    with pytest.raises(InputError, match=rf"{MANIFEST}: damaged|was not written by this project"):
        save(folder, characters, seed=1)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_link_to_the_adapters_is_replaced(characters, tmp_path):
    """What it points to stays as it is, and the new model is there."""

    def save_adapters(seed: int) -> None:
        lora = LoraArguments(use_peft=True, lora_r=2)
        with replacing_model(tmp_path / "run") as new:
            adapted = add_adapters(chain_model(characters, seed=seed), lora, fast=False)
            write_final_model(adapted, characters, new, lora)

    save_adapters(0)
    (tmp_path / "run" / "adapter").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "adapter").symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    save_adapters(1)
    assert contents(tmp_path / "elsewhere") == before
    assert not (tmp_path / "run" / "adapter").is_symlink()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert model_files(tmp_path / "run") == files_in(tmp_path / "run")


def test_an_evaluation_adds_to_the_list(tmp_path):
    """A later model takes its results away."""
    argv = [*RUN, *PCCOT, "--max_steps", "1", "--save_strategy", "no", "--output_dir", str(tmp_path)]
    run_ccot.main(argv)
    ask = ["--model_name_or_path", str(tmp_path), "--do_predict", "--use_cpu", "--max_cot_tokens", "8"]
    ask += ["--dataset_name", "chain", "--task_args", "train=1,validation=1,test=2", "--output_dir", str(tmp_path)]
    run_ccot.main([*ask, "--max_new_tokens", "4"])
    assert "test_results.json" in model_files(tmp_path) and model_files(tmp_path) == files_in(tmp_path)
    run_ccot.main([*argv, "--overwrite_output_dir"])
    assert not (tmp_path / "test_results.json").exists() and not (tmp_path / "predictions.jsonl").exists()


# --- one run in a folder ---


def test_a_second_run_is_refused_while_one_writes(tmp_path):
    processes = multiprocessing.get_context("fork")
    writes = processes.Event()

    def write():
        with locked(tmp_path):
            writes.set()
            time.sleep(100)

    first = processes.Process(target=write)
    first.start()
    assert writes.wait(30)
    argv = [*RUN, *PCCOT, "--output_dir", str(tmp_path)]
    said = rf"another run writes into .* \(process {first.pid} on {socket.gethostname()}\): choose another folder"
    with pytest.raises(InputError, match=said):
        run_ccot.main(argv)
    with pytest.raises(InputError, match=said), locked(tmp_path):
        pass
    first.kill()
    first.join()
    assert (tmp_path / LOCK).exists()  # of a process that is dead
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with locked(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
    assert not tmp_path.exists() or not any(tmp_path.iterdir())


def test_a_lock_of_another_host_or_that_cannot_be_read_holds(tmp_path):
    for text in ('{"host": "elsewhere", "pid": 1, "started": null}', ""):
        (tmp_path / LOCK).write_text(text)
        with pytest.raises(InputError, match="another run writes into"), locked(tmp_path):
            pass
        assert (tmp_path / LOCK).read_text() == text


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_breaks_off_holds_nothing(error, characters, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "out", characters)

    def stop(*args, **kwargs):
        assert (tmp_path / "out" / LOCK).exists()
        raise error

    monkeypatch.setattr(trainer, "training_step", stop)
    with pytest.raises(error):
        trainer.train()
    assert not (tmp_path / "out" / LOCK).exists()


# --- what is saved is what was trained ---


@pytest.mark.parametrize("kind", ["bf16_full_eval", pytest.param("fp16_full_eval", marks=pytest.mark.slow)])
def test_evaluation_in_half_precision_leaves_the_weights(kind, tmp_path):
    argv = [*RUN, *PCCOT, "--do_eval", "--do_predict", f"--{kind}", "true", "--output_dir", str(tmp_path)]
    if kind == "fp16_full_eval":
        argv = [*argv, "--bf16_full_eval", "false"]
    run_ccot.main([*argv, "--max_steps", "2"])
    saved, trained = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "checkpoint-2"))
    assert all(torch.equal(saved[name], trained[name]) and saved[name].dtype == torch.float32 for name in saved)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("other", ["sgd", pytest.param("adafactor", marks=pytest.mark.slow)])
def test_another_optimizer_does_not_go_on(other, tmp_path):
    argv = [*RUN, *PCCOT, "--max_steps", "2", "--output_dir", str(tmp_path)]
    run_ccot.main(argv)
    again = [*argv, "--max_steps", "3", "--resume_from_checkpoint", "true"]
    with pytest.raises(InputError, match=f"its optimizer is another one than --optim {other}; resume with"):
        run_ccot.main([*again, "--optim", other])
    run_ccot.main([*again, "--optim", "adamw_torch"])  # of the same kind, without fusion


def test_a_second_handler_of_signals_is_refused(characters, tmp_path):
    message = "--enable_jit_checkpoint is not supported: leave it out"
    with pytest.raises(InputError, match=message):
        run_ccot.main([*RUN, *PCCOT, "--enable_jit_checkpoint", "true", "--output_dir", str(tmp_path / "out")])
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path / "out", characters, enable_jit_checkpoint=True)
    assert not (tmp_path / "out").exists()


# --- what a card says ---


def test_a_card_claims_nothing_and_tells_no_folder(tmp_path, monkeypatch):
    """No licence that nobody gave, each file under its own name, and no folder of this computer."""
    files = {}
    for split in ("train", "validation", "test"):
        files[split] = tmp_path / "private" / f"{split}-rows.jsonl"
        files[split].parent.mkdir(exist_ok=True)
        files[split].write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    argv = ["--use_cpu", "--do_train", "--do_eval", "--do_predict", "--max_steps", "1", "--save_strategy", "no", *PCCOT]
    argv += [f"--{split}_file={path}" for split, path in files.items()]
    argv += ["--max_cot_tokens", "8", "--max_new_tokens", "4", "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "run_ccot.py"), *argv])
    run_ccot.main(argv)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license" not in card and str(tmp_path) not in card and "private" not in card
    assert "Trained on train-rows.jsonl, validation data validation-rows.jsonl, test data test-rows.jsonl." in card
    assert "name: validation-rows.jsonl\n      type: validation-rows.jsonl\n      split: validation" in card
    assert "name: test-rows.jsonl\n      type: test-rows.jsonl\n      split: test" in card
    assert "--train_file=train-rows.jsonl" in card and "--output_dir out" in card


def test_a_base_models_license_is_handed_on(tmp_path, characters):
    from latent_cot.training.checkpoints.model_card import base_license

    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    assert base_license(str(tmp_path)) == {"license": "mit"}
    (tmp_path / "README.md").write_text("# Base\n")
    assert base_license(str(tmp_path)) == base_license(None) == base_license("no/such-model") == {}


def test_a_command_names_no_folder():
    argv = ["/home/me/run_ccot.py", "/home/me/my recipes/a.yaml", "--train_file=/data/a.json,/data/b.json"]
    argv += ["--seed", "1"]
    argv += ["--model_name_or_path", "~/models/base", "--dataset_name", "user/data", "--output_dir", "outputs/run"]
    assert public_command(argv, None) == (
        "python run_ccot.py a.yaml --train_file=a.json,b.json --seed 1 --model_name_or_path base --dataset_name user/data "
        "--output_dir outputs/run"
    )


def test_greedy_answers_are_what_a_checkpoint_gives(characters, tmp_path):
    """In a pipeline too, which samples where nothing is said."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    save(tmp_path, characters)
    for folder in (tmp_path, *(ROOT / "checkpoints").iterdir()):
        assert json.loads((folder / "generation_config.json").read_text())["do_sample"] is False
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ask = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert len({ask("1+2=", max_new_tokens=12)[0]["generated_text"] for _ in range(4)}) == 1


def test_the_older_manifest_covers_a_replacement_that_was_cut(characters, tmp_path, monkeypatch):
    """A process that is killed while files change places leaves a folder that the next model replaces."""
    save(tmp_path, characters, more=STALE)
    from latent_cot.training.resume import whole_folders

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_folders, "put_in_place", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, characters, seed=1)
    monkeypatch.undo()
    assert not (tmp_path / "config.json").exists()
    save(tmp_path, characters, seed=1)
    assert model_files(tmp_path) == files_in(tmp_path)
    shutil.rmtree(tmp_path)
