"""The ways to answer a question, each described once: training, evaluation, cards, plots and `example.py` go by these."""

from dataclasses import dataclass, field, replace


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

    def read(self, text: str, answer_prompt: str) -> str | None:
        """The answer in a generated text; None where there is none.

        Args:
            text: what was generated, without special tokens.
            answer_prompt: the text that announces an answer.
        """
        if self.writes == "answer":
            return text.strip()
        _, prompt, answer = text.rpartition(answer_prompt.strip())
        return answer.strip() if prompt else None


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
