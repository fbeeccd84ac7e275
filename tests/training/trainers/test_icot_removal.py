"""Removal and fillers: whole-tensor masks against plain loops, and schedules as pure functions."""

import math
import random

import numpy as np
import pytest
import torch

from latent_cot.training.data.collators import ICoTCollator
from latent_cot.training.trainers.icot_removal import (
    Internalizer,
    fillers_of_runs,
    removed_columns,
    smoothing_offsets,
    steps_from_end,
    switched_columns,
    uniform,
)
from latent_cot.training.trainers.icot_schedule import FillerSchedule, RemovalSchedule

START, PAUSE, READY, EOS, PAD = 90, 91, 92, 1, 0


class config:
    start_token_id, ready_token_id, answer_prompt_ids = START, READY, [80]


class tokenizer:
    eos_token_id, pad_token_id = EOS, PAD


def random_features(source: random.Random) -> list[dict]:
    def text(least, most):
        return [source.randrange(2, 80) for _ in range(source.randint(least, most))]

    return [
        {"question": text(1, 6), "steps": [text(1, 4) for _ in range(source.randint(0, 4))], "answer": text(1, 3),
         "row": source.randrange(1000)}
        for _ in range(source.randint(1, 5))
    ]  # fmt: skip


def internalizer(**changes) -> Internalizer:
    defaults = {"smoothing": math.inf, "side": "left", "keep_position": False, "switch_mode": "sequential"}
    defaults |= {"switch_ratio": 1.0, "label_fillers": False, "pause_token_id": PAUSE, "max_length": None, "seed": 7}
    return Internalizer(**(defaults | changes))


def plainly(feature: dict, count: int, side: str) -> tuple[list[int], list[int]]:
    """Removal as the paper describes it: a row's tokens, and its labels from `<start>` on."""
    chain = [token for step in feature["steps"] for token in step]
    count = min(count, len(chain))
    left = chain[count:] if side == "left" else chain[: len(chain) - count]
    tail = [*left, READY, 80, *feature["answer"], EOS]
    return [*feature["question"], START, *tail], tail


many_trials = pytest.mark.parametrize("trials", [100, pytest.param(400, marks=pytest.mark.slow)])


@many_trials
@pytest.mark.parametrize("side", ["left", "right"])
def test_removal_is_the_plain_loop(side, trials):
    """400 random ragged batches, with and without smoothing."""
    source = random.Random(side)
    for trial in range(trials):
        features = random_features(source)
        scheduled, smoothing = source.choice([0, 1, 2, 5, 30, math.inf]), source.choice([math.inf, 0.5, 4.0])
        apply = internalizer(side=side, smoothing=smoothing, seed=trial)
        batch = ICoTCollator(tokenizer, config)(features)
        got = apply(batch, step=trial, scheduled=scheduled, rate=0.0)
        width = max(1, max(batch["chain_lengths"]))
        rows = np.array([feature["row"] for feature in features])
        offsets = smoothing_offsets(smoothing, uniform(trial, trial, rows, width + 1)[:, 0])
        for row, feature in enumerate(features):
            count = 10**6 if math.isinf(scheduled) else scheduled + int(offsets[row])
            ids, tail = plainly(feature, count, side)
            mask = got["attention_mask"][row].bool()
            assert got["input_ids"][row][mask].tolist() == ids
            assert got["position_ids"][row][mask].tolist() == list(range(len(ids)))
            labels = got["labels"][row]
            assert labels[labels != -100].tolist() == tail
            assert torch.equal(labels[labels != -100], got["input_ids"][row][labels != -100])
        assert got["input_ids"].shape[1] == max(
            int(mask.nonzero().max()) + 1 for mask in got["attention_mask"]
        )  # nothing is computed that is padding in every row


@many_trials
@pytest.mark.parametrize("mode", ["random", "sequential", "fixed", "depth"])
def test_fillers_are_the_plain_loop(mode, trials):
    """Which tokens turn, and how many fillers stand for a run."""
    source = random.Random(mode)
    for trial in range(trials):
        features = random_features(source)
        rate, ratio = source.choice([0.01, 0.3, 0.5, 0.99, 1.0]), source.choice([0.4, 1.0, 2.5])
        apply = internalizer(switch_mode=mode, switch_ratio=ratio, seed=trial)
        batch = ICoTCollator(tokenizer, config)(features)
        got = apply(batch, step=trial, scheduled=0, rate=rate)
        rows, width = np.array([feature["row"] for feature in features]), max(1, max(batch["chain_lengths"]))
        numbers = uniform(trial, trial, rows, width + 1)[:, 1:]
        for row, feature in enumerate(features):
            chain = [token for step in feature["steps"] for token in step]
            if mode == "random":
                turned = [numbers[row, i] < rate for i in range(len(chain))]
            elif mode == "sequential":
                count = sum(number < rate for number in numbers[row, : len(chain)])
                turned = [i < count for i in range(len(chain))]
            elif mode == "fixed":
                turned = [i < math.ceil(rate * len(chain) - 1e-9) for i in range(len(chain))]
            else:  # of n steps the last k turn, k the number of steps s from the end with s / n < rate
                count = len(feature["steps"])
                deep = [(count - 1 - index) / max(count, 1) < rate - 1e-9 for index in range(count)]
                turned = [deep[index] for index, step in enumerate(feature["steps"]) for _ in step]
            expected, run = [], 0
            for token, turns in [*zip(chain, turned, strict=True), (None, False)]:
                if turns:
                    run += 1
                    continue
                expected += [PAUSE] * math.ceil(run * ratio)
                run = 0
                expected += [] if token is None else [token]
            ids = [*feature["question"], START, *expected, READY, 80, *feature["answer"], EOS]
            mask = got["attention_mask"][row].bool()
            assert got["input_ids"][row][mask].tolist() == ids
            assert PAUSE not in got["labels"][row].tolist()


