"""What the originals do, flag by flag (docs/from-the-originals.md); their iCoT training: test_originals_icot.py."""

import json
import random
import re
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, make_model
from safetensors.torch import load_file
from several_processes import launch
from test_tokenizer_worlds import byte_level_with_bos, byte_tokenizer, sentencepiece
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel

import latent_cot
import run_ccot
import run_cot
import run_icot
from latent_cot.converters.convert_icot import convert
from latent_cot.training import (
    CoTTrainer,
    DataArguments,
    EvaluationArguments,
    ICoTArguments,
    LoraArguments,
    ModelArguments,
    PCCoTTrainer,
)
from latent_cot.training.arguments import CoTTrainingArguments
from latent_cot.training.checkpoints.loading import set_up, set_up_text_format
from latent_cot.training.checkpoints.lora import add_adapters
from latent_cot.training.cli import SUCCESSORS, parse
from latent_cot.training.data.collators import ICoTCollator
from latent_cot.training.data.rows import format_line
from latent_cot.training.data.sources import find_split
from latent_cot.training.data.text_format import FORK_TOKENS, tokenize_spaced
from latent_cot.training.errors import InputError
from latent_cot.training.trainers.icot_schedule import removal_schedule

QUIET = ["--use_cpu", "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true"]


# --- means over labelled tokens ---


