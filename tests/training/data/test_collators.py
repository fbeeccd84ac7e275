"""Batches against tensors written by hand."""

import random
from types import SimpleNamespace

import pytest
import torch
from conftest import CONFIGS

from latent_cot.spans_pccot import ThoughtSpan
from latent_cot.training.data.collators import CoTCollator, PCCoTCollator

PAD, EOS, BOT, EOT, LAT, NO = 0, 1, 36, 37, 38, -100
TOKENIZER = SimpleNamespace(pad_token_id=PAD, eos_token_id=EOS)
FEATURES = [
    {"question": [10, 11, 12], "steps": [[20, 21], [22]], "answer": [30]},
    {"question": [13], "steps": [[23]], "answer": [31, 32]},
]
CHAIN = {"question": [10], "steps": [[20], [21], [22], [23, 24, 25]], "answer": [30]}


def collator(curriculum_prob: float = 0.0, **changes) -> PCCoTCollator:
    """For the answer prompt [5, 6] and three latents."""
    config = CONFIGS["gpt2"](**{"num_latent_tokens": 3, **changes})
    return PCCoTCollator(TOKENIZER, config, curriculum_prob)


def check(batch: dict, wanted: dict) -> None:
    for name, value in wanted.items():
        found = batch[name].tolist() if isinstance(batch[name], torch.Tensor) else batch[name]
        assert found == value, name


def at(batch: dict, ids: str, indices: str) -> list[int]:
    """The token that each row's index points to."""
    return batch[ids].gather(1, batch[indices][:, None])[:, 0].tolist()


def test_explicit_chain():
    batch = CoTCollator(EOS, PAD, [5, 6])(FEATURES)
    check(
        batch,
        {
            "input_ids": [[10, 11, 12, 20, 21, 22, 5, 6, 30, EOS], [PAD, PAD, 13, 23, 5, 6, 31, 32, EOS, PAD]],
            "attention_mask": [[1] * 10, [0, 0, 1, 1, 1, 1, 1, 1, 1, 0]],
            "labels": [[NO, NO, NO, 20, 21, 22, 5, 6, 30, EOS], [NO, NO, NO, 23, 5, 6, 31, 32, EOS, NO]],
            "position_ids": [list(range(10)), [0, 0, 0, 1, 2, 3, 4, 5, 6, 6]],
            "question_length": 3,
        },
    )
    assert "rows" not in batch


def test_no_chain_of_thought():
    no_cot = CoTCollator(EOS, PAD, [5, 6], with_steps=False)
    check(
        no_cot(FEATURES),
        {
            "input_ids": [[10, 11, 12, 5, 6, 30, EOS, PAD], [PAD, PAD, 13, 5, 6, 31, 32, EOS]],
            "attention_mask": [[1] * 7 + [0], [0, 0, 1, 1, 1, 1, 1, 1]],
            "labels": [[NO, NO, NO, 5, 6, 30, EOS, NO], [NO, NO, NO, 5, 6, 31, 32, EOS]],
        },
    )
    assert [no_cot.length(feature) for feature in FEATURES] == [7, 6]


def test_rows_without_steps():
    batch = CoTCollator(EOS, PAD, [5])([{"question": [10], "steps": [], "answer": [30], "row": 4, "answer_text": "30"}])
    check(batch, {"input_ids": [[10, 5, 30, EOS]], "labels": [[NO, 5, 30, EOS]], "rows": [4]})


def test_the_end_of_sequence_is_learnt_where_pad_is_the_same_token():
    batch = CoTCollator(EOS, EOS, [5])([{"question": [EOS, 10], "steps": [], "answer": [30]}, FEATURES[1]])
    check(batch, {"labels": [[NO, NO, 5, 30, EOS, NO, NO], [NO, NO, 23, 5, 31, 32, EOS]]})
    check(batch, {"attention_mask": [[1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1]]})


def test_latent_view():
    batch = collator()([feature | {"row": row, "answer_text": ""} for row, feature in enumerate(FEATURES)])
    teacher = CoTCollator(EOS, PAD, [5, 6])(FEATURES)
    check(
        batch,
        {
            "input_ids": [
                [10, 11, 12, BOT, LAT, LAT, LAT, EOT, 5, 6, 30, EOS, PAD],
                [PAD, PAD, 13, BOT, LAT, LAT, LAT, EOT, 5, 6, 31, 32, EOS],
            ],
            "attention_mask": [[1] * 12 + [0], [0, 0] + [1] * 11],
            "labels": [[NO] * 8 + [5, 6, 30, EOS, NO], [NO] * 8 + [5, 6, 31, 32, EOS]],
            "thought_span": ThoughtSpan(3, 3),
            "kd_indices": [9, 9],
            "cot_input_ids": teacher["input_ids"].tolist(),
            "cot_attention_mask": teacher["attention_mask"].tolist(),
            "cot_labels": teacher["labels"].tolist(),
            "cot_kd_indices": [7, 5],
            "question_length": 3,
            "step_labels": [[20, 22, NO], [23, NO, NO]],
            "rows": [0, 1],
        },
    )
    assert at(batch, "input_ids", "kd_indices") == at(batch, "cot_input_ids", "cot_kd_indices") == [6, 6]