def test_written_fillers_are_labelled():
    feature = {"question": [5], "steps": [[6, 7]], "answer": [8], "row": 0}
    batch = ICoTCollator(tokenizer, config)([feature])
    got = internalizer(label_fillers=True)(batch, step=0, scheduled=0, rate=1.0)
    assert got["labels"].tolist() == [[-100, -100, PAUSE, PAUSE, READY, 80, 8, EOS]]


def test_kept_positions_and_long_rows():
    """What follows the removed tokens keeps its positions; rows beyond the limit are not learned from."""
    features = [
        {"question": [5], "steps": [[6, 7, 8]], "answer": [9], "row": 0},
        {"question": [5, 5], "steps": [[6]], "answer": [9], "row": 1},
    ]
    batch = ICoTCollator(tokenizer, config)(features)
    got = internalizer(keep_position=True)(batch, step=0, scheduled=2, rate=0.0)
    assert got["position_ids"][0][got["attention_mask"][0].bool()].tolist() == [0, 1, 4, 5, 6, 7, 8]
    limited = internalizer(max_length=8)(batch, step=0, scheduled=0, rate=0.0)
    learned = (limited["labels"] != -100).any(dim=1).tolist()
    assert learned == [False, True]


def test_removal_schedule_by_epochs():
    """Eight tokens an epoch of 80 steps: one every ten, from the end of pretraining on."""
    schedule = RemovalSchedule(per_epoch=8, pretrain_epochs=1, start_from=2, all_beyond=10)
    tokens = [schedule.tokens(step, 80) for step in range(400)]
    assert tokens[:90] == [2] * 90
    assert tokens[90] == 3 and tokens[99] == 3 and tokens[100] == 4
    assert tokens[160] == math.inf and tokens[159] == 9
    assert RemovalSchedule(per_epoch=0).tokens(10**6, 10) == 0
    assert RemovalSchedule(per_epoch=50).tokens(3, 10) == 4  # more than one token a step: one a step


def test_removal_schedule_by_steps():
    schedule = RemovalSchedule(from_n_steps=100, every_n_step=50, start_from=3)
    assert [schedule.tokens(step, 7) for step in (0, 99, 100, 149, 150, 250)] == [0, 0, 3, 3, 4, 6]


def test_filler_schedule():
    schedule = FillerSchedule(steps=500, from_n_steps=10, from_rate=0.5, every_n_step=2)
    assert [schedule.rate(step) for step in (9, 10, 12, 1000)] == [0.0, 0.5, 0.51, 1.0]


def test_smoothing_distribution():
    """Offsets follow (1 - exp(-l)) exp(-l o)."""
    numbers = uniform(0, 0, np.arange(200_000), 1)[:, 0]
    offsets = smoothing_offsets(0.7, numbers)
    for o in range(5):
        assert np.mean(offsets == o) == pytest.approx((1 - math.exp(-0.7)) * math.exp(-0.7 * o), abs=0.004)
    assert smoothing_offsets(math.inf, numbers).sum() == 0
    assert smoothing_offsets(1e-9, numbers).max() == 99


def test_numbers_depend_on_nothing_but_their_arguments():
    """A row draws the same in any batch; seeds, steps, rows and columns draw differently."""
    together = uniform(1, 2, np.array([3, 4, 5]), 6)
    assert np.array_equal(uniform(1, 2, np.array([5]), 6)[0], together[2])
    assert np.array_equal(uniform(1, 2, np.array([3, 4, 5]), 4), together[:, :4])
    assert not np.array_equal(uniform(1, 3, np.array([5]), 6)[0], together[2])
    assert not np.array_equal(uniform(2, 2, np.array([5]), 6)[0], together[2])
    many = uniform(0, 0, np.arange(1000), 100)
    assert abs(many.mean() - 0.5) < 0.005 and abs(np.corrcoef(many[:, 0], many[:, 1])[0, 1]) < 0.1


def test_masks_alone():
    lengths, counts = torch.tensor([3, 0, 2]), torch.tensor([1, 5, 9])
    assert removed_columns(lengths, counts, "left", 3).int().tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]
    assert removed_columns(lengths, counts, "right", 3).int().tolist() == [[0, 0, 1], [0, 0, 0], [1, 1, 0]]
    from_end = steps_from_end([[1, 2], [], [2]], [0, 0, 0], "left", 3)
    left, numbers = torch.arange(3) < lengths[:, None], torch.zeros(3, 3)
    deep = switched_columns(left, 0.5, "depth", numbers, from_end)
    assert deep.int().tolist() == [[0, 1, 1], [0, 0, 0], [1, 1, 0]]
    runs = torch.tensor([[1, 1, 1, 0, 1, 1]]).bool()
    assert fillers_of_runs(runs, 0.5).tolist() == [[1, 0, 1, 0, 1, 0]]
    assert fillers_of_runs(runs, 1.5).tolist() == [[2, 1, 2, 0, 2, 1]]


def test_places_of_steps_count_what_is_left():
    """Two of three steps are left, one of them in part; the last has place 0 of 2."""
    assert steps_from_end([[2, 2, 2]], [3], "left", 6).tolist() == [[1.0, 1.0, 0.5, 0.5, 0.0, 0.0]]
    assert steps_from_end([[2, 2, 2]], [3], "right", 6).tolist() == [[0.5, 0.5, 0.0, 0.0, 1.0, 1.0]]
