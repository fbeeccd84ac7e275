"""`--streaming`: passes without end, each in its own order, and resumed to the byte."""

import itertools
from pathlib import Path

import pytest
from accelerate.data_loader import prepare_data_loader
from conftest import chain_model
from datasets import IterableDataset
from torch.utils.data import DataLoader

import run_cot
from latent_cot.training import CoTTrainingArguments, DataArguments, PCCoTArguments, PCCoTTrainer
from latent_cot.training.data.sources import load_splits
from latent_cot.training.data.streaming import endless
from latent_cot.training.errors import InputError

ROWS = 11


def lines(count: int = ROWS) -> str:
    return "".join(f"{i}+{i}=||<<{i}+{i}>> #### {2 * i}\n" for i in range(count))


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "data.txt"
    path.write_text(lines())
    return path


def read(stream: IterableDataset, count: int) -> list[int]:
    return [row["row"] for row in itertools.islice(stream, count)]


def numbers(count: int = ROWS) -> IterableDataset:
    return IterableDataset.from_generator(lambda: ({"row": row} for row in range(count)))


def test_each_pass_has_all_rows_in_an_order_of_its_own():
    seen = read(endless(numbers(), buffer_size=4, seed=3), 3 * ROWS)
    orders = [tuple(seen[start : start + ROWS]) for start in range(0, len(seen), ROWS)]
    assert all(sorted(order) == list(range(ROWS)) for order in orders)
    assert len({*orders, tuple(range(ROWS))}) == 4
    assert read(endless(numbers(), buffer_size=4, seed=3), 3 * ROWS) == seen
    assert read(endless(numbers(), buffer_size=4, seed=4), 3 * ROWS) != seen


def test_a_stream_read_twice_at_once_gives_each_the_same():
    stream = endless(numbers(), buffer_size=4, seed=3)
    pairs = list(itertools.islice(zip(stream, stream, strict=True), 3 * ROWS))
    assert all(a == b for a, b in pairs)


def test_without_a_buffer_the_order_stays():
    assert read(endless(numbers(), buffer_size=0, seed=3), 2 * ROWS) == [*range(ROWS), *range(ROWS)]


def test_a_stream_without_rows_ends():
    with pytest.raises(InputError, match="gives no row"):
        next(iter(endless(numbers(0), buffer_size=4, seed=3)))


@pytest.mark.parametrize("later", [0, 5, 20])
def test_a_file_that_changes_while_it_is_read(later, data, make_trainer):
    stream = iter(make_trainer(data).train_dataset)
    for _ in range(ROWS):
        next(stream)
    data.write_text(lines(later))
    with pytest.raises(InputError, match=f"pass 2 .* gave {later} rows, and the first 11|gives no row"):
        list(itertools.islice(stream, 100))


@pytest.fixture
def make_trainer(characters, tmp_path):
    def make(path, output="out", seed=0, **options):
        data = DataArguments(train_file=str(path), streaming=True, shuffle_buffer=5, drop_long=True)
        settings = {"per_device_train_batch_size": 2, "max_steps": 9, "save_steps": 2, "logging_steps": 3}
        settings |= {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "gradient_accumulation_steps": 2}
        return PCCoTTrainer(
            chain_model(characters, seed=seed, num_latent_tokens=3, num_iterations=2),
            CoTTrainingArguments(output_dir=str(tmp_path / output), **(settings | options)),
            train_dataset=load_splits(data, ["train"])["train"],
            processing_class=characters,
            method=PCCoTArguments(),
            data=data,
        )

    return make


@pytest.mark.parametrize(
    ("workers", "steps"),
    [(0, (6,)), *(pytest.param(*more, marks=pytest.mark.slow) for more in ((0, (2, 4)), (2, (4,))))],
)
def test_a_resumed_stream_ends_with_the_same_weights(workers, steps, data, make_trainer):
    """36 rows of an 11-row file, more than three passes, resumed in the third one; slowly, in the first and second too."""
    whole = make_trainer(data, dataloader_num_workers=workers)
    whole.train()
    wanted = {name: weight.clone() for name, weight in whole.model.state_dict().items()}
    assert whole.state.global_step == 9
    for step in steps:
        again = make_trainer(data, output="again", seed=step, save_strategy="no", dataloader_num_workers=workers)
        again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-{step}")
        found = again.model.state_dict()
        assert all(found[name].numpy().tobytes() == weight.numpy().tobytes() for name, weight in wanted.items())


def test_workers_change_nothing(data, make_trainer):
    batches = {}
    for workers in (0, 2):
        trainer = make_trainer(data, dataloader_num_workers=workers)
        loader = itertools.islice(trainer.get_train_dataloader(), 20)
        batches[workers] = [batch["input_ids"].tolist() for batch in loader]
    assert batches[0] == batches[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_read_disjoint_rows(workers):
    """Each takes every other batch of the one order, as accelerate deals them out for the Trainer."""
    order = read(endless(numbers(), buffer_size=4, seed=3), 20)
    for process in range(2):
        loader = DataLoader(endless(numbers(), 4, 3), batch_size=2, num_workers=workers, collate_fn=list)
        dealt = prepare_data_loader(
            loader, num_processes=2, process_index=process, dispatch_batches=False, put_on_device=False
        )
        batches = [[row["row"] for row in batch] for batch in itertools.islice(dealt, 5)]
        assert batches == [order[start : start + 2] for start in range(2 * process, 20, 4)]


def test_rows_that_are_all_too_long(data, tmp_path):
    argv = ["--config_name", "configs/pccot_gpt2_tiny.json", "--tokenizer_name", "bytes", "--train_file", str(data)]
    argv += ["--streaming", "--max_steps", "2", "--do_train", "--use_cpu", "--block_size", "3", "--drop_long"]
    with pytest.raises(InputError, match="gives no row"):
        run_cot.main([*argv, "--report_to", "none", "--output_dir", str(tmp_path / "out")])
