"""`open_prompt`, `open_thought`: prompts as the model sees them, and `hide_prompt`, the inverse."""

import re
from functools import wraps

import pytest
import torch
from conftest import ROOT, make_any, make_model, question_batch
from torch.nn.functional import pad

BOS = {"bos_token_id": 2, "questions_start_with_bos": True}
LENGTHS = [3, 7, 5]
ICOT = ["icot-gpt2", "icot-llama", "icot-mistral"]


def logits_of_last(model, opened) -> torch.Tensor:
    with torch.no_grad():
        return model(**opened).logits[:, -1]


@pytest.mark.parametrize("with_bos", [False, True], ids=["plain", "BOS"])
def test_a_thought_is_opened_for_each_row_by_itself(backbone, with_bos):
    """Question, span and answer prompt; the same logits alone, in a batch and under more padding."""
    model = make_model(backbone, **(BOS if with_bos else {}))
    ids, mask = question_batch(LENGTHS)
    if with_bos:
        ids[1, 0] = 2  # a row that has it already
    opened = model.open_thought(ids, mask)
    assert opened["input_ids"].shape == opened["attention_mask"].shape
    further = model.open_thought(pad(ids, (4, 0)), pad(mask, (4, 0)))
    for row, length in enumerate(LENGTHS):
        question = ids[row : row + 1, -length:]
        alone = model.open_thought(question, torch.ones_like(question))
        bos = [2] if with_bos and row != 1 else []
        assert alone["input_ids"][0].tolist() == [*bos, *question[0].tolist(), *model.thought_ids()]
        held = opened["attention_mask"][row].bool()
        assert opened["input_ids"][row, held].tolist() == alone["input_ids"][0].tolist()
        wanted = logits_of_last(model, alone)
        for batch in (opened, further):
            assert (logits_of_last(model, batch)[row] - wanted[0]).abs().max() < 1e-4


@pytest.mark.parametrize("with_bos", [False, True], ids=["plain", "BOS"])
def test_generate_opens_and_hides(backbone, with_bos):
    model = make_model(backbone, **(BOS if with_bos else {}))
    ids, mask = question_batch(LENGTHS)
    greedy = {"max_new_tokens": 5, "do_sample": False}
    wanted = model.generate(ids, attention_mask=mask, **greedy)
    opened = model.open_thought(ids, mask)
    answered = model.generate(**opened, **greedy)
    assert torch.equal(answered[:, : opened["input_ids"].shape[1]], opened["input_ids"])
    assert torch.equal(model.hide_prompt(answered, ids, opened["input_ids"]), wanted)
    twice = answered.repeat_interleave(2, dim=0)
    assert torch.equal(model.hide_prompt(twice, ids, opened["input_ids"]), wanted.repeat_interleave(2, dim=0))


def test_without_a_mask_padding_is_found(gpt2):
    ids, mask = question_batch(LENGTHS)
    opened, wanted = gpt2.open_thought(ids), gpt2.open_thought(ids, mask)
    assert all(torch.equal(opened[name], wanted[name]) for name in wanted)


def test_the_example_of_the_document(shipped):
    text = (ROOT / "docs" / "answering.md").read_text()
    (block,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if "open_thought" in block
    )
    model, tokenizer = shipped
    scope = {"model": model, "inputs": tokenizer(["7+3*4-2+9=", "1+2="], padding=True, return_tensors="pt")}
    exec(block, scope)
    assert torch.equal(scope["answered"], model.generate(**scope["inputs"], max_new_tokens=8))
    assert tokenizer.decode(scope["logits"][0].argmax()) == "7"


def test_an_open_prompt_stays_as_it_is(gpt2):
    opened = gpt2.open_thought(*question_batch(LENGTHS))
    again = gpt2.open_thought(**opened)
    assert all(torch.equal(again[name], opened[name]) for name in opened)


def test_what_can_be_asked_for(gpt2):
    ids, mask = question_batch(LENGTHS)
    span = [36, 38, 38, 37, 5, 6]
    assert gpt2.open_thought(ids, mask, num_latent_tokens=2)["input_ids"][0, -6:].tolist() == span
    assert torch.equal(gpt2.open_prompt(ids, mask, latent_thought=False)["input_ids"], ids)
    gpt2.config.open_steps_with_bot = True
    assert gpt2.open_prompt(ids, mask, latent_thought=False)["input_ids"][0, -1] == 36


def test_what_is_refused(gpt2):
    ids, mask = question_batch(LENGTHS)
    opened = gpt2.open_thought(ids, mask)
    opened["input_ids"][1, opened["input_ids"][1] == 36] = 9
    for wrong, said in (
        ((ids[0], mask), "batch"),
        ((ids + 60, mask), "ends at 39"),
        (tuple(opened.values()), "ragged"),
    ):
        with pytest.raises(ValueError, match=said):
            gpt2.open_thought(*wrong)


@pytest.mark.parametrize("kind", ICOT)
@pytest.mark.parametrize("options", [{}, {"explicit_steps": True}, {"num_fillers": 1}], ids=str)
def test_icot_prompts_are_opened_too(kind, options):
    """The first token that `generate()` answers with is the one after the opened prompt."""
    model = make_any(kind)
    ids, mask = question_batch(LENGTHS)
    answered = model.generate(ids, attention_mask=mask, max_new_tokens=1, do_sample=False, **options)
    opened = model.open_prompt(ids, mask, **options)
    first = logits_of_last(model, opened).argmax(dim=-1, keepdim=True)
    sequences = torch.cat([opened["input_ids"], first], dim=1)
    assert torch.equal(model.hide_prompt(sequences, ids, opened["input_ids"]), answered)


def test_free_positions_are_refused():
    model = make_any("icot-gpt2", keep_position=True, position_gap=4)
    with pytest.raises(ValueError, match="leaves 4 positions free"):
        model.open_prompt(*question_batch(LENGTHS))


@pytest.mark.parametrize("kind", ["pccot-gpt2", "icot-gpt2"])
def test_a_model_that_trl_scores_samples_opened_prompts_only(kind, monkeypatch):
    """TRL gives a model a `forward` with an argument `fused_lm_head`; tests/training/trainers/test_grpo.py has the real one."""
    model = make_any(kind)
    ids, mask = question_batch(LENGTHS)
    forward = model.forward

    @wraps(type(model).forward)
    def scoring(self, *args, fused_lm_head=False, **kwargs):
        return forward(*args, **kwargs)

    model.forward = scoring.__get__(model)
    sample = {"attention_mask": mask, "max_new_tokens": 1}
    assert model.eval().generate(ids, **sample).shape[1] == 8
    with pytest.raises(ValueError, match="another distribution than it samples"):
        model.train().generate(ids, **sample)
    if kind.startswith("pccot"):
        opened = model.open_thought(ids, mask)
        assert model.generate(**opened, max_new_tokens=1).shape[1] == opened["input_ids"].shape[1] + 1


def test_gradients_reach_the_question_through_the_latents():
    """Scoring an answer after an opened prompt trains what only the latents use."""
    model = make_model("gpt2", use_projection=True)
    opened = model.open_thought(*question_batch(LENGTHS))
    logprobs = model(**opened).logits[:, -1].log_softmax(dim=-1)
    logprobs[:, 7].sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.base_model.prj[0].parameters())
