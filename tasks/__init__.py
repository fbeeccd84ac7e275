"""Synthetic data sets, seeded and reproducible, by name.

A task is a function that returns `{split: [{question, steps, answer}, ...]}` and whose keyword arguments are its
settings (docs/data-and-tasks.md describes them).
"""

import inspect

from . import affine, chain, graph, multiplication, parity, permutations, word_problems

TASKS = {
    "chain": chain.splits,
    "affine": affine.splits,
    "permutations": permutations.splits,
    "parity": parity.splits,
    "word_problems": word_problems.splits,
    "graph": graph.splits,
    "multiplication": multiplication.splits,
}


def generate(name: str, settings: str | None = None) -> dict[str, list[dict]]:
    """The splits of a task.

    Args:
        name: a key of `TASKS`.
        settings: `operations=6,modulus=10`: the task's keyword arguments, all whole numbers.

    Raises:
        ValueError: for an unknown task or setting, one given twice, or a value that is not a whole number.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; there are: {', '.join(TASKS)}")
    task, parsed = TASKS[name], {}
    known = inspect.signature(task).parameters
    for pair in filter(None, (settings or "").split(",")):
        key, _, value = pair.partition("=")
        if key not in known:
            raise ValueError(f"task {name} has no setting {key!r}; there are: {', '.join(known)}")
        if key in parsed:
            raise ValueError(f"task {name}: setting {key} is given twice")
        try:
            parsed[key] = int(value)
        except ValueError:
            raise ValueError(f"task {name}: setting {key} must be a whole number, got {value!r}") from None
    return task(**parsed)
