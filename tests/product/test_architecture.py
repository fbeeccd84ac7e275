"""How the house is built: what may import what, what sets no attribute, and how much of our own code a step runs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, chain_model

from latent_cot import tasks
from latent_cot.training import CoTTrainingArguments, LoraArguments, PCCoTArguments, PCCoTTrainer

# The rooms, from the lowest floor up: each imports itself and those before it.
ROOMS = {
    "models": "latent_cot",
    "tasks": "latent_cot.tasks",
    "training": "latent_cot.training",
    "training/data": "latent_cot.training.data",
    "training/checkpoints": "latent_cot.training.checkpoints",
    "analysis": "latent_cot.analysis",
    "training/resume": "latent_cot.training.resume",
    "training/trainers": "latent_cot.training.trainers",
    "training/runs": "latent_cot.training.runs",
    "engines": "latent_cot.engines",
    "engines/batching": "latent_cot.engines.batching",
    "engines/gguf": "latent_cot.engines.gguf",
    "engines/vllm": "latent_cot.engines.vllm",
    "converters": "latent_cot.converters",
    "evals": "latent_cot.evals",
    "commands": "latent_cot.commands",
    ".": "",
    "benchmarks/speed": "benchmarks.speed",
    "benchmarks/results": "benchmarks.results",
    "benchmarks": "benchmarks",
}
OUTSIDE = {"tests", "examples"}  # which may import everything, and nothing imports
LARGEST_ROOM = 12
OURS = {"benchmarks", "latent_cot", "models", "tests", *(path.stem for path in ROOT.glob("*.py"))}
MODELS = sorted((ROOT / "models").glob("*.py"))
TASKS = sorted((ROOT / "tasks").glob("*.py"))
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).glob("*.py"))
MODULES = {
    ".".join(filter(None, [ROOMS[path.parent.relative_to(ROOT).as_posix()], path.stem])).removesuffix(".__init__"): path
    for path in SOURCES
}
# PEFT leaves no other door there; the file says why.
CLASS_IS_EXCHANGED = {"training/checkpoints/lora_fast.py"}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> list[tuple[int, str]]:
    """Level and module of every import: (0, "torch.nn"), (1, "positions"); ("", relative) for `from . import x`."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, by name."""
    package, found = ROOMS[path.parent.relative_to(ROOT).as_posix()], set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, [package if node.level else "", node.module]))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found & set(MODULES) - {name for name, own in MODULES.items() if own == path}


def room_of(path: Path) -> str:
    return path.parent.relative_to(ROOT).as_posix()


def test_every_file_is_in_a_room():
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {
        name for name in tracked.stdout.split() if name.partition("/")[0] not in OUTSIDE and (ROOT / name).exists()
    }
    assert files <= {path.relative_to(ROOT).as_posix() for path in SOURCES}


def test_no_arrow_between_rooms_points_upward():
    floors, arrows = list(ROOMS), 0
    for path in SOURCES:
        for name in imported(path):
            here, there = room_of(path), room_of(MODULES[name])
            arrows += here != there
            assert floors.index(there) <= floors.index(here), f"{path.relative_to(ROOT)} imports {name}"
    assert arrows > 100


def test_no_circle_of_imports():
    """Of files, within a room too."""
    left = {path: {MODULES[name] for name in imported(path)} for path in SOURCES}
    while free := [path for path, needs in left.items() if not needs & set(left)]:
        for path in free:
            del left[path]
    assert not left


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in ("models", ".")])
def test_rooms_stay_small(room):
    """`models/` is as large as what a checkpoint carries; the root holds what people know by name."""
    files = [path for path in SOURCES if room_of(path) == room and path.name != "__init__.py"]
    assert len(files) <= LARGEST_ROOM, [path.name for path in files]


