"""What `--push_to_hub` does: check before training that a push can succeed, and upload the finished checkpoint."""

import shlex
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HTTPError  # of httpx or httpx2, whichever the installed version uses
from transformers import TrainingArguments

from latent_cot.training.errors import InputError

from .write import model_files

ANSWERS = {
    401: "the token is not accepted: log in with `hf auth login`, or pass another --hub_token",
    403: "the token may not write there: it needs write access, or pass another --hub_model_id",
    404: "no such repository, or the token may not see it",
    409: "the repository was changed at the same time",
}


def check_access(args: TrainingArguments) -> str:
    """Create the repository (and the branch `--hub_revision`), unless there is one, and check that it can be written.

    Returns its name as the Hub spells it: `user/name`.

    Raises InputError without a token, for one that may not write there, for a bad name, and without a connection.
    """
    name, token = args.hub_model_id or Path(args.output_dir).resolve().name, None
    try:
        token = find_token(args)
        api = HfApi(token=token)
        repo_id = api.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
        # A repository that exists passes the line above with a token that may only read.
        api.auth_check(repo_id, write=True)
        if args.hub_revision is not None and not api.revision_exists(repo_id, args.hub_revision):
            api.create_branch(repo_id, branch=args.hub_revision, exist_ok=True)
    except Exception as error:  # whatever can happen on the way to the Hub
        raise InputError(f"--push_to_hub to {name!r}: {describe(error, token)}") from None
    return repo_id


def push(folder: str | Path, repo_id: str, args: TrainingArguments, message: str = "Upload checkpoint") -> str:
    """Upload a finished checkpoint in one commit: the files of its manifest, and nothing else; nothing in the folder changes.

    Returns the address of the commit; of the latest one if the repository already holds the same files.

    Raises InputError when the Hub refuses, the connection is lost or a file contains the token; with the command that
    pushes again.
    """
    folder, token = Path(folder), None
    try:
        token = find_token(args)
        # Not upload_folder: with hf_xet it tries a failed commit again in parts, and half a checkpoint is none.
        commit = HfApi(token=token).create_commit(
            repo_id,
            [CommitOperationAdd(name, folder / name) for name in files_to_push(folder, token)],
            commit_message=message,
            revision=args.hub_revision,
        )
    except Exception as error:  # whatever can happen on the way to the Hub
        command = ["hf", "upload", repo_id, str(folder), *(f"--include={name}" for name in present_files(folder))]
        command += [] if args.hub_revision is None else ["--revision", args.hub_revision]
        raise InputError(
            f"the push to {repo_id} failed: {describe(error, token)}; the checkpoint in {folder} is complete; to push "
            f"it again, log in (`hf auth login`) and run: {shlex.join(command)}"
        ) from None
    return commit.commit_url


def files_to_push(folder: Path, token: str) -> list[str]:
    """The files of a model, as its manifest names them, relative to its folder. Raises InputError if there is no
    manifest, or the token is in one of them.
    """
    names = present_files(folder)
    if not names:
        raise InputError(f"no model of this project is in {folder}: save it first (trainer.save_model())")
    for name in names:
        if not name.endswith(".safetensors") and token.encode() in (folder / name).read_bytes():
            raise InputError(f"remove the token from {name} first")
    return names


def present_files(folder: Path) -> list[str]:
    return sorted(name for name in model_files(folder) if (folder / name).is_file())


def find_token(args: TrainingArguments) -> str:
    """The token of `--hub_token`, of the environment variable HF_TOKEN, or of `hf auth login`. Raises InputError if
    there is none, or if it cannot be one.
    """
    token = (args.hub_token or get_token() or "").strip()
    if not token:
        raise InputError("no token: log in with `hf auth login`, set HF_TOKEN, or pass --hub_token")
    if not (token.isascii() and token.isprintable()):  # the HTTP client would quote it in its error
        raise InputError("the token is not one line of ASCII: copy it again")
    return token


def describe(error: Exception, token: str | None) -> str:
    """One line on what went wrong, without the token."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    # Below "Error while uploading model.safetensors" lies what the Hub answered, or how the connection ended.
    cause = next((cause for cause in chain if isinstance(cause, (HTTPError, ConnectionError))), None)
    if cause is None:
        text = str(error) or type(error).__name__
    elif (response := getattr(cause, "response", None)) is None:
        text = f"the connection failed ({type(cause).__name__}: {cause})"
    else:
        status, said = response.status_code, getattr(cause, "server_message", None) or "no reason given"
        meaning = ANSWERS.get(status, "try again later" if status >= 500 else "refused")
        text = f"{meaning} (the Hub answered {status}: {said})"
    text = " ".join(text.split())
    return text.replace(token, "<token>") if token else text
