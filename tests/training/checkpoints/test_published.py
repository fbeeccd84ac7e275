"""Adapter folders and the layout that the original publishes, in everything that takes a checkpoint."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import FIXTURES, SHIPPED, ask_example, make_model, plain_adapter, question_batch, with_span
from peft import AutoPeftModel, AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import run_ccot
import run_cot
from latent_cot.commands import convert
from latent_cot.training.arguments import LoraArguments
from latent_cot.training.checkpoints import read as checkpoint
from latent_cot.training.checkpoints.loading import extend_positions, reinitialize
from latent_cot.training.checkpoints.lora import add_adapters, merge_adapter
from latent_cot.training.checkpoints.read import load_weights, read_config
from latent_cot.training.checkpoints.write import write_model_files
from latent_cot.training.data.small_tokenizers import byte_tokenizer
from latent_cot.training.errors import InputError

CASE = FIXTURES / "parity" / "peft_checkpoint"
PUBLISHED = CASE / "checkpoint"
EXAMPLES = json.loads((CASE / "expected.json").read_text())["examples"]


@pytest.fixture
def published(tmp_path):
    """A copy of the published checkpoint and its base model that a test may spoil."""
    shutil.copytree(CASE, tmp_path / "case")
    return tmp_path / "case" / "checkpoint"


def train(model, folder, *flags: str):
    """A run on the published data; its folder."""
    argv = ["--model_name_or_path", str(model), "--train_file", str(CASE / "data" / "train.json"), "--do_train"]
    run_ccot.main([*argv, "--use_cpu", "--save_strategy", "no", *flags, "--output_dir", str(folder)])
    return folder


def spoil(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_example_answers(tmp_path, monkeypatch, capsys):
    """`example.py --model FOLDER`, from anywhere."""
    monkeypatch.chdir(tmp_path)
    lines = ask_example(monkeypatch, capsys, "--model", str(PUBLISHED), *[row["question"] for row in EXAMPLES])
    assert [line.rpartition("->")[2].strip() for line in lines] == [row["text"] for row in EXAMPLES]


@pytest.mark.parametrize("script", [run_ccot, run_cot])
def test_scripts_evaluate(script, tmp_path):
    """Its own measured accuracy is of teacher-forced answers; ours is generated, and the same for both layouts."""
    converted = tmp_path / "converted"
    convert.main(["--model", str(PUBLISHED), str(converted)])
    ask = ["--test_file", str(CASE / "data" / "test.json"), "--do_predict", "--use_cpu", "--max_cot_tokens", "30"]
    texts = []
    for name in (PUBLISHED, converted):
        script.main([*ask, "--model_name_or_path", str(name), "--output_dir", str(tmp_path / "out")])
        texts.append((tmp_path / "out" / "predictions.jsonl").read_text())
    assert texts[0] == texts[1] and len(texts[0].splitlines()) == 16


def test_training_goes_on(tmp_path):
    train(PUBLISHED, tmp_path / "out", "--max_steps", "2")
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config
    assert (config.num_latent_tokens, config.bot_token_id, config.pad_token_id) == (6, 331, 334)


def test_what_cannot_be_read_is_named(published, tmp_path):
    """One clear line, and a folder in use stays as it is."""

    def fails(match: str, **options):
        with pytest.raises(InputError, match=match):
            checkpoint.load(str(published), **options)

    with pytest.raises(InputError, match="is not empty"):
        convert.main(["--model", str(PUBLISHED), str(published)])
    with pytest.raises(InputError, match="no such file or folder"):
        checkpoint.load(str(tmp_path / "nowhere"))
    spoil(published / "pccot_args.json", num_latent_tokens="many")
    fails("pccot_args.json")
    spoil(published / "pccot_args.json", num_latent_tokens=6)
    checkpoint.load(str(published))
    spoil(published / "adapter_config.json", peft_type="IA3")
    fails("only LORA")
    spoil(published / "adapter_config.json", peft_type="LORA")
    llama = make_model("llama")
    llama.config.model_type = "pccot-llama"
    llama.save_pretrained(tmp_path / "llama")
    fails("cannot be built on", base_model=str(tmp_path / "llama"))
    (published / "adapter_model.safetensors").rename(published / "adapter_model.bin")
    fails("no adapter_model.safetensors")


@pytest.mark.parametrize("base", ["/etc", "../case/base_model", "~/base", ""])
def test_a_checkpoint_names_no_folder_elsewhere(published, base):
    """Only a folder beside it or a name on the Hub; the user may name another."""
    spoil(published / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(InputError if base != "~/base" else (InputError, OSError)):
        checkpoint.load(str(published))
    model, _ = checkpoint.load(str(published), base_model=str(CASE / "base_model"))
    assert model.config.vocab_size == 335


def test_an_adapter_configuration_is_data(published, tmp_path, monkeypatch):
    """PEFT imports the module that `megatron_core` names; nothing of it is passed on."""
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    spoil(
        published / "adapter_config.json",
        megatron_config={"x": 1},
        megatron_core="evil_module",
        auto_mapping={"base_model_class": "Evil", "parent_library": "evil_module"},
        runtime_config={"x": 1},
    )
    checkpoint.load(str(published))
    assert "evil_module" not in sys.modules


def test_pickled_weights_are_not_read(tmp_path):
    model = make_model("gpt2")
    model.save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_weights(str(tmp_path), read_config(str(tmp_path)))


@pytest.fixture(scope="module", params=["projection", pytest.param("no projection", marks=pytest.mark.slow)])
def lora_run(request, tmp_path_factory):
    """A LoRA run on a backbone whose vocabulary had to grow."""
    folder = tmp_path_factory.mktemp("lora")
    projection = str(request.param == "projection").lower()
    lora = f"--config_overrides use_projection={projection} --num_latent_tokens 4 --use_peft --lora_r 4"
    return train(CASE / "base_model", folder / "run", *lora.split(), "--max_steps", "4", "--learning_rate", "1e-3")


def test_adapter_and_merged_model_are_the_same(lora_run):
    """Loaded plainly (by transformers that can), by our own loader, and merged: no logit differs by more than 1e-5."""
    ours, tokenizer = checkpoint.load(str(lora_run / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(lora_run).eval()
    plain = plain_adapter(lora_run / "adapter") or ours
    assert plain is ours or any("lora_A" in name for name, _ in plain.named_parameters())
    assert not any("lora" in name for name, _ in ours.named_parameters())
    ids, mask = with_span(merged, *question_batch([7, 5]))
    with torch.no_grad():
        logits = [model.double()(input_ids=ids, attention_mask=mask).logits for model in (merged, plain, ours)]
    # The layer norm of a hardly trained projection magnifies rounding.
    most = 1e-4 if merged.config.use_projection else 1e-5
    assert (logits[0] - logits[1]).abs().max() <= most
    assert (logits[0] - logits[2]).abs().max() <= most
    inputs = tokenizer(["Sam has 2 cats."], return_tensors="pt")
    answers = [model.generate(**inputs, max_new_tokens=5, do_sample=False) for model in (merged, plain, ours)]
    assert torch.equal(answers[0], answers[1]) and torch.equal(answers[0], answers[2])


def test_the_adapter_holds_what_was_trained(lora_run):
    """LoRA matrices, the rows of the thought's tokens and the projection; no copy of the vocabulary."""
    names = set(load_file(lora_run / "adapter" / "adapter_model.safetensors"))
    projection = json.loads((lora_run / "config.json").read_text())["use_projection"]
    assert any("prj" in name for name in names) == projection
    assert any("trainable_tokens" in name for name in names)
    assert not any(name.endswith(("wte.weight", "lm_head.weight", "base_layer.weight")) for name in names)


