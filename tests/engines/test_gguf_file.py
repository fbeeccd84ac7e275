"""GGUF files as a source of weights (`--gguf_file`, `training/checkpoints/gguf_file.py`)."""

import json

import pytest
import torch
from conftest import LEARNED, ROPE
from test_gguf import PLAIN, WORLDS, byte_level, make_checkpoint, split_by
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__

import run_ccot
import run_icot
from latent_cot.engines.gguf.export import export_gguf
from latent_cot.engines.gguf.tokenizer import LLAMA3_SPLIT
from latent_cot.training.arguments import ModelArguments
from latent_cot.training.checkpoints import gguf_file
from latent_cot.training.checkpoints.gguf_file import GGUFFile, load_gguf
from latent_cot.training.checkpoints.loading import load_config, load_model, load_tokenizer
from latent_cot.training.data.small_tokenizers import byte_tokenizer
from latent_cot.training.errors import InputError

pytestmark = pytest.mark.skipif(__version__.startswith("5.17."), reason="its reader loses tokens, and is refused")


def test_a_reader_that_loses_tokens_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "__version__", "5.17.0")
    with pytest.raises(InputError, match=r"--gguf_file needs transformers 5\.18"):
        GGUFFile(str(tmp_path), "model.gguf")


gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install '.[gguf]'")


@pytest.fixture(scope="module", params=WORLDS)
def world(request, tmp_path_factory):
    """A checkpoint and the folder of its GGUF file."""
    model_type, make_tokenizer, fields, questions = WORLDS[request.param]
    folder = tmp_path_factory.mktemp("gguf")
    make_checkpoint(folder / "model", model_type, make_tokenizer(), fields)
    export_gguf(str(folder / "model"), folder / "model.gguf")
    return folder, questions


def source(folder, **more) -> ModelArguments:
    return ModelArguments(model_name_or_path=str(folder), gguf_file="model.gguf", **more)


def backbone_config(folder, **more):
    """Of the file; where its positions are scaled, it is refused, and the original's configuration is passed."""
    if GGUFFile(str(folder), "model.gguf").scaling() is None:
        return load_config(source(folder, **more))
    with pytest.raises(InputError, match=r"positions are scaled \(rope_freqs\.weight\).*--config_name"):
        load_config(source(folder, **more))
    return load_config(source(folder, config_name=str(folder / "model")))


def test_the_weights_come_back(world):
    """Also those of scaled positions, of biases, of an untied head and of a short table of positions."""
    folder, _ = world
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    config = backbone_config(folder)
    assert config.max_position_embeddings <= model.config.max_position_embeddings
    again = load_gguf(GGUFFile(str(folder), "model.gguf"), config, dtype=torch.float32).eval()
    ids = torch.arange(60)[None] % model.config.vocab_size
    with torch.no_grad():
        wanted = model(ids).logits
        assert (again(ids).logits - wanted).abs().max() <= 1e-5
    assert wanted.abs().max() > 0.5 and getattr(again.config, "quantization_config", None) is None


READ = {"GPT-2", "original format", "fork's format", "stock GPT-2", "Llama 3", "stock Qwen3"}