def step_of(kind: str, batch: int, accumulated: int, out: Path, processes: int = 1) -> tuple[dict, dict]:
    """One optimiser step on 16 unequal rows under SGD: its log, and the weights after it."""
    source, path = random.Random(0), out.parent / "rows.txt"
    lines = []
    for _ in range(64):
        steps = [f"<<{source.randrange(99)}+1={source.randrange(99)}>>" for _ in range(source.randrange(1, 4))]
        question = f"{'7+' * source.randrange(1, 6)}{source.randrange(99)}"
        lines.append(format_line({"question": question, "steps": steps, "answer": str(source.randrange(9999))}) + "\n")
    path.write_text("".join(lines))
    script = {"ccot": run_ccot, "cot": run_cot, "icot": run_icot}[kind]
    config = {"ccot": "pccot_gpt2_tiny", "cot": "gpt2_chain", "icot": "icot_gpt2_chain"}[kind]
    argv = ["--config_name", f"configs/{config}.json", "--tokenizer_name", "characters", *QUIET, "--do_train"]
    argv += ["--train_file", str(path), "--max_steps", "1", "--learning_rate", "0.1", "--optim", "sgd"]
    argv += ["--lr_scheduler_type", "constant", "--logging_steps", "1", "--per_device_train_batch_size", str(batch)]
    argv += ["--max_grad_norm", "1000", "--gradient_accumulation_steps", str(accumulated), "--output_dir", str(out)]
    if kind == "ccot":
        argv += ["--keep_last_step", "--config_overrides", "loss_gamma=0,loss_delta=1"]
    if kind == "icot":
        argv += ["--partial_removal", "--removal_smoothing_lambda", "0.5", "--remove_start_from", "3"]
    if processes == 1:
        script.main(argv)
    else:
        done = launch(f"run_{kind}.py", *argv, "--ddp_backend", "gloo", processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
    log = json.loads((out / "trainer_state.json").read_text())["log_history"][0]
    return log, load_file(out / "model.safetensors")


@pytest.mark.parametrize("kind", ["ccot", "cot", "icot"])
def test_a_batch_may_be_accumulated(kind, tmp_path):
    compare_steps(step_of(kind, 16, 1, tmp_path / "whole"), step_of(kind, 8, 2, tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ccot", "cot", "icot"])
def test_a_batch_may_be_spread_over_processes(kind, tmp_path):
    compare_steps(step_of(kind, 16, 1, tmp_path / "whole"), step_of(kind, 8, 1, tmp_path / "two", processes=2))


def compare_steps(whole: tuple[dict, dict], parts: tuple[dict, dict]) -> None:
    """The same step but for rounding: loss, its parts, gradient norm, weights."""
    names = {"loss", "grad_norm", "cot_loss", "ccot_loss", "step_loss"} & whole[0].keys()
    assert {"loss", "grad_norm"} <= names
    for name in names:
        assert parts[0][name] == pytest.approx(whole[0][name], rel=1e-5), name
    for name, weights in whole[1].items():
        assert (parts[1][name] - weights).abs().max() <= 1e-5, name


def test_label_smoothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="label_smoothing_factor is not supported"):
        run_cot.main(["--do_train", "--label_smoothing_factor", "0.1", "--output_dir", str(tmp_path), *QUIET])


# --- chains, text, data ---


def test_run_cot_keeps_the_last_step():
    rows = [{"question": "3 and 4, twice?", "steps": ["<<3+4=7>>", "<<7*2=14>>"], "answer": "14"}] * 4
    source = ModelArguments(config_name="configs/gpt2_chain.json", tokenizer_name="bytes")
    args = CoTTrainingArguments("unused", use_cpu=True, report_to="none")
    trainer = CoTTrainer(source, args, train_dataset=rows)
    features = trainer.splits["train"][0]
    assert (
        trainer.processing_class.decode([token for step in features["steps"] for token in step])
        == "<<3+4=7>><<7*2=14>>"
    )
    source = ModelArguments(config_name="configs/pccot_gpt2_tiny.json", tokenizer_name="bytes")
    features = PCCoTTrainer(source, args, train_dataset=rows).splits["train"][0]
    assert len(features["steps"]) == 1  # PCCoT's teacher does not see it, there and here


TEXTS = [
    {"question": "Tom has 3 pens", "steps": ["<<3+4=7>>", "<<7*200=1400>>"], "answer": "1,400"},
    {"question": "5 6 * 7 4", "steps": ["1 2 + 3 ( 4 ) + 5"], "answer": "2 3 4"},
    {"question": "no chain?", "steps": [], "answer": "0"},
]


@pytest.mark.parametrize("make", [byte_tokenizer, sentencepiece, byte_level_with_bos])
@pytest.mark.parametrize("form", ["original", "fork"])
def test_text_is_written_as_the_original_writes_it(make, form):
    """Token for token the original's line (`src/data.py` of either), encoded in one piece."""
    tokenizer, config = make(), latent_cot.ICoTGPT2Config()
    set_up_text_format(config, tokenizer, form)
    set_up(config, tokenizer, "####")
    features = tokenize_spaced(
        {name: [row[name] for row in TEXTS] for name in ("question", "steps", "answer")},
        tokenizer,
        keep_last_step=True,
        answer_prompt_ids=config.answer_prompt_ids,
    )
    rows = [dict(zip(features, row, strict=True)) | {"row": 0} for row in zip(*features.values(), strict=True)]
    there, eos = make(), make().eos_token
    there.add_special_tokens({"extra_special_tokens": list(FORK_TOKENS.values()) if form == "fork" else []})
    for text, row in zip(TEXTS, rows, strict=True):
        answer = "#### " + text["answer"].replace(",", "")
        line = f" {text['question']} {eos} {' '.join(text['steps'])} {eos} {answer} {eos}"
        if form == "fork":
            line = f" {text['question']} {eos}<|start|> {' '.join(text['steps'])} <|ready|> {answer} {eos}"
        batch = ICoTCollator(tokenizer, config)([row])
        names = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
        assert names == there.convert_ids_to_tokens(there(line)["input_ids"])
        # ... and the question alone, as a user asks it, is what the line begins with.
        asked = tokenizer(text["question"])["input_ids"]
        assert asked == batch["input_ids"][0][: len(asked)].tolist()


def test_splits_by_any_usual_name():
    source = {"train": [], "valid": [], "test": []}
    assert find_split(DataArguments(), "validation", source) == "valid"
    assert find_split(DataArguments(), "validation", {"dev": []}) == "dev"
    assert find_split(DataArguments(validation_split="test"), "validation", source) == "test"
    with pytest.raises(InputError, match="there are: train, valid, test"):
        find_split(DataArguments(dataset_name="x", train_split="training"), "train", source)


def test_gold_answers_that_cannot_fit_are_named_before_training(tmp_path, caplog):
    """9 x 9 digits take 267 tokens: more than the limit that a recipe must raise."""
    argv = ["--config_name", "configs/icot_gpt2_chain.json", "--config_overrides", "n_positions=512", *QUIET]
    argv += ["--tokenizer_name", "words", "--dataset_name", "multiplication", "--do_train", "--do_eval"]
    argv += ["--task_args", "digits=9,train=4,validation=2,test=1", "--max_steps", "1", "--partial_removal"]
    argv += ["--output_dir", str(tmp_path), "--explicit_cot", "false"]
    run_icot.main(argv)
    said = (
        r"2 of 2 gold answers .* take more than --max_cot_tokens 256, so they count as wrong; the longest takes 26\d "
    )
    assert re.search(said, caplog.text)
    recipe = (ROOT / "configs" / "recipes" / "multiplication-9x9_icot_gpt2.yaml").read_text()
    assert "max_cot_tokens: 800" in recipe


# --- LoRA, checkpoints of the fork, configurations, flags ---


def test_lora_trains_the_originals_rows():
    """Those of bot, eot, latent, pad and eos."""
    model = make_model("gpt2")
    adapted = add_adapters(model, LoraArguments(lora_r=2))
    config = model.config
    (rows,) = adapted.peft_config["default"].trainable_token_indices.values()
    assert rows == [config.bot_token_id, config.eot_token_id, config.latent_token_id, config.pad_token_id, 1]
    stock = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=40, eos_token_id=3, pad_token_id=4))
    (rows,) = add_adapters(stock, LoraArguments(lora_r=2)).peft_config["default"].trainable_token_indices.values()
    assert rows == [4, 3]


