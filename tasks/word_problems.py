"""Word problems in English: `Tom has 3 apples. Ann has twice as many apples as Tom. How many apples does Ann have?`

Step `3 * 2 = 6`, answer 6. Every step needs the one before it. Sentences that do not matter may stand among the others.
"""

import random
from dataclasses import dataclass

from .word_sentences import NAMES, QUESTIONS, THINGS, TIMES, VERBS, template_of, wordings_of, write

LARGEST_CHANGE = 9  # in "9 more"
OTHER_THING = "other thing"  # a fact that gives the number of another thing
SIGNS = {"more": "+", "fewer": "-", "times": "*", "half": "/", "sum": "+"}
FORMS = {
    0: "{result}",
    1: "{left} {sign} {right} = {result}",
    2: "{name} = {left} {sign} {right} = {result}",
    3: "{name} {result}",
    4: "{name} {right} {result}",
}


@dataclass(frozen=True)
class Fact:
    """How many `name` has: `number` itself, or that more, fewer or times what `other` (and `third`) has."""

    kind: str
    name: str
    number: int = 0
    other: str = ""
    third: str = ""


@dataclass(frozen=True)
class WordProblems:
    """Draws an example; no two questions of a data set differ in names and things alone.

    Args:
        steps, min_steps: a question has from `min_steps` to `steps` steps, each number equally often.
        names: how many there are to choose from, up to 40; at least `steps` + `distractors` + 1.
        things: how many there are to choose from, up to 24.
        verbs: how many there are to choose from, up to 8; 1 for "has" alone.
        wordings: ways to say a fact and to ask, up to 3; 1 for the plainest alone.
        distractors: up to so many sentences that do not matter: about another thing or somebody else.
        shuffled: 1 for sentences in any order; 0 for an order in which each can be worked out from those before it.
        largest: number in a question, in its steps and as its answer.
        step_form: 0 for the result alone, 1 for an equation, 2 for the name before the equation, 3 for name and result,
            4 for name, second number of the equation and result.
    """

    steps: int = 6
    min_steps: int = 2
    names: int = 40
    things: int = 24
    verbs: int = 8
    wordings: int = 3
    distractors: int = 2
    shuffled: int = 1
    largest: int = 50
    step_form: int = 1

    def __post_init__(self):
        """Raises ValueError for a setting out of range."""
        ranges = {
            "min_steps": (1, self.steps),
            "distractors": (0, len(NAMES)),
            "names": (self.steps + self.distractors + 1, len(NAMES)),
            "things": (1, len(THINGS)),
            "verbs": (1, len(VERBS)),
            "wordings": (1, 3),
            "shuffled": (0, 1),
            "largest": (10, 1_000),
            "step_form": (0, 4),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"word_problems: {name} must be from {low} to {high}")

    def __call__(self, source: random.Random) -> dict:
        """One example."""
        problem = Problem(source, self)
        steps = source.randint(self.min_steps, self.steps)
        asked = source.choice(list(QUESTIONS)[: self.wordings])
        while len(problem.steps) < steps - 1:
            problem.add_step()
        others = problem.comparable(asked)
        if others:
            people = problem.compare(asked, source.choice(others))
        else:
            asked = "one"
            problem.add_step()
            people = {"b": list(problem.known)[-1]}
        facts = problem.facts
        for fact in problem.distractors(source.randint(0, self.distractors)):
            facts.insert(source.randint(0, len(facts)), fact)
        if self.shuffled:
            source.shuffle(facts)
        question = say(source, self, facts, QUESTIONS[asked], people)
        return {"question": question, "steps": problem.steps, "answer": problem.answer}


def template(example: dict) -> str:
    """What two questions that differ in names and things alone have in common."""
    return template_of(example["question"])


