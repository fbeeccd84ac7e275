"""Folders that are there as a whole or not at all.

What is written goes into a hidden folder beside its place, on the same disk, and is renamed when all of it is there. A
run that is killed, or whose disk is full, leaves at most the hidden folder, which the next run removes.
"""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latent_cot.training.checkpoints.write import MANIFEST, files_in, model_files, refuse_foreign_files, write_manifest

from .run_lock import locked

UNFINISHED = ".unfinished"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOADED_FIRST = "config.json"


def remove_unfinished(folder: Path) -> None:
    """Remove what an interrupted run left half written."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def put_in_place(new: Path, place: Path) -> None:
    """Rename the file or folder `new` to `place`; what was there goes, after that: of a link the link, not what it names."""
    old = new.with_name(f"{new.name}.replaced")
    if place.exists() or place.is_symlink():
        place.rename(old)
    new.rename(place)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing_model(folder: Path) -> Iterator[Path]:
    """A new folder to write a model into, which takes the place of the one in `folder` when the block ends without error.

    Only what the manifest of the earlier model names is replaced or removed; checkpoints to resume from and whatever else lies
    in `folder` stay. The configuration is the first file to go and the last to come, so that a process killed between the
    two leaves no folder that would load.

    Raises:
        InputError: where a file that this project did not write is in the way, or another run writes there.
        OSError: naming the file and the free space, where the disk is full.
    """
    refuse_foreign_files(folder)
    with locked(folder):
        unfinished = folder / UNFINISHED
        remove_unfinished(folder)
        new = unfinished / "model"
        new.mkdir(parents=True)
        try:
            with one_line_disk_errors(new):
                yield new
                written = files_in(new) | {MANIFEST}
                write_manifest(new, written)
            names = {name.partition("/")[0] for name in written}
            refuse_foreign_files(folder, names)
            older = model_files(folder)
            write_manifest(folder, written | older)  # of whatever is left if the process is killed from here on
            (folder / LOADED_FIRST).unlink(missing_ok=True)
            for name in {name.partition("/")[0] for name in older} - names:
                remove(folder / name)
            for name in sorted(names, key=lambda name: (name == LOADED_FIRST) + 2 * (name == MANIFEST)):
                put_in_place(new / name, folder / name)
        finally:
            remove_unfinished(folder)


@contextmanager
def one_line_disk_errors(folder: Path) -> Iterator[None]:
    """Makes one sentence of every way in which the libraries say that a disk is full or cannot be written. Raises
    OSError, with the file, the free space, and that nothing saved before was touched.
    """
    try:
        yield
    except Exception as error:
        if not is_about_writing(error):
            raise
        written = [path for path in folder.rglob("*") if path.is_file()]
        place = max(written, key=lambda path: path.stat().st_mtime_ns, default=folder)
        raise OSError(
            f"could not write {place} ({' '.join(str(error).split())}); {free_space(folder):,.0f} MiB are free there; what "
            "was saved before is whole: make room, then pass --resume_from_checkpoint true"
        ) from error


def free_space(folder: Path) -> float:
    """MiB that are free on the disk of a folder, which may not be there yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free / 2**20


def is_about_writing(error: Exception) -> bool:
    """Whether a file could not be written: Python, safetensors and torch each have an error of their own for it."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE or isinstance(error, PermissionError)
    text = str(error)
    return any(f"os error {number}" in text for number in NO_SPACE) or "PytorchStreamWriter" in text