@pytest.fixture
def fork_checkpoint(tmp_path) -> Path:
    """A folder as the fork saves it: a GPT-2, and a tokenizer with its three tokens."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(FORK_TOKENS.values()))
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 256, "initializer_range": 0.3}
    model = GPT2LMHeadModel(GPT2Config(**shape, vocab_size=len(tokenizer), eos_token_id=0, bos_token_id=0))
    model.save_pretrained(tmp_path / "fork")
    tokenizer.save_pretrained(tmp_path / "fork")
    return tmp_path / "fork"


def test_a_checkpoint_of_the_fork_is_converted(fork_checkpoint, tmp_path):
    """The converted model answers a question as the fork's would: ` question <eos>`, `<|start|>`, and what it writes."""
    from latent_cot.training.checkpoints.read import load

    convert(fork_checkpoint, tmp_path / "out")
    model, tokenizer = load(str(tmp_path / "out"))
    assert (model.config.text_format, model.config.pause_token_id) == ("fork", 258)
    assert 258 not in tokenizer("<|pause|>")["input_ids"]  # text stays text
    inputs = tokenizer(["3+4", "a longer one"], padding=True, return_tensors="pt")
    answers = model.generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs.input_ids.shape[1] :]
    there, stock = byte_tokenizer(), GPT2LMHeadModel.from_pretrained(fork_checkpoint)
    there.add_tokens(list(FORK_TOKENS.values()))
    for question, answer in zip(["3+4", "a longer one"], answers, strict=True):
        ids = torch.tensor([there(f" {question} <eos><|start|>", split_special_tokens=False)["input_ids"]])
        alone = stock.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        wanted = alone[0, ids.shape[1] :].tolist()
        assert answer.tolist()[: len(wanted)] == wanted


def test_scripts_recognise_a_checkpoint_of_the_fork(fork_checkpoint, tmp_path, caplog):
    """Trained on, it keeps its tokens and its text format; nothing but padding is added."""
    argv = ["--model_name_or_path", str(fork_checkpoint), "--dataset_name", "chain", *QUIET, "--do_train"]
    argv += ["--task_args", "train=8,validation=1,test=1", "--max_steps", "1", "--partial_removal"]
    run_icot.main([*argv, "--output_dir", str(tmp_path / "on")])
    config = AutoConfig.from_pretrained(tmp_path / "on")
    assert (config.text_format, config.start_token_id, config.question_end_ids) == ("fork", 257, [0])
    assert config.vocab_size == 257 + 3 + 1 and "fork" in caplog.text
    # A checkpoint brings its format along, and another one is refused.
    argv[1] = str(tmp_path / "on")
    run_icot.main([*argv, "--output_dir", str(tmp_path / "further")])
    assert AutoConfig.from_pretrained(tmp_path / "further").vocab_size == 261
    with pytest.raises(InputError, match="the checkpoint was trained with 'fork'"):
        run_icot.main([*argv, "--text_format", "plain", "--output_dir", str(tmp_path / "other")])


