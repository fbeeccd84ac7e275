"""Which positions the model computes in a training step, counted from lengths; the passes of `models/jacobi_pccot.py`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What one example of a training step takes."""

    passes: tuple[tuple[int, int], ...]  # (new positions, positions before them) of each pass through the blocks
    logits: int  # positions that the output head reads

    @property
    def positions(self) -> int:
        return sum(new for new, _ in self.passes)


def thought_work(question: int, chain: int, ending: int, latents: int, iterations: int) -> Work:
    """PCCoT's step: the student's passes first, with the window of `jacobi_window`, then the teacher's.

    The question is read once for both, nothing is predicted from the end of sequence, and only what is predicted has logits.

    Args:
        chain: tokens of the explicit steps, with what opens them.
        ending: answer prompt, answer and end of sequence, in tokens.
        latents, iterations: c and T.
    """
    iterations = min(iterations, latents)
    window = latents - iterations + 1
    if iterations == 0:
        student = [(question + latents + 1, 0)]
    else:
        student = [(question + window, 0), *((window, question + t) for t in range(1, iterations + 1))]
    new, before = student.pop()
    return Work((*student, (new + ending, before), (chain + ending - 1, question)), chain + 2 * ending)
