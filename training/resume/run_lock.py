"""A lock file in the folder that a run writes into, so that two runs do not mix their files there."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from latent_cot.training.errors import InputError

LOCK = ".latent_cot.lock"
_held: dict[Path, int] = {}  # by this process: how often it asked


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While this lasts, no other run writes into the folder; a process may ask again for what it holds. Raises
    InputError if another run writes there: one of a process that lives, or of another host.
    """
    path = folder.resolve() / LOCK
    if path not in _held:
        folder.mkdir(parents=True, exist_ok=True)
        take(path)
    _held[path] = _held.get(path, 0) + 1
    try:
        yield
    finally:
        _held[path] -= 1
        if not _held[path]:
            del _held[path]
            path.unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()  # where nothing came of it


def take(path: Path) -> None:
    """Make the lock file, in the place of a dead process's."""
    mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid())})
    aside = path.with_name(f"{LOCK}.{os.getpid()}")
    while True:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(mine)
            return
        except FileExistsError:
            stale = refuse_held(path.parent)
        with suppress(FileNotFoundError):
            path.rename(aside)
            if aside.read_text(encoding="utf-8") != stale:  # meanwhile another process has taken it over
                aside.rename(path)
            aside.unlink(missing_ok=True)


def refuse_held(folder: Path) -> str | None:
    """What a dead process left in the lock file of a folder; None if there is no lock file, or it is this process's.
    Raises InputError if another run holds it.
    """
    path = folder.resolve() / LOCK
    if path in _held:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        held = json.loads(text)
        host, pid = str(held["host"]), int(held["pid"])
        if host == socket.gethostname() and (pid == os.getpid() or started(pid) != held.get("started")):
            return text
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        host, pid = "an unknown host", -1
    raise InputError(
        f"another run writes into {folder} (process {pid} on {host}): choose another folder, or, if it runs no more, "
        f"remove {path}"
    )


def started(pid: int) -> str | None:
    """What tells a process from a later one with its number: when it started; None if it does not live."""
    try:
        # The fields after the name, which may hold spaces and brackets.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
