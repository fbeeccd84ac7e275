"""Graph search in the format of ProsQA (arXiv 2412.06769): facts about invented kinds, and a question with two options.

    Every brimpus is a lempus. Tom is a terpus. Sam is a yumpus. Every terpus is a brimpus. Is Tom a lempus or yumpus?

Steps `Tom is a terpus.`, `Every terpus is a brimpus.`, `Every brimpus is a lempus.`; answer `Tom is a lempus.` The graph
grows as in the paper's appendix A.2. What the paper leaves open was chosen after its published validation file.
The same in symbols, about half as many tokens, as arXiv 2505.12514 has it (section 5):

    brimpus lempus. Tom terpus. Sam yumpus. terpus brimpus. lempus yumpus? Tom

Steps `terpus`, `brimpus`, `lempus`; answer `lempus`.
"""

import math
import random
import re
from collections import defaultdict
from itertools import pairwise

from .drawing import Draw

# fmt: off
NAMES = [
    "Alex", "Bob", "Carol", "Davis", "Eva", "Fae", "Gabriel", "Jack", "Max", "Oliver", "Polly", "Rex", "Sally", "Sam",
    "Stella", "Tom", "Wren",
]
KINDS = [
    "bompus", "boompus", "brimpus", "chorpus", "dumpus", "felpus", "fompus", "gerpus", "gorpus", "grimpus", "gwompus",
    "hilpus", "impus", "jelpus", "jompus", "kerpus", "lempus", "lorpus", "numpus", "quimpus", "rempus", "rompus",
    "rorpus", "scrompus", "shumpus", "sterpus", "storpus", "terpus", "timpus", "tumpus", "vumpus", "worpus", "wumpus",
    "yerpus", "yimpus", "yumpus", "zhorpus", "zumpus",
]
# fmt: on
MEAN_PARENTS = 1.5
APART = 0.8  # of the nodes may not descend from both persons
FAMILY = (1, 2)  # of what descends from node 0 and from node 1, the two persons; 3 is both, 0 neither
Edges = list[tuple[int, int]]


def drawer(nodes: int = 28, min_nodes: int = 0, min_steps: int = 3, max_steps: int = 6, symbols: int = 0) -> Draw:
    """What draws an example. Both raise ValueError: for a setting out of range, and where paths of such length hardly are.

    Args:
        nodes: persons and kinds, of which those without any fact are left out; 6 to 40.
        min_nodes: with it, a graph has from so many nodes to `nodes`.
        min_steps, max_steps: the shortest path to the answer has from so many to so many facts.
        symbols: 1 for pairs of words in place of sentences; see `in_symbols`.
    """
    if symbols not in (0, 1):
        raise ValueError(f"graph: symbols must be 0 or 1, got {symbols}")
    if not 6 <= nodes <= 40 or not 1 <= min_steps <= max_steps:
        raise ValueError("graph: nodes must be from 6 to 40, and min_steps from 1 to max_steps")
    if min_nodes and not 6 <= min_nodes <= nodes:
        raise ValueError(f"graph: min_nodes must be 0, or from 6 to nodes ({nodes}), got {min_nodes}")

    def draw(source: random.Random) -> dict:
        for _ in range(10_000):
            size = source.randint(min_nodes, nodes) if min_nodes else nodes
            example = try_to_draw(source, size, min_steps, max_steps)
            if example is not None:
                return in_symbols(example) if symbols else example
        raise ValueError(f"graph: {nodes} nodes hardly ever give paths of {min_steps} to {max_steps} facts")

    return draw


def try_to_draw(source: random.Random, nodes: int, min_steps: int, max_steps: int) -> dict | None:
    """One example, if a graph with paths of that length comes out."""
    edges, families = grow(source, nodes)
    parents = {parent for parent, _ in edges}
    leaves = [child for child in {child for _, child in edges} if child not in parents]
    paths = []  # from each of the two persons to its farthest leaf
    for person, family in enumerate(FAMILY):
        found = shortest_paths(source, edges, person)
        own = [found[leaf] for leaf in leaves if families[leaf] == family]
        if not own:
            return None
        paths.append(max(own, key=lambda path: (len(path), source.random())))
    path = max(paths, key=lambda path: (len(path), source.random()))
    if not min_steps <= len(path) - 1 <= max_steps:
        return None
    other = source.choice([leaf for leaf in leaves if families[leaf] == FAMILY[1 - path[0]]])
    return in_words(source, edges, path, other)


