"""What other projects call question, steps and answer, and where in their rows a chain stands.

    question, steps | cot, answer       ours, Coconut's, zen-E's GSM8k-Aug; the chain as a list, or as text
    question, answer                    openai's GSM8K: sentences with <<equations>>, #### and the answer
    question, final_ans                 MultiArith
    Body, Question, Answer              SVAMP
    query, response                     MetaMath
    messages                            a system message if any, one of the user, one of the assistant
    prompt, completion                  texts, or messages
    instruction, input, output          Alpaca; the question is instruction and input
    input, target                       GSM-Hard
    input, output                       stepwise internalisation's: chain #### answer

Beside any of them a column `steps` or `cot` is the chain. `--column` names columns of a user's own.
"""

import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from latent_cot.training.errors import InputError

EQUATION = re.compile(r"<<[^<>]*>>")
EQUATIONS = re.compile(rf"({EQUATION.pattern}\s*)+")
LINE_END = re.compile(r"\r\n|\r|\n")
QUOTED_LIST = re.compile(r"\s*\[\s*['\"]")
ANSWER_MARK = re.compile(r"####|The answer is:")
LAST_MARK = re.compile(r"####[^\n]*\Z")
CHAINS = ("steps", "cot")
FIELDS = ("question", "steps", "answer")
ROLES = (["user", "assistant"], ["system", "user", "assistant"])


@dataclass(frozen=True)
class Layout:
    """Where a row holds its example.

    Forms of an answer with a chain: "rationale" (GSM8K), "marked" (#### is a must), "response" (the answer is after #### or
    `The answer is:`; without both, all of it).
    """

    name: str  # for people
    question: tuple[str, ...]  # the columns that make it, with `between` between them
    answer: str  # its column, in which a chain may stand before the answer
    form: str = "response"
    optional: tuple[str, ...] = ()  # columns that may be missing or empty
    between: str = "\n"
    steps: str | None = None  # the column of the chain, if it has one of its own

    def describe(self, chain_in_answer: bool) -> str:
        """One line for people: which column is read as what."""
        columns = f"{self.name} rows: question = {' + '.join(self.question)}"
        if self.steps is not None:
            return f"{columns}, steps = {self.steps}, answer = {self.answer}"
        if chain_in_answer:
            return f"{columns}, steps and answer = {self.answer}, before and after the mark of the answer"
        return f"{columns}, answer = {self.answer}, no steps"


OWN = Layout("question/answer", ("question",), "answer", "rationale")
LAYOUTS = (
    OWN,
    Layout("MultiArith", ("question",), "final_ans"),
    Layout("SVAMP", ("Body", "Question"), "Answer", between=" "),
    Layout("query/response (MetaMath)", ("query",), "response"),
    Layout("messages", ("messages",), "messages"),
    Layout("prompt/completion", ("prompt",), "completion"),
    Layout("instruction/output (Alpaca)", ("instruction", "input"), "output", optional=("input",)),
    Layout("input/target (GSM-Hard)", ("input",), "target"),
    Layout("input/output", ("input",), "output", "marked"),
)
COLUMNS = {"windows", *CHAINS, *(name for one in LAYOUTS for name in (*one.question, one.answer))}


