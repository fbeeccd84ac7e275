"""Rows as other projects publish them: read as examples, and said so in one line; columns that a user names."""

import csv
import json
import logging

import pytest

from latent_cot.training.arguments import DataArguments
from latent_cot.training.data.layouts import columns_of
from latent_cot.training.data.sources import as_dataset, load_splits
from latent_cot.training.errors import InputError

EXAMPLE = {"question": "1+1+1?", "steps": ["1+1=2", "2+1=3"], "answer": "3"}
EQUATIONS = EXAMPLE | {"steps": ["<<1+1=2>>", "<<2+1=3>>"]}
LARGE = EXAMPLE | {"steps": ["<<2*600=1200>>"], "answer": "1,200"}
CHAIN = "1+1=2\n2+1=3"
USER, ASSISTANT = ({"role": "user", "content": "1+1+1?"}, {"role": "assistant", "content": f"{CHAIN}\n#### 3"})
LAYOUTS = [
    (EXAMPLE, EXAMPLE, ""),
    (EXAMPLE | {"steps": CHAIN}, EXAMPLE, ""),
    ({"question": "1+1+1?", "cot": CHAIN, "answer": "3"}, EXAMPLE, "question = question, steps = cot, answer = answer"),
    ({"question": "1+1+1?", "cot": EXAMPLE["steps"], "answer": 3}, EXAMPLE, "steps = cot"),
    ({"question": "1+1+1?", "cot": "<<1+1=2>> <<2+1=3>>", "answer": "3"}, EQUATIONS, "steps = cot"),
    ({"question": "1+1+1?", "cot": "so <<1+1=2>>", "answer": "3"}, EXAMPLE | {"steps": ["so <<1+1=2>>"]}, "cot"),
    ({"question": "1+1+1?", "steps": EXAMPLE["steps"], "answer": "so it is\n#### 3", "idx": 4}, EXAMPLE, ""),
    (
        {"question": "1+1+1?", "answer": "Two: <<1+1=2>>2.\nThree: <<2+1=3>>3.\n#### 3"},
        EQUATIONS,
        "question/answer rows: question = question, steps and answer = answer, before and after the mark",
    ),
    ({"question": "1+1+1?", "answer": "2*600=<<2*600=1200>>1200.\n#### 1,200"}, LARGE, "question/answer rows"),
    (
        {"question": "1+1+1?", "answer": "None is left.\n#### 3"},
        EXAMPLE | {"steps": ["None is left."]},
        "question/answer",
    ),
    ({"question": "1+1+1?", "answer": "#### 3"}, EXAMPLE | {"steps": []}, "question/answer rows"),
    ({"input": "1+1+1?", "output": "5 5 + 0 6 #### 3"}, EXAMPLE | {"steps": ["5 5 + 0 6"]}, "input/output rows"),
    ({"input": "1+1+1?", "output": "<<1+1=2>> <<2+1=3>> #### 3"}, EQUATIONS, "input/output rows"),
    (
        {"query": "1+1+1?", "response": f"{CHAIN}\n#### 3\nThe answer is: 3", "type": "x", "original_question": "?"},
        EXAMPLE,
        "query/response (MetaMath) rows: question = query, steps and answer = response",
    ),
    ({"query": "1+1+1?", "response": f"{CHAIN}\nThe answer is: 3"}, EXAMPLE, "MetaMath"),
    ({"prompt": "1+1+1?", "completion": f"{CHAIN}\n#### 3"}, EXAMPLE, "prompt/completion rows: question = prompt"),
    ({"prompt": [USER], "completion": [ASSISTANT]}, EXAMPLE, "prompt/completion"),
    ({"messages": [USER, ASSISTANT]}, EXAMPLE, "messages rows"),
    (
        {"messages": [{"role": "system", "content": [{"type": "text", "text": "Add."}]}, USER, ASSISTANT]},
        EXAMPLE | {"question": "Add.\n\n1+1+1?"},
        "messages rows",
    ),
    (
        {"instruction": "Add.", "input": "1+1+1?", "output": f"{CHAIN}\n#### 3"},
        EXAMPLE | {"question": "Add.\n1+1+1?"},
        "instruction/output (Alpaca) rows: question = instruction + input, steps and answer = output",
    ),
    ({"instruction": "1+1+1?", "input": "", "output": f"{CHAIN}\n#### 3"}, EXAMPLE, "Alpaca"),
    ({"instruction": "1+1+1?", "output": f"{CHAIN}\n#### 3"}, EXAMPLE, "Alpaca"),
    ({"query": "1+1+1?", "cot": EXAMPLE["steps"], "response": "3"}, EXAMPLE, "steps = cot, answer = response"),
]


def load(path, split="train", with_steps=True, **options):
    arguments = DataArguments(**{f"{split}_file": str(path)}, **options)
    return list(load_splits(arguments, [split], with_steps)[split])


