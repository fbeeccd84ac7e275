"""Where positions end: what `generate()` says before it starts, and what it still answers."""

import pytest
import torch
from conftest import LEARNED, SMALL, make_any
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config

KINDS = ("pccot-gpt2", "icot-gpt2")


def prompt(length: int, rows: int = 1) -> torch.Tensor:
    return torch.randint(7, 36, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_new_tokens_as_positions(kind):
    """The last new token needs no position; one more is refused, in the caller's numbers."""
    model = make_any(kind)
    ids, added = prompt(30), len(model.suffix_ids())
    most = 128 - 30 - added + 1
    options = {"do_sample": False, "eos_token_id": None}
    assert model.generate(ids, max_new_tokens=most, **options).shape == (1, 30 + most)
    words = (
        f"the question has 30 tokens, what follows it needs {added} positions, and {most + 1} new tokens are asked for"
    )
    for asked in (
        {"max_new_tokens": most + 1},
        {"max_length": 30 + most + 1},
        {"generation_config": GenerationConfig(max_new_tokens=most + 1)},
    ):
        with pytest.raises(ValueError, match=f"{words}: more than the model's 128 positions, so ask for at most"):
            model.generate(ids, **asked, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_who_asks_for_no_number_gets_an_answer(kind):
    model = make_any(kind)
    added = len(model.suffix_ids())
    for length in (128 - added, 128 - added - 3):
        model.generation_config.max_new_tokens = 50
        assert length < model.generate(prompt(length), do_sample=False, eos_token_id=None).shape[1] <= length + 3
        model.generation_config.max_new_tokens = None
        assert model.generate(prompt(length), max_length=None, max_new_tokens=None, do_sample=False).shape[1] > length
        assert model.generate(prompt(length), do_sample=False).shape[1] > length
    with pytest.raises(ValueError, match="more than the model's 128 positions"):
        model.generate(prompt(129 - added))


def test_padding_takes_no_positions():
    """A row's positions are those of its own tokens, however wide the batch is."""
    model = make_any("pccot-gpt2")
    ids = torch.cat([torch.zeros(2, 100, dtype=torch.long), prompt(8, rows=2)], dim=1)
    wide = model.generate(ids, attention_mask=(ids != 0).long(), max_new_tokens=60, do_sample=False)
    alone = model.generate(ids[:, 100:], max_new_tokens=60, do_sample=False)
    assert torch.equal(wide[:, 100:], alone)
    with pytest.raises(ValueError, match="the question has 8 tokens"):
        model.generate(ids, attention_mask=(ids != 0).long(), max_new_tokens=113)


def test_every_way_to_ask_is_checked():
    model = make_any("pccot-gpt2")
    with pytest.raises(ValueError, match="what follows it needs 0 positions"):
        model.generate(prompt(30), latent_thought=False, max_new_tokens=100)
    spanned = torch.cat([prompt(30), torch.tensor([model.thought_ids()])], dim=1)
    with pytest.raises(ValueError, match="the question has 40 tokens"):
        model.generate(spanned, max_new_tokens=100)
    with pytest.raises(ValueError, match="num_latent_tokens must be a whole number of at least 1 and at most 128"):
        model.generate(prompt(30), num_latent_tokens=10**9)
    kept = make_any("icot-gpt2", keep_position=True, position_gap=20)
    assert kept.generate(prompt(30), max_new_tokens=70).shape[1] > 30
    with pytest.raises(ValueError, match="what follows it needs 26 positions"):
        kept.generate(prompt(30), max_new_tokens=74)
    with pytest.raises(ValueError, match="num_fillers must be a whole number of at least 0 and at most 128"):
        kept.generate(prompt(30), num_fillers=10**9)


@pytest.mark.parametrize("kind", ["pccot-llama", "icot-mistral"])
def test_rotary_positions_go_on(kind):
    """As everywhere in transformers: what was not trained is not refused."""
    model = make_any(kind)
    output = model.generate(prompt(30), max_new_tokens=120, do_sample=False, eos_token_id=None)
    assert output.shape[1] == 150


@pytest.mark.parametrize("kind", ["pccot-llama", *KINDS])
def test_a_prompt_that_is_none(kind):
    model = make_any(kind)
    for wrong, words in (
        (torch.zeros(1, 0, dtype=torch.long), "at least one token"),
        (torch.zeros(0, 3, dtype=torch.long), "at least one token"),
        (torch.zeros(3, dtype=torch.long), r"\(batch, length\)"),
        (torch.zeros(1, 3), "whole token ids"),
        ([[1, 2]], "got list"),
        (torch.tensor([[9, 40]]), "token id 40, and the model's vocabulary ends at 39"),
        (torch.tensor([[9, -1]]), "token id -1"),
    ):
        with pytest.raises(ValueError, match=words):
            model.generate(wrong, max_new_tokens=2)
    for options, words in (
        ({"attention_mask": torch.ones(1, 4)}, "attention_mask must be a tensor of the prompt's shape"),
        ({"attention_mask": torch.full((1, 3), 2)}, r"attention_mask must hold 0 \(padding\) and 1 alone"),
        ({"attention_mask": -torch.ones(1, 3)}, r"attention_mask must hold 0 \(padding\) and 1 alone"),
        ({"attention_mask": [[1, 1, 1]]}, "got list"),
        ({"max_new_tokens": 1.5}, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": "3"}, "max_new_tokens must be a whole number"),
        ({"inputs_embeds": torch.zeros(1, 3, 32)}, "pass input_ids alone, without inputs_embeds"),
        ({"pad_token_id": 40, "num_beams": 2}, "pad_token_id must be a token of the model's vocabulary of 40"),
    ):
        with pytest.raises(ValueError, match=words):
            model.generate(prompt(3), **({"max_new_tokens": 2} | options))
    for name in model.config.special_tokens:
        setattr(model.config, name, 40)
    with pytest.raises(ValueError, match="what follows a question holds the token 40, and the vocabulary ends at 39"):
        model.generate(prompt(3), max_new_tokens=2)


def test_assistants_that_do_not_fit_are_refused():
    kept, plain, thinks = make_any("icot-gpt2", keep_position=True, position_gap=4), *map(make_any, KINDS[::-1])
    stock = AutoModelForCausalLM.from_config(GPT2Config(**(SMALL | LEARNED))).eval()
    with pytest.raises(ValueError, match="assistant_model cannot be used where positions are left free"):
        kept.generate(prompt(6), assistant_model=stock, max_new_tokens=4)
    for model, assistant, options in (
        (plain, plain, {}),
        (thinks, plain, {}),
        (thinks, thinks, {"latent_thought": False}),
    ):
        with pytest.raises(ValueError, match="would add tokens of its own to this prompt"):
            model.generate(prompt(6), assistant_model=assistant, max_new_tokens=4, **options)
    for model, assistant in ((plain, stock), (thinks, stock), (thinks, thinks)):
        wanted = model.generate(prompt(6), max_new_tokens=4, do_sample=False)
        assert torch.equal(
            model.generate(prompt(6), assistant_model=assistant, max_new_tokens=4, do_sample=False), wanted
        )


def test_prompt_lookup_with_free_positions():
    model = make_any("icot-gpt2", keep_position=True, position_gap=4)
    wanted = model.generate(prompt(4).repeat(1, 3), max_new_tokens=8, do_sample=False)
    found = model.generate(prompt(4).repeat(1, 3), max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(found, wanted)