def say(source: random.Random, settings: WordProblems, facts: list[Fact], question: str, people: dict[str, str]) -> str:
    """The facts and the question in English."""
    things = source.sample(THINGS[: settings.things], min(2, settings.things))
    verb = source.choice(VERBS[: settings.verbs])
    several = any(fact.kind == OTHER_THING for fact in facts)
    sentences = []
    for fact in facts:
        kind, thing = ("given", things[1]) if fact.kind == OTHER_THING else (fact.kind, things[0])
        text = source.choice(wordings_of(kind, settings.wordings, several))
        sentences.append(write(text, {"b": fact.name, "a": fact.other, "c": fact.third}, fact.number, thing, verb))
    return " ".join([*sentences, write(question, people, 0, things[0], verb)])


class Problem:
    """A problem that grows: facts, the numbers that follow from them, and the steps that work these out."""

    def __init__(self, source: random.Random, settings: WordProblems):
        self.source, self.settings = source, settings
        self.unused = source.sample(NAMES[: settings.names], settings.steps + settings.distractors + 1)
        self.known: dict[str, int] = {}  # everybody who matters, in the order of the steps
        self.facts: list[Fact] = []
        self.steps: list[str] = []
        self.answer = ""
        fact = Fact("given", self.unused.pop(), source.randint(1, settings.largest // 2))
        self.facts.append(fact)
        self.known[fact.name] = fact.number

    def add_step(self):
        """Add somebody whose number follows from that of the last one."""
        last = list(self.known)[-1]
        fact = self.fact_about(self.unused.pop(), last, [name for name in self.known if name != last])
        self.facts.append(fact)
        left, sign, right = self.operation(fact)
        self.known[fact.name] = self.work_out(fact.name, left, sign, right)

    def fact_about(self, name: str, other: str, thirds: list[str]) -> Fact:
        """A fact of any kind that gives somebody new a number from 1 to the largest."""
        value, largest = self.known[other], self.settings.largest
        numbers = {
            "more": range(1, min(LARGEST_CHANGE, largest - value) + 1),
            "fewer": range(1, min(LARGEST_CHANGE, value - 1) + 1),
            "times": [times for times in TIMES if times * value <= largest],
            "half": [2] if value % 2 == 0 else [],
            "sum": [0] if any(value + self.known[third] <= largest for third in thirds) else [],
        }
        kind = self.source.choice([kind for kind, found in numbers.items() if found])
        third = ""
        if kind == "sum":
            third = self.source.choice([third for third in thirds if value + self.known[third] <= largest])
        return Fact(kind, name, self.source.choice(numbers[kind]), other, third)

    def operation(self, fact: Fact) -> tuple[int, str, int]:
        """Left number, sign and right number of the step that a fact asks for."""
        right = self.known[fact.third] if fact.kind == "sum" else fact.number
        return self.known[fact.other], SIGNS[fact.kind], right

    def work_out(self, name: str, left: int, sign: str, right: int) -> int:
        """Write the step down; its result."""
        result = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[sign]
        form = FORMS[self.settings.step_form]
        self.steps.append(form.format(name=name, left=left, sign=sign, right=right, result=result))
        self.answer = str(result)
        return result

    def comparable(self, asked: str) -> list[str]:
        """With whom the last one can be put together or compared."""
        *earlier, last = self.known
        if asked == "together":
            return [name for name in earlier if self.known[name] + self.known[last] <= self.settings.largest]
        if asked == "difference":
            return [name for name in earlier if self.known[name] != self.known[last]]
        return []

    def compare(self, asked: str, other: str) -> dict[str, str]:
        """The people of a question about the last one and another; its answer is a step of its own."""
        fewer, more = sorted((other, list(self.known)[-1]), key=self.known.get)
        self.work_out(asked, self.known[more], "+" if asked == "together" else "-", self.known[fewer])
        return {"a": fewer, "b": more}

    def distractors(self, count: int) -> list[Fact]:
        """Facts that do not matter: about another thing, or about somebody else."""
        facts, owners = [], self.source.sample(list(self.known), len(self.known))
        for _ in range(count):
            if self.settings.things > 1 and owners and self.source.random() < 0.5:
                facts.append(Fact(OTHER_THING, owners.pop(), self.source.randint(1, self.settings.largest // 2)))
            else:
                facts.append(self.fact_about(self.unused.pop(), self.source.choice(list(self.known)), []))
        return facts
