"""`example.py` and the model card, for every kind of checkpoint that is written here."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SHIPPED, ask_example
from transformers import AutoConfig, GPT2LMHeadModel

import run_ccot
import run_cot
import run_icot
from latent_cot.analysis.evaluation import answer_questions
from latent_cot.answer_modes import ANSWER_MODES
from latent_cot.converters.convert_icot import convert
from latent_cot.training.checkpoints import read as checkpoint
from latent_cot.training.checkpoints.model_card import measured_modes
from latent_cot.training.data.small_tokenizers import byte_tokenizer

QUESTIONS = ["1+2*3=", "4="]
RUN = ["--tokenizer_name", "characters", "--dataset_name", "chain", "--task_args", "train=64,validation=4,test=8"]
RUN += ["--answer_prompt", "#", "--use_cpu", "--disable_tqdm", "true", "--save_strategy", "no", "--max_steps", "4"]
RUN += ["--per_device_train_batch_size", "8", "--max_new_tokens", "3", "--max_cot_tokens", "12", "--do_train"]
THINKS = ["--config_name", "configs/pccot_gpt2_tiny.json"]
STOCK = ["--config_name", "configs/gpt2_chain.json"]
REMOVES = ["--config_name", "configs/icot_gpt2_chain.json"]
NO_MORE = ["--remove_per_epoch", "0", "--partial_removal"]
FILLERS = ["--switch_tokens", "--switch_from_n_steps", "0", "--switch_from_n_rate", "100", *NO_MORE]


def trained(script, *flags: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        script.main([*RUN, "--do_predict", *flags, "--output_dir", str(folder)])
        return folder

    return make


def converted(folder: Path) -> Path:
    """What `latent_cot.converters.convert_icot` makes of a checkpoint of the original iCoT code."""
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_head": 2, "n_layer": 1, "n_positions": 64, "vocab_size": len(tokenizer)}
    plain = GPT2LMHeadModel(AutoConfig.for_model("gpt2", **sizes, eos_token_id=end, bos_token_id=end))
    for part in (plain, tokenizer):
        part.save_pretrained(folder / "base")
    (folder / "old").mkdir()
    (folder / "old" / "config.json").write_text(json.dumps({"base_model": str(folder / "base")}))
    torch.save(plain.state_dict(), folder / "old" / "state_dict.bin")
    convert(folder / "old", folder / "new")
    return folder / "new"


KINDS = {
    "latent thought": trained(run_ccot, *THINKS),
    "LoRA": trained(run_ccot, *THINKS, "--use_peft", "--lora_r", "2"),
    "explicit chain": trained(run_cot, *STOCK),
    "explicit chain of a PCCoT model": trained(run_cot, *THINKS),
    "no chain": trained(run_cot, *STOCK, "--no_cot"),
    "no chain of a PCCoT model": trained(run_cot, *THINKS, "--no_cot"),
    "chain removed": trained(run_icot, *REMOVES, "--remove_every_n_step", "1", "--remove_all_when_remove_beyond", "1"),
    "chain partly removed": trained(run_icot, *REMOVES, "--remove_start_from", "2", *NO_MORE),
    "fillers": trained(run_icot, *REMOVES, *FILLERS, "--no_write_fillers"),
    "written fillers": trained(run_icot, *REMOVES, *FILLERS),
    "converted from the original": converted,
}
# What a card says was measured, where it is not written by hand.
MEASURED = {
    "latent thought": ["ccot", "cot"],
    "LoRA": ["ccot", "cot"],
    "explicit chain": ["cot"],
    "explicit chain of a PCCoT model": ["cot"],
    "no chain": ["no_cot"],
    "no chain of a PCCoT model": ["no_cot"],
    "chain removed": ["cot", "icot"],
    "chain partly removed": ["cot", "icot"],
    "fillers": ["cot", "icot"],
    "written fillers": ["cot", "icot"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    """Makes a checkpoint of a kind, once."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = KINDS[kind](tmp_path_factory.mktemp("kind") / "model")
        return made[kind]

    return folder


def refusal(monkeypatch, capsys, *argv: str) -> str:
    """The one line that it ends with."""
    with pytest.raises(SystemExit) as stop:
        ask_example(monkeypatch, capsys, *argv)
    message = str(stop.value.code)
    assert message.startswith("error: ") and "\n" not in message
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_in_the_folder_of_every_kind(kind, folders, monkeypatch, capsys):
    """What our own evaluation reads there, in the way that the model was trained to answer; and --explicit besides."""
    folder = folders(kind)
    adapter = [folder / "adapter"] if kind == "LoRA" else []
    for name in (folder, *adapter):
        model, tokenizer = checkpoint.load(str(name))
        texts = answer_questions(model, tokenizer, QUESTIONS, batch_size=2, max_new_tokens=6).texts
        wanted = [f"{question}  ->  {text}" for question, text in zip(QUESTIONS, texts, strict=True)]
        assert ask_example(monkeypatch, capsys, "--model", str(name), "--max_new_tokens", "6", *QUESTIONS) == wanted
        explicit = "--model", str(name), "--max_new_tokens", "6", "--explicit", *QUESTIONS
        if not hasattr(model, "answer_modes"):
            assert "has one way to answer" in refusal(monkeypatch, capsys, *explicit)
            continue
        chains = answer_questions(model, tokenizer, QUESTIONS, mode="cot", batch_size=2, max_new_tokens=6).texts
        assert ask_example(monkeypatch, capsys, *explicit) == [
            line + (f"   (explicit: {chain})" if chain else "") for line, chain in zip(wanted, chains, strict=True)
        ]