def attributes_set(path: Path) -> set[str]:
    """The names of attributes that a file sets on objects, by assignment, `setattr` or `object.__setattr__`."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            names.add(node.attr)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("setattr", "__setattr__"):
                names |= {value.value for value in node.args[:2] if isinstance(value, ast.Constant)}
    return names


def test_what_these_functions_see(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        "import models.x\nfrom . import y\nfrom .z import w\ndef f(a):\n    from tasks import q\n"
        "    a.b.one = 1\n    a.two += 1\n    setattr(a, 'three', 1)\n    (a.four, c) = 1, 2\n    object.__setattr__(a, 'five', 1)"
    )
    assert imports(path) == [(0, "models.x"), (1, ""), (1, "z"), (0, "tasks")]
    assert attributes_set(path) == {"one", "two", "three", "four", "five"}


def test_the_method_stands_alone():
    """`models/jacobi_pccot.py`: torch only, a page, and no arguments that hide others."""
    path = ROOT / "models" / "jacobi_pccot.py"
    assert imports(path) == [(0, "torch")]
    assert len(path.read_text().splitlines()) <= 95
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef)]
    assert {"jacobi", "jacobi_window", "jacobi_until_settled", "jacobi_in_full"} == {node.name for node in functions}
    assert not [node.name for node in functions if node.args.kwarg or node.args.vararg]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_checkpoint_can_take_it_along(path):
    """`models/` is flat, imports libraries by name, and itself as `from .x import y` alone, which travels to the Hub."""
    siblings = {other.stem for other in MODELS}
    for level, name in imports(path):
        if level == 0:
            assert name.partition(".")[0] in {"torch", "transformers", *sys.stdlib_module_names} - OURS, name
        else:
            assert level == 1 and name in siblings, f"{'.' * level}{name}"


def test_models_is_flat():
    assert not [path for path in (ROOT / "models").iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_tasks_import_nothing_of_ours(path):
    for level, name in imports(path):
        assert level == 1 or (level == 0 and name.partition(".")[0] not in OURS - {"tasks"}), name


def test_no_attribute_chooses_a_path():
    """A class is exchanged in one file, and no module's `gradient_checkpointing` is set from outside."""
    names = {path.relative_to(ROOT).as_posix(): attributes_set(path) for path in SOURCES}
    assert len(names) > 40
    assert {path for path, found in names.items() if "__class__" in found} == CLASS_IS_EXCHANGED
    assert not [path for path, found in names.items() if "gradient_checkpointing" in found]


def our_calls(run) -> int:
    """How many calls of functions in models/, training/ and analysis/ there are while something runs."""
    rooms, count = (str(ROOT / "models"), str(ROOT / "training"), str(ROOT / "analysis")), 0

    def note(frame, event, argument):
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(rooms)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


# Before the method got a room of its own they were 427, and 1,165 with LoRA: half of the one, and not more of the other.
@pytest.mark.parametrize(("lora", "most"), [(False, 213), (True, 1165)], ids=["all weights", "LoRA"])
def test_calls_of_our_own_code_in_a_training_step(lora, most, characters, tmp_path, record_property):
    """Two layers of GPT-2, loss and gradients of a batch: time in Python that a GPU waits for."""
    model = chain_model(characters)
    assert (model.config.n_layer, model.config.num_latent_tokens, model.config.num_iterations) == (2, 6, 3)
    trainer = PCCoTTrainer(
        model,
        CoTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8, report_to="none"),
        train_dataset=tasks.generate("chain", "train=16,validation=1,test=1")["train"],
        processing_class=characters,
        method=PCCoTArguments(),
        lora=LoraArguments(use_peft=lora, lora_r=4, lora_dropout=0.0),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()

    def step():
        trainer.compute_loss(trainer.model, batch).backward()

    for _ in range(2):
        step()
    calls = our_calls(step)
    record_property("calls", calls)
    assert torch.isfinite(next(p.grad for p in trainer.model.parameters() if p.grad is not None)).all()
    assert 0 < calls <= most, calls