def columns_of(text: str | None) -> dict[str, str]:
    """`question=query,steps=cot` as a dictionary. Raises InputError for anything else."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    columns = {field.strip(): name.strip() for field, _, name in pairs}
    if len(columns) < len(pairs) or not columns.keys() <= set(FIELDS) or not all(columns.values()):
        raise InputError(f"--column must be like question=query,steps=cot,answer=response, each once, got {text!r}")
    return columns


def layout_of(row: dict, columns: dict[str, str]) -> Layout:
    """The layout of a row: by the columns that it has, and by those that `--column` gives, if it has any of these."""
    return layout_for(tuple(row), tuple(columns.items()))


@lru_cache(maxsize=64)
def layout_for(names: tuple[str, ...], columns: tuple[tuple[str, str], ...]) -> Layout:
    """`layout_of`, which rows of one file ask for again and again."""
    given = dict(columns) if any(name in names for _, name in columns) else {}
    found = OWN
    for one in LAYOUTS:
        if one.answer in names and all(name in names or name in one.optional for name in one.question):
            found = one
            break
    chain = next((name for name in CHAINS if name in names), None)
    if chain or given:
        found = replace(found, steps=given.get("steps", chain))
    if given:
        answer = given.get("answer", found.answer)
        question = (given["question"],) if "question" in given else found.question
        form = found.form if answer == found.answer else "response"
        found = replace(found, name="--column", question=question, answer=answer, form=form)
    return found


def read_row(row: dict, layout: Layout) -> tuple[str, list[str] | None, object]:
    """Question, steps (None where there is no chain) and answer of a row. Raises InputError that says what is wrong."""
    talks = isinstance(row.get("prompt"), list | np.ndarray) and layout.name == "prompt/completion"
    if talks or layout.name == "messages":
        question, answer = read_messages(layout, row)
    else:
        texts = []
        for name in layout.question:
            if name not in layout.optional or row.get(name) is not None:
                texts.append(check_text(name, field_of(row, name)))
        if layout.form == "response":
            texts = [text.strip() for text in texts if text.strip()]
        question = layout.between.join(texts)
        answer = field_of(row, layout.answer)
    steps = None
    if isinstance(answer, str):
        steps, answer = split_answer(layout, answer)
    elif layout.form == "marked":
        check_text(layout.answer, answer)
    if layout.steps is not None:
        value = row.get(layout.steps)
        steps = None if value is None and layout.steps in row else field_of(row, layout.steps)
        steps = split_chain(value) if isinstance(value, str) else steps
    return question, steps, answer


def split_answer(layout: Layout, text: str) -> tuple[list[str] | None, str]:
    """The steps and the answer that a text holds; None where it holds no chain."""
    if layout.form == "marked":
        chain = parse_chain(text, text)
        return chain["steps"], chain["answer"]
    marks = ["####"] if layout.form == "rationale" else ANSWER_MARK.findall(text)
    if not marks or marks[-1] not in text:
        return None, text
    chain, mark, answer = text.rpartition(marks[-1])
    chain = chain.strip()
    if mark != "####":
        chain = LAST_MARK.sub("", chain).strip()  # MetaMath writes both marks
    if layout.form == "rationale":
        return EQUATION.findall(chain) or [chain] * bool(chain), answer.strip()
    return EQUATION.findall(chain) or lines_of(chain), answer.strip()


def split_chain(text: str) -> list[str]:
    """A written chain as steps: a JSON list, equations alone, or one step per line. Raises InputError for a list as
    Python prints it, which would be one wrong step.
    """
    if text.lstrip().startswith("["):
        try:
            steps = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            if QUOTED_LIST.match(text):
                raise InputError(
                    f"the steps are neither a JSON list of texts nor one step per line: {error}"
                ) from error
            steps = None
        if isinstance(steps, list) and all(isinstance(step, str) for step in steps):
            return [step for step in steps if step != ""]
    chain = text.strip()
    return EQUATION.findall(chain) if EQUATIONS.fullmatch(chain) else lines_of(chain)


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in LINE_END.split(text) if line.strip()]


def read_messages(layout: Layout, row: dict) -> tuple[str, str]:
    """Question and answer of a conversation; a system message stands before the question, as the chat template puts it.
    Raises InputError for anything but one question and its answer.
    """
    messages = []
    for name in dict.fromkeys((*layout.question, layout.answer)):
        part = field_of(row, name)
        if not isinstance(part, list | np.ndarray) or not all(isinstance(message, dict) for message in part):
            raise InputError(f"{name!r} must be a list of messages, each with role and content")
        messages += list(part)
    roles = [message.get("role") for message in messages]
    if roles not in ROLES:
        raise InputError(
            f"{layout.answer!r} must be one question and its answer ([system,] user, assistant), found "
            + (on_one_line(", ".join(map(str, roles))) or "none")
        )
    texts = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list | np.ndarray):  # parts, each a text
            parts = [part.get("text") if isinstance(part, dict) else part for part in content]
            content = "".join(check_text("content", part) for part in parts)
        texts.append(check_text("content", content))
    return "\n\n".join(texts[:-1]), texts[-1]


def has_system(row: dict, layout: Layout) -> bool:
    """Whether the question of a row, which can be read, begins with a message of the system."""
    talk = row[layout.question[0]] if layout.name in ("messages", "prompt/completion") else None
    return isinstance(talk, list | np.ndarray) and talk[0].get("role") == "system"


def parse_chain(text: str, line: str) -> dict:
    """`steps #### answer` as `steps` and `answer`; `line` is what an error shows."""
    chain, mark, answer = text.rpartition("####")
    if not mark:
        raise InputError(f"no '####' in {line[:60]!r}")
    chain = chain.strip()
    if EQUATIONS.fullmatch(chain):
        steps = EQUATION.findall(chain)
    else:
        steps = [chain] if chain else []
    return {"steps": steps, "answer": answer.strip()}


def field_of(row: dict, name: str) -> object:
    """A field of a row that has to be there, once, and readable (otherwise its value is what a reader says of it)."""
    if name not in row:
        field = name if name in FIELDS else "question"
        raise InputError(
            f"no column {name!r}; there are: {on_one_line(', '.join(map(str, row)))} (--column {field}=NAME reads another)"
        )
    if row[name] is None:
        raise InputError(f"{name!r} is null")
    if isinstance(row[name], InputError):
        raise InputError(f"{name!r} {row[name]}")
    return row[name]


def check_text(name: str, text: object) -> str:
    """Text that tokenizers and Arrow can hold. Raises InputError for anything else, for half a surrogate pair, and for
    NUL, which is no text (a file in UTF-16 has it).
    """
    if not isinstance(text, str):
        raise InputError(f"{name!r} must be text, found {type(text).__name__}")
    if "\0" in text:
        raise InputError(f"{name!r} holds a NUL character; is the data UTF-8?")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name!r} holds {text[error.start]!a}, half of a surrogate pair") from error
    return str(text)


def on_one_line(text: str, most: int = 200) -> str:
    """The beginning of a text as an error shows it."""
    shown = " ".join(text[:most].split()) + ("..." if len(text) > most else "")
    return shown.encode(errors="backslashreplace").decode()
