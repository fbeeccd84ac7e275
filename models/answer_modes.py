"""The ways to answer a question, each described once: training, evaluation, cards, plots and `example.py` go by these."""

import re
from dataclasses import dataclass, field, replace

# `answer_from` of a configuration, and `--answer_from`: where in a generated text its answer is.
ANSWER_SOURCES = {
    "prompt": "after the answer prompt, or all of it where that was part of the question",
    "hashes": "after the last ###, as #### in GSM8K's files",
    "last_number": "the last number",
    "all": "all of it",
}
NUMBER = re.compile(r"(?:(?<![\d)])[+-])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?<=\d)")


@dataclass(frozen=True)
class AnswerMode:
    """One way to answer.

    Args:
        name: in metrics and files: `test_ccot_exact_match`.
        label: for people.
        writes: what the model writes by itself: only the "answer", the answer "prompt" and the answer, or the whole
            "chain" with prompt and answer.
        options: arguments of `generate()` that ask for it; a family fills them in.
    """

    name: str
    label: str
    writes: str
    options: dict = field(default_factory=dict)

    def of(self, writes: str | None = None, **options) -> "AnswerMode":
        """This mode as a family asks for it."""
        return replace(self, writes=writes or self.writes, options=options)

    def partly(self, removed: str | None) -> "AnswerMode":
        """This mode of a model of whose chain only `removed` ("2 of 3") tokens are gone; None for all of them."""
        return self if removed is None else replace(self, label=f"{self.label} ({removed} tokens removed)")

    def at(self, num_iterations: int) -> "AnswerMode":
        """This mode of a latent thought at another T, with a name and a label of its own."""
        return replace(
            self,
            name=f"{self.name}_T{num_iterations}",
            label=f"{self.label}, T = {num_iterations}",
            options=self.options | {"num_iterations": num_iterations},
        )

    def read(self, text: str, answer_prompt: str, source: str = "prompt") -> str | None:
        """The answer in a generated text; None where there is none.

        Args:
            text: what was generated, without special tokens.
            answer_prompt: the text that announces an answer; a mode that writes only the answer has none in its text.
            source: one of `ANSWER_SOURCES`.
        """
        if source == "last_number":
            numbers = [found.group() for found in NUMBER.finditer(text) if found.group()]
            return numbers[-1] if numbers else None
        mark = "###" if source == "hashes" else "" if self.writes == "answer" else answer_prompt.strip()
        if source == "all" or not mark:
            return text.strip()
        _, found, answer = text.rpartition(mark)
        return answer.strip() if found else None


LATENT = AnswerMode("ccot", "latent thought", "answer")
EXPLICIT = AnswerMode("cot", "explicit chain of thought", "chain")
DIRECT = AnswerMode("no_cot", "no chain of thought", "prompt")
INTERNALIZED = AnswerMode("icot", "internalised chain of thought", "answer")
ANSWER_MODES = {mode.name: mode for mode in (LATENT, EXPLICIT, DIRECT, INTERNALIZED)}


def mode_named(name: str, modes: tuple[AnswerMode, ...] = tuple(ANSWER_MODES.values())) -> AnswerMode | None:
    """A mode by its name, `ccot_T3` included; None if it is none of `modes`."""
    base, _, iterations = name.partition("_T")
    found = next((mode for mode in modes if mode.name == base), None)
    return found.at(int(iterations)) if found and iterations else found
