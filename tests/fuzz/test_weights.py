"""A checkpoint whose weights or tokenizer files are damaged: the undamaged model's answer, or one clear error.

Bytes inside the numbers are left alone: a number that stays finite cannot be told from the right one.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fuzz.small import KINDS, QUIET, ask, check_memory, save

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders, their files' contents and their answers."""
    found = {}
    for kind in KINDS:
        folder = save(kind, tmp_path_factory.mktemp("fuzz") / kind)
        contents = {name: (folder / name).read_bytes() for name in (WEIGHTS, "tokenizer.json", "tokenizer_config.json")}
        found[kind] = folder, contents, load_file(folder / WEIGHTS), ask(folder)
    return found


def damage_tensors(tensors: dict, data) -> dict:
    """Drop, rename, retype, reshape or spoil one tensor, or add one."""
    tensors = dict(tensors)
    name = data.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors.pop(name)
    how = data.draw(st.sampled_from(["drop", "rename", "retype", "cut", "nan", "add"]))
    if how == "rename":
        tensors[data.draw(st.text("abc._0", min_size=1, max_size=30))] = tensor
    elif how == "retype":
        tensors[name] = (tensor * 100).to(
            data.draw(st.sampled_from([torch.int8, torch.int64, torch.bool, torch.uint8]))
        )
    elif how == "cut":
        tensors[name] = tensor[:-1].contiguous() if len(tensor) > 1 else tensor[None]
    elif how == "nan":
        tensor = tensor.clone()
        spoilt = float(data.draw(st.sampled_from(["nan", "inf", "-inf"])))
        tensor.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] = spoilt
        tensors[name] = tensor
    elif how == "add":
        tensors |= {name: tensor, f"{name}.more": tensor.clone()}
    return tensors


def damage_bytes(content: bytes, end: int, data) -> bytes:
    """Change or take away bytes before `end`, or cut the file off anywhere."""
    if data.draw(st.booleans()):
        return content[: data.draw(st.integers(0, len(content) - 1))]
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)


def answer(folders, kind: str, data) -> None:
    folder, contents, tensors, right = folders[kind]
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    file = data.draw(st.sampled_from([WEIGHTS, WEIGHTS, *contents]))
    before = set(folder.parent.iterdir())
    if file == WEIGHTS and data.draw(st.booleans()):
        save_file(damage_tensors(tensors, data), folder / file, metadata={"format": "pt"})
    else:
        header = 8 + int.from_bytes(contents[file][:8], "little") if file == WEIGHTS else len(contents[file])
        (folder / file).write_bytes(damage_bytes(contents[file], header, data))
    found = ask(folder, by_example=data.draw(st.booleans()))
    if file == WEIGHTS:
        assert found is None or found == right
    assert set(folder.parent.iterdir()) == before
    check_memory()


CASES = given(kind=st.sampled_from(KINDS), data=st.data())
test_a_share = settings(max_examples=60, **QUIET)(CASES(answer))
test_ten_thousand = pytest.mark.slow(settings(max_examples=10_000, **QUIET)(CASES(answer)))
