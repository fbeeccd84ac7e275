"""The passes of the vLLM plugin without vLLM: which columns run, and that they are those of `jacobi_window`."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from latent_cot.engines.vllm.windows import Piece, find_spans, pieces_of, think
from latent_cot.jacobi_pccot import jacobi_window

CONFIG = SimpleNamespace(bot_token_id=36, eot_token_id=37, latent_token_id=38)


def span(latents: int) -> list[int]:
    return [36, *[38] * latents, 37]


def test_importing_the_package_never_imports_vllm():
    code = "import sys, latent_cot, latent_cot.engines.vllm.plugin as p; assert 'vllm' not in sys.modules; print(len(p.ARCHITECTURES))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"


def test_spans_are_whole_or_none():
    ids = [7, *span(2), 9, 36, 37, 38, 36, 38, 9, *span(1), 36, 38]
    assert find_spans(ids, CONFIG) == [(1, 5), (12, 15)]
    assert find_spans([], CONFIG) == find_spans([36], CONFIG) == []


def test_pieces_hold_one_span_each():
    first, second = [7, 7, *span(2), 9, *span(3), 9, 9], [8]
    rounds = pieces_of(first + second, [0, len(first), len(first) + 1], CONFIG)
    assert rounds == [[Piece(0, 0, 7, 2, 2), Piece(1, 14, 15)], [Piece(0, 7, 14, 7, 3)]]


@pytest.mark.parametrize("iterations", [0, 1, 2, 3, 4, 7])
def test_a_packed_batch_runs_what_each_row_would_alone(iterations):
    """Rows of other lengths, counts of latents, and one without a span: the passes of `jacobi_window` for each, side by side."""
    rows = [[7, 9, *span(4), 5, 6], [4], [*span(2), 3], [8, 8, 8, *span(1), *[2] * 3]]
    ids = [token for row in rows for token in row]
    starts = [sum(map(len, rows[:n])) for n in range(len(rows) + 1)]
    embeds = torch.randn(len(ids), 3)
    held = torch.zeros(len(ids), 3)

    def attended(inputs, start, end, begin):
        """A stand-in for a backbone: each column's state depends on what the latest passes left up to it."""
        held[start:end] = inputs
        return torch.stack([held[begin : column + 1].sum(0).tanh() for column in range(start, end)])

    def packed(inputs, columns, parts):
        done, out = 0, []
        for request, start, end in parts:
            assert columns[done : done + end - start].tolist() == list(range(start, end))
            out.append(attended(inputs[done : done + end - start], start, end, starts[request]))
            done += end - start
        calls.append(len(columns))
        return torch.cat(out)

    def project(states, first=0):
        return 2 * states

    calls = []
    together = think(packed, embeds, pieces_of(ids, starts, CONFIG), iterations, project)
    assert len(calls) == 1 + min(iterations, 4)
    alone = []
    for row, begin in zip(rows, starts, strict=False):

        def run(inputs, start, begin=begin):
            return attended(inputs[0], begin + start, begin + start + inputs.shape[1], begin)[None]

        found, own = find_spans(row, CONFIG), embeds[None, begin : begin + len(row)]
        bot, latents = (found[0][0], found[0][1] - found[0][0] - 2) if found else (0, 0)
        alone.append(jacobi_window(run, own, bot, latents, iterations if found else 0, project)[0])
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)
