"""Other projects' weights: each family against a reference written from its description, and every damage told in one line."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from references import CASES, NEW, CoconutCase, CodiCase, LatentTTSCase, LotusCase
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import example
from latent_cot.converters.detect import convert
from latent_cot.training.errors import InputError

QUESTIONS = [f"Tom has {n} apples and buys {n * 7 % 23}{' more' * (n % 4)}. How many{'?' * (n % 2)}" for n in range(50)]


FAST = ("codi llama", "sim-cot codi gpt2", "latent-tts coconut", "lotus")  # every project, backbone and kind of file


@pytest.mark.parametrize(
    ("name", "count"), [*((name, 10) for name in FAST), *(pytest.param(n, 50, marks=pytest.mark.slow) for n in CASES)]
)
def test_a_family_answers_as_its_reference(name, count, tmp_path):
    """50 questions, quickly 10, token by token: each asked singly, and all in one left-padded batch."""
    case, out, questions = CASES[name](tmp_path), tmp_path / "out", QUESTIONS[:count]
    convert(str(case.source), out, base_model=case.base and str(case.base))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def written(inputs) -> list[list[int]]:
        rows = model.generate(**inputs, max_new_tokens=NEW)[:, inputs["input_ids"].shape[1] :].tolist()
        return [[*row[: row.index(stop)], stop] if stop in row else row for row in rows]

    expected = [case.answer(question) for question in questions]
    assert len({tuple(answer) for answer in expected}) > count // 2
    batch = tokenizer(questions, padding=True, return_tensors="pt")
    assert (batch["input_ids"][:, 0] == pad).any()
    assert written(batch) == expected
    assert [written(tokenizer([question], return_tensors="pt"))[0] for question in questions] == expected


# --- what is refused ---


@pytest.fixture(scope="module")
def codi(tmp_path_factory) -> CodiCase:
    return CodiCase(tmp_path_factory.mktemp("codi"), "gpt2", sim_cot=False)


def sentence(call, *args, **kwargs) -> str:
    """The one line of an InputError."""
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


PREFIX = "codi.base_model.model."
DAMAGES = {
    "lacks the tensor transformer.h.1.ln_1.weight": lambda held: held.pop(f"{PREFIX}transformer.h.1.ln_1.weight"),
    "lacks the tensor transformer.h.0.attn.c_attn.lora_B.default.weight": lambda held: held.pop(
        f"{PREFIX}transformer.h.0.attn.c_attn.lora_B.default.weight"
    ),
    "lacks the tensor prj.3.weight": lambda held: held.pop("prj.3.weight"),
    "no CODI checkpoint is known to have: prj2.weight": lambda held: held.update({"prj2.weight": torch.ones(2)}),
    "no place for the checkpoint's tensor extra.weight": lambda held: held.update({"codi.extra.weight": torch.ones(2)}),
    "lora_E.default.weight is of no adapter that can be merged": lambda held: held.update(
        {f"{PREFIX}transformer.h.0.attn.c_attn.lora_E.default.weight": torch.ones(2)}
    ),
    "prj.3.weight has the shape [31], and this model's is [32]": lambda held: held.update(
        {"prj.ln.weight": torch.ones(31)}
    ),
    "are those of the published rank 128": lambda held: held.update(
        {f"{PREFIX}transformer.h.0.mlp.c_fc.lora_A.default.weight": torch.ones(4, 32)}
    ),
    "wte.weight has 200 rows": lambda held: held.update({f"{PREFIX}transformer.wte.weight": torch.ones(200, 32)}),
    "holds numbers that are not finite": lambda held: held["prj.3.bias"].fill_(torch.nan),
    "prj.3.bias is of the type torch.int64": lambda held: held.update({"prj.3.bias": torch.ones(32).long()}),
    "codi.gate.weight is of a gate": lambda held: held.update({"codi.gate.weight": torch.ones(2)}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_tensor_that_does_not_fit_is_one_line(damage, codi, tmp_path):
    held = {name: tensor.clone() for name, tensor in torch.load(codi.source / "pytorch_model.bin").items()}
    DAMAGES[damage](held)
    torch.save(held, tmp_path / "pytorch_model.bin")
    assert damage in sentence(convert, str(tmp_path), tmp_path / "out", base_model=str(codi.base))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pytorch_model.bin"]  # nothing that looks whole


class Code:
    """A pickle that runs code when it is opened."""

    def __reduce__(self):
        return Path.write_text, (Path("ran"), "code")


def test_files_are_read_without_running_code(codi, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content, words in (
        ({"a": Code()}, "a pickle that holds more than tensors"),
        ({"a": 1}, "must hold tensors by name, and 'a' is a int"),
        ([1], "must hold tensors by name, not a list"),
    ):
        torch.save(content, "pytorch_model.bin")
        assert words in sentence(convert, str(tmp_path), tmp_path / "out")
    Path("pytorch_model.bin").write_bytes(pickle.dumps(Code()))
    assert "pytorch_model.bin: " in sentence(convert, str(tmp_path), tmp_path / "out")
    assert not Path("ran").exists()
    whole = (codi.source / "pytorch_model.bin").read_bytes()
    Path("pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    assert "damaged or cut off" in sentence(convert, str(tmp_path), tmp_path / "out")
    Path("pytorch_model.bin").unlink()
    save_file({"codi.a": torch.ones(40)}, "model.safetensors")
    Path("model.safetensors").write_bytes(Path("model.safetensors").read_bytes()[:-9])
    assert "damaged or cut off" in sentence(convert, str(tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"architectures": ["ColarLlama"]}, "CoLaR's thoughts come from a head that is sampled"),
        ({"_name_or_path": "someone/Latent-SFT-1B"}, "mixtures of embeddings"),
        ({"_name_or_path": "ModalityDance/slpo-coconut-gpt2"}, "stop gate"),
        ({"model_type": "huginn_raven"}, "Huginn"),
        ({"model_type": "ouro"}, "Ouro"),
        ({"model_type": "gpt2"}, "of no family that is known"),
    ],
)
def test_what_is_not_read_is_told_by_name(fields, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert words in sentence(convert, str(tmp_path), tmp_path / "out")


def test_what_files_do_not_tell_is_asked_for(codi, tmp_path):
    torch.save({"base_causallm.a": torch.ones(2)}, tmp_path / "checkpoint_1")
    assert "--family coconut or lotus" in sentence(convert, str(tmp_path), tmp_path / "out")
    assert "must be one of codi" in sentence(convert, str(tmp_path), tmp_path / "out", family="x")
    torch.save({"base_causallm.a": torch.ones(2)}, tmp_path / "checkpoint_2")
    assert "checkpoint_1 and checkpoint_2" in sentence(convert, str(tmp_path), tmp_path / "out")
    (tmp_path / "ouroboros").mkdir()  # begins like the name of a family that is refused
    assert "no weights in it" in sentence(convert, str(tmp_path / "ouroboros"), tmp_path / "out")
    assert "no such file" in sentence(convert, "./nowhere", tmp_path / "out")
    assert "is not empty" in sentence(convert, str(codi.source), codi.base)
    assert "no base model of the width 32" in sentence(convert, str(codi.source), tmp_path / "out")


# --- what is written ---


def test_the_folder_loads_alone_and_its_card_accounts_for_every_tensor(codi, tmp_path):
    out = tmp_path / "out"
    convert(str(codi.source), out, base_model=str(codi.base))
    names = {path.name for path in out.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "example.py",
        "modeling_pccot.py",
        "README.md",
    } <= names
    assert not names & {"pytorch_model.bin"}
    card = (out / "README.md").read_text()
    total = len(torch.load(codi.source / "pytorch_model.bin"))
    read, gone = (int(re.search(rf"- {word}, (\d+):", card)[1]) for word in ("read", "left out"))
    assert f"All {total} tensors" in card and read + gone == total and gone == 2
    assert (
        "CODI (arXiv 2502.21074)" in card
        and "dynamic_cls.*" in card
        and "latent-cot lm_eval --model_args pretrained=" in card
    )
    assert not re.search(r"\d %|accuracy|exact_match", card)  # nothing was measured
    generation = json.loads((out / "generation_config.json").read_text())
    fields = json.loads((out / "config.json").read_text())
    assert generation["max_new_tokens"] == 256
    assert generation["suppress_tokens"] == [fields["eot_token_id"], fields["latent_token_id"]]
    weights = load_file(out / "model.safetensors")
    table = weights["transformer.wte.weight"]
    assert torch.allclose(table[-1], table[:-1].mean(dim=0), atol=1e-6)


def test_example_says_to_convert_first(codi, tmp_path, monkeypatch, capsys):
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
    cases = [codi, CoconutCase(folders[0]), LatentTTSCase(folders[1], projects=False), LotusCase(folders[2])]
    for case in [*cases, CodiCase(folders[3], "gpt2", sim_cot=True)]:
        monkeypatch.setattr("sys.argv", ["example.py", "--model", str(case.source), "1+1="])
        with pytest.raises(SystemExit) as stopped:
            example.main()
        assert "convert them first" in str(stopped.value) and "\n" not in str(stopped.value)


def test_the_originals_that_are_already_read(tmp_path):
    convert(str(ROOT / "tests/fixtures/parity/peft_checkpoint/checkpoint"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "pccot-gpt2"


def test_every_door_writes_what_follows_a_question(tmp_path):
    case = CoconutCase(tmp_path)
    convert(str(case.source), tmp_path / "out", base_model=str(case.base))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), case.tokenizer
    newline = tokenizer("\n")["input_ids"]
    question = tokenizer(["How many?"], return_tensors="pt")["input_ids"]
    opened = model.open_prompt(question)["input_ids"][0].tolist()
    span = [model.config.bot_token_id, *[model.config.latent_token_id] * 10, model.config.eot_token_id]
    assert opened == question[0].tolist() + newline + span
    assert model.suffix_ids(latent_thought=False) == newline
    assert model.room_for_answer(20) == 256 - 20 - 1 - len(span)
    assert model.trace_thought(question).inputs.shape[-2] == 10


def test_the_command_of_a_card_reads_the_last_number(tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    (tmp_path / "test.json").write_text(json.dumps([{"question": "1 + 2 =", "answer": "#### 1234"}]))
    manager = TaskManager(
        include_path=str(ROOT / "evals"), include_defaults=False, metadata={"data_file": str(tmp_path / "test.json")}
    )
    task = manager.load(["gsm8k_last_number"])["tasks"]["gsm8k_last_number"]
    text = "5 and 7. The answer is: 1,234."
    assert task.process_results({"question": "1 + 2 =", "answer": "1234"}, [text]) == {"exact_match": 1.0}