def grow(source: random.Random, nodes: int) -> tuple[Edges, list[int]]:
    """A graph whose nodes 0 and 1 are persons, grown node by node, and the family of each node."""
    edges: Edges = []
    families, depths = list(FAMILY), [0, 0]
    for node in range(2, nodes):
        chance = source.random()
        allowed = {1} if chance < APART / 2 else {2} if chance < APART else {0, 1, 2, 3}
        candidates = [other for other in range(node) if families[other] in allowed]
        parents = []
        for _ in range(min(poisson(source, MEAN_PARENTS), len(candidates))):
            weights = [1 + 1.5 * depths[other] for other in candidates]  # deep parents make long paths
            parents.append(candidates.pop(source.choices(range(len(candidates)), weights)[0]))
        edges += [(parent, node) for parent in parents]
        family = 0
        for parent in parents:
            family |= families[parent]
        families.append(family)
        depths.append(min((depths[parent] + 1 for parent in parents), default=0))
    return edges, families


def poisson(source: random.Random, mean: float) -> int:
    """A number from the Poisson distribution (Knuth's way)."""
    count, product = 0, source.random()
    while product > math.exp(-mean):
        count, product = count + 1, product * source.random()
    return count


def shortest_paths(source: random.Random, edges: Edges, start: int) -> dict[int, list[int]]:
    """A shortest path to every node that can be reached; one of several at random."""
    children = defaultdict(list)
    for parent, child in source.sample(edges, len(edges)):
        children[parent].append(child)
    paths, queue = {start: [start]}, [start]
    for node in queue:
        for child in children[node]:
            if child not in paths:
                paths[child] = [*paths[node], child]
                queue.append(child)
    return paths


def in_words(source: random.Random, edges: Edges, path: list[int], other: int) -> dict | None:
    """The example: what has no parent is a person, everything else a kind."""
    used = sorted({node for edge in edges for node in edge})
    children = {child for _, child in edges}
    persons, kinds = [node for node in used if node not in children], [node for node in used if node in children]
    if len(persons) > len(NAMES) or len(kinds) > len(KINDS):
        return None
    words = dict(zip(persons, source.sample(NAMES, len(persons)), strict=True))
    words |= dict(zip(kinds, source.sample(KINDS, len(kinds)), strict=True))

    def fact(parent: int, child: int) -> str:
        subject = words[parent] if parent in persons else f"Every {words[parent]}"
        return f"{subject} is a {words[child]}."

    person, answer = words[path[0]], words[path[-1]]
    facts = [fact(*edge) for edge in source.sample(edges, len(edges))]
    options = source.sample([answer, words[other]], 2)
    return {
        "question": f"{' '.join(facts)} Is {person} a {options[0]} or {options[1]}?",
        "steps": [fact(*edge) for edge in pairwise(path)],
        "answer": f"{person} is a {answer}.",
    }


def in_symbols(example: dict) -> dict:
    """An example of sentences, one of the published files too, as pairs of words; whom is asked about comes last."""
    *sentences, asked = example["question"].split(". ")
    facts = [re.sub(r"^Every | is a", "", sentence) for sentence in sentences]
    person, *options = re.fullmatch(r"Is (\w+) a (\w+) or (\w+)\?", asked).groups()
    return {
        "question": f"{'. '.join(facts)}. {' '.join(options)}? {person}",
        "steps": [last_word(step) for step in example["steps"]],
        "answer": last_word(example["answer"]),
    }


def last_word(sentence: str) -> str:
    return sentence.rstrip(".").split()[-1]