def test_steps_that_open_with_bot():
    """The teacher's <bot> is given, not predicted, and moves what follows by one."""
    opened = collator(open_steps_with_bot=True)
    batch = opened(FEATURES)
    check(
        batch,
        {
            "cot_input_ids": [
                [10, 11, 12, BOT, 20, 21, 22, 5, 6, 30, EOS],
                [PAD, PAD, 13, BOT, 23, 5, 6, 31, 32, EOS, PAD],
            ],
            "cot_labels": [[NO] * 4 + [20, 21, 22, 5, 6, 30, EOS], [NO] * 4 + [23, 5, 6, 31, 32, EOS, NO]],
            "cot_kd_indices": [8, 6],
            "kd_indices": [9, 9],
            "question_length": 3,
        },
    )
    assert torch.equal(batch["input_ids"], collator()(FEATURES)["input_ids"])


@pytest.mark.parametrize(
    "latents, per_step, wanted",
    [
        (4, 2, [[20, 21, 22, NO], [23, NO, NO, NO]]),
        (3, 2, [[20, 21, 22], [23, NO, NO]]),
        (6, 3, [[20, 21, NO, 22, NO, NO], [23, NO, NO, NO, NO, NO]]),
        (1, 1, [[20], [23]]),
    ],
)
def test_step_labels(latents, per_step, wanted):
    check(collator(num_latent_tokens=latents, latents_per_step=per_step)(FEATURES), {"step_labels": wanted})


def test_mixed_curriculum():
    """At most two steps: the first is latent, the others stand after <eot> and are learnt."""
    batch = collator(curriculum_prob=1.0)(FEATURES)
    check(
        batch,
        {
            "input_ids": [
                [10, 11, 12, BOT, LAT, EOT, 22, 5, 6, 30, EOS],
                [PAD, PAD, 13, BOT, LAT, EOT, 5, 6, 31, 32, EOS],
            ],
            "labels": [[NO] * 6 + [22, 5, 6, 30, EOS], [NO] * 6 + [5, 6, 31, 32, EOS]],
            "attention_mask": [[1] * 11, [0, 0] + [1] * 9],
            "thought_span": ThoughtSpan(3, 1),
            "kd_indices": [8, 7],
            "step_labels": [[20], [23]],
        },
    )
    usual = collator()(FEATURES)
    assert all(torch.equal(batch[name], usual[name]) for name in batch if name.startswith("cot_"))
    assert at(batch, "input_ids", "kd_indices") == [6, 6]


def test_mixed_curriculum_draws_every_stage():
    """Every number of leading steps below the most occurs, each with a span as long as its latents."""
    mixed, stages = collator(curriculum_prob=1.0, num_latent_tokens=6, latents_per_step=2), set()
    for epoch in range(20):
        mixed.set_epoch(epoch)
        batch = mixed([CHAIN, FEATURES[1]])
        latents, ids = batch["thought_span"].num_latents, batch["input_ids"]
        column = batch["thought_span"].columns
        assert ids[:, column].tolist() == [BOT, BOT] and ids[:, column + latents + 1].tolist() == [EOT, EOT]
        assert (ids == LAT).sum(dim=1).tolist() == [latents, latents]
        assert batch["step_labels"].shape == (2, latents)
        left = [token for step in CHAIN["steps"][latents // 2 :] for token in step]
        labelled = batch["labels"][0][batch["labels"][0] != NO].tolist()
        assert labelled == [*left, 5, 6, 30, EOS]
        stages.add(latents)
    assert stages == {2, 4}


def test_mixed_curriculum_changes_a_share_of_the_batches():
    mixed, changed = collator(curriculum_prob=0.3), 0
    for epoch in range(200):
        mixed.set_epoch(epoch)
        draws = {mixed(FEATURES)["thought_span"].num_latents for _ in range(2)}
        assert len(draws) == 1, "a batch draws the same again, as a resumed run has to"
        changed += draws == {1}
    assert 40 < changed < 80
    single = collator(curriculum_prob=1.0)([FEATURES[1]])
    assert single["thought_span"].num_latents == 3, "one step cannot be split into stages"


@pytest.mark.parametrize(
    "curriculum_prob, changes",
    [(0.0, {}), (0.0, {"num_latent_tokens": 9}), (0.0, {"open_steps_with_bot": True}), (1.0, {"latents_per_step": 3})],
)
def test_length_is_that_of_the_longest_sequence(curriculum_prob, changes):
    torch.manual_seed(0)
    latent = collator(curriculum_prob, **({"num_latent_tokens": 9} | changes))
    for feature in (*FEATURES, CHAIN):
        batches = [latent([feature]) for _ in range(20)]
        longest = max(batch[name].shape[1] for batch in batches for name in ("input_ids", "cot_input_ids"))
        assert latent.length(feature) >= longest
        if not curriculum_prob:
            assert latent.length(feature) == longest


def test_rows_in_the_order_of_the_sort_key_need_little_padding():
    """Less than half of what an order by the whole length needs, and that is less than two thirds of a random one's."""
    draw = random.Random(0)
    rows = [
        {"question": [9] * draw.randint(20, 120), "steps": [[9] * draw.randint(5, 80)], "answer": [9] * 3}
        for _ in range(2000)
    ]
    own = collator()

    def padding(order: list[dict]) -> float:
        batches = [own(order[start : start + 20]) for start in range(0, len(order), 20)]
        masks = [batch[name] for batch in batches for name in ("attention_mask", "cot_attention_mask")]
        return sum(int((mask == 0).sum()) for mask in masks)

    by_key, by_length = (padding(sorted(rows, key=key)) for key in (own.sort_key, own.length))
    assert by_key < by_length / 2 and by_length < padding(rows) * 2 / 3
