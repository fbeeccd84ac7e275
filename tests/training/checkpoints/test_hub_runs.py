"""`--push_to_hub` in the scripts, and a trainer that pushes in Python (tests/helpers/hub_server.py plays the Hub)."""

# ruff: noqa: F811  (`hub` is a fixture)

import io
import logging
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from conftest import ROOT, chain_model
from hub_server import Hub
from test_hub import STRANGER, TOKEN, USERS, arguments, connect, contents, environment, hub, token_is_nowhere  # noqa: F401

import run_ccot
from latent_cot.training import PCCoTTrainer, cli
from latent_cot.training.checkpoints.write import model_files
from latent_cot.training.errors import InputError

RUN = ["--config_name", "configs/gpt2_chain.json", "--tokenizer_name", "characters", "--dataset_name", "chain"]
RUN += ["--task_args", "train=64,validation=8,test=8", "--use_cpu", "--do_train", "--do_eval", "--max_steps", "2"]
RUN += ["--per_device_train_batch_size", "4", "--max_cot_tokens", "12", "--max_new_tokens", "6", "--save_steps", "1"]
RUN += ["--disable_tqdm", "true", "--push_to_hub", "--hub_model_id", "me/tiny"]


def run_here(hub: Hub, home: Path, argv: list[str]) -> subprocess.CompletedProcess:
    """A script run in this process; what it printed and logged."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(out), redirect_stderr(err):
        connect(hub, monkeypatch, home)
        monkeypatch.setattr(sys, "argv", argv)
        cli.run(run_ccot.main)
    logging.basicConfig(force=True)  # `err` is no place for what others log
    return subprocess.CompletedProcess(argv, 0, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module", params=["here", pytest.param("as a user starts it", marks=pytest.mark.slow)])
def run(request, tmp_path_factory):
    """A script's run: the server, the process when it has ended, and its folder."""
    home = tmp_path_factory.mktemp("run")
    argv = ["run_ccot.py", *RUN, "--hub_token", TOKEN, "--output_dir", str(home / "output")]
    with Hub(USERS) as hub:
        if request.param == "here":
            yield hub, run_here(hub, home, argv), home
        else:
            env = environment(hub, home / "hf")
            yield hub, subprocess.run([sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True), home


def test_a_run_ends_in_a_push(run):
    """The finished checkpoint in one commit, and none on the way."""
    hub, done, home = run
    assert done.returncode == 0, done.stderr
    commits = hub.repository("me/tiny").commits
    assert len(commits) == 2 and commits[-1].oid in done.stdout + done.stderr
    files = hub.files("me/tiny")
    here = {name: data for name, data in contents(home / "output").items() if not name.startswith("checkpoint-")}
    assert (home / "output" / "checkpoint-2").is_dir()
    assert files.pop(".gitattributes") is not None and files == here
    assert {"model.safetensors", "config.json", "README.md", "example.py", "predictions.jsonl"} <= files.keys()


def test_a_run_tells_its_token_to_nobody(run):
    """Not on the Hub, in the log, in the card's command, nor in a file of a checkpoint here."""
    hub, done, home = run
    assert "run_ccot.py --config_name" in hub.files("me/tiny")["README.md"].decode()
    assert token_is_nowhere(hub, done.stdout, done.stderr)
    assert [name for name, data in contents(home).items() if TOKEN.encode() in data] == []


def test_a_run_logs_no_address_that_opens_the_storage(run):
    hub, done, _ = run
    assert any("X-Amz-Signature" in request.query for request in hub.requests)
    assert "X-Amz-Signature" not in done.stdout + done.stderr


def last_words(monkeypatch, *flags: str) -> str:
    """The one line that a script ends with."""
    monkeypatch.setattr(sys, "argv", ["run_ccot.py", *RUN, *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run(run_ccot.main)
    return str(stop.value.code)


def test_a_run_without_access_ends_before_training(hub, tmp_path, monkeypatch, capfd):
    output = tmp_path / "output"
    said = last_words(monkeypatch, "--hub_token", STRANGER, "--output_dir", str(output))
    assert said.startswith("error: --push_to_hub to 'me/tiny': the token may not write there")
    assert not output.exists()
    assert token_is_nowhere(hub, said, *capfd.readouterr())


def test_a_run_whose_push_fails_has_its_checkpoint(hub, tmp_path, monkeypatch, capfd):
    output = tmp_path / "output"
    hub.fail("/commit/", 403)
    said = last_words(monkeypatch, f"--hub_token={TOKEN}", "--save_strategy", "no", "--output_dir", str(output))
    assert said.startswith("error: the push to me/tiny failed: the token may not write there")
    assert f"run: hf upload me/tiny {output} " in said
    files = contents(output)
    assert {"model.safetensors", "config.json", "README.md", "all_results.json"} <= files.keys()
    assert [name for name, data in files.items() if TOKEN.encode() in data] == []
    assert token_is_nowhere(hub, said, *capfd.readouterr())


# In Python


ROWS = [{"question": f"{i}+1=", "steps": [f"{i}+1={i + 1}"], "answer": str(i + 1)} for i in range(8)]


def make_trainer(folder: Path, characters, **options) -> PCCoTTrainer:
    settings = {"max_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True} | options
    data = {"train_dataset": ROWS, "eval_dataset": ROWS[:2]}
    return PCCoTTrainer(chain_model(characters), arguments(folder, **settings), processing_class=characters, **data)


@pytest.mark.parametrize("door", ["save_model", "save_model elsewhere", "push_to_hub"])
def test_a_trainer_pushes_in_python(door, hub, characters, tmp_path):
    """The files of the model, its card among them, and nothing else of the folder."""
    folder = tmp_path / "elsewhere" if door == "save_model elsewhere" else tmp_path / "out"
    trainer = make_trainer(tmp_path / "out", characters, push_to_hub=door != "push_to_hub")
    trainer.train()
    trainer.evaluate()
    (folder / "sub").mkdir(parents=True)
    for name in ("sub/.env", "id_rsa"):
        (folder / name).write_text("mine")
    if door == "push_to_hub":
        url = trainer.push_to_hub("Mine", license="mit", dataset="additions")
        assert url.endswith(hub.repository("me/tiny").commits[-1].oid)
        assert hub.repository("me/tiny").commits[-1].title == "Mine"
    else:
        trainer.save_model(*([str(folder)] if folder.name == "elsewhere" else []))
    files = hub.files("me/tiny")
    here = {name: data for name, data in contents(folder).items() if name not in ("sub/.env", "id_rsa")}
    assert files.pop(".gitattributes") is not None and files == here
    card = files["README.md"].decode()
    assert "# me/tiny" in card and "| validation | latent thought |" in card and str(tmp_path) not in card
    assert ("license: mit" in card and "Trained on additions" in card) == (door == "push_to_hub")
    assert token_is_nowhere(hub)


def test_a_push_to_another_branch_with_another_token(hub, characters, tmp_path):
    trainer = make_trainer(tmp_path, characters, push_to_hub=False, hub_token=None)
    with pytest.raises(InputError, match="no token"):
        trainer.push_to_hub()
    trainer.push_to_hub(token=TOKEN, revision="trial")
    assert set(hub.files("me/tiny")) == {".gitattributes"}
    assert {"model.safetensors", "README.md"} <= hub.files("me/tiny", "trial").keys()


def test_the_card_is_ours(characters, tmp_path):
    trainer = make_trainer(tmp_path, characters, push_to_hub=False)
    trainer.create_model_card(model_name="mine", license="mit", dataset=["one", "two"])
    card = (tmp_path / "README.md").read_text()
    assert "license: mit" in card and "# mine" in card and "Trained on one, two." in card
    assert model_files(tmp_path) == {"README.md", "latent_cot_files.json"}
    with pytest.raises(InputError, match="create_model_card: tasks is not supported"):
        trainer.create_model_card(tasks="text-generation")
    (tmp_path / "latent_cot_files.json").unlink()
    with pytest.raises(InputError, match=r"README\.md was not written by this project"):
        trainer.create_model_card()
