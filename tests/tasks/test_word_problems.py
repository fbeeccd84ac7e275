"""Word problems: English that can be read back, solved by trying numbers, and steps that lead to the same answer."""

import re
from collections import Counter
from functools import cache

import pytest

from latent_cot import tasks
from latent_cot.tasks.word_sentences import LEMMAS, NAMES, THINGS, template_of

SETTINGS = {
    "default": "",
    "easy": "steps=4,min_steps=2,verbs=1,wordings=1,distractors=0,largest=20",
    "one thing": "things=1,wordings=2,largest=10,step_form=0",
    "many distractors": "steps=2,min_steps=1,distractors=6,shuffled=0,step_form=2",
    "name and result": "steps=3,step_form=3",
    "name, second number and result": "steps=4,step_form=4",
}
VERB = r"(?:has|have|bought|found|sold|counted|won|packed|collected)"
THING = rf"(?: ({'|'.join(word for pair in THINGS for word in reversed(pair))}))?"
TIMES = {"half": 0.5, "twice": 2, "three times": 3, "four times": 4}
# What a sentence says of the numbers of the people it names; the rest of it is the number and the thing.
SENTENCES = {
    rf"(\w+) {VERB} (?P<n>\d+){THING}": lambda n, a: a == n,
    rf"(\w+) {VERB} (?P<n>\d+)(?: more{THING}|{THING} more) than (\w+)": lambda n, a, b: a == b + n,
    rf"(\w+) {VERB} (?P<n>\d+) fewer{THING} than (\w+)": lambda n, a, b: a == b - n,
    rf"(\w+) {VERB} (?P<n>{'|'.join(TIMES)})(?: as) many{THING} as (\w+)": lambda n, a, b: a == b * n,
    rf"(\w+) {VERB} as many{THING} as (\w+) and (\w+) together": lambda n, a, b, c: a == b + c,
    rf"(\w+) and (\w+) together {VERB} as many{THING} as (\w+)": lambda n, a, b, c: a + b == c,
}
QUESTIONS = {
    r"How many (\w+) (?:does|did) (\w+) \w+": lambda a: a,
    r"How many (\w+) (?:do|did) (\w+) and (\w+) \w+ together": lambda a, b: a + b,
    r"How many more (\w+) (?:does|did) (\w+) \w+ than (\w+)": lambda a, b: a - b,
}


STEPS = [  # by step_form: name, left number, sign, right number, result
    r"()()()()(\d+)",
    r"()(\d+) (.) (\d+) = (\d+)",
    r"(\w+) = (\d+) (.) (\d+) = (\d+)",
    r"(\w+)()()() (\d+)",
    r"(\w+)()() (\d+) (\d+)",
]


@cache
def rows(settings: str, sizes: str = "train=150,validation=20,test=30") -> list[dict]:
    found = tasks.generate("word_problems", ",".join(filter(None, [settings, sizes])))
    return [row for split in found.values() for row in split]


def read(question: str) -> tuple[list[tuple], tuple]:
    """Facts (people, thing, what must hold), and what is asked (thing, people, how the answer follows)."""
    *sentences, asked, rest = re.split(r"\. |\?", question)
    facts = []
    for sentence in sentences:
        ((match, holds),) = [(m, holds) for form, holds in SENTENCES.items() if (m := re.fullmatch(form, sentence))]
        words = [word for word in match.groups() if word is not None]
        people = [word for word in words if word in NAMES]
        things = {LEMMAS[word] for word in words if word in LEMMAS and word not in NAMES}
        number = match.groupdict().get("n")
        number = TIMES[number] if number in TIMES else int(number) if number else None
        facts.append((people, things, lambda *values, n=number, holds=holds: holds(n, *values)))
    ((match, follows),) = [(m, follows) for form, follows in QUESTIONS.items() if (m := re.fullmatch(form, asked))]
    thing, *people = match.groups()
    assert rest == ""
    return facts, (LEMMAS[thing], people, follows)


