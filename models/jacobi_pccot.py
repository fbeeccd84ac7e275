"""The Jacobi iteration of PCCoT, and nothing else (arXiv 2506.18582, section 3.2, algorithm 1).

    column    0 ...       bot     bot + 1 ... bot + c    eot = bot + c + 1 ...
    holds     question    <bot>   latents 1 ... c        <eot>, answer prompt, answer

All functions take `embeds` `(batch, length, hidden)`, the column `bot`, the number of `latents` c, the number of
`iterations` T, `project(states, first)`, which makes the inputs of latents `first` (from 0), `first + 1`, ... of the hidden
states before them, and `run(inputs, start)`, which performs one pass:
`inputs` are placed from column `start` on, attend to what the latest passes left before it, and become last hidden
states `(batch, columns of inputs, hidden)`. All return the last hidden states of every column, `(batch, length, hidden)`.
"""

import torch


def jacobi(run, embeds, bot, latents, iterations, project):
    """T parallel updates of all latents, as the paper has them: nothing pruned."""
    first, eot = bot + 1, bot + 1 + latents
    states = run(embeds[:, :eot], 0)  # pass 0: the latents' own embeddings
    question, states = states[:, :first], states[:, first:]
    for _ in range(iterations):
        previous = torch.cat([question[:, -1:], states[:, :-1]], dim=1)
        states = run(project(previous, 0), first)  # latent i takes the state of the position before it
    answer = run(embeds[:, eot:], eot)
    return torch.cat([question, states, answer], dim=1)


def jacobi_window(run, embeds, bot, latents, iterations, project):
    """`jacobi` without what no later pass reads: each pass runs a window of W = c - T + 1 latents.

    Here c = 4 and T = 2, so W = 3:

                 question  <bot>   1   2   3   4   <eot>, answer
        pass 0       x       x     x   x                            latent 4's state here is never read
        pass 1                     x   x   x                        latent 1 is final from here on
        pass 2                         x   x   x         x          the answer rides along with the last pass

    T >= c gives W = 1: one latent after the other, each from the final state before it.
    """
    iterations, eot = min(iterations, latents), bot + 1 + latents
    if iterations == 0:
        return run(embeds, 0)
    window = latents - iterations + 1
    states = run(embeds[:, : bot + window], 0)
    final, states = [states[:, :bot]], states[:, bot:]  # after pass t, `states` are those from column bot + t on
    for t in range(1, iterations + 1):
        final.append(states[:, :1])
        inputs = project(states, t - 1)
        if t == iterations:
            inputs = torch.cat([inputs, embeds[:, eot:]], dim=1)
        states = run(inputs, bot + t)
    return torch.cat([*final, states], dim=1)


def jacobi_until_settled(run, embeds, bot, latents, iterations, project, tolerance):
    """`jacobi` that ends early: a row whose inputs all changed by less than `tolerance` since the last pass keeps them.

    So no row depends on its neighbours; the passes end when every row has settled. Reads one flag per pass on the host.
    """
    first, eot, iterations = bot + 1, bot + 1 + latents, min(iterations, latents)
    if iterations == 0:
        return run(embeds, 0)
    states = run(embeds[:, :eot], 0)
    question, states = states[:, :first], states[:, first:]
    inputs, settled = None, torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
    for t in range(1, iterations + 1):
        last, inputs = inputs, project(torch.cat([question[:, -1:], states[:, :-1]], dim=1), 0)
        if last is not None:
            change = (inputs - last).float().norm(dim=-1) / last.float().norm(dim=-1).clamp(min=1e-12)
            settled |= change.amax(dim=1) < tolerance
            if settled.all():
                states = torch.cat([states, run(embeds[:, eot:], eot)], dim=1)
                break
            inputs = torch.where(settled[:, None, None], last, inputs)
        states = run(torch.cat([inputs, embeds[:, eot:]], dim=1) if t == iterations else inputs, first)
    return torch.cat([question, states], dim=1)


def jacobi_in_full(run, embeds, bot, latents, iterations, project, reads_before, combine):
    """Any other update: `combine(projected states, embeddings, inputs of the pass before)` makes the latents' inputs.

    No latent need be final after any pass, so all run in each: no window, and T is not bounded by c.
    """
    first, eot = bot + 1, bot + 1 + latents
    if iterations == 0:
        return run(embeds, 0)
    own, states = embeds[:, first:eot], run(embeds[:, :eot], 0)
    question, states, inputs = states[:, :first], states[:, first:], own
    for t in range(1, iterations + 1):
        read = torch.cat([question[:, -1:], states[:, :-1]], dim=1) if reads_before else states
        inputs = combine(project(read, 0), own, inputs)
        states = run(torch.cat([inputs, embeds[:, eot:]], dim=1) if t == iterations else inputs, first)
    return torch.cat([question, states], dim=1)