def lines(path, rows: list[dict]):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("row, example, said", LAYOUTS)
def test_layout(row, example, said, streaming, tmp_path, caplog):
    """The same from a file, as a stream and from Python, said in one line, at a start from the cache too."""
    path = lines(tmp_path / "rows.jsonl", [row, row])
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert load(path, streaming=streaming) == [example, example]
        told = [record.getMessage() for record in caplog.records if "rows: " in record.getMessage()]
        assert len(told) == bool(said) and all(f"{path}, line 1: " in one and said in one for one in told)
    assert list(as_dataset([row])) == [example]


EVALUATED = [
    ({"input": "1+1+1?", "code": "def solution(): ...", "target": 3.0}, "3.0"),
    ({"question": " 1+1+1? ", "final_ans": "3"}, "3"),
    ({"Body": "Ones. ", "Question": "1+1+1?", "Equation": "1", "Answer": 3.0, "Type": "x", "ID": "y"}, "3.0"),
    ({"question": "1+1+1?", "answer": "3"}, "3"),
    ({"question": "1+1+1?", "answer": f"{CHAIN}\n#### 3"}, "3"),
    ({"prompt": "1+1+1?", "completion": "3"}, "3"),
]


@pytest.mark.parametrize("row, answer", EVALUATED)
def test_rows_without_a_chain(row, answer, tmp_path):
    """Served where no chain is read: test data, and runs that say so; elsewhere the missing column is named."""
    path = lines(tmp_path / "rows.jsonl", [row])
    question = "Ones. 1+1+1?" if "Body" in row else "1+1+1?"
    for found in (load(path, "test"), load(path, with_steps=False), load(path, with_steps=False, streaming=True)):
        assert [(one["question"], one["answer"]) for one in found] == [(question, answer)]
    if "####" not in answer and not str(row.get("answer")).endswith("#### 3"):
        with pytest.raises(InputError, match=r"line 1: no column 'steps'; there are: .* \(--column steps=NAME"):
            load(path)
        with pytest.raises(InputError, match="no column 'steps'"):
            as_dataset([row])
        assert len(as_dataset([row], with_steps=False)) == 1


def test_null_steps_are_none_where_no_chain_is_read(tmp_path):
    path = lines(tmp_path / "rows.jsonl", [EXAMPLE | {"steps": None}])
    assert load(path, "test") == [EXAMPLE | {"steps": []}]
    with pytest.raises(InputError, match="'steps' is null"):
        load(path)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_other_names(streaming, tmp_path):
    row = {"a": "1+1+1?", "b": CHAIN, "c": 3, "question": "another", "steps": []}
    options = {"column": "question=a, steps=b,answer=c", "streaming": streaming}
    assert load(lines(tmp_path / "rows.jsonl", [row]), **options) == [EXAMPLE]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["a", "b", "c"], ["1+1+1?", CHAIN, "3"], ["1+1+1?", json.dumps(EXAMPLE["steps"]), "3"]]
        )
    assert load(tmp_path / "rows.csv", **options) == [EXAMPLE, EXAMPLE]
    # The others are found as ever, and rows without any of these columns too.
    assert load(lines(tmp_path / "b.jsonl", [{"query": "1+1+1?", "b": CHAIN, "response": "3"}]), column="steps=b") == [
        EXAMPLE
    ]
    assert load(lines(tmp_path / "c.jsonl", [EXAMPLE]), **options) == [EXAMPLE]
    missing = lines(tmp_path / "d.jsonl", [{"a": "q", "d": 1, "c": 3}])
    with pytest.raises(InputError, match=r"d.jsonl, line 1: no column 'b'; there are: a, d, c \(--column"):
        load(missing, **options)


@pytest.mark.parametrize("text", ["query", "question=", "question=a,question=b", "questions=a", "question=a,,"])
def test_bad_names_of_columns(text):
    with pytest.raises(InputError, match="--column must be like question=query"):
        columns_of(text)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, r"found user, assistant, user, assistant"),
        ({"messages": [ASSISTANT]}, "one question and its answer .* found assistant"),
        ({"messages": "hi"}, "'messages' must be a list of messages"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "'content' must be text, found NoneType"),
        ({"prompt": [USER], "completion": "3"}, "'completion' must be a list of messages"),
        ({"instruction": None, "input": "q", "output": "3"}, "'instruction' is null"),
        ({"question": "q", "cot": "['a', 'b']", "answer": "3"}, "neither a JSON list of texts nor one step per line"),
        ({"question": "q", "cot": None, "answer": "3"}, "'cot' is null"),
        ({"question": "q", "cot": 5, "answer": "3"}, "'cot' must be a list of texts"),
        ({"question": "q", "steps": [], "answer": "so it is\n####"}, "the answer is empty"),
    ],
)
def test_bad_rows_of_a_layout(row, message):
    with pytest.raises(InputError, match=f"row 0: .*{message}"):
        as_dataset([row])


def test_a_field_that_is_there_twice_in_any_layout(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "prompt": "b", "completion": "#### 3"}\n')
    with pytest.raises(InputError, match="'prompt' is there twice"):
        load(path)
    path = tmp_path / "rows.csv"
    path.write_text("a,a,steps,answer\nq,r,s,1\n")
    with pytest.raises(InputError, match="line 2: 'a' is there twice"):
        load(path, column="question=a")