@pytest.mark.slow  # test_adapter_and_merged_model_are_the_same loads it plainly in this process
def test_a_moved_adapter_loads_in_a_fresh_process(lora_run, tmp_path):
    """Nothing but its folder is needed (and PEFT)."""
    shutil.copytree(lora_run / "adapter", tmp_path / "moved")
    tokenizer, model = (cls.from_pretrained(lora_run) for cls in (AutoTokenizer, AutoModelForCausalLM))
    wanted = model.generate(**tokenizer(["Ann has 3"], return_tensors="pt"), max_new_tokens=5, do_sample=False)
    script = """
import sys
from peft import AutoPeftModel, AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel
model = AutoModelForCausalLM.from_pretrained("moved", trust_remote_code=True)
inputs = AutoTokenizer.from_pretrained("moved", trust_remote_code=True)(["Ann has 3"], return_tensors="pt")
print(model.generate(**inputs, max_new_tokens=5, do_sample=False).tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == wanted.tolist()


def test_scripts_and_example_take_the_adapter(lora_run, tmp_path, monkeypatch, capsys):
    ask = ["--test_file", str(CASE / "data" / "test.json"), "--do_predict", "--use_cpu", "--explicit_cot", "false"]
    texts = []
    for name in (lora_run, lora_run / "adapter"):
        run_ccot.main([*ask, "--model_name_or_path", str(name), "--output_dir", str(tmp_path / "out")])
        texts.append((tmp_path / "out" / "predictions.jsonl").read_text())
        texts.append(ask_example(monkeypatch, capsys, "--model", str(name), "Sam has 6 cats."))
    assert texts[:2] == texts[2:]


def test_the_merged_model_can_be_left_out(tmp_path):
    train(CASE / "base_model", tmp_path, *["--use_peft", "--lora_r", "2", "--no_save_merged", "--max_steps", "1"])
    assert not (tmp_path / "model.safetensors").exists() and (tmp_path / "adapter" / "model.safetensors").exists()
    assert (tmp_path / "README.md").exists()


def test_weights_of_an_adapter_without_a_base_of_its_own(lora_run, tmp_path):
    """As small as the published layout: the base model is found where the adapter's configuration says."""
    shutil.copytree(CASE / "base_model", tmp_path / "base_model")
    shutil.copytree(lora_run / "adapter", tmp_path / "adapter")
    whole, _ = checkpoint.load(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "model.safetensors").unlink()
    spoil(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="base_model")
    small, _ = checkpoint.load(str(tmp_path / "adapter"))
    trained = [name for name, value in whole.state_dict().items() if torch.equal(value, small.state_dict()[name])]
    assert len(trained) >= len(whole.state_dict()) - 2  # all but the padding token's row, which nothing reads


