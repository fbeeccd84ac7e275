"""FSDP2 in two processes on a CPU: training, answers and checkpoints are those of one process that holds all weights."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import chain_model, make_any
from safetensors.torch import load_file
from several_processes import launch
from sharded_runs import Case, run_case

from latent_cot.chunked_cross_entropy import cross_entropy
from latent_cot.training.arguments import LoraArguments
from latent_cot.training.checkpoints.lora import add_adapters
from latent_cot.training.checkpoints.sharding import fill, names_of_broken_weights, options_in_step
from latent_cot.training.errors import InputError

KINDS = ("pccot-gpt2", "pccot-llama", "icot-gpt2")
CASES = [Case(kind, tied, lora) for kind in KINDS for tied in (True, False) for lora in (False, True)]
CASES[1] = dataclasses.replace(CASES[1], resumes=True)
CASES += [
    Case("pccot-gpt2", True, False, options=(("gradient_checkpointing", True),)),
    Case("pccot-gpt2", True, False, options=(("gradient_accumulation_steps", 2),)),
    Case("pccot-llama", False, True, overrides="use_projection=true"),
    Case("pccot-gpt2", True, True, options=(("eval_on_start", True), ("eval_strategy", "steps"), ("eval_steps", 1))),
    Case("pccot-gpt2", True, True, resumes=True, state_dict="FULL_STATE_DICT"),
]
RESUMED = [case for case in CASES if case.resumes]
RESUMED.append(
    Case("icot-gpt2", True, False, options=(("optim", "adamw_torch"), ("learning_rate", 1e-2)), resumes=True)
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The runs of all cases, sharded in two processes and whole in this one."""
    sharded, whole = tmp_path_factory.mktemp("sharded"), tmp_path_factory.mktemp("whole")
    (sharded / "cases.json").write_text(
        json.dumps([dataclasses.asdict(case) for case in dict.fromkeys([*CASES, *RESUMED])])
    )
    done = launch("tests/helpers/sharded_runs.py", str(sharded))
    assert done.returncode == 0, done.stderr[-4000:]
    for case in CASES:
        run_case(case, whole, sharded=False)
    return sharded, whole


def files_of(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sharded_is_whole(case, folders):
    """Losses, gradient norms, weights and answers; the same files, code and all."""
    sharded, whole = (folder / case.name for folder in folders)
    first, second = (json.loads((folder / "record.json").read_text()) for folder in (sharded, whole))
    for here, there in zip(first["log"], second["log"], strict=True):
        for name in {"loss", "grad_norm", "cot_loss", "ccot_loss"} & here.keys():
            assert here[name] == pytest.approx(there[name], rel=1e-4), name
    assert first["answers"] == second["answers"]
    assert files_of(sharded / "final") == files_of(whole / "final")
    for path in sorted((whole / "final").rglob("*.*")):
        name = path.relative_to(whole / "final")
        other = sharded / "final" / name
        if path.suffix == ".json":  # PEFT writes sets in any order
            assert sorted(path.read_text()) == sorted(other.read_text()), name
        elif path.suffix != ".safetensors":
            assert path.read_text() == other.read_text(), name
        else:
            wanted, got = load_file(path), load_file(other)
            assert wanted.keys() == got.keys()
            for weight, values in wanted.items():
                assert (got[weight] - values).abs().max() <= 1e-5, (name, weight)


@pytest.mark.slow
@pytest.mark.parametrize("case", RESUMED, ids=lambda case: case.name)
def test_a_sharded_run_resumes(case, folders):
    """From the first step's checkpoint to the same weights, bit for bit."""
    folder = folders[0] / case.name
    paths = sorted((folder / "final").rglob("*.safetensors"))
    assert paths
    for path in paths:
        resumed = load_file(folder / "resumed" / path.relative_to(folder / "final"))
        for weight, values in load_file(path).items():
            assert torch.equal(resumed[weight], values), (path.name, weight)


def test_a_head_with_hooks_is_called(gpt2):
    """Hooks fetch weights that are kept elsewhere, so its weight is not read before they have run."""
    states, labels, weights = torch.randn(5, 32), torch.randint(7, 36, (5,)), torch.ones(5)
    plain, _ = cross_entropy(gpt2.lm_head, states, labels, weights)
    calls = []
    gpt2.lm_head.register_forward_pre_hook(lambda *_: calls.append(1))
    hooked, _ = cross_entropy(gpt2.lm_head, states, labels, weights)
    assert calls == [1] and torch.allclose(plain, hooked)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [True, False])
def test_a_filled_shape_is_the_model(kind, tied, lora):
    """What is made on the meta device and filled shares the weights that the model shares."""
    args = LoraArguments(use_peft=lora, lora_r=2)

    def make():
        model = make_any(kind, tie_word_embeddings=tied)
        return add_adapters(model, args) if lora else model

    source = make()
    with torch.device("meta"):
        shape = make()
    fill(shape, source.state_dict())
    groups = [
        {name: id(weight) for name, weight in model.named_parameters(remove_duplicate=False)}
        for model in (source, shape)
    ]
    for name in groups[0]:
        others = [{other for other in group if group[other] == group[name]} for group in groups]
        assert others[0] == others[1]
    state = shape.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in source.state_dict().items())


def test_an_iteration_that_settles_cannot_be_sharded():
    with pytest.raises(InputError, match="--latent_tolerance"):
        options_in_step({"latent_tolerance": 0.1, "max_new_tokens": 3}, None)


def test_no_process_writes_beyond_the_least_room():
    others = SimpleNamespace(device="cpu", gather=lambda room: torch.cat([room, torch.tensor([5])]))
    assert options_in_step({"max_new_tokens": 9, "latent_thought": True}, others)["max_new_tokens"] == 5
    assert options_in_step({"max_new_tokens": 3}, others)["max_new_tokens"] == 3


def test_broken_weights_are_named(characters):
    model = chain_model(characters)
    assert names_of_broken_weights(model, Accelerator(cpu=True)) == []
    model.transformer.ln_f.bias.data[3] = torch.inf
    assert names_of_broken_weights(model, Accelerator(cpu=True)) == ["transformer.ln_f.bias"]