def test_kinds_are_what_they_are_called(folders):
    """The configurations that the kinds above are to stand for."""
    configs = {
        kind: json.loads((folders(kind) / "config.json").read_text())
        for kind in ("chain removed", "chain partly removed", "fillers", "written fillers", "explicit chain")
    }
    assert configs["chain removed"]["num_internalized_tokens"] == -1
    assert configs["chain partly removed"]["num_internalized_tokens"] == 2
    for kind, mode in (("fillers", "prefilled"), ("written fillers", "written")):
        assert configs[kind]["filler_mode"] == mode and configs[kind]["num_fillers"] > 0
    assert configs["explicit chain"]["model_type"] == "gpt2"


@pytest.mark.parametrize("kind", MEASURED)
def test_a_card_says_what_was_measured(kind, folders):
    card = (folders(kind) / "README.md").read_text()
    metrics = json.loads((folders(kind) / "all_results.json").read_text())
    assert "It was not evaluated" not in card
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith("| test | ")]
    gone = " (2 of 4 tokens removed)" if kind == "chain partly removed" else ""
    labels = [ANSWER_MODES[mode].label + (gone if mode == "icot" else "") for mode in MEASURED[kind]]
    assert [row[1] for row in rows] == labels
    for row, mode in zip(rows, MEASURED[kind], strict=True):
        assert row[2].startswith(f"{metrics[f'test_{mode}_exact_match']:.3f} (")
        assert f"exact match, {ANSWER_MODES[mode].label}" in card.split("---")[1]


def test_a_run_without_an_evaluation_says_so(tmp_path):
    run_cot.main([*RUN, *STOCK, "--output_dir", str(tmp_path)])
    assert "It was not evaluated" in (tmp_path / "README.md").read_text()


def test_an_answer_mode_without_a_description_is_an_error():
    assert measured_modes({"test_icot_exact_match": 1.0, "eval_no_cot_exact_match": 0.5, "epoch": 1}) == [
        ("eval", "no_cot"),
        ("test", "icot"),
    ]
    with pytest.raises(KeyError, match="no label for telepathy"):
        measured_modes({"test_ccot_exact_match": 1.0, "test_telepathy_exact_match": 1.0})


def test_the_shipped_model_answers_the_questions_that_it_asks_by_itself(monkeypatch, capsys):
    lines = ask_example(monkeypatch, capsys)
    assert len(lines) == 3
    for line in lines:
        question, answer = line.split("  ->  ")
        value, rest = int(question[0]), question[1:-1]
        for operator, operand in zip(rest[::2], rest[1::2], strict=True):
            operand = int(operand)
            value = {"+": value + operand, "-": value - operand, "*": value * operand}[operator] % 10
        assert answer == str(value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "./nowhere", ""], "cannot load ./nowhere"),
        (["--model", str(SHIPPED.parent / "nowhere"), ""], "nowhere': no such file or folder"),
        (["--num_iterations", "-1", ""], "num_iterations must be"),
    ],
)
def test_it_says_what_is_wrong(flags, said, monkeypatch, capsys):
    assert said in refusal(monkeypatch, capsys, *flags)


def test_a_model_that_cannot_read_our_questions_wants_others(monkeypatch, capsys):
    assert refusal(monkeypatch, capsys, "--model", str(SHIPPED.with_name("pccot-gpt2-words"))).startswith(
        "error: pass a question"
    )


def test_iterations_are_for_latent_thought(folders, monkeypatch, capsys):
    iterations = "--num_iterations", "0", *QUESTIONS
    assert len(ask_example(monkeypatch, capsys, "--model", str(folders("latent thought")), *iterations)) == 2
    said = refusal(monkeypatch, capsys, "--model", str(folders("no chain")), *iterations)
    assert "not for gpt2" in said


def test_a_tokenizer_without_padding_asks_one_question(tmp_path, monkeypatch, capsys):
    """As many stock checkpoints have it; several questions at once need the token, which is said."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_head": 2, "n_layer": 1, "n_positions": 64, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(AutoConfig.for_model("gpt2", **sizes)).save_pretrained(tmp_path)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    asked = "--model", str(tmp_path), "--max_new_tokens", "2"
    assert len(ask_example(monkeypatch, capsys, *asked, "4=")) == 1
    assert "pad" in refusal(monkeypatch, capsys, *asked, *QUESTIONS)


def test_a_question_with_what_the_tokenizer_never_saw_is_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"does not know ' ' of '1 \+ 2=': its training data never had it"):
        ask_example(monkeypatch, capsys, "1+2=", "1 + 2=")
    assert capsys.readouterr().out == ""