def solve(question: str, largest: int) -> int:
    """The answer, by trying every number for whoever is the only one without a number in a sentence."""
    facts, (thing, asked, follows) = read(question)
    facts = [(people, holds) for people, things, holds in facts if things <= {thing}]
    known: dict[str, int] = {}
    while not set(asked) <= known.keys():
        people, holds = next(fact for fact in facts if len(set(fact[0]) - known.keys()) == 1)
        (new,) = set(people) - known.keys()
        fitting = [
            number for number in range(largest + 1) if holds(*((known | {new: number})[person] for person in people))
        ]
        (known[new],) = fitting
    for people, holds in facts:
        assert not set(people) <= known.keys() or holds(*(known[person] for person in people))
    return follows(*(known[person] for person in asked))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_answer_is_what_the_text_says(settings):
    largest = int((re.findall(r"largest=(\d+)", settings) or [50])[0])
    for row in rows(settings):
        assert row["answer"] == str(solve(row["question"], largest)), row


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_steps_are_equations_that_need_the_one_before(settings):
    form = int((re.findall(r"step_form=(\d)", settings) or [1])[0])
    largest = int((re.findall(r"largest=(\d+)", settings) or [50])[0])
    for row in rows(settings):
        numbers = {int(number) for number in re.findall(r"\d+", row["question"])} | {2, 3, 4}
        before = None
        for step in row["steps"]:
            name, left, sign, right, result = re.fullmatch(STEPS[form], step).groups()
            result = int(result)
            assert 1 <= result <= largest
            if form == 4:
                right = int(right)
                lefts = [left for left in numbers if result in (left + right, left - right, left * right, left / right)]
                assert right in numbers and lefts and (before in (None, right) or before in lefts)
            if form in (1, 2):
                left, right = int(left), int(right)
                assert eval(f"{left}{sign}{right}") == result and {left, right} <= numbers
                assert before is None or before in (left, right)
            if form > 1:
                assert name in ("together", "difference") or name in row["question"]
            numbers.add(result)
            before = result
        assert row["answer"] == str(before)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_singular_and_plural(settings):
    for row in rows(settings):
        assert re.fullmatch(r"([A-Z][A-Za-z0-9 ,]+\. )+How many [A-Za-z ]+\?", row["question"])
        for number, word in re.findall(r"(\d+) (?:more |fewer )?(\w+)", row["question"]):
            if word in LEMMAS:
                assert (LEMMAS[word] == word) == (number == "1"), row["question"]
        for word in re.findall(r"(?:How many|as many)(?: more)? (\w+)", row["question"]):
            assert word == "as" or LEMMAS[word] != word, row["question"]


def test_the_thing_is_left_out_only_where_there_is_one():
    """ "Twice as many as Tom" could mean either of two things that Tom has."""
    left_out = 0
    for row in rows("distractors=1"):
        named = [things for _, things, _ in read(row["question"])[0]]
        if set() in named:
            left_out += 1
            assert len(set().union(*named)) == 1, row["question"]
    assert left_out > 5


def test_no_template_comes_twice_with_the_same_numbers():
    found = [template_of(row["question"]) for row in rows(SETTINGS["easy"], "train=3000,validation=0,test=0")]
    assert len(set(found)) == 3000
    blank = re.compile(r"\b\d+\b|twice|half|\w+ times")
    assert len({blank.sub("#", template) for template in found}) > 1000
    first, other = "Tom has 3 pears. Ann has 1 pear. Tom", "Eva has 3 eggs. Tom has 1 egg. Eva"
    assert template_of(first) == template_of(other) == "(0) has 3 (1)s. (2) has 1 (1). (0)"
    assert template_of(first) != template_of("Eva has 3 eggs. Tom has 1 pear. Eva")


def test_settings_are_followed():
    found = rows("steps=5,min_steps=3,names=8,things=3,verbs=2,distractors=0", "train=600,validation=0,test=0")
    text = " ".join(row["question"] for row in found)
    words = set(re.findall(r"[A-Za-z]+", text))
    assert words & set(NAMES) == set(NAMES[:8])
    assert {LEMMAS[word] for word in words & LEMMAS.keys() - set(NAMES)} == {one for one, _ in THINGS[:3]}
    assert words & set(VERB[3:-1].split("|")) == {"has", "have", "bought"}
    counts = Counter(len(row["steps"]) for row in found)
    assert set(counts) == {3, 4, 5} and min(counts.values()) > 150
    # Nothing but what is needed, and in order: every sentence but the first names somebody who is known.
    for row in rows("distractors=0,shuffled=0,wordings=1"):
        known: set[str] = set()
        for people, _, _ in read(row["question"])[0]:
            assert set(people[1:]) <= known
            known |= set(people)


def test_distractors_are_sentences_too_many():
    """A chain of k steps takes k + 1 sentences; the others are up to three."""
    more = [len(read(row["question"])[0]) - len(row["steps"]) for row in rows("distractors=3,wordings=1")]
    assert set(more) == {1, 2, 3, 4}
