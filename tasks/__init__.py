"""Synthetic data sets, seeded and reproducible, by name (docs/data-and-tasks.md describes them and their settings)."""

import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from . import affine, chain, graph, multiplication, parity, permutations, word_problems
from .drawing import Draw, draw_splits, question_of


@dataclass(frozen=True)
class Task:
    """One task."""

    drawer: Callable[..., Draw]  # makes, of the task's own settings, what draws one example
    train: int = 40_000  # rows per split unless a setting says otherwise
    validation: int = 500
    test: int = 2_000
    key: Callable[[dict], Hashable] = question_of  # of an example; of two with the same only the first is taken

    @property
    def settings(self) -> dict[str, int]:
        """Every setting with its default."""
        own = {name: setting.default for name, setting in inspect.signature(self.drawer).parameters.items()}
        return own | {"train": self.train, "validation": self.validation, "test": self.test, "seed": 0}


TASKS = {
    "chain": Task(chain.drawer),
    "affine": Task(affine.drawer),
    "permutations": Task(permutations.drawer),
    "parity": Task(parity.drawer),
    "word_problems": Task(word_problems.WordProblems, train=60_000, key=word_problems.template),
    "graph": Task(graph.drawer, 18_000, 300, 500),
    "multiplication": Task(multiplication.drawer, 100_000, 500, 1_000),
}


def generate(name: str, settings: str | None = None) -> dict[str, list[dict]]:
    """The splits of a task: of each, examples `{question, steps, answer}`.

    Args:
        name: a key of `TASKS`.
        settings: `operations=6,modulus=10`, all whole numbers.

    Raises:
        ValueError: for an unknown task or setting, one given twice, out of range or not a whole number, and where there are
            not enough different questions.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; there are: {', '.join(TASKS)}")
    defaults, given = TASKS[name].settings, {}
    for pair in filter(None, (settings or "").split(",")):
        key, _, value = pair.partition("=")
        if key not in defaults:
            raise ValueError(f"task {name} has no setting {key!r}; there are: {', '.join(defaults)}")
        if key in given:
            raise ValueError(f"task {name}: setting {key} is given twice")
        try:
            given[key] = int(value)
        except ValueError:
            raise ValueError(f"task {name}: setting {key} must be a whole number, got {value!r}") from None
    own = defaults | given
    sizes = [own.pop(size) for size in ("train", "validation", "test", "seed")]
    return draw_splits(name, TASKS[name].drawer(**own), *sizes, TASKS[name].key)
