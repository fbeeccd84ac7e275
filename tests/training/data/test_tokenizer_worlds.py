"""The whole way, training to chat, with tokenizers unlike GPT-2's: special rows, prompts, padding, what is saved."""

import pytest
import torch
from conftest import plain_adapter
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    pipeline,
)

import run_ccot
import run_icot
from latent_cot.training.data.collators import PCCoTCollator
from latent_cot.training.data.small_tokenizers import byte_tokenizer
from latent_cot.training.data.tokenization import tokenize

SPACE = "▁"
QUESTIONS = ["Tom has 3 pens and buys 4.", "1+2=", "  two spaces, a\ttab and é"]


def starting_with(tokenizer: Tokenizer, bos: str, token_id: int) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, token_id)])


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama's kind: a space before every text, bytes for what is unknown, BOS first, neither padding nor template."""
    pieces = [SPACE, *"0123456789+-*/=.,?#<>:|abcdefghijklmnopqrstuvwxyzATSI"]
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>"])}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in [*pieces, f"{SPACE}T", "he"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [(SPACE, "T"), ("h", "e")]
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    starting_with(tokenizer, "<s>", 1)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level_with_bos() -> PreTrainedTokenizerFast:
    """Llama 3's kind."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<|begin|>", "<|end|>", "<|pad|>"]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate([*names, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    starting_with(tokenizer, "<|begin|>", 0)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>"
    )


def without_padding() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def padding_is_end() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


WORLDS = [sentencepiece, byte_level_with_bos, without_padding, padding_is_end]


SLOW = (byte_level_with_bos, without_padding)  # the others have what is special about them: BOS first, no padding


@pytest.fixture(
    scope="module",
    params=[pytest.param(world, marks=pytest.mark.slow if world in SLOW else []) for world in WORLDS],
    ids=lambda world: world.__name__,
)
def world(request, tmp_path_factory):
    """A pretrained Llama with such a tokenizer, and what the two scripts make of it."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    tokenizer = request.param()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    lines = [
        f"Tom has {n} pens and buys {n + 1}.||<<{n}+{n + 1}={2 * n + 1}>> <<1*1=1>> #### {2 * n + 1}" for n in range(24)
    ]
    (folder / "data.txt").write_text("\n".join(lines))
    common = ["--model_name_or_path", str(folder / "base"), "--train_file", str(folder / "data.txt")]
    common += ["--validation_file", str(folder / "data.txt"), "--max_eval_samples", "4", "--do_train", "--do_eval"]
    common += ["--max_steps", "3", "--learning_rate", "1e-2", "--use_cpu", "--save_strategy", "no"]
    common += ["--max_new_tokens", "6", "--max_cot_tokens", "12"]
    thought = ["--num_latent_tokens", "5", "--config_overrides", "num_iterations=3"]  # T >= c reads no <latent>
    run_ccot.main([*common, *thought, "--use_peft", "--lora_r", "4", "--output_dir", str(folder / "pccot")])
    run_icot.main([*common, "--partial_removal", "--remove_per_epoch", "1", "--output_dir", str(folder / "icot")])
    return folder


@pytest.fixture(params=["pccot", "icot"])
def trained(request, world):
    folder = world / request.param
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), folder


def test_what_is_saved(trained):
    model, tokenizer, _ = trained
    config, embeddings = model.config, model.get_input_embeddings()
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    names = ("bot_token_id", "eot_token_id", "latent_token_id", "start_token_id", "pause_token_id", "ready_token_id")
    ids = [getattr(config, name) for name in names if hasattr(config, name)]
    assert len(set(ids)) == 3 and max(ids) < embeddings.num_embeddings
    assert embeddings.num_embeddings == len(tokenizer) == config.vocab_size
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert model.generation_config.eos_token_id in (tokenizer.eos_token_id, [tokenizer.eos_token_id])
    assert config.questions_start_with_bos == (tokenizer.bos_token_id is not None)
    prompt = tokenizer.decode(config.answer_prompt_ids).strip()
    assert prompt == ("The answer is:" if "pccot" in config.model_type else "####")
    assert tokenizer.bos_token_id not in config.answer_prompt_ids


def test_new_rows_are_trained(world):
    """The rows of the thought's tokens are no longer what resizing made of them, also under LoRA; others are, but for those
    of the end and of padding, which LoRA trains too."""
    base = AutoModelForCausalLM.from_pretrained(world / "base").get_input_embeddings().weight
    model = AutoModelForCausalLM.from_pretrained(world / "pccot")
    rows, config = model.get_input_embeddings().weight, model.config
    ordinary = [row for row in range(len(base)) if row not in (config.eos_token_id, config.pad_token_id)]
    assert torch.equal(rows[ordinary], base[ordinary])
    if (adapter := plain_adapter(world / "pccot" / "adapter")) is not None:
        embeddings = adapter.get_input_embeddings()
        resized = (embeddings.token_adapter.base_layer if hasattr(embeddings, "token_adapter") else embeddings).weight
        for row in (config.bot_token_id, config.eot_token_id, config.latent_token_id):
            assert not torch.equal(rows[row], resized[row])


def test_text_stays_text_and_comes_back(trained):
    _, tokenizer, _ = trained
    first = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    for text in [*QUESTIONS, *(f"a{token}b" for token in tokenizer.all_special_tokens)]:
        ids = tokenizer(text)["input_ids"]
        assert ids[: len(first)] == first
        assert not set(ids[len(first) :]) & set(tokenizer.all_special_ids), text
        assert tokenizer.decode(ids, skip_special_tokens=True).strip(" ") == text.strip(" ")


def test_batches_chats_and_pipelines_answer_alike(trained):
    model, tokenizer, folder = trained
    options = {"max_new_tokens": 8, "do_sample": False}

    def new_text(inputs):
        output = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]

    alone = [new_text(tokenizer([question], return_tensors="pt"))[0] for question in QUESTIONS]
    assert new_text(tokenizer(QUESTIONS, padding=True, return_tensors="pt")) == alone
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    chat_options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    assert new_text(tokenizer.apply_chat_template(chats, padding=True, **chat_options)) == alone
    assert [new_text(tokenizer.apply_chat_template(chat, **chat_options))[0] for chat in chats] == alone
    ask = pipeline("text-generation", model=str(folder))
    outputs = ask(QUESTIONS, batch_size=3, return_full_text=False, **options)
    assert [output[0]["generated_text"].strip() for output in outputs] == alone
    outputs = ask(chats, batch_size=3, **options)
    assert [output[0]["generated_text"][-1]["content"].strip() for output in outputs] == alone


def test_the_end_is_learned(world):
    """Padding that was the end of sequence would be masked out of the labels."""
    tokenizer = AutoTokenizer.from_pretrained(world / "pccot")
    config = AutoModelForCausalLM.from_pretrained(world / "pccot").config
    rows = {"question": ["1+2=", "10+20+30="], "steps": [["<<1>>", "<<2>>"], ["<<1>>"]], "answer": ["3", "60"]}
    tokenized = tokenize(rows, tokenizer)
    batch = PCCoTCollator(tokenizer, config)(
        [dict(zip(tokenized, row, strict=True)) for row in zip(*tokenized.values(), strict=True)]
    )
    for name in ("labels", "cot_labels"):
        assert all(tokenizer.eos_token_id in row for row in batch[name].tolist())
        assert tokenizer.pad_token_id not in batch[name]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()
