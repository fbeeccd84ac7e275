"""The cache of rows, where a disk is full or a file in it is damaged: one line."""

import errno
from pathlib import Path

import datasets
import pytest

from latent_cot.training.data.row_cache import cached_rows
from latent_cot.training.data.rows import Reading
from latent_cot.training.errors import InputError


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def rows(count: int = 50, broken: int | None = None):
    for number in range(count):
        if number == broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        yield f"row {number}", {"question": "1+1", "steps": ["2"], "answer": str(number)}


def load(**options):
    return cached_rows(lambda: rows(**options), lambda: "content", "data.jsonl", 0, None, Reading())


@pytest.mark.parametrize("left", [0.0, 0.1, 0.5, 0.999])
def test_a_damaged_entry_is_named(left, cache):
    load()
    (entry,) = cache.rglob("*.arrow")
    data = entry.read_bytes()
    entry.write_bytes(data[: int(len(data) * left)])
    with pytest.raises(InputError, match=r"data\.jsonl: its rows in the cache are damaged .*: remove (.*)") as error:
        load()
    assert "\n" not in str(error.value)
    assert entry.is_relative_to(str(error.value).rpartition("remove ")[2])


def test_a_full_disk_is_named(cache):
    with pytest.raises(InputError, match=r"the cache .*cache cannot be written \(.*No space left on device\)"):
        load(broken=3)
