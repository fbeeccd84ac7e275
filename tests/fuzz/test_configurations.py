"""A checkpoint whose `config.json` has fields of wrong values: an answer, or one clear error."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.small import KINDS, QUIET, ask, check_memory, save

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([1.5, -0.5, 10**9, 10**30, "3", "", "gpt2", [], {}, [1, 2], [1.5], [True], {"a": 1}, "float16"]),
)
# What the tests' own memory and time are for, or what changes an answer rightly.
LEFT_ALONE = {"transformers_version"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return {kind: save(kind, tmp_path_factory.mktemp("fuzz") / kind) for kind in KINDS}


def answer(folders, kind: str, data) -> None:
    folder = folders[kind]
    path, whole = folder / "config.json", folder / "config.whole"
    if not whole.exists():
        shutil.copy(path, whole)
    config = json.loads(whole.read_text())
    names = sorted(set(config) - LEFT_ALONE)
    changes = data.draw(st.dictionaries(st.sampled_from(names), VALUES, min_size=1, max_size=3))
    path.write_text(json.dumps(config | changes))
    ask(folder, by_example=data.draw(st.booleans()))
    check_memory()


CASES = given(kind=st.sampled_from(KINDS), data=st.data())
test_a_share = settings(max_examples=60, **QUIET)(CASES(answer))
test_ten_thousand = pytest.mark.slow(settings(max_examples=10_000, **QUIET)(CASES(answer)))
