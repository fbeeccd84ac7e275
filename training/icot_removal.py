"""Stepwise internalisation: which tokens of a chain a training step removes, or turns into fillers (arXiv 2405.14838).

How many is in `icot_schedule.py`. Everything here is a pure function of the training step, the arguments and the rows: the
same whatever the number of loader workers, processes or accumulation steps, and after an interruption.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from models.chunked_cross_entropy import IGNORED
from models.positions import positions_from_mask

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
        width: of the longest chain.

    Returns:
        `(batch, width)`, boolean.
    """
    column = torch.arange(width)[None]
    lengths, counts = chain_lengths[:, None], counts[:, None]
    inside = column < lengths
    return inside & (column < counts if side == "left" else column >= lengths - counts)


def switched_columns(
    chain_lengths: torch.Tensor, rate: float, mode: str, numbers: torch.Tensor, steps_from_end: torch.Tensor
) -> torch.Tensor:
    """Which tokens of a chain become fillers.

    Args:
        chain_lengths: `(batch,)`.
        rate: share of the chain, 0 to 1.
        mode: "random" (each token with this probability), "sequential" (from the front) or "depth" (whole steps,
            the deepest, that is the last, first).
        numbers: `(batch, width)`, uniform in [0, 1): the draw of "random".
        steps_from_end: `(batch, width)`: for each token, its step's place counted from the chain's end, over the
            number of steps (0 for the last step).

    Returns:
        `(batch, width)`, boolean.
    """
    column = torch.arange(numbers.shape[1])[None]
    inside = column < chain_lengths[:, None]
    if mode == "random":
        return inside & (numbers < rate)
    if mode == "sequential":
        return inside & (column < torch.ceil(rate * chain_lengths[:, None].double() - 1e-9))
    return inside & (steps_from_end < rate - 1e-9)


def surplus_fillers(switched: torch.Tensor, ratio: float) -> torch.Tensor:
    """Of each run of n switched tokens, those beyond the ceil(n / ratio) fillers that stand for it; as `switched`."""
    column = torch.arange(switched.shape[1]).expand_as(switched)
    starts = torch.where(switched, torch.full_like(column, -1), column).cummax(dim=1).values
    offset = column - starts - 1  # place in its run
    stays = torch.ceil((offset + 1) / ratio) > torch.ceil(offset / ratio)
    return switched & ~stays


@dataclass(frozen=True)
class Internalizer:
    """Applies the removal and the fillers of one step to a batch.

    Args:
        smoothing: lambda of the random offset.
        side: the end that tokens are removed from.
        keep_position: what follows the removed tokens keeps its positions.
        switch_mode, switch_ratio: see `switched_columns` and `surplus_fillers`.
        label_fillers: the model learns to write the fillers (otherwise they are given to it).
        pause_token_id: the filler.
        max_length: longer rows are not learned from; None for no limit.
        seed: of the random numbers.
    """

    smoothing: float
    side: str
    keep_position: bool
    switch_mode: str
    switch_ratio: float
    label_fillers: bool
    pause_token_id: int | None
    max_length: int | None
    seed: int

    def __call__(self, batch: dict, step: int, scheduled: float, rate: float, smooth: bool = True) -> dict:
        """The batch as this step trains on it.

        Args:
            batch: of `ICoTCollator`.
            step: for the random numbers.
            scheduled: tokens to remove.
            rate: share of fillers.
            smooth: draw offsets (not in evaluation).

        Returns:
            `input_ids`, `attention_mask`, `position_ids`, `labels`, each `(batch, shorter length)`.
        """
        lengths, rows = torch.tensor(batch["chain_lengths"]), np.array(batch["row_numbers"])
        start, width, device = batch["chain_start"], max(1, int(lengths.max())), batch["input_ids"].device
        numbers = uniform(self.seed, step, rows, width + 1)
        offsets = smoothing_offsets(self.smoothing if smooth else math.inf, numbers[:, 0])
        counts = torch.from_numpy(offsets) + int(min(scheduled, width))
        removed = removed_columns(lengths, counts, self.side, width)
        switched = torch.zeros_like(removed)
        if rate > 0:
            from_end = steps_from_end(batch["step_lengths"], width)
            switched = switched_columns(lengths, rate, self.switch_mode, torch.from_numpy(numbers[:, 1:]), from_end)
            removed |= surplus_fillers(switched & ~removed, self.switch_ratio)

        # From the chain's columns to the batch's: gone columns move after everything that stays.
        columns = batch["input_ids"].shape[1]
        gone = torch.nn.functional.pad(removed, (start, columns))[:, :columns]
        filler = torch.nn.functional.pad(switched, (start, columns))[:, :columns]
        kept = torch.tensor(batch["lengths"]) - gone.sum(dim=1)
        order = torch.argsort(gone.int(), dim=1, stable=True)[:, : int(kept.max())]
        present = torch.arange(order.shape[1])[None] < kept[:, None]
        learned = present if self.max_length is None else present & (kept <= self.max_length)[:, None]
        filler = filler.gather(1, order)
        order, present, learned, filler = (tensor.to(device) for tensor in (order, present, learned, filler))

        taken = {
            name: batch[name].gather(1, order) for name in ("input_ids", "attention_mask", "position_ids", "labels")
        }
        mask = taken["attention_mask"] * present
        ids, labels = taken["input_ids"], taken["labels"].masked_fill(~learned, IGNORED)
        if rate > 0:
            ids = ids.masked_fill(filler, self.pause_token_id)
            labels = labels.masked_fill(filler & learned, self.pause_token_id if self.label_fillers else IGNORED)
        positions = taken["position_ids"] if self.keep_position else positions_from_mask(mask)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}


def steps_from_end(step_lengths: list[list[int]], width: int) -> torch.Tensor:
    """For each token its step's place from the chain's end over the number of steps; `(batch, width)`."""
    rows = []
    for lengths in step_lengths:
        places = [(len(lengths) - 1 - index) / len(lengths) for index, n in enumerate(lengths) for _ in range(n)]
        rows.append(places + [1.0] * (width - len(places)))
    return torch.tensor(rows, dtype=torch.double)
