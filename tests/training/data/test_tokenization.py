"""Text to tokens: nothing is lost, and text stays text."""

import pytest
import torch
from conftest import make_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from latent_cot import ICoTConfigMixin, PCCoTConfigMixin
from latent_cot.training.checkpoints.loading import extend_vocabulary
from latent_cot.training.data.small_tokenizers import byte_tokenizer, character_tokenizer
from latent_cot.training.data.tokenization import prepare_tokenizer, tokenize, tokenize_answer_prompt
from latent_cot.training.errors import InputError

PCCOT, ICOT = PCCoTConfigMixin.special_tokens, ICoTConfigMixin.special_tokens
BOT, EOT, LATENT = PCCOT.values()

TEXTS = [
    "1+2*3= ",
    " two  spaces , before . and don't\tlose\n\nlines\r\n",
    "żółć 数学 e\u0301 \u2028 😀👩‍👩‍👧",
    "▁ĠĊ",
    "\x00\x7f",
    f"a {LATENT}{BOT} <eos></s><s> [PAD] <unk>{EOT}",
]
MAKERS = {
    "characters": lambda: character_tokenizer(TEXTS),
    "bytes": byte_tokenizer,
    "sentencepiece": lambda: metaspace(),
}


def metaspace(bos: bool = True) -> PreTrainedTokenizerFast:
    """Like Llama 2's: a number opens with a lone `▁`; a BOS before every text."""
    vocabulary = ["<unk>", "<s>", "</s>", "▁", *sorted(set("0123456789+=:answer<>/_.pcotlb"))]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def reload(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(params=MAKERS)
def prepared(request):
    tokenizer = MAKERS[request.param]()
    prepare_tokenizer(tokenizer, PCCOT)
    return tokenizer


@pytest.mark.parametrize("kind", ["characters", "bytes"])
@pytest.mark.parametrize("family", [None, PCCOT, ICOT], ids=["stock", "pccot", "icot"])
def test_round_trip(kind, family, tmp_path):
    """Any text, before and after saving; one token a character or byte."""
    tokenizer = MAKERS[kind]()
    prepare_tokenizer(tokenizer, family)
    for current in (tokenizer, reload(tokenizer, tmp_path)):
        for text in TEXTS:
            ids = current(text)["input_ids"]
            assert current.decode(ids) == text
            assert current.decode(ids, skip_special_tokens=True) == text
            assert len(ids) == len(text if kind == "characters" else text.encode())


def test_unknown_character():
    tokenizer = character_tokenizer(["ab"])
    assert tokenizer("axb")["input_ids"] == [2, tokenizer.unk_token_id, 3]


def test_character_vocabulary_does_not_depend_on_order():
    assert character_tokenizer(["ba", "c"]).get_vocab() == character_tokenizer(["c", "ab"]).get_vocab()


def test_what_prepare_adds():
    tokenizer = byte_tokenizer()
    size = len(tokenizer)
    assert prepare_tokenizer(tokenizer, None) == 1
    assert LATENT not in tokenizer.get_vocab()
    assert prepare_tokenizer(tokenizer, PCCOT) == 3
    assert prepare_tokenizer(tokenizer, PCCOT) == 0
    assert len(tokenizer) == size + 4
    assert len(set(tokenizer.convert_tokens_to_ids([BOT, EOT, LATENT, "[PAD]", "<eos>"]))) == 5


def test_earlier_special_tokens_stay():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<tool>"]})
    prepare_tokenizer(tokenizer, PCCOT)
    assert {"<tool>", BOT, EOT, LATENT} <= set(tokenizer.all_special_tokens)


@pytest.mark.parametrize("pad", ["<eos>", None, "a"])
def test_pad_is_not_eos(pad, tmp_path):
    tokenizer = byte_tokenizer()
    if pad is not None:
        tokenizer.pad_token = pad
    prepare_tokenizer(tokenizer, None)
    loaded = reload(tokenizer, tmp_path)
    for current in (tokenizer, loaded):
        assert current.pad_token == ("a" if pad == "a" else "[PAD]")
        assert current.pad_token_id != current.eos_token_id
        batch = current(["b", "bb"], padding=True)
        assert batch["input_ids"][0][0] == current.pad_token_id
        assert batch["attention_mask"] == [[0, 1], [1, 1]]
    assert prepare_tokenizer(loaded, None) == 0


def test_no_end_of_sequence():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token"):
        prepare_tokenizer(tokenizer, PCCOT)


@pytest.mark.parametrize("token", [LATENT, BOT, EOT, "eos", "pad", "bos"])
def test_text_is_text(prepared, token, tmp_path):
    """A special token that a user writes is spelt out, also by the tokenizer that a checkpoint brings along."""
    named = {"eos": prepared.eos_token, "pad": prepared.pad_token, "bos": prepared.bos_token or "<bos>"}
    question = f"1+{named.get(token, token)}2="
    # `<unk>` stands for an unknown character, so it may occur.
    special = set(prepared.all_special_ids) - {prepared.unk_token_id}
    for current in (prepared, reload(prepared, tmp_path)):
        for ids in (current(question)["input_ids"], current([question])["input_ids"][0], current.encode(question)):
            assert not special & set(ids[1 if current.bos_token else 0 :])
            assert len(ids) > len("1+2=") + 3
    parts = tokenize({"question": [question], "steps": [[question, ""]], "answer": [question]}, prepared)
    assert not special & set(parts["steps"][0][0] + parts["answer"][0])


def test_last_step():
    tokenizer = byte_tokenizer()
    prepare_tokenizer(tokenizer, PCCOT)
    examples = {"question": ["q", "r"], "steps": [["a", "bc", "d"], ["e"]], "answer": ["1", "2"]}
    spelt = {
        keep: [[tokenizer.decode(step) for step in steps] for steps in tokenize(examples, tokenizer, keep)["steps"]]
        for keep in (False, True)
    }
    assert spelt == {False: [["a", "bc"], []], True: [["a", "bc", "d"], ["e"]]}
    bare = tokenize({"question": ["q"], "steps": [[]], "answer": ["1"]}, tokenizer)
    assert bare["steps"] == [[]]


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_empty_answer_prompt(text):
    with pytest.raises(InputError, match=r"--answer_prompt .* is empty"):
        tokenize_answer_prompt(text, byte_tokenizer())


def test_answer_prompt_has_no_bos():
    tokenizer = metaspace()
    prepare_tokenizer(tokenizer, PCCOT)
    assert tokenizer.bos_token_id not in tokenize_answer_prompt("answer:", tokenizer)


def test_lone_space_before_a_number():
    """Sentencepiece opens a number with `▁`; the answer follows the answer prompt directly and has none."""
    tokenizer = metaspace()
    prepare_tokenizer(tokenizer, PCCOT)
    digits = tokenizer.convert_tokens_to_ids(list("42"))
    space = tokenizer.convert_tokens_to_ids("▁")
    assert tokenizer("42", add_special_tokens=False)["input_ids"] == [space, *digits]
    features = tokenize({"question": ["4=", "2="], "steps": [["42", "4"], []], "answer": ["42", "4"]}, tokenizer)
    assert features["answer"] == [digits, digits[:1]]
    assert features["steps"] == [[[space, *digits]], []]


@pytest.mark.parametrize("bos", [True, False])
def test_bos_on_the_question_only(bos):
    tokenizer = metaspace(bos)
    prepare_tokenizer(tokenizer, PCCOT)
    features = tokenize({"question": ["4="], "steps": [["4", "2"]], "answer": ["2"]}, tokenizer)
    assert features["question"] == [tokenizer("4=")["input_ids"]]
    assert features["question"][0].count(tokenizer.bos_token_id) == int(bos)
    assert tokenizer.bos_token_id not in features["steps"][0][0] + features["answer"][0]


def test_an_appended_end_of_sequence_goes():
    """A question is continued, so it may not end."""
    tokenizer = metaspace(bos=False)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    prepare_tokenizer(tokenizer, PCCOT)
    assert tokenizer("4=")["input_ids"][-1] == tokenizer.eos_token_id
    question = tokenize({"question": ["4="], "steps": [[]], "answer": ["4"]}, tokenizer)["question"][0]
    assert question == tokenizer("4=")["input_ids"][:-1]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("spare", [0, 2, 9])
def test_new_tokens_start_beside_the_rows_in_use(tied, spare):
    """Also where a matrix has rows to spare, which nothing has trained."""
    tokenizer = character_tokenizer(["0123456789"])
    known = len(tokenizer)
    prepare_tokenizer(tokenizer, PCCOT)
    added = len(tokenizer) - known
    model = make_model("qwen3", vocab_size=known + spare, tie_word_embeddings=tied)
    matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    with torch.no_grad():
        for matrix in matrices:
            matrix[known:] = 1e-8
            matrix[:known] += 0.5
    mean = [matrix[:known].mean(dim=0).detach().clone() for matrix in matrices]
    extend_vocabulary(model, tokenizer, added)
    assert model.get_input_embeddings().num_embeddings == max(known + spare, len(tokenizer))
    for layer, wanted in zip((model.get_input_embeddings(), model.get_output_embeddings()), mean, strict=True):
        rows = layer.weight[known : len(tokenizer)]
        assert (rows - wanted).abs().max() < 0.1 * wanted.abs().max()
