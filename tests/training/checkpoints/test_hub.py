"""`--push_to_hub` and loading by name, against a server that speaks the Hub's protocol (tests/helpers/hub_server.py)."""

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import chain_model
from hub_server import Hub
from huggingface_hub import constants

from latent_cot.training.arguments import CoTTrainingArguments
from latent_cot.training.checkpoints.hub import check_access, push
from latent_cot.training.checkpoints.write import EXAMPLE, files_in, write_manifest
from latent_cot.training.errors import InputError

TOKEN, READER, STRANGER = "hf_secretOfMe", "hf_secretReader", "hf_secretOfYou"
USERS = {TOKEN: ("me", True), READER: ("me", False), STRANGER: ("you", True)}
QUESTIONS = ["1+2*3-4+5=", "7="]
LEFT_OUT = ["checkpoint-3/model.safetensors", "checkpoint-3/optimizer.pt", "runs/now/events.out", "training_args.bin"]
LEFT_OUT += ["weights.pth", "state.pkl", "adapter/old.bin", "train.log", ".env", "sub/.env", "sub/notes.md", "id_rsa"]


def connect(hub: Hub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Make this process's huggingface_hub, which read its environment when it was imported, talk to a server."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between huggingface_hub's own attempts


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub(USERS) as hub:
        connect(hub, monkeypatch, tmp_path)
        yield hub


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """Of a fresh process without this repository, with its cache in `home`."""
    left_out = ("HF_", "HUGGING", "TRANSFORMERS_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    ours = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    return kept | ours | {"NO_PROXY": "127.0.0.1,localhost"} | more


def arguments(folder, **changes) -> CoTTrainingArguments:
    settings = {"push_to_hub": True, "hub_model_id": "me/tiny", "hub_token": TOKEN, "use_cpu": True}
    return CoTTrainingArguments(output_dir=str(folder), **(settings | changes))


def checkpoint(folder: Path, tokenizer, seed: int):
    """A complete checkpoint, among it what a run leaves beside; returns its answers."""
    model = chain_model(tokenizer, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(EXAMPLE, folder / EXAMPLE.name)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# tiny\n")
    (folder / "all_results.json").write_text('{"eval_ccot_exact_match": 0.5}')
    (folder / "predictions.jsonl").write_text('{"question": "1+2=", "gold": "3"}\n')
    for name in ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", *LEFT_OUT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    write_manifest(folder, files_in(folder) - {*LEFT_OUT})
    inputs = tokenizer(QUESTIONS, padding=True, return_tensors="pt")
    return model.generate(**inputs, max_new_tokens=8, do_sample=False).tolist()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushed_part(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name not in LEFT_OUT}


def token_is_nowhere(hub: Hub, *texts: str) -> bool:
    """Not in what was said or committed, nor in a request but for the header that shows it to the Hub."""
    data = [text.encode() for text in texts] + list(hub.storage.values())
    for repository in hub.repositories.values():
        for commit in repository.commits:
            data += [commit.title.encode(), commit.description.encode(), *(file.data for file in commit.files.values())]
    for request in hub.requests:
        headers = {name: value for name, value in request.headers.items() if name != "authorization"}
        data += [f"{request.path} {request.query} {headers}".encode(), request.body]
    return not any(token.encode() in text for token in USERS for text in data)


@pytest.fixture(scope="module")
def folder(characters, tmp_path_factory):
    """A checkpoint to push; no test may change it."""
    folder = tmp_path_factory.mktemp("pushed") / "tiny"
    checkpoint(folder, characters, seed=0)
    before = contents(folder)
    yield folder
    assert contents(folder) == before


# Loading by name


LOAD = """
import json, sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

results = {}
for case, options in json.loads(sys.argv[1]).items():
    options = {"pretrained_model_name_or_path": "me/tiny", "trust_remote_code": True} | options
    try:
        config = AutoConfig.from_pretrained(**options)
        tokenizer = AutoTokenizer.from_pretrained(**options)
        model = AutoModelForCausalLM.from_pretrained(**options)
    except Exception as error:
        results[case] = f"{type(error).__name__}: {error}"
        continue
    assert type(config) is type(model.config) and not any(name.split(".")[0] == "models" for name in sys.modules)
    inputs = tokenizer(["1+2*3-4+5=", "7="], padding=True, return_tensors="pt")
    results[case] = model.generate(**inputs, max_new_tokens=8, do_sample=False).tolist()
print("\\n" + json.dumps(results))
"""


def load(hub: Hub, home: Path, cases: dict[str, dict], **env: str) -> dict:
    """The answers, or the errors, of models that a fresh process loads by name."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(cases)],
        cwd=home, env=environment(hub, home / "hf", **env), capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert token_is_nowhere(hub, done.stdout, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def published(characters, tmp_path_factory):
    """Two commits on a branch, the first one on main too, and a private repository; the answers before pushing, and what a
    fresh process loads by name."""
    home = tmp_path_factory.mktemp("published")
    answers = {name: checkpoint(home / name, characters, seed) for seed, name in enumerate(("old", "new"))}
    with Hub(USERS) as hub:
        commits = []
        with pytest.MonkeyPatch.context() as monkeypatch:
            connect(hub, monkeypatch, home)
            monkeypatch.setenv("HF_TOKEN", TOKEN)
            for name, repo_id, revision, private in (
                ("old", "me/tiny", None, None),
                ("old", "me/tiny", "next/try", None),
                ("new", "tiny", "next/try", None),
                ("new", "me/hidden", None, True),
            ):
                args = arguments(
                    home / name, hub_model_id=repo_id, hub_revision=revision, hub_private_repo=private, hub_token=None
                )
                commits.append(push(home / name, check_access(args), args).rpartition("/")[2])
        revisions = {"name": {}, "branch": {"revision": "next/try"}, "commit": {"revision": commits[0]}}
        # Every reader of the private one with a cache of its own: it must not come from another's.
        hidden = {"pretrained_model_name_or_path": "me/hidden"}
        cases = revisions | {
            "no trust": {"trust_remote_code": None},
            "no revision": {"revision": "elsewhere"},
            "no model": {"pretrained_model_name_or_path": "me/nothing"},
            "owner": hidden | {"token": TOKEN, "cache_dir": str(home / "a")},
            "anyone": hidden | {"token": False, "cache_dir": str(home / "b")},
            "stranger": hidden | {"token": STRANGER, "cache_dir": str(home / "c")},
        }
        results = load(hub, home, cases)
        yield SimpleNamespace(
            hub=hub, home=home, answers=answers, commits=commits, revisions=revisions, results=results
        )


def test_a_pushed_checkpoint_loads_by_name_branch_and_commit(published):
    """In a process that has nothing else."""
    answers = published.answers
    assert answers["old"] != answers["new"]
    wanted = {"name": "old", "branch": "new", "commit": "old"}
    assert {case: published.results[case] for case in wanted} == {case: answers[name] for case, name in wanted.items()}
    first, same, second, _ = published.commits
    assert first == same != second  # the branch began where main was, and the same files make no commit


@pytest.mark.slow
def test_what_was_loaded_once_loads_without_a_connection(published):
    published.hub.requests.clear()
    results = load(published.hub, published.home, published.revisions, HF_HUB_OFFLINE="1")
    assert results == {case: published.results[case] for case in published.revisions}
    assert published.hub.requests == []


def test_transformers_refuses_as_ever(published):
    results = published.results
    assert results["no trust"].startswith("ValueError: The repository me/tiny contains custom code")
    assert "Please pass the argument `trust_remote_code=True`" in results["no trust"]
    assert results["no revision"].startswith("OSError: elsewhere is not a valid git identifier")
    assert results["no model"].startswith("OSError: me/nothing is not a local folder and is not a valid model")


def test_a_private_repository_opens_with_its_token_only(published):
    assert published.hub.repository("me/hidden").private
    assert published.results["owner"] == published.answers["new"]
    for reader in ("anyone", "stranger"):
        refusal = published.results[reader]
        assert refusal.startswith("OSError: me/hidden is not a local folder and is not a valid model identifier")


# Pushing


def test_a_push_is_one_commit_of_what_others_need(hub, folder):
    args = arguments(folder)
    repo_id = check_access(args)
    url = push(folder, repo_id, args)
    repository = hub.repository("me/tiny")
    assert repo_id == "me/tiny" and not repository.private
    assert url == f"{hub.endpoint}/me/tiny/commit/{repository.commits[-1].oid}" and len(repository.commits) == 2
    files = hub.files("me/tiny")
    assert files.pop(".gitattributes") is not None and files == pushed_part(folder)
    needed = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "example.py", "all_results.json"}
    assert needed | {"modeling_pccot.py", "predictions.jsonl", "adapter/adapter_model.safetensors"} <= files.keys()
    assert repository.find("main").files["model.safetensors"].lfs
    assert push(folder, repo_id, args) == url and len(repository.commits) == 2  # the same files are no second commit
    assert token_is_nowhere(hub)


def test_names_are_completed_and_spelled_as_the_hub_spells_them(hub, tmp_path):
    assert check_access(arguments(tmp_path / "Tiny", hub_model_id=None)) == "me/Tiny"
    assert check_access(arguments(tmp_path, hub_model_id="ME/tiny", hub_private_repo=True)) == "me/Tiny"
    assert not hub.repository("me/tiny").private
    assert check_access(arguments(tmp_path, hub_model_id="me/mine", hub_private_repo=True)) == "me/mine"
    assert hub.repository("me/mine").private


def refused(call, *args) -> str:
    """The message of an InputError: one line, without a token, and nothing of the cause in a traceback."""
    with pytest.raises(InputError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message and not any(token in message for token in USERS)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__
    return message


NO_ACCESS = {
    "no token": ({"hub_token": None}, "no token: log in with `hf auth login`, set HF_TOKEN, or pass --hub_token"),
    "wrong token": ({"hub_token": "hf_wrong"}, "the token is not accepted"),
    "two tokens": ({"hub_token": f"{TOKEN}\n{READER}"}, "not one line of ASCII"),
    "no token's letters": ({"hub_token": f"{TOKEN}é"}, "not one line of ASCII"),
    "a token that reads": ({"hub_token": READER}, "the token may not write there"),
    "another's name": ({"hub_model_id": "you/tiny"}, "the token may not write there"),
    "two slashes": ({"hub_model_id": "me/tiny/model"}, "Repo id must be in the form"),
    "bad letters": ({"hub_model_id": "me/ti ny"}, "Repo id must use alphanumeric chars"),
}


@pytest.mark.parametrize("case", NO_ACCESS)
def test_no_access_is_said_before_training(case, hub, tmp_path):
    changes, said = NO_ACCESS[case]
    message = refused(check_access, arguments(tmp_path, **changes))
    assert said in message and repr(changes.get("hub_model_id", "me/tiny")) in message
    assert not hub.repositories


def test_a_repository_that_one_may_only_read_is_no_access(hub, folder):
    """huggingface_hub's create_repo(exist_ok=True) is content with such a one."""
    check_access(arguments(folder))
    assert "may not write there" in refused(check_access, arguments(folder, hub_token=READER))
    assert "may not write there" in refused(check_access, arguments(folder, hub_token=STRANGER))


def test_no_connection_is_said_before_training(hub, tmp_path, monkeypatch):
    hub.drop("/api/repos/create")
    assert "the connection failed" in refused(check_access, arguments(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "unset the `HF_HUB_OFFLINE`" in refused(check_access, arguments(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the connection failed" in refused(check_access, arguments(tmp_path))


FAULTS = {
    "401 on the commit": (("fail", "/commit/", 401), "the token is not accepted"),
    "403 on the commit": (("fail", "/commit/", 403), "the token may not write there"),
    "409 on the commit": (("fail", "/commit/", 409), "the repository was changed at the same time"),
    "403 before the upload": (("fail", "/preupload/", 403), "the token may not write there"),
    "403 from the storage": (("fail", "/storage/", 403), "the token may not write there"),
    "500 from the storage": (("fail", "/storage/", 500), "try again later"),
    "503 on the commit": (("fail", "/commit/", 503), "try again later"),
    "lost in the upload": (("drop", "/storage/"), "the connection failed"),
    "lost in the commit": (("drop", "/commit/"), "the connection failed"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_push_that_fails_leaves_everything_and_says_how_to_go_on(case, hub, folder, caplog):
    (kind, *fault), said = FAULTS[case]
    args = arguments(folder)
    repo_id = check_access(args)
    # A server that repeats what it was shown must not bring the token into the message.
    getattr(hub, kind)(*fault, **({"message": f"no:\n{TOKEN}"} if kind == "fail" else {}))
    before = contents(folder)
    with caplog.at_level(logging.INFO):
        message = refused(push, folder, repo_id, args)
    assert message.startswith("the push to me/tiny failed: ") and said in message
    assert f"the checkpoint in {folder} is complete" in message and f"run: hf upload me/tiny {folder} " in message
    assert contents(folder) == before
    assert set(hub.files("me/tiny")) == {".gitattributes"}
    assert token_is_nowhere(hub, caplog.text)


def test_a_refusal_of_xet_storage_is_said_as_well(hub, folder, monkeypatch):
    """What uploads where HF_HUB_DISABLE_XET is not set; its storage has no stand-in here."""
    pytest.importorskip("hf_xet")
    args = arguments(folder)
    repo_id = check_access(args)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.fail("/xet-write-token/", 403, message=f"no: {TOKEN}")
    message = refused(push, folder, repo_id, args)
    assert "403 Forbidden" in message and f"the checkpoint in {folder} is complete" in message
    assert set(hub.files("me/tiny")) == {".gitattributes"}
    assert token_is_nowhere(hub)


def test_a_connection_that_is_lost_once_is_not_noticed(hub, folder):
    args = arguments(folder)
    repo_id = check_access(args)
    hub.drop("/storage/", times=1)
    push(folder, repo_id, args)
    assert [request.status for request in hub.requests if "/storage/" in request.path].count(None) == 1
    assert hub.files("me/tiny").keys() == {".gitattributes", *pushed_part(folder)}


def test_a_commit_whose_answer_is_lost_is_there(hub, folder):
    """Pushing again finds it, and makes no second one."""
    args = arguments(folder)
    repo_id = check_access(args)
    hub.drop("/commit/", after=True)
    assert "the connection failed" in refused(push, folder, repo_id, args)
    hub.faults.clear()
    assert push(folder, repo_id, args).endswith(hub.repository(repo_id).commits[-1].oid)
    assert len(hub.repository(repo_id).commits) == 2


def test_a_file_with_the_token_is_not_uploaded(hub, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text(f"python run_ccot.py --hub_token {TOKEN}")
    write_manifest(tmp_path, ["config.json", "README.md"])
    args = arguments(tmp_path)
    repo_id = check_access(args)
    assert "remove the token from README.md first" in refused(push, tmp_path, repo_id, args)
    assert len(hub.repository(repo_id).commits) == 1 and token_is_nowhere(hub)


def test_the_command_that_a_failed_push_names_does_what_it_says(hub, folder, tmp_path):
    args = arguments(folder, hub_revision="trial")
    repo_id = check_access(args)
    hub.drop("/commit/", times=1)
    command, *flags = shlex.split(refused(push, folder, repo_id, args).rpartition(" run: ")[2])
    assert command == "hf"
    env = environment(hub, tmp_path, HF_TOKEN=TOKEN, HF_HUB_DISABLE_UPDATE_CHECK="1")
    done = subprocess.run(
        [Path(sys.executable).with_name("hf"), *flags], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    files = hub.files("me/tiny", "trial")
    assert files.pop(".gitattributes") is not None and files == pushed_part(folder)


def test_a_folder_without_a_list_is_not_pushed(hub, tmp_path):
    (tmp_path / "id_rsa").write_text("mine")
    args = arguments(tmp_path)
    assert "no model of this project is in" in refused(push, tmp_path, check_access(args), args)
    assert set(hub.files("me/tiny")) == {".gitattributes"}
