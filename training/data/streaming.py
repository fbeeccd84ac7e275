"""A training stream without end: the rows in one pass after another, each pass in an order of its own."""

from collections.abc import Iterator
from itertools import count

from datasets import IterableDataset

from latent_cot.training.errors import InputError


def endless(rows: IterableDataset, buffer_size: int, seed: int) -> IterableDataset:
    """Passes over a stream without end; what stands where depends on the seed and the position alone.

    So a resumed run, which reads and leaves out what the first one has seen, goes on with the very next row.

    Args:
        rows: a stream that can be read again, and is the same each time.
        buffer_size: rows among which the next one is drawn; 0 leaves them in order.
    """
    if buffer_size > 0:
        rows = rows.shuffle(seed=seed, buffer_size=buffer_size)
    return IterableDataset.from_generator(passes, gen_kwargs={"rows": rows})


def passes(rows: IterableDataset) -> Iterator[dict]:
    """See `endless`. Raises InputError for a pass without a row, or with more or fewer rows than the first."""
    first = None
    for number in count():
        rows.set_epoch(number)
        seen = 0
        # By batches of one, because `datasets` draws otherwise in a worker process than here when asked for rows.
        for batch in rows.iter(batch_size=1):
            seen += 1
            yield {name: value[0] for name, value in batch.items()}
        if seen == 0:
            raise InputError("--streaming: the training data gives no row (every one is bad or too long)")
        if first not in (None, seen):
            raise InputError(
                f"--streaming: pass {number + 1} over the training data gave {seen} rows, and the first {first}: the "
                "data changed while it was read"
            )
        first = seen
