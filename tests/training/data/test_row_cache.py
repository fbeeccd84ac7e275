"""Rows and features are made once: found again by their content, in every process, and never half written."""

import json
import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
from conftest import ROOT, chain_model

from latent_cot.training.arguments import CoTTrainingArguments, DataArguments, ModelArguments
from latent_cot.training.data.sources import load_splits
from latent_cot.training.data.tokenization import column
from latent_cot.training.errors import InputError
from latent_cot.training.method_arguments import ICoTArguments, PCCoTArguments
from latent_cot.training.trainers.icot import ICoTTrainer
from latent_cot.training.trainers.pccot import PCCoTTrainer

GOOD = "q||s #### 1\n"


def load(path, **arguments) -> datasets.Dataset:
    return load_splits(DataArguments(train_file=str(path), **arguments), ["train"])["train"]


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "data.txt"
    path.write_text("".join(f"{i}+{i}=||<<{i}+{i}>> so {i} #### {2 * i}\n" for i in range(30)))
    return path


@pytest.fixture
def no_reading(monkeypatch):
    """From here on nothing may be read or tokenized anew."""

    def forbid(*args, **kwargs):
        raise AssertionError("made anew")

    def start():
        monkeypatch.setattr("latent_cot.training.data.rows.check_row", forbid)
        monkeypatch.setattr("latent_cot.training.data.tokenization.strip_eos", forbid)
        monkeypatch.setattr("latent_cot.training.data.collators.CoTCollator.length", forbid)

    return start


def files_of(dataset: datasets.Dataset) -> list[str]:
    return [entry["filename"] for entry in dataset.cache_files]


def test_a_second_start_reads_nothing_anew(data, no_reading):
    first = load(data)
    no_reading()
    second = load(data)
    assert list(first) == list(second) and len(second) == 30
    assert files_of(first) == files_of(second) and len(files_of(first)) == 1


def test_a_saved_data_set_is_checked_once(tmp_path, data, no_reading):
    datasets.DatasetDict({"train": datasets.Dataset.from_list(load(data).to_list())}).save_to_disk(tmp_path / "saved")
    arguments = DataArguments(dataset_name=str(tmp_path / "saved"))
    first = load_splits(arguments, ["train"])["train"]
    no_reading()
    assert files_of(load_splits(arguments, ["train"])["train"]) == files_of(first)


@pytest.mark.parametrize("change", [{"max_train_samples": 7}, {"max_bad_rows": 1}])
def test_what_is_read_otherwise_is_another_entry(change, data):
    assert files_of(load(data)) != files_of(load(data, **change))