def test_the_tokens_come_back(world, request):
    """Where transformers' reader makes the same of every text; otherwise it is refused."""
    folder, questions = world
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    if request.node.callspec.params["world"] not in READ:
        with pytest.raises(InputError, match="tokenizer"):
            load_tokenizer(source(folder), [])
        assert len(load_tokenizer(source(folder, tokenizer_name=str(folder / "model")), [])) == len(tokenizer)
        return
    again = load_tokenizer(source(folder), [])
    spaced = (
        " " if getattr(load_config(ModelArguments(str(folder / "model"))), "text_format", "plain") != "plain" else ""
    )
    for text in [*questions, *PLAIN, "x12345y  67\n\n89", "  two spaces"]:
        wanted = tokenizer(text)["input_ids"]
        assert again(f"{spaced}{text}{spaced}", split_special_tokens=True)["input_ids"] == wanted, text
    assert (again.eos_token_id, again.bos_token_id) == (tokenizer.eos_token_id, tokenizer.bos_token_id)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A backbone that was never one of ours: its GGUF file, and nothing else in its folder."""
    folder = tmp_path_factory.mktemp("base")
    make_checkpoint(folder / "made", "llama", split_by(LLAMA3_SPLIT), ROPE | {"max_position_embeddings": 256})
    export_gguf(str(folder / "made"), folder / "model.gguf")
    lines = [
        f"Tom has {n} pens and buys {n + 1}.||<<{n}+{n + 1}={2 * n + 1}>> <<1*1=1>> #### {2 * n + 1}" for n in range(16)
    ]
    (folder / "data.txt").write_text("\n".join(lines))
    return folder


RUNS = {"pccot": (run_ccot, ""), "LoRA": (run_ccot, " --use_peft --lora_r 2"), "icot": (run_icot, " --partial_removal")}


@pytest.mark.parametrize(("script", "more"), RUNS.values(), ids=RUNS)
def test_a_run_starts_from_it(script, more, base, tmp_path):
    data = str(base / "data.txt")
    argv = ["--model_name_or_path", str(base), "--train_file", data, "--validation_file", data]
    flags = "--gguf_file model.gguf --do_train --do_eval --max_steps 2 --learning_rate 0 --use_cpu --save_strategy no"
    flags += " --max_eval_samples 2 --max_new_tokens 3 --max_cot_tokens 4"
    script.main([*argv, *(flags + more).split(), "--output_dir", str(tmp_path)])
    family = "pccot" if script is run_ccot else "icot"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == f"{family}-llama" and "quantization_config" not in config
    assert (tmp_path / "model.safetensors").is_file() and "model.gguf" not in {path.name for path in tmp_path.iterdir()}
    trained, made = AutoModelForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(base / "made")
    rows = made.get_input_embeddings().num_embeddings
    ids = torch.arange(20)[None]
    with torch.no_grad():  # a learning rate of 0: the same backbone
        assert (trained.eval()(ids).logits[..., :rows] - made.eval()(ids).logits).abs().max() < 1e-5
    # transformers' reader adds <|endoftext|> where a file has no such token.
    assert trained.config.vocab_size == rows + 3 + 1 == len(AutoTokenizer.from_pretrained(tmp_path))
    assert (
        f"base_model: {base}" in (tmp_path / "README.md").read_text() or family in (tmp_path / "README.md").read_text()
    )


def test_a_configuration_of_ones_own(base):
    config = load_config(source(base, config_name="configs/pccot_llama_tiny.json"), "pccot")
    with pytest.raises(InputError, match="the configuration is of another model"):
        load_model(source(base), config, byte_tokenizer())


def test_quantized_tensors(tmp_path):
    """Q8_0 comes back within its own step."""
    fields = LEARNED | {"n_positions": 64, "n_embd": 64}
    make_checkpoint(tmp_path / "made", "gpt2", byte_level(), fields)
    export_gguf(str(tmp_path / "made"), tmp_path / "exact.gguf")
    exact = GGUFFile(str(tmp_path), "exact.gguf")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gpt2")
    for name, field in gguf.GGUFReader(tmp_path / "exact.gguf").fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), kind, inner)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in exact.tensors.items():
        if len(tensor.shape) > 1 and tensor.shape[0] % 32 == 0:
            writer.add_tensor(name, gguf.quantize(tensor.data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor.data)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    args = source(tmp_path)
    config, tokenizer = load_config(args), load_tokenizer(args, [])
    model, made = load_model(args, config, tokenizer), AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    for (name, ours), theirs in zip(model.named_parameters(), made.parameters(), strict=True):
        ours = ours[: len(theirs)]  # without the row of <|endoftext|>, which transformers' reader adds
        assert (ours - theirs).abs().max() <= theirs.abs().max() / 127, name
    model.save_pretrained(tmp_path / "written")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "written")
    assert all(torch.equal(a, b) for a, b in zip(written.parameters(), model.parameters(), strict=True))


def test_what_is_refused(base, tmp_path, monkeypatch):
    for args, message in (
        (ModelArguments(gguf_file="model.gguf", config_name="configs/gpt2_chain.json"), "pass both"),
        (source(base / "made"), "no model.gguf in it"),
    ):
        with pytest.raises(InputError, match=message):
            load_config(args)
    (tmp_path / "model.gguf").write_bytes((base / "model.gguf").read_bytes()[:4000])
    with pytest.raises(InputError, match=r"model\.gguf: the GGUF file cannot be read") as error:
        load_config(source(tmp_path))
    assert "\n" not in str(error.value)
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "falcon")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.close):
        write()
    with pytest.raises(InputError, match="architecture 'falcon'; here are gpt2, llama, qwen3"):
        load_config(ModelArguments(str(tmp_path), gguf_file="other.gguf"))


def test_a_tensor_of_another_size_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gpt2")
    for field, size in (("context_length", 16), ("embedding_length", 8), ("head_count", 2), ("block_count", 1)):
        getattr(writer, f"add_{field}")(size)
    writer.add_tensor("token_embd.weight", torch.ones(10, 8).numpy())
    writer.add_tensor("position_embd.weight", torch.ones(0).numpy())
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    file = GGUFFile(str(tmp_path), "model.gguf")
    with pytest.raises(InputError, match=r"its tensor transformer\.wpe\.weight is of size \[0\], and .* \[16, 8\]"):
        load_gguf(file, file.config())


def test_what_transformers_would_pass_over_is_refused(base, monkeypatch):
    """A kind of scaling, positions of another configuration, a tensor, a first token."""
    config = load_config(source(base))
    scaled = load_config(source(base))
    scaled.rope_parameters = {"rope_type": "linear", "rope_theta": scaled.rope_parameters["rope_theta"], "factor": 2.0}
    with pytest.raises(InputError, match="scaled otherwise than the configuration says"):
        load_model(source(base), scaled, byte_tokenizer())
    field = GGUFFile.field
    monkeypatch.setattr(GGUFFile, "field", lambda *a: "yarn" if a[1] == "llama.rope.scaling.type" else field(*a))
    with pytest.raises(InputError, match=r"positions are scaled \(llama\.rope\.scaling\.type\)"):
        load_config(source(base))
    monkeypatch.setattr(GGUFFile, "field", lambda *a: a[1] == "tokenizer.ggml.add_bos_token" or field(*a))
    with pytest.raises(InputError, match="would be read without a first token"):
        load_tokenizer(source(base), [])
    monkeypatch.undo()
    init = GGUFFile.__init__

    def with_another(self, *args):
        init(self, *args)
        self.tensors["blk.9.attn_q.weight"] = self.tensors["blk.0.attn_q.weight"]

    monkeypatch.setattr(GGUFFile, "__init__", with_another)
    with pytest.raises(InputError, match=r"blk\.9\.attn_q\.weight has no place"):
        load_model(source(base), config, byte_tokenizer())