LLAMA = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "initializer_range": 0.02, "vocab_size": 32000}
LLAMA |= {"max_position_embeddings": 1024, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
SHAPES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
ONE_B = dict(zip(SHAPES, (2048, 8192, 16, 32, 8), strict=True)) | {"vocab_size": 128256, "tie_word_embeddings": True}
ONE_B |= {"max_position_embeddings": 131072, "head_dim": 64, "bos_token_id": 128000, "eos_token_id": 128001}
# The original's nine sample configurations, as far as they say something.
SAMPLES = {
    "llama_small": ("llama", LLAMA | dict(zip(SHAPES, (768, 2048, 12, 12, 6), strict=True))),
    "llama_tiny": ("llama", LLAMA | dict(zip(SHAPES, (512, 1024, 8, 8, 4), strict=True))),
    "tinyllama": ("llama", LLAMA | dict(zip(SHAPES, (2048, 5632, 22, 32, 4), strict=True)) | {"max_position_embeddings": 2048}),
    "pccot_llama3.2_1b": ("pccot-llama", ONE_B),
    "pccot_llama3.2_1b_inst": ("pccot-llama", ONE_B | {"eos_token_id": [128001, 128008, 128009]}),
    "pccot_gpt2_small": ("pccot-gpt2", {"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "eos_token_id": 50256}),
}  # fmt: skip
SAMPLES |= {f"pccot_{name}": ("pccot-llama", SAMPLES[name][1]) for name in ("llama_small", "llama_tiny", "tinyllama")}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_originals_configurations_mean_the_same(name):
    """Its nine files have the same shapes here; what they leave out has the original's defaults."""
    model_type, values = SAMPLES[name]
    config = AutoConfig.from_pretrained(ROOT / "configs" / f"{name}.json")
    assert config.model_type == model_type
    for field, value in values.items():
        assert getattr(config, field) == value, field
    if model_type.startswith("pccot"):
        defaults = {"num_iterations": 6, "num_latent_tokens": 6, "use_projection": False, "use_layerwise_std": True}
        for field, value in (defaults | {"loss_alpha": 1, "loss_beta": 1, "loss_gamma": 1, "loss_delta": 0}).items():
            assert getattr(config, field) == value, field
    if "3.2" in name:
        rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0}
        rope |= {"high_freq_factor": 4.0}
        assert rope.items() <= config.rope_parameters.items()


@pytest.mark.parametrize("flag", SUCCESSORS)
def test_flags_that_are_none_name_their_successor(flag):
    """Where another script has the flag, it is one."""
    for script in (run_ccot, run_cot, run_icot):
        known = {field.name for group in script.ARGUMENTS for field in fields(group)}
        assert flag not in known
        with pytest.raises(InputError, match=f"--{flag} is no flag here: use "):
            parse(script.ARGUMENTS, [f"--{flag}", "1", "--output_dir", "x"])
        for successor in re.findall(r"--(\w+)", SUCCESSORS[flag]):
            assert successor in {name for group in run_icot.ARGUMENTS for name in (f.name for f in fields(group))}


def test_defaults_are_the_originals():
    """What `run_ccot.py` does when a flag is left out (`models/pccot_arguments.py` there), and the fork's fillers."""
    lora = LoraArguments()
    assert (lora.lora_r, lora.lora_alpha, lora.lora_dropout) == (128, 32, 0.1)
    method = ICoTArguments()
    assert removal_schedule(method, SimpleNamespace(eval_strategy="no")).per_epoch == 8
    config = latent_cot.ICoTGPT2Config()
    assert (method.removal_side or config.removal_side, method.pretrain_epochs) == ("left", 0)
    assert (method.switch_mode, method.switch_from_n_steps, method.switch_token_ratio) == ("random", 5000, 1.0)
    assert method.write_fillers and EvaluationArguments().max_new_tokens == 32
