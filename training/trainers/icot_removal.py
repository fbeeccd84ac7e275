"""Stepwise internalisation: which tokens of a chain a training step removes, or turns into fillers (arXiv 2405.14838).

How many is in `icot_schedule.py`. Everything here is a pure function of the training step, the arguments and the rows: the
same whatever the number of loader workers, processes or accumulation steps, and after an interruption.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from latent_cot.chunked_cross_entropy import IGNORED
from latent_cot.positions import positions_from_mask

LONGEST_OFFSET = 99  # the smoothing distribution is cut off here, as published


def uniform(seed: int, step: int, rows: np.ndarray, columns: int) -> np.ndarray:
    """Random numbers in [0, 1) that depend on nothing but their arguments; `(rows, columns)`.

    SplitMix64 (Steele et al., 2014) of seed, step, row and column.
    """

    def mix(state: np.ndarray) -> np.ndarray:
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))

    with np.errstate(over="ignore"):
        state = mix(mix(np.full(1, seed, dtype=np.uint64)) ^ np.uint64(step))
        state = mix(state[:, None] ^ np.asarray(rows, dtype=np.uint64)[:, None])
        state = mix(state ^ np.arange(columns, dtype=np.uint64)[None])
    return (state >> np.uint64(11)).astype(np.float64) / 2.0**53


def smoothing_offsets(smoothing: float, numbers: np.ndarray) -> np.ndarray:
    """Tokens removed beyond the schedule: o with probability (1 - exp(-l)) exp(-l o), l = `smoothing` (section 3.2).

    Args:
        smoothing: lambda; infinity for none.
        numbers: uniform in [0, 1), any shape.
    """
    if math.isinf(smoothing):
        return np.zeros(numbers.shape, dtype=np.int64)
    return np.minimum(np.floor(-np.log1p(-numbers) / smoothing), LONGEST_OFFSET).astype(np.int64)


def removed_columns(chain_lengths: torch.Tensor, counts: torch.Tensor, side: str, width: int) -> torch.Tensor:
    """Which tokens of a chain are taken away.

    Args:
        chain_lengths, counts: `(batch,)`: tokens of each chain, and how many of them go (more than there are: all).
        side: the end they go from, "left" or "right".

    Returns:
        `(batch, width)`, boolean.
    """
    column = torch.arange(width)[None]
    lengths, counts = chain_lengths[:, None], counts[:, None]
    inside = column < lengths
    return inside & (column < counts if side == "left" else column >= lengths - counts)


def switched_columns(
    left: torch.Tensor, rate: float, mode: str, numbers: torch.Tensor, steps_from_end: torch.Tensor
) -> torch.Tensor:
    """Which of the tokens that are left of a chain become fillers.

    Args:
        left: `(batch, width)`, boolean: the tokens that were not removed; the share is of these.
        rate: share, 0 to 1.
        mode: "random" (each token with this probability), "sequential" (as many as "random" would take, from the front),
            both as in the filler-token fork; "fixed" (exactly this share, from the front); or "depth" (whole steps, the
            deepest, that is the last, first).
        numbers: `(batch, width)`, uniform in [0, 1): the draws of "random" and "sequential".
        steps_from_end: `(batch, width)`: for each token, its step's place counted from the end of what is left, over the
            number of steps that are left (0 for the last step).

    Returns:
        `(batch, width)`, boolean.
    """
    if mode == "random":
        return left & (numbers < rate)
    if mode == "depth":
        return left & (steps_from_end < rate - 1e-9)
    if mode == "sequential":
        count = (left & (numbers < rate)).sum(dim=1, keepdim=True)
    else:
        count = torch.ceil(rate * left.sum(dim=1, keepdim=True).double() - 1e-9)
    return left & (left.cumsum(dim=1) <= count)


def fillers_of_runs(switched: torch.Tensor, ratio: float) -> torch.Tensor:
    """How many fillers stand in the place of each switched token: a run of n tokens gives ceil(n x ratio) in all.

    Args:
        switched: `(batch, width)`, boolean.
        ratio: fillers per token.

    Returns:
        `(batch, width)`, whole numbers; 0 where nothing is switched.
    """
    column = torch.arange(switched.shape[1]).expand_as(switched)
    starts = torch.where(switched, torch.full_like(column, -1), column).cummax(dim=1).values
    place = (column - starts).double()  # in its run, from 1
    counts = torch.ceil(place * ratio) - torch.ceil((place - 1) * ratio)
    return torch.where(switched, counts, torch.zeros_like(counts)).long()


@dataclass(frozen=True)
class Internalizer:
    """Applies the removal and the fillers of one step to a batch: tokens are removed first, and of what is left some turn."""

    smoothing: float  # lambda of the random offset
    side: str  # the end that tokens are removed from
    keep_position: bool  # what follows the removed tokens keeps its positions
    switch_mode: str  # see `switched_columns` and `fillers_of_runs`
    switch_ratio: float
    label_fillers: bool  # the model learns to write the fillers (otherwise they are given to it)
    pause_token_id: int | None  # the filler
    max_length: int | None  # rows of more tokens than this are not learned from; None for no limit
    seed: int  # of the random numbers

    def __call__(self, batch: dict, step: int, scheduled: float, rate: float, smooth: bool = True) -> dict:
        """The batch as this step trains on it.

        Args:
            batch: of `ICoTCollator`.
            step: for the random numbers.
            scheduled: tokens to remove.
            rate: share of fillers.
            smooth: draw offsets (not in evaluation, and not while the chain is only learned).

        Returns:
            `input_ids`, `attention_mask`, `position_ids`, `labels`, each `(batch, length)`.
        """
        lengths, rows = torch.tensor(batch["chain_lengths"]), np.array(batch["row_numbers"])
        start, width, device = batch["chain_start"], max(1, int(lengths.max())), batch["input_ids"].device
        numbers = uniform(self.seed, step, rows, width + 1)
        offsets = smoothing_offsets(self.smoothing if smooth else math.inf, numbers[:, 0])
        counts = self.removed_counts(batch, offsets, scheduled)
        removed = removed_columns(lengths, counts, self.side, width)
        switched = torch.zeros_like(removed)
        copies = 1 - removed.long()  # how often each token of the chain is there
        if rate > 0:
            left = (torch.arange(width) < lengths[:, None]) & ~removed
            from_end = steps_from_end(batch["step_lengths"], counts.tolist(), self.side, width)
            switched = switched_columns(left, rate, self.switch_mode, torch.from_numpy(numbers[:, 1:]), from_end)
            copies = torch.where(switched, fillers_of_runs(switched, self.switch_ratio), copies)

        # From the chain's columns to the batch's; the result's column j is a copy of column `source[:, j]`.
        columns = batch["input_ids"].shape[1]
        ends = torch.tensor(batch["lengths"])[:, None]
        times = (torch.arange(columns) < ends).long()
        times[:, start : start + width] *= copies[:, : columns - start]
        total = times.cumsum(dim=1)
        length = int(total[:, -1].max())
        source = torch.searchsorted(total, torch.arange(length).expand(len(rows), -1).contiguous(), right=True)
        present = torch.arange(length) < total[:, -1:]
        source = source.clamp(max=columns - 1)
        filler = torch.nn.functional.pad(switched, (start, columns))[:, :columns].gather(1, source) & present
        source, present, filler = (tensor.to(device) for tensor in (source, present, filler))

        mask = batch["attention_mask"].gather(1, source) * present
        learned = present if self.max_length is None else present & (mask.sum(dim=1, keepdim=True) <= self.max_length)
        ids = batch["input_ids"].gather(1, source)
        labels = batch["labels"].gather(1, source).masked_fill(~learned, IGNORED)
        if rate > 0:
            ids = ids.masked_fill(filler, self.pause_token_id)
            labels = labels.masked_fill(filler & learned, self.pause_token_id if self.label_fillers else IGNORED)
        positions = positions_from_mask(mask)
        if self.keep_position:
            # What follows: the rest of the chain too, or only what comes after it.
            first = start if self.side == "left" else start + lengths[:, None].to(device)
            positions = positions + (source >= first) * removed.sum(dim=1, keepdim=True).to(device)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}

    def removed_counts(self, batch: dict, offsets: np.ndarray, scheduled: float) -> torch.Tensor:
        """How many tokens go from each row's chain, `(batch,)`; never more than it has."""
        lengths = torch.tensor(batch["chain_lengths"])
        return torch.minimum(torch.from_numpy(offsets) + int(min(scheduled, int(lengths.max()))), lengths)

    def removes_all(self, batch: dict, step: int, scheduled: float, smooth: bool) -> bool:
        """Whether nothing of any chain is left in this batch at this step; decided on the host."""
        offsets = smoothing_offsets(
            self.smoothing if smooth else math.inf, uniform(self.seed, step, np.array(batch["row_numbers"]), 1)[:, 0]
        )
        return self.removed_counts(batch, offsets, scheduled).tolist() == batch["chain_lengths"]


def steps_from_end(step_lengths: list[list[int]], removed: list[int], side: str, width: int) -> torch.Tensor:
    """For each token its step's place from the end over the number of steps, of those that are left; `(batch, width)`.

    Args:
        step_lengths: of each row, the tokens of its steps.
        removed: of each row, how many tokens are gone.
        side: the end that they are gone from.
    """
    rows = []
    for lengths, gone in zip(step_lengths, removed, strict=True):
        step_of = [index for index, length in enumerate(lengths) for _ in range(length)]
        left = step_of[gone:] if side == "left" else step_of[: len(step_of) - gone]
        steps = sorted(set(left), reverse=True)
        places = {step: place / len(steps) for place, step in enumerate(steps)}
        rows.append(([places.get(step, 1.0) for step in step_of] + [1.0] * width)[:width])
    return torch.tensor(rows, dtype=torch.double)
