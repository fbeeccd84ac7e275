"""`--dry_run`: the plan says what the run would do, and nothing happens."""

import pytest
import torch
from conftest import ROOT, SHIPPED
from test_benchmarks import positions_of

import run_ccot
import run_cot
import run_grpo
import run_icot
from latent_cot import tasks
from latent_cot.training import CoTTrainingArguments, ModelArguments, PCCoTArguments, PCCoTTrainer
from latent_cot.training.errors import InputError
from latent_cot.training.runs.plan import lengths_of, new_positions, optimizer_size, plan, steps_of

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
        "bytes       weights ",
    ):
        assert f"\n{line}" in printed, line
    assert "batch       16 examples per step: 1 processes x 8 per device x 2 accumulated" in printed
    assert f"{folder}/checkpoint-N every 500 steps; the model at the end in {folder}" in printed
    assert not folder.exists()


def test_other_scripts_print_one_too(tmp_path, capsys):
    tiny = ["--config_name", "configs/gpt2_chain.json", "--tokenizer_name", "characters", "--use_cpu"]
    run_cot.main([*tiny, *CHAIN, *RUN, "--max_steps", "6", "--output_dir", str(tmp_path / "a"), "--dry_run"])
    tiny[1] = "configs/icot_gpt2_chain.json"
    icot = [*tiny, *CHAIN, *RUN, "--max_steps", "6", "--partial_removal", "--output_dir", str(tmp_path / "b")]
    icot += ["--dry_run"]
    run_icot.main(icot)
    first, second = capsys.readouterr().out.split("plan   ")[1:]
    assert "steps       6, 2 epochs" in first and "\npositions   " in first
    assert ", while the whole chain is there" in second and "bytes       weights " in second
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
    command = [*TINY, *CHAIN, *RUN, "--output_dir", str(tmp_path / "out"), "--push_to_hub"]
    command += ["--hub_model_id", "you/name"]
    run_ccot.main([*command, "--dry_run"])


def test_positions_are_those_that_the_model_computes(trainer):
    """A batch of one has no padding, so the count is exact."""
    features = trainer.splits["train"]
    for row in list(features)[:3]:
        batch = trainer.model_inputs(trainer.data_collator([row]), training=True)
        trainer.model.train()
        computed = positions_of(trainer.model, lambda batch=batch: trainer.model(**batch))
        thought = trainer.model.config.num_latent_tokens, trainer.model.config.num_iterations
        assert sum(new_positions(lengths_of(row, trainer.data_collator), *thought)) == computed


def test_steps_are_those_of_training(trainer):
    """20 rows in batches of 8 are 3 steps per epoch."""
    assert steps_of(trainer) == (6, 2.0)
    assert dict(plan(trainer))["steps"] == "6, 2 epochs"


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad"])
def test_bytes_of_the_optimizer_are_what_it_holds(name, trainer):
    trainer.args.optim = name
    trained = list(trainer.model.parameters())
    predicted = optimizer_size(trainer, trained)
    optimizer = trainer.create_optimizer()
    for weight in trained:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert predicted == sum(v.numel() * v.element_size() for v in states if isinstance(v, torch.Tensor))
    if name.startswith("adamw"):  # two moments, and how many steps each tensor took
        assert predicted == 8 * sum(weight.numel() for weight in trained) + 4 * len(trained)


def test_bytes_are_those_of_what_is_trained(trainer):
    for weight in trainer.model.base_model.parameters():
        weight.requires_grad = False
    head = trainer.model.get_output_embeddings().weight
    head.requires_grad = True
    whole = sum(weight.numel() for weight in trainer.model.parameters())
    text = dict(plan(trainer))["bytes"]
    assert text.startswith(
        f"weights {4 * whole:,}, gradients {4 * head.numel():,}, optimizer {8 * head.numel() + 4:,};"
    )
    assert f"of which {head.numel():,} are trained" in dict(plan(trainer))["parameters"]


def test_an_optimizer_that_cannot_be_counted(trainer, monkeypatch):
    def fail(*args):
        raise ImportError("bitsandbytes is not installed")

    monkeypatch.setattr(trainer, "get_optimizer_cls_and_kwargs", fail)
    assert "optimizer not known" in dict(plan(trainer))["bytes"]


def test_training_by_reward_has_a_plan(tmp_path, capsys):
    pytest.importorskip("trl", reason="trl is not installed: pip install '.[rl]'")
    command = ["--model_name_or_path", str(SHIPPED), *CHAIN[:4], *RUN, "--use_cpu", "--num_generations", "4"]
    command += ["--num_train_epochs", "2", "--output_dir", str(tmp_path / "out"), "--dry_run"]
    assert run_grpo.main(command) == {}
    printed = capsys.readouterr().out
    assert "\ntrain       48 rows, " in printed and "\nbytes       weights " in printed
    # 48 questions, four answers to each, 16 answers per step
    assert "\nsteps       24, 2 epochs\n" in printed
    assert (
        "\nbatch       16 sampled answers per step, 4 per question: 1 processes x 8 per device x 2 accumulated"
        in printed
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("iterations", [0, 1, 3, 24])
def test_new_positions_of_a_thought(iterations):
    """c = 6: the window of `jacobi_window`, whose last pass takes the answer along."""
    student = {0: [22], 1: [16, 11], 3: [14, 4, 4, 9], 24: [11, 1, 1, 1, 1, 1, 6]}[iterations]
    assert new_positions((10, 8, 5), 6, iterations) == [*student, 12]


def test_dry_run_arguments_do_not_save():
    arguments = CoTTrainingArguments("nowhere", use_cpu=True, report_to="none")
    assert arguments.should_save
    arguments.dry_run = True
    assert not arguments.should_save
