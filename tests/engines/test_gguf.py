"""GGUF files (`engines/gguf/`): llama.cpp sees the same tokens and writes the same greedy answers."""

import itertools
import json
import shutil
import urllib.request
from pathlib import Path

import pytest
import torch
from conftest import LEARNED, ROPE, SHIPPED
from test_tokenizer_worlds import byte_level_with_bos, sentencepiece
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from latent_cot.commands import export
from latent_cot.engines.gguf import export as export_gguf
from latent_cot.engines.gguf.tokenizer import LLAMA3_SPLIT, QWEN_SPLIT
from latent_cot.training.arguments import ModelArguments
from latent_cot.training.checkpoints.loading import load_model, set_up, set_up_text_format
from latent_cot.training.checkpoints.write import write_model_files
from latent_cot.training.data.small_tokenizers import byte_tokenizer, character_tokenizer, word_tokenizer
from latent_cot.training.errors import InputError

pytest.importorskip("gguf", reason="gguf is not installed: pip install '.[gguf]'")
xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: pip install '.[gguf]'")

TEXTS = [
    "Tom has 3 pens and buys 4.",
    "1 + 2 =",
    "He'll pay 12345 coins, won't he?  Two  spaces, a\ttab",
    "a\nnew line and\n\n\n two more: é ü 漢字 ½ 🙂",
    "1234567+89*10-11=",
]
PLAIN = ["Tom has 3 pens", "1 + 2 =", "a pen . a pen"]  # in words that the tokenizers of words and characters know


def byte_level(*parts, use_regex: bool = True, **options) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on `TEXTS`, after the given pre-tokenizers."""
    tokenizer = Tokenizer(BPE(**options))
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, last]) if parts else last
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def split_by(pattern: str) -> PreTrainedTokenizerFast:
    whole_words = {"ignore_merges": pattern == LLAMA3_SPLIT}
    return byte_level(pre_tokenizers.Split(Regex(pattern), "isolated"), use_regex=False, **whole_words)


def digits_apart() -> PreTrainedTokenizerFast:
    return byte_level(pre_tokenizers.Digits(individual_digits=True))


def words() -> PreTrainedTokenizerFast:
    return word_tokenizer([*PLAIN, "####"])


def characters() -> PreTrainedTokenizerFast:
    return character_tokenizer(["".join(PLAIN), "#é\n"])


LLAMA3_POSITIONS = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0}
LLAMA3_POSITIONS |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
WRITES = {"num_internalized_tokens": 2}
GONE = {"num_internalized_tokens": -1}
FILLERS = GONE | {"filler_mode": "prefilled", "num_fillers": 3}
GPT2_PARTS = LEARNED | {"n_positions": 256}
ROPE_PARTS = ROPE | {"max_position_embeddings": 256}
# Model type, tokenizer, fields of the configuration, questions.
WORLDS = {
    "characters": ("icot-gpt2", characters, GPT2_PARTS | FILLERS, [*PLAIN, "a~é\n pen"]),
    "words": ("icot-mistral", words, ROPE_PARTS | {"sliding_window": 64} | GONE, PLAIN),
    "bytes": ("icot-gpt2", byte_tokenizer, GPT2_PARTS | WRITES, TEXTS),
    "GPT-2": ("icot-gpt2", byte_level, GPT2_PARTS | FILLERS, TEXTS),
    "original format": ("icot-gpt2", byte_level, GPT2_PARTS | GONE | {"text_format": "original"}, TEXTS),
    "fork's format": ("icot-gpt2", byte_level, GPT2_PARTS | FILLERS | {"text_format": "fork"}, TEXTS),
    "sentencepiece": ("icot-llama", sentencepiece, ROPE_PARTS | FILLERS, [*TEXTS, "  <x> het"]),
    "bytes after BOS": ("icot-llama", byte_level_with_bos, ROPE_PARTS | GONE, TEXTS),
    "Llama 3": ("icot-llama", lambda: split_by(LLAMA3_SPLIT), ROPE_PARTS | GONE | {"rope_parameters": LLAMA3_POSITIONS}, TEXTS),
    "stock GPT-2": ("gpt2", byte_level, GPT2_PARTS | {"tie_word_embeddings": False}, TEXTS),
    "stock Llama": ("llama", digits_apart, ROPE_PARTS | {"attention_bias": True}, TEXTS),
    "stock Mistral": ("mistral", byte_tokenizer, ROPE_PARTS | {"sliding_window": None}, TEXTS),
    "stock Qwen3": ("qwen3", lambda: split_by(QWEN_SPLIT), ROPE_PARTS, TEXTS),
}  # fmt: skip


def make_checkpoint(folder: Path, model_type: str, tokenizer: PreTrainedTokenizerFast, fields: dict) -> Path:
    """A small random model with such a tokenizer, saved as a run leaves it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **(fields | {"initializer_range": 0.2}))
    if form := fields.get("text_format"):
        set_up_text_format(config, tokenizer, form)
    set_up(config, tokenizer, "####")
    model = load_model(ModelArguments(), config, tokenizer)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)  # which are 0 otherwise
    write_model_files(model, tokenizer, folder)
    return folder


