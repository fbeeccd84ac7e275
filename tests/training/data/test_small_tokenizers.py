"""The tokenizers that need no download."""

import pytest

from latent_cot.training.data.small_tokenizers import word_tokenizer

TEXTS = ["Tom has 3 apples. Ann has 4.", "How many, then?", "2x+1 3 * 2 = 6", "The answer is:"]


@pytest.fixture(scope="module")
def words():
    return word_tokenizer(TEXTS)


@pytest.mark.parametrize("text", [*TEXTS, "How many apples has Ann?", "Tom, Ann: 3", "3.", ""])
def test_words_come_back_as_they_were(words, text):
    assert words.decode(words(text)["input_ids"]) == text


def test_a_mark_is_no_part_of_the_word_before_it(words):
    ids = words("Tom Tom. Tom? Tom: 2x+1")["input_ids"]
    assert words.convert_ids_to_tokens(ids) == ["▁Tom", "▁Tom", ".", "▁Tom", "?", "▁Tom", ":", "▁2x+1"]


def test_an_unknown_word_is_one_token(words):
    ids = words("Bob has 3.5 apples.")["input_ids"]
    assert [token == words.unk_token_id for token in ids] == [True, False, True, False, False]