def test_untied_rows_survive(tmp_path):
    """An adapter on a model with an output matrix of its own trains that one's rows too."""
    base = make_model("llama", tie_word_embeddings=False).double()
    base.save_pretrained(tmp_path / "base")
    adapted = add_adapters(base, LoraArguments(use_peft=True, lora_r=2)).double()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    ids, mask = with_span(base, *question_batch([4, 6]))
    wanted = adapted.eval()(input_ids=ids, attention_mask=mask).logits
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merged = merge_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert (merged(input_ids=ids, attention_mask=mask).logits - wanted).abs().max() <= 1e-9
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum("trainable_tokens" in name for name in saved) == 2


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A LoRA run on a base model in a folder elsewhere, whose adapters are saved without it; and that folder."""
    folder = tmp_path_factory.mktemp("small")
    base = folder / "elsewhere" / "base_model"
    shutil.copytree(CASE / "base_model", base)
    lora = "--num_latent_tokens 4 --use_peft --lora_r 4 --save_base false --config_overrides use_projection=true"
    steps = "--max_steps 3 --learning_rate 1e-3 --save_strategy steps --save_steps 3"
    return train(base, folder / "run", *lora.split(), *steps.split()), base


def differs(one, other) -> list[str]:
    state = other.state_dict()
    return [name for name, value in one.state_dict().items() if not torch.equal(value, state[name])]


def test_adapters_without_their_base(small_run, tmp_path):
    """Asked for, or found beside them, and then the merged model to the bit."""
    run, base = small_run
    adapter = tmp_path / "run" / "adapter"
    shutil.copytree(run / "adapter", adapter)
    assert not list(adapter.glob("model*.safetensors")) and (adapter / "modeling_pccot.py").is_file()
    assert str(base.parent) not in (adapter / "adapter_config.json").read_text()
    with pytest.raises(
        InputError, match=r"its base model was in a folder 'base_model', .*load\(FOLDER, base_model=PATH\)"
    ):
        checkpoint.load(str(adapter))
    merged, tokenizer = checkpoint.load(str(run))
    settings = json.loads((base / "generation_config.json").read_text()) | {"do_sample": True}
    (base / "generation_config.json").write_text(json.dumps(settings))
    named, same = checkpoint.load(str(adapter), base_model=str(base))
    assert not named.generation_config.do_sample  # how a model answers is the adapter's word, not its base's
    assert not differs(merged, named) and same.get_vocab() == tokenizer.get_vocab()
    shutil.copytree(base, tmp_path / "run" / "base_model")
    found, _ = checkpoint.load(str(adapter))
    assert not differs(merged, found)


def test_a_base_that_is_nowhere_is_asked_for(small_run, tmp_path):
    shutil.copytree(small_run[0] / "adapter", tmp_path / "adapter")
    spoil(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path="no-such-model-here")
    with pytest.raises(InputError, match=r"base model 'no-such-model-here' is neither .* base_model=PATH"):
        checkpoint.load(str(tmp_path / "adapter"))


def test_no_base_to_find_is_refused_before_training(tmp_path):
    alone = LoraArguments(use_peft=True, save_base=False)
    with pytest.raises(InputError, match="--save_base false: the weights below the adapters would be those of no"):
        add_adapters(make_model("gpt2"), alone)
    for change in (reinitialize, lambda model: extend_positions(model, 300) or model):
        model = AutoModelForCausalLM.from_pretrained(SHIPPED)
        add_adapters(model, alone)
        with pytest.raises(InputError, match="drawn at random, or with positions added"):
            add_adapters(change(AutoModelForCausalLM.from_pretrained(SHIPPED)), alone)


def test_a_backbone_that_samples_by_default(tmp_path):
    model = make_model("gpt2")
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9, top_k=20, min_p=0.1)
    write_model_files(model, byte_tokenizer(), tmp_path)
    settings = GenerationConfig.from_pretrained(tmp_path)
    assert not settings.do_sample and settings.temperature is None


def test_doors_that_would_not_think_are_refused(small_run, monkeypatch):
    """PEFT's Auto classes build a stock backbone of the base's name."""
    run, base = small_run
    for door in (AutoPeftModelForCausalLM, AutoPeftModel):
        with pytest.raises(ValueError, match="wants to import 'latent_cot' which is not in the import allowlist"):
            door.from_pretrained(str(run / "adapter"))
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(run / "adapter")
    monkeypatch.chdir(base.parent)  # where ./base_model is
    allowed = AutoPeftModelForCausalLM.from_pretrained(str(run / "adapter"), import_allowlist=["latent_cot"])
    with pytest.raises(ValueError, match="the configuration has no bot_token_id"):
        allowed.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=2)


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_a_saved_peft_object_loads(with_tokenizer, small_run, tmp_path):
    """`trainer.model.save_pretrained`, as a checkpoint to resume from holds it."""
    run, base = small_run
    shutil.copytree(run / "checkpoint-3", tmp_path / "saved")
    for path in (*(tmp_path / "saved").glob("*token*.json"), *(tmp_path / "saved").glob("chat*")):
        if not with_tokenizer:
            path.unlink()
    merged, tokenizer = checkpoint.load(str(run))
    loaded, same = checkpoint.load(str(tmp_path / "saved"), base_model=str(base))
    assert not differs(merged, loaded)
    assert same(["Sam has 2 cats."]) == tokenizer(["Sam has 2 cats."])
    if not with_tokenizer:
        spoil(tmp_path / "saved" / "config.json", bot_token_id=7)
        with pytest.raises(InputError, match="no tokenizer in it, and the base model's gives"):
            checkpoint.load(str(tmp_path / "saved"), base_model=str(base))
