"""`--dry_run`: the plan says what the run would do, and nothing happens."""

import json

import pytest
from conftest import ROOT
from test_benchmarks import positions_of

import run_ccot
import run_cot
import run_icot
from benchmarks.memory import SETTING, gpt2, llama, make_step
from benchmarks.memory_table import table
from benchmarks.workload import Setting
from latent_cot import tasks
from latent_cot.training import CoTTrainingArguments, ModelArguments, PCCoTArguments, PCCoTTrainer
from latent_cot.training.errors import InputError
from latent_cot.training.runs.memory_estimate import (
    Mode,
    Shape,
    Sharding,
    device_memory,
    kind_of,
    measured,
    named_error,
    step_bytes,
)
from latent_cot.training.runs.plan import Lengths, longest_of, plan, steps_of, work_of
from latent_cot.training.runs.step_work import sequence_work, thought_work

TINY = ["--config_name", "configs/pccot_gpt2_tiny.json", "--tokenizer_name", "characters", "--use_cpu"]
CHAIN = ["--dataset_name", "chain", "--task_args", "train=48,validation=4,test=4", "--answer_prompt", "#"]
RUN = ["--do_train", "--do_eval", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"]


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def trainer(tmp_path):
    arguments = CoTTrainingArguments(
        str(tmp_path / "out"), use_cpu=True, dry_run=True, do_train=True, report_to="none", num_train_epochs=2
    )
    return PCCoTTrainer(
        ModelArguments(
            config_name="configs/pccot_gpt2_tiny.json",
            tokenizer_name="characters",
            config_overrides="num_latent_tokens=5,num_iterations=3",
        ),
        arguments,
        train_dataset=tasks.generate("chain", "train=20,validation=1,test=1")["train"],
        method=PCCoTArguments(answer_prompt="#", open_steps_with_bot=True),
    )


@pytest.mark.parametrize(
    "flags", [[], ["--bf16"], ["--use_peft", "--lora_r", "4", "--bf16"]], ids=["all", "bf16", "LoRA"]
)
def test_a_plan_is_printed_and_nothing_written(flags, tmp_path, capsys):
    folder = tmp_path / "out"
    assert (
        run_ccot.main([*TINY, *CHAIN, *RUN, *flags, "--max_steps", "6", "--output_dir", str(folder), "--dry_run"]) == {}
    )
    printed = capsys.readouterr().out
    for line in (
        "train       48 rows, ",
        "validation  4 rows, ",
        "steps       6, 2 epochs",
        "positions   ",
        "memory      ",
    ):
        assert f"\n{line}" in printed, line
    assert "batch       16 examples per step: 1 processes x 8 per device x 2 accumulated" in printed
    assert f"{folder}/checkpoint-N every 500 steps; the model at the end in {folder}" in printed
    assert not folder.exists()


def test_other_scripts_print_one_too(tmp_path, capsys):
    tiny = ["--config_name", "configs/gpt2_chain.json", "--tokenizer_name", "characters", "--use_cpu"]
    run_cot.main([*tiny, *CHAIN, *RUN, "--max_steps", "6", "--output_dir", str(tmp_path / "a"), "--dry_run"])
    tiny[1] = "configs/icot_gpt2_chain.json"
    icot = [
        *tiny,
        *CHAIN,
        *RUN,
        "--max_steps",
        "6",
        "--partial_removal",
        "--output_dir",
        str(tmp_path / "b"),
        "--dry_run",
    ]
    run_icot.main(icot)
    first, second = capsys.readouterr().out.split("plan   ")[1:]
    assert "steps       6, 2 epochs" in first and "per device, estimated" in first
    assert ", while the whole chain is there" in second and "per device, estimated" in second
    assert not list(tmp_path.iterdir())


def test_refused_arguments_are_refused_and_a_model_stays(tmp_path):
    (tmp_path / "model.safetensors").write_text("kept")
    command = [*TINY, *CHAIN, *RUN, "--output_dir", str(tmp_path), "--dry_run"]
    with pytest.raises(InputError, match="already holds a model"):
        run_ccot.main(command)
    run_ccot.main([*command, "--overwrite_output_dir"])
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_dry_run_makes_no_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "latent_cot.training.trainers.saving.check_access", lambda args: pytest.fail("the Hub was asked")
    )
    command = [
        *TINY,
        *CHAIN,
        *RUN,
        "--output_dir",
        str(tmp_path / "out"),
        "--push_to_hub",
        "--hub_model_id",
        "you/name",
    ]
    run_ccot.main([*command, "--dry_run"])


def test_positions_are_those_that_the_model_computes(trainer):
    """A batch of one has no padding, so the count is exact."""
    features = trainer.splits["train"]
    for row in list(features)[:3]:
        batch = trainer.model_inputs(trainer.data_collator([row]), training=True)
        trainer.model.train()
        computed = positions_of(trainer.model, lambda batch=batch: trainer.model(**batch))
        assert work_of(trainer, Lengths.of(row, trainer.data_collator)).positions == computed