def test_a_changed_file_is_read_anew(data):
    """Of the same name, size and time."""
    before, stat = load(data), data.stat()
    data.write_text(data.read_text().replace("3+3", "3-3"))
    os.utime(data, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert data.stat().st_size == stat.st_size and data.stat().st_mtime_ns == stat.st_mtime_ns
    assert (before[3]["question"], load(data)[3]["question"]) == ("3+3=", "3-3=")


def test_a_file_that_changes_while_it_is_read(data, monkeypatch):
    digests = iter(["a", "b"])
    monkeypatch.setattr("latent_cot.training.data.sources.digest_of_file", lambda path: next(digests))
    with pytest.raises(InputError, match=r"data.txt: changed while it was read"):
        load(data)


def test_changed_code_reads_anew(data, monkeypatch, tmp_path):
    before = load(data)
    (tmp_path / "rows.py").write_text("# other code\n")
    monkeypatch.setattr("latent_cot.training.data.row_cache.__file__", str(tmp_path / "row_cache.py"))
    assert files_of(load(data)) != files_of(before)


def test_bad_rows_are_named_at_every_start(tmp_path, caplog):
    path = tmp_path / "a.txt"
    path.write_text(f"bad\n{GOOD}worse\n")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(load(path, max_bad_rows=2)) == 1
        assert f"left out 2 bad rows: {path}, line 1: no '||' in 'bad'; {path}, line 3" in caplog.text


def test_a_cache_that_cannot_be_written(data, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(InputError, match=r"cannot be written .*set HF_DATASETS_CACHE"):
        load(data)


DIE = """
import os, sys
import latent_cot.training.data.rows as rows
from latent_cot.training.arguments import DataArguments
from latent_cot.training.data.sources import load_splits
check, count = rows.check_row, 0
def check_or_die(row, *options):
    global count
    count += 1
    if count == 2500:
        os._exit(9)
    return check(row, *options)
rows.check_row = check_or_die
load_splits(DataArguments(train_file=sys.argv[1]), ["train"])
"""


@pytest.mark.slow
def test_a_process_that_dies_leaves_nothing_that_is_used(tmp_path, no_reading):
    path = tmp_path / "long.txt"
    path.write_text(GOOD * 3000)
    died = subprocess.run([sys.executable, "-c", DIE, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert died.returncode == 9, died.stderr
    assert len(load(path)) == 3000
    no_reading()
    assert len(load(path)) == 3000


@pytest.fixture
def make_trainer(characters, tmp_path):
    def make(path, limit=None, **options):
        data = DataArguments(train_file=str(path), block_size=limit, **options)
        return PCCoTTrainer(
            chain_model(characters, num_latent_tokens=3),
            CoTTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none"),
            train_dataset=load_splits(data, ["train"])["train"],
            processing_class=characters,
            method=PCCoTArguments(),
            data=data,
        )

    return make


def test_features_are_made_once(data, make_trainer, no_reading):
    first = make_trainer(data).train_dataset
    no_reading()
    second = make_trainer(data).train_dataset
    assert files_of(first) == files_of(second) != [] and first[:] == second[:]


@pytest.mark.parametrize(
    "change", [{"keep_last_step": True}, {"limit": 100}, {"limit": 100, "drop_long": True}], ids=str
)
def test_features_of_other_settings_are_others(change, data, make_trainer):
    assert files_of(make_trainer(data).train_dataset) != files_of(make_trainer(data, **change).train_dataset)


def test_cached_features_do_not_hide_a_row_that_is_too_long(data, make_trainer):
    longest = max(make_trainer(data, limit=100).train_dataset["length"])
    kept = make_trainer(data, limit=longest - 1, drop_long=True).train_dataset
    assert 0 < len(kept) < 30 and column(kept, "length").tolist() == list(kept["length"])
    assert column(kept, "length").max() < longest
    for _ in range(2):
        with pytest.raises(InputError, match="too long"):
            make_trainer(data, limit=longest - 1)


KEY = """
import sys
from transformers import AutoConfig, AutoTokenizer
from functools import partial
import latent_cot
from latent_cot.training.data.collators import PCCoTCollator
from latent_cot.training.data.row_cache import fingerprint
from latent_cot.training.data.tokenization import encoding_key, tokenize
folder = "checkpoints/pccot-gpt2-chain"
tokenizer = AutoTokenizer.from_pretrained(folder)
for calls in range(int(sys.argv[1])):
    tokenizer(["1+1", "1"], padding=True, truncation=True, max_length=5)
collator = PCCoTCollator(tokenizer, AutoConfig.from_pretrained(folder))
print(encoding_key(partial(tokenize, tokenizer=tokenizer, keep_last_step=False), collator), fingerprint(1))
"""


@pytest.mark.slow
def test_a_key_is_the_same_in_every_process():
    keys = set()
    for seed in "12":  # what a tokenizer was last used for does not count
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", KEY, str(int(seed) - 1)]
        keys.add(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment).stdout)
    assert len(keys) == 1 and len(keys.pop().split()) == 2


def test_the_first_process_makes_features_for_all(data, make_trainer, monkeypatch):
    order = []

    @contextmanager
    def first(self, local=True, desc="work"):
        order.append("wait")
        yield
        order.append("go on")

    monkeypatch.setattr(CoTTrainingArguments, "main_process_first", first)
    split = "latent_cot.training.trainers.cot.tokenize_split"
    monkeypatch.setattr(split, lambda examples, *args, **kwargs: order.append("tokenize") or examples)
    make_trainer(data)
    assert order == ["wait", "tokenize", "go on"]


def test_chains_are_counted_without_lists(data, characters, tmp_path):
    trainer = ICoTTrainer(
        ModelArguments(config_name="configs/icot_gpt2_chain.json", tokenizer_name="characters"),
        CoTTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none"),
        train_dataset=load(data),
        method=ICoTArguments(partial_removal=True),
    )
    lengths = [sum(map(len, steps)) for steps in trainer.train_dataset["steps"]]
    assert trainer.chain_lengths.tolist() == lengths and trainer.longest_chain == max(lengths)


MEASURE = """
import json, sys, time
from functools import partial
from types import SimpleNamespace
import torch
from latent_cot.training.arguments import DataArguments
from latent_cot.training.data.collators import CoTCollator
from latent_cot.training.data.sources import load_splits
from latent_cot.training.data.small_tokenizers import byte_tokenizer
from latent_cot.training.data.tokenization import column, tokenize, tokenize_split
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024
data, tokenizer = DataArguments(train_file=sys.argv[1]), byte_tokenizer()
def start(data):
    rows = load_splits(data, ["train"])["train"]
    encode = partial(tokenize, tokenizer=tokenizer, keep_last_step=True)
    return tokenize_split(rows, "train", encode, CoTCollator(0, 0, [1]), data, None)
start(DataArguments(train_file=sys.argv[2]))
before, begin = anonymous(), time.perf_counter()
features = start(data)
print(json.dumps({"rows": len(features), "seconds": time.perf_counter() - begin, "MB": anonymous() - before}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_second_start_takes_little_time_and_memory(data, tmp_path):
    """40,000 rows (of 200,000 the docs say what was measured): in memory they and their features would take 60 MB."""
    path, row = tmp_path / "rows.jsonl", {"question": "How many? " * 20, "steps": ["<<10+20=30>>"] * 4, "answer": "30"}
    path.write_text("".join(json.dumps(row | {"answer": str(index)}) + "\n" for index in range(40_000)))
    found = []
    for _ in range(2):
        command = [sys.executable, "-c", MEASURE, str(path), str(data)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[1]["rows"] == 40_000
    assert found[1]["seconds"] < 3 and found[1]["MB"] < 15, found
