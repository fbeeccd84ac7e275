"""The Jacobi iteration over vLLM's packed batch, of which each pass runs a part.

A batch is a row of several requests' tokens; the passes are those of `jacobi_window` for each request, side by side. Here are
two questions with c = 4, T = 2 (so windows of W = 3 columns), and one token of a third request's answer:

              7 9 <bot> 1 2 3 4 <eot> 5   8 <bot> 1 2 3 4 <eot> 5   6
    pass 0    x x   x   x x               x   x   x x               x
    pass 1              x x x                     x x x
    pass 2                x x x   x   x             x x x   x   x
"""

from dataclasses import dataclass
from itertools import pairwise

import torch

from latent_cot.spans_pccot import spans_of_row


def find_spans(ids: list[int], config) -> list[tuple[int, int]]:
    """The column of each `<bot>` that is followed by latents and `<eot>`, and the one after that `<eot>`."""
    return [(span.bot, span.end + 1) for span in spans_of_row(ids, config) if span.is_whole]


@dataclass(frozen=True)
class Piece:
    """Columns of one request with one span at most: from `start` up to `end`, with `latents` of them after `bot`."""

    request: int
    start: int
    end: int
    bot: int = 0
    latents: int = 0

    def columns(self, step: int, iterations: int) -> tuple[int, int] | None:
        """The columns, from one up to another, that run in a pass; None if it has no more."""
        iterations = min(iterations, self.latents)
        if step > iterations:
            return None
        start = self.bot + step if step else self.start
        return start, self.end if step == iterations else self.bot + step + self.latents - iterations + 1


def pieces_of(ids: list[int], starts: list[int], config) -> list[list[Piece]]:
    """A batch in pieces that are thought one after the other: the first piece of each request, the second one, and so on.

    Args:
        ids: `tokens` ids.
        starts: the column where each request begins, and the one after the last request.
    """
    rounds: list[list[Piece]] = [[]]
    for request, (start, end) in enumerate(pairwise(starts)):
        spans = [(start + bot, after - bot - 2) for bot, after in find_spans(ids[start:end], config)]
        borders = [start, *(bot for bot, _ in spans[1:]), end]
        pieces = [
            Piece(request, first, last, *span)
            for first, last, span in zip(borders[:-1], borders[1:], spans or [()], strict=True)
        ]
        for nth, piece in enumerate(pieces):
            rounds += [[]] if nth == len(rounds) else []
            rounds[nth].append(piece)
    return rounds


def think(run, embeds: torch.Tensor, rounds: list[list[Piece]], iterations: int, project) -> torch.Tensor:
    """Last hidden states of a packed batch, `(tokens, hidden)`.

    Args:
        run: performs a pass: `run(inputs, columns, parts)`, the inputs of the batch's `columns`, which are those of `parts`,
            `(request, from, up to)`.
        embeds: `(tokens, hidden)`.
        iterations: T.
        project: makes the inputs of latents of the hidden states before them.
    """
    states = torch.empty_like(embeds)
    for pieces in rounds:
        for step in range(1 + max(min(iterations, piece.latents) for piece in pieces)):
            parts, latents = [], []
            for piece in pieces:
                if (part := piece.columns(step, iterations)) is not None:
                    parts.append((piece.request, *part))
                    eot = piece.bot + piece.latents + 1
                    latents += [step > 0 and column < eot for column in range(*part)]
            columns = torch.cat([torch.arange(start, end) for _, start, end in parts]).to(embeds.device)
            inputs = embeds[columns]
            if step:
                is_latent = torch.tensor(latents, device=embeds.device)
                inputs[is_latent] = project(states[columns[is_latent] - 1])
            states[columns] = run(inputs, columns, parts)
    return states
