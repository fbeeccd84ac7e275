"""`latent-cot`: the table of subcommands, the same flags in all of them, and the doors at the root."""

import subprocess
import sys
from importlib import import_module

import pytest
from conftest import FIXTURES, ROOT
from transformers import AutoModelForCausalLM

import example
import run_ccot
import run_cot
import run_grpo
import run_icot
from latent_cot.analysis.comparison import load_function
from latent_cot.commands import __main__ as command
from latent_cot.commands import convert, train_cot, train_grpo, train_icot, train_pccot
from latent_cot.converters.convert_icot import recognizes
from latent_cot.training.checkpoints import example as packaged
from latent_cot.training.data.small_tokenizers import byte_tokenizer
from latent_cot.training.data.text_format import FORK_TOKENS
from latent_cot.training.errors import InputError
from latent_cot.training.runs.stages import public_command

PUBLISHED = FIXTURES / "parity" / "peft_checkpoint" / "checkpoint"


def started(monkeypatch, capsys, *words: str) -> str:
    """What `latent-cot WORDS` prints, in this process."""
    monkeypatch.setattr(sys, "argv", ["latent-cot", *words])
    command.main()
    return capsys.readouterr().out


def test_every_subcommand_is_there():
    for place, summary in command.COMMANDS.values():
        module, _, function = place.partition(":")
        assert callable(getattr(import_module(f"latent_cot.{module}"), function)) and summary


def test_a_card_says_the_command():
    assert public_command(["latent-cot train pccot", "--seed", "1"], None) == "latent-cot train pccot --seed 1"
    assert public_command(["somewhere/run_ccot.py", "--seed", "1"], None) == "python run_ccot.py --seed 1"


def test_help_and_what_is_no_command(monkeypatch, capsys):
    whole, group = (started(monkeypatch, capsys, *words) for words in (["--help"], ["train", "--help"]))
    assert all(name in whole for name in command.COMMANDS) and "train icot" in group and "serve" not in group
    assert command.find(["train", "pccot", "--seed", "1"]) == ("train pccot", ["--seed", "1"])
    for words, said in ((["fly"], "no command 'fly'"), (["train", "fly"], "'train fly': there are train pccot, train")):
        with pytest.raises(SystemExit, match=said):
            command.find(words)


def test_a_reader_who_has_read_enough():
    words = f"{{ sleep 1; {sys.executable} -m latent_cot.commands --help; }} | true"
    assert subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=True).stderr == ""


def test_help_needs_no_model():
    code = "import sys; sys.argv = ['latent-cot', 'train', '--help']; from latent_cot.commands.__main__ import main; main()"
    told = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    ).stdout
    assert "train icot" in told and told.endswith("False\n")


@pytest.mark.parametrize("name", ["ask", "inspect", "serve", "chat", "export", "convert", "faithfulness"])
def test_the_model_is_named_alike(name, monkeypatch, capsys):
    """`--model` and `--revision` in every command that is about a model."""
    with pytest.raises(SystemExit) as stop:
        started(monkeypatch, capsys, name, "--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "--model MODEL" in printed and "--revision REVISION" in printed


def test_a_missing_extra_is_named(monkeypatch):
    """... by what to install."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "latent_cot.training.cli")
    monkeypatch.setattr(sys, "argv", ["latent-cot", "export", "--help"])
    with pytest.raises(SystemExit, match=r"latent-cot export needs datasets: pip install 'latent-cot\[training\]'"):
        command.main()


def test_the_doors_at_the_root_are_the_commands():
    assert example.example is packaged
    doors = {run_ccot: train_pccot, run_cot: train_cot, run_icot: train_icot, run_grpo: train_grpo}
    for door, module in doors.items():
        assert door.main is module.main
        assert len((ROOT / f"{door.__name__}.py").read_text().partition('"""\n\n')[2].splitlines()) <= 9
    assert run_ccot.ARGUMENTS is train_pccot.ARGUMENTS


def test_an_experiment_brings_its_trainer(tmp_path):
    """A subclass, and everything else as the script has it."""

    class Stopped(Exception):
        pass

    class Mine(train_pccot.PCCoTTrainer):
        def train(self, *args, **kwargs):
            raise Stopped

    argv = ["--config_name", str(ROOT / "configs" / "pccot_gpt2_tiny.json"), "--tokenizer_name", "characters"]
    argv += ["--dataset_name", "chain", "--task_args", "train=8,validation=1,test=1", "--do_train", "--use_cpu"]
    with pytest.raises(Stopped):
        run_ccot.main([*argv, "--output_dir", str(tmp_path)], Mine)


def test_a_checkpoint_of_other_code_is_recognized(tmp_path):
    """By its files; what belongs to another layout is refused."""
    with pytest.raises(InputError, match="--num_internalized_tokens is of the original iCoT"):
        convert.main(["--model", str(PUBLISHED), "--num_internalized_tokens", "1", str(tmp_path / "out")])
    with pytest.raises(InputError, match="nowhere"):
        convert.main(["--model", "./nowhere", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    convert.main(["--model", str(PUBLISHED), str(tmp_path / "out")])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.family == "pccot"


def test_the_original_icot_and_its_fork_are_told_by_their_files(tmp_path):
    folders = {name: tmp_path / name for name in ("original", "fork", "ours")}
    for folder in folders.values():
        folder.mkdir()
    (folders["original"] / "config.json").write_text('{"base_model": "gpt2"}')
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(FORK_TOKENS.values()))
    for name, model_type in (("fork", "gpt2"), ("ours", "icot-gpt2")):
        (folders[name] / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
        tokenizer.save_pretrained(folders[name])
    assert {name: recognizes(str(folder)) for name, folder in folders.items()} == {
        "original": True,
        "fork": True,
        "ours": False,
    }


def test_the_path_of_imports_is_not_edited():
    """Nowhere but in tests."""
    edit = "sys." + "path"
    listed = subprocess.run(["git", "grep", "-lF", edit, "--", ":!tests"], cwd=ROOT, capture_output=True, text=True)
    assert listed.stdout.split() == []


def test_a_reward_is_found_in_the_current_folder(tmp_path, monkeypatch):
    """And leaves the path of imports as it is; what is installed comes first."""
    (tmp_path / "my_own").mkdir()
    (tmp_path / "my_own" / "rewards.py").write_text("def five():\n    return 5\n")
    (tmp_path / "json.py").write_text("broken = \n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_function("reward_function", "my_own.rewards:five")() == 5 and sys.path == before
    assert load_function("reward_function", "json:dumps")(1) == "1"
    (tmp_path / "needs_more.py").write_text("import no_such_module\n")
    with pytest.raises(InputError, match="No module named 'no_such_module'"):
        load_function("reward_function", "needs_more:f")


def test_without_a_model_ask_says_so(tmp_path):
    """Outside a clone and a checkpoint; the program itself needs transformers and nothing of ours."""
    with pytest.raises(SystemExit, match="error: no model: pass --model with a folder or a name on the Hub"):
        packaged.main(["1+1="])
    source = (ROOT / "training" / "checkpoints" / "example.py").read_text()
    assert source.count("latent_cot") == 1