def test_the_longest_batch_bounds_every_batch(trainer):
    rows = [Lengths(4, 9, 3, 16), Lengths(7, 2, 5, 14)]
    longest = longest_of(rows)
    assert longest == Lengths(7, 9, 5, 16)
    assert all(work_of(trainer, row).positions <= work_of(trainer, longest).positions for row in rows)


def test_steps_are_those_of_training(trainer):
    """20 rows in batches of 8 are 3 steps per epoch."""
    assert steps_of(trainer) == (6, 2.0)
    assert dict(plan(trainer))["steps"] == "6, 2 epochs"


# --- the estimate ---


@pytest.mark.parametrize("iterations", [0, 1, 3, 24])
def test_work_of_a_thought(iterations):
    """c = 6: the window of `jacobi_window`, whose last pass takes the answer along."""
    work = thought_work(10, 8, 5, 6, iterations)
    window = 6 - min(iterations, 6) + 1
    expected = {0: [(22, 0)], 1: [(16, 0), (11, 11)], 3: [(14, 0), (4, 11), (4, 12), (9, 13)]}
    student = expected.get(iterations) or [(11, 0), *((window, 10 + t) for t in range(1, 6)), (window + 5, 16)]
    assert work.passes == (*student, (12, 10)) and work.logits == 18


@pytest.mark.parametrize(
    ("mode", "fields"),
    [
        (Mode("thought gpt2", autocast=True), gpt2(5, 80, 320)),
        (Mode("thought gpt2", autocast=True, checkpointed=True), gpt2(5, 80, 320)),
        (Mode("thought llama", adapters=True, autocast=True, half=True), llama(5, 96, 256, 2)),
        (Mode("chain llama", autocast=True), llama(5, 96, 256, 2, 600)),
    ],
    ids=lambda value: value.name if isinstance(value, Mode) else "",
)
def test_the_estimate_is_what_is_measured(mode, fields):
    """A model and a setting that no fit has seen, within the error that the coefficients' file names."""
    setting = SETTING.but(question=70, cot=60, iterations=4, batch=6)
    step = make_step(mode, fields, 24, setting, 90)
    assert step.estimate() == pytest.approx(step.measure(), rel=named_error())


def test_every_measured_mode_has_an_error():
    record = measured()
    assert set(record["coefficients"]) == set(record["errors"]) and len(record["errors"]) > 15
    assert all(len(errors) == 2 for errors in record["errors"].values()) and named_error() < 0.3


def test_memory_is_shared_by_sharding():
    """Weights, gradients and moments over eight devices are an eighth; what a block needs whole is counted beside."""
    step = make_step(Mode("thought llama", autocast=True), llama(4, 64, 192, 2), 0, Setting(batch=1), 0)
    work = step.work
    one = device_memory(step.model, step.mode, work, 1)
    eight = device_memory(
        step.model, Mode("thought llama", autocast=True, sharded=True), work, 1, sharding=Sharding(8, 8, 8)
    )
    count = sum(weight.numel() for weight in step.model.parameters())
    assert (one.weights, one.gradients, one.optimiser) == (4 * count, 4 * count, 8 * count)
    assert (eight.weights, eight.gradients, eight.optimiser) == (count // 2, count // 2, count)
    both = device_memory(step.model, step.mode, work, 1, sharding=Sharding(replicated=True))
    assert both.copies == device_memory(step.model, step.mode, work, 1).copies + 4 * count
    assert device_memory(step.model, step.mode, work, 1, optimiser="adamw_8bit").optimiser == 2 * count


def test_what_was_not_measured_is_not_estimated(trainer):
    assert kind_of("olmo2", False) is None and kind_of("gpt2", False) == "chain gpt2 gelu_new"
    assert kind_of("pccot-mistral", True) == kind_of("pccot-qwen3", True) == "thought llama"
    memory = device_memory(trainer.model, None, sequence_work(5), 2)
    assert memory.activations is None and memory.total is None and memory.fixed > 0
    shape = Shape.of(trainer.model.config)
    assert step_bytes(trainer.model, Mode("thought gpt2", adapters=True), shape, sequence_work(5), 2, "cpu") is None


def test_coefficients_have_a_source():
    record = json.loads((ROOT / "training" / "memory_coefficients.json").read_text())
    assert set(record["source"]) == {"torch", "transformers", "peft"}
    assert all(value > 0 for values in record["coefficients"].values() for value in values.values())


def test_dry_run_arguments_do_not_save():
    arguments = CoTTrainingArguments("nowhere", use_cpu=True, report_to="none")
    assert arguments.should_save
    arguments.dry_run = True
    assert not arguments.should_save


@pytest.mark.slow
def test_the_table_of_the_guide():
    """docs/scaling.md prints what the estimate gives now."""
    assert table() in (ROOT / "docs" / "scaling.md").read_text()


def test_the_guide_names_the_largest_error():
    errors = [error for errors in measured()["errors"].values() for error in errors]
    guide = (ROOT / "docs" / "scaling.md").read_text()
    assert f"{min(errors):+.0%} to {max(errors):+.0%}" in guide