def llama_cpp(path: Path):
    """A function that sends a request to a llama.cpp server that has loaded the file; the server ends with it."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(path), 256, 1
    params.n_gpu_layers, params.cpuparams.n_threads, params.warmup, params.port = 0, 1, False, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # as transformers computes
    server = xllamacpp.Server(params)

    def ask(door: str, **body):
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.listening_address}/{door}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    return ask


@pytest.fixture(scope="module", params=WORLDS)
def world(request, tmp_path_factory):
    """A model, its tokenizer, its questions, the prompt that the command printed, and its file."""
    model_type, make_tokenizer, fields, questions = WORLDS[request.param]
    folder = tmp_path_factory.mktemp("gguf")
    make_checkpoint(folder / "model", model_type, make_tokenizer(), fields)
    prompt = export_gguf.export_gguf(str(folder / "model"), folder / "model.gguf")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        AutoTokenizer.from_pretrained(folder / "model"),
    )
    yield model.eval(), tokenizer, questions, prompt, folder / "model.gguf"
    shutil.rmtree(folder)


def until_the_end(ids: list[int], tokenizer) -> list[int]:
    """What comes before an end of sequence, or before padding, where llama.cpp ends too (only a random model writes it)."""
    ends = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    return list(itertools.takewhile(lambda token: token not in ends, ids))


def test_llama_cpp_sees_the_tokens_and_writes_the_answers(world):
    model, tokenizer, questions, prompt, path = world
    ask = llama_cpp(path)
    for question in questions:
        ids = tokenizer(question, return_tensors="pt")["input_ids"]
        seen = model.open_prompt(ids)["input_ids"][0].tolist() if hasattr(model, "open_prompt") else ids[0].tolist()
        text = prompt.replace("{question}", question)
        assert ask("tokenize", content=text, add_special=True, parse_special=True)["tokens"] == seen, question
        wanted = model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :].tolist()
        got = ask("completion", prompt=text, n_predict=10, temperature=0, return_tokens=True)["tokens"]
        assert until_the_end(got, tokenizer) == until_the_end(wanted, tokenizer), question
        chat = [{"role": "user", "content": question}]
        assert ask("apply-template", messages=chat)["prompt"] == text
        reply = ask("v1/chat/completions", messages=chat, max_tokens=10, temperature=0)
        assert reply["usage"]["prompt_tokens"] == len(seen)


def test_the_prompt_that_is_printed(world):
    """What the command prints is a question alone only for stock backbones."""
    model, _, _, prompt, _ = world
    bare = prompt == "{question}"
    assert bare == (not hasattr(model, "suffix_ids"))
    if not bare:
        assert prompt.strip().startswith("{question}") and "<pcot" not in prompt
        assert ("####" in prompt) == (not model.writes_chain())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays(dtype, tmp_path):
    folder = make_checkpoint(tmp_path / "model", "icot-gpt2", byte_tokenizer(), GPT2_PARTS | GONE)
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    export_gguf.export_gguf(str(folder), tmp_path / "model.gguf")
    size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(folder).parameters())
    assert (tmp_path / "model.gguf").stat().st_size < 2.5 * size + 30_000
    answer = llama_cpp(tmp_path / "model.gguf")("completion", prompt="1+2=", n_predict=4, return_tokens=True)
    assert answer["tokens"]


def unigrams() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(Unigram([("<unk>", 0.0), ("<eos>", 0.0), ("#", -1.0), ("1", -1.0)], unk_id=0))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")


@pytest.mark.parametrize(
    ("model_type", "make_tokenizer", "fields", "message"),
    [
        ("icot-gpt2", unigrams, GPT2_PARTS, "GGUF cannot express this tokenizer"),
        ("icot-gpt2", lambda: split_by(r"\d"), GPT2_PARTS, "GGUF cannot express this tokenizer"),
        ("icot-gpt2", lambda: character_tokenizer(["▁ #"]), GPT2_PARTS, "with a '▁'"),
        ("icot-gpt2", byte_tokenizer, GPT2_PARTS | {"keep_position": True, "num_internalized_tokens": 3}, "no keep_position"),
        ("icot-gpt2", byte_tokenizer, GPT2_PARTS | {"activation_function": "relu"}, "no the activation relu"),
        ("olmo2", byte_tokenizer, ROPE_PARTS, "no GGUF for a olmo2"),
        ("llama", byte_tokenizer, ROPE_PARTS | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "type dynamic"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_answer_otherwise_is_refused(model_type, make_tokenizer, fields, message, tmp_path):
    folder = make_checkpoint(tmp_path / "model", model_type, make_tokenizer(), fields)
    with pytest.raises(InputError, match=message) as error:
        export_gguf.export_gguf(str(folder), tmp_path / "model.gguf")
    assert "\n" not in str(error.value) and sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_latent_thought_is_refused(tmp_path):
    with pytest.raises(InputError, match="a pccot-gpt2 iterates over its latent tokens"):
        export.main(["--model", str(SHIPPED), str(tmp_path / "model.gguf")])
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays(tmp_path):
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        export.main(["--model", str(SHIPPED), str(tmp_path / "model.gguf")])
    assert (tmp_path / "model.gguf").read_text() == "mine"


def test_the_command_prints_the_prompt(tmp_path, capsys):
    folder = make_checkpoint(tmp_path / "model", "icot-gpt2", byte_tokenizer(), GPT2_PARTS | FILLERS)
    export.main(["--model", str(folder), str(tmp_path / "new" / "model.gguf")])
    assert capsys.readouterr().out == 'prompt: "{question}<start><pause><pause><pause><ready>####"\n'
