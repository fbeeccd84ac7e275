"""`question_suffix_ids`: every door writes what stands between a question and its thought, and training learns it there."""

from types import SimpleNamespace

import pytest
import torch
from batching import batched, generated, questions_of
from conftest import make_model

from latent_cot.training.data.collators import PCCoTCollator

SUFFIX = [9, 11]
FEATURES = [
    {"question": [10, 12, 13], "steps": [[20, 21], [22]], "answer": [30]},
    {"question": [13], "steps": [[23]], "answer": [31, 32]},
]


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
def test_doors(backbone):
    """As a question that ends with these tokens is answered by the model without the field; the caller does not see them."""
    model = make_model(backbone, question_suffix_ids=SUFFIX)
    plain = make_model(backbone)
    questions = questions_of([3, 7, 5])
    longer = [question + SUFFIX for question in questions]
    answers = [row[len(asked) :] for row, asked in zip(generated(plain, longer), longer, strict=True)]
    assert generated(model, questions) == [asked + new for asked, new in zip(questions, answers, strict=True)]
    assert batched(model, questions) == generated(model, questions)
    for options in ({}, {"latent_thought": False}):
        opened = model.open_prompt(torch.tensor(questions[:1]), **options)["input_ids"]
        assert opened.tolist() == plain.open_prompt(torch.tensor(longer[:1]), **options)["input_ids"].tolist()
    assert model.room_for_answer(7) == plain.room_for_answer(7) - 2


def test_tokens_that_may_not_be_written():
    """`suppress_tokens` of the generation configuration holds in a batch and in the batch engine, too."""
    model, questions = make_model("gpt2"), questions_of([3, 7, 5])
    written = {
        token for row, asked in zip(generated(model, questions), questions, strict=True) for token in row[len(asked) :]
    }
    model.generation_config.suppress_tokens = sorted(written)
    alone = generated(model, questions)
    assert not written & {token for row, asked in zip(alone, questions, strict=True) for token in row[len(asked) :]}
    assert batched(model, questions) == alone


@pytest.mark.parametrize("steps_open_with_bot", [False, True])
def test_a_training_step(steps_open_with_bot):
    """Losses and gradients of questions that end with these tokens."""
    results = []
    for suffix, extra in ((SUFFIX, []), (None, SUFFIX)):
        fields = {"question_suffix_ids": suffix, "open_steps_with_bot": steps_open_with_bot, "loss_delta": 1.0}
        model = make_model("gpt2", **fields).train()
        rows = [row | {"question": row["question"] + extra} for row in FEATURES]
        collator = PCCoTCollator(SimpleNamespace(eos_token_id=1, pad_token_id=0), model.config)
        output = model(**collator(rows))
        output.loss.backward()
        gradients = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
        parts = torch.stack([output.loss, output.cot_loss, output.ccot_loss, output.kd_loss, output.step_loss])
        results.append((parts, gradients, [collator.length(row) for row in rows]))
    torch.testing.assert_close(results[0][:2], results[1][:2], atol=1e-5, rtol=1e-5)
    assert results[0][2] == results[1][2]
