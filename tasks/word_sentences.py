"""The English of word problems: names, things, verbs, and the ways to say how many somebody has."""

import re

# fmt: off
NAMES = [
    "Tom", "Ann", "Ben", "Eva", "Sam", "Mia", "Max", "Lea", "Jim", "Zoe", "Dan", "Amy", "Tim", "Ida", "Leo", "Kim",
    "Bob", "Sue", "Joe", "Meg", "Ray", "Liz", "Ned", "Una", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivan",
    "June", "Kurt", "Lucy", "Mark", "Nora", "Otto", "Paul", "Rosa", "Vera",
]
ONE = [
    "apple", "pear", "book", "coin", "shell", "marble", "stamp", "card", "pencil", "egg", "plum", "lemon", "cookie",
    "ticket", "button", "stone", "ball", "cup", "flower", "sticker", "letter", "key", "nut", "bean",
]
# fmt: on
THINGS = [(one, f"{one}s") for one in ONE]
VERBS = [  # of one person, of several, after "did", the word that asks
    ("has", "have", "have", "does"),
    *[(past, past, base, "did") for past, base in [("bought", "buy"), ("found", "find"), ("sold", "sell")]],
    *[(past, past, base, "did") for past, base in [("counted", "count"), ("won", "win"), ("packed", "pack")]],
    ("collected", "collected", "collect", "did"),
]
TIMES = {2: "twice", 3: "three times", 4: "four times"}
# The ways to say each fact about `b`, given `a` (and `c`), the plainest first.
WORDINGS = {
    "given": ["{b} {verb} {n} {thing}."],
    "more": [
        "{b} {verb} {n} more {thing} than {a}.",
        "{b} {verb} {n} {thing} more than {a}.",
        "{a} {verb} {n} fewer {thing} than {b}.",
    ],
    "fewer": ["{b} {verb} {n} fewer {thing} than {a}.", "{a} {verb} {n} more {thing} than {b}."],
    "times": ["{b} {verb} {times} as many {things} as {a}.", "{b} {verb} {times} as many as {a}."],
    "half": ["{b} {verb} half as many {things} as {a}.", "{a} {verb} twice as many {things} as {b}."],
    "sum": [
        "{b} {verb} as many {things} as {a} and {c} together.",
        "{a} and {c} together {verbs} as many {things} as {b}.",
    ],
}
QUESTIONS = {
    "one": "How many {things} {asks} {b} {base}?",
    "together": "How many {things} {ask} {a} and {b} {base} together?",
    "difference": "How many more {things} {asks} {b} {base} than {a}?",
}
LEMMAS = {name: name for name in NAMES} | {word: one for one, many in THINGS for word in (one, many)}
WORD = re.compile(r"[A-Za-z]+")


def wordings_of(kind: str, most: int, several_things: bool) -> list[str]:
    """The first `most` ways to say a fact; one that leaves the thing out only where there is a single thing."""
    return [text for text in WORDINGS[kind][:most] if not several_things or "{thing" in text]


def write(text: str, people: dict[str, str], number: int, thing: tuple[str, str], verb: tuple[str, ...]) -> str:
    """A sentence or question, singular and plural as they should be."""
    one, many = thing
    fields = {"verb": verb[0], "verbs": verb[1], "base": verb[2], "asks": verb[3], "ask": verb[3].replace("does", "do")}
    fields |= {"n": number, "times": TIMES.get(number, ""), "thing": one if number == 1 else many, "things": many}
    return text.format(**people, **fields)


def template_of(question: str) -> str:
    """A question with its names and things numbered in the order in which they come."""
    found: dict[str, int] = {}

    def stand_in(match: re.Match) -> str:
        word = match.group()
        lemma = LEMMAS.get(word)
        if lemma is None:
            return word
        return f"({found.setdefault(lemma, len(found))}){word[len(lemma) :]}"

    return WORD.sub(stand_in, question)
