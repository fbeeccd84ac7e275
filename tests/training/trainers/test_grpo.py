"""Training by reward (`run_grpo.py`) on TRL's GRPOTrainer: what is sampled is what is scored, and what is saved is whole."""

import json
import re

import pytest
import torch
from conftest import ROOT, SHIPPED, plain_adapter
from datasets import Dataset
from several_processes import launch
from transformers import AutoModelForCausalLM, AutoTokenizer

import run_grpo
from latent_cot import tasks, value_noise
from latent_cot.training.cli import parse
from latent_cot.training.errors import InputError
from latent_cot.value_noise import basis_of, value_projections

trl = pytest.importorskip("trl", reason="trl is not installed: pip install '.[rl]'")

from latent_cot.training.trainers.reward import (  # noqa: E402
    RewardTrainer,
    RewardTrainingArguments,
    sample_answers,
)
from latent_cot.training.trainers.rollout_noise import sources_of  # noqa: E402

FLAGS = "--dataset_name chain --task_args operations=4,train=64,validation=8,test=8 --do_train --do_eval --use_cpu "
FLAGS += "--max_steps 2 --per_device_train_batch_size 8 --num_generations 4 --max_completion_length 3 --report_to none "
FLAGS += "--per_device_eval_batch_size 8 --max_new_tokens 3 --max_cot_tokens 4 --save_strategy no --learning_rate 1e-3"


FLAGS += " --temperature 5"  # the shipped model gives right answers only, which would teach nothing


def flags(folder, *more: str) -> list[str]:
    return [*FLAGS.split(), "--model_name_or_path", str(SHIPPED), "--output_dir", str(folder), *more]


def make_trainer(folder, *more: str, **changes) -> RewardTrainer:
    model, reward, lora, *_, args = parse(run_grpo.argument_classes(), flags(folder, *more))
    rows = tasks.generate("chain", "train=64,validation=8,test=8")["train"]
    for row in rows[::2]:
        row["question"] = row["question"][:5]  # so that there is padding
    options = {"train_dataset": rows, "reward": reward, "lora": lora} | changes
    return RewardTrainer(model, args, **options)


def largest_difference(trainer: RewardTrainer) -> float:
    """Between the log-probabilities of fresh samples and those that training computes for them."""
    trainer.is_checked, trainer.reward.max_logprob_difference = False, 0.0
    rows = [trainer.train_dataset[index // 4] for index in range(8)]
    inputs = trainer._generate_and_score_completions(rows)
    assert inputs["prompt_mask"].min() == 0  # padding
    with pytest.raises(InputError, match="differ by") as error:
        trainer.check_logprobs(trainer.model, inputs)
    return float(str(error.value).partition("differ by ")[2].partition(",")[0])


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
def test_a_run_leaves_a_whole_checkpoint(lora, tmp_path):
    more = ["--use_peft", "--lora_r", "2"] if lora else []
    metrics = run_grpo.main(flags(tmp_path, *more))
    assert {"eval_ccot_exact_match", "eval_cot_exact_match", "train_loss"} <= metrics.keys()
    names = {"README.md", "example.py", "modeling_pccot.py", "all_results.json", "trainer_state.json", "config.json"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert "trained by reward" in (tmp_path / "README.md").read_text()
    logged = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert any("rewards/exact_match/mean" in entry for entry in logged)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(model).__name__ == "PCCoTGPT2LMHeadModel" and model.config.use_cache
    assert tokenizer.padding_side == "left"
    before = AutoModelForCausalLM.from_pretrained(SHIPPED)
    assert any((a - b).abs().max() > 0 for a, b in zip(model.parameters(), before.parameters(), strict=True))
    if lora and (adapted := plain_adapter(tmp_path / "adapter")) is not None:
        opened = model.open_thought(**tokenizer(["7+3*4-2+9=", "1+2="], padding=True, return_tensors="pt"))
        with torch.no_grad():
            assert (adapted(**opened).logits - model.eval()(**opened).logits).abs().max() < 1e-4


def test_the_recipe_runs(tmp_path):
    (recipe,) = (ROOT / "configs" / "recipes").glob("chain_grpo_*.yaml")
    more = ["--per_device_train_batch_size", "8", "--max_steps", "2", "--eval_steps", "1", "--use_cpu"]
    more += ["--task_args", "operations=4,train=64,validation=8,test=8", "--model_name_or_path", str(SHIPPED)]
    metrics = run_grpo.main([str(recipe), *more, "--output_dir", str(tmp_path)])
    assert metrics["test_ccot_exact_match"] == 1.0


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
def test_what_is_sampled_is_what_is_scored(lora, tmp_path):
    """At the first step, and after the weights (of an adapter, those of `<eot>` and end of sequence too) have moved."""
    more = ["--use_peft", "--lora_r", "2"] if lora else []
    trainer = make_trainer(tmp_path, "--learning_rate", "0.01", *more)
    assert largest_difference(trainer) < 1e-5
    trainer.is_checked, trainer.reward.max_logprob_difference = False, 1e-4
    trainer.train()
    assert trainer.is_checked
    assert largest_difference(trainer) < 1e-5


def test_a_run_goes_on_from_a_checkpoint(tmp_path):
    more = ["--save_strategy", "steps", "--save_steps", "1"]
    run_grpo.main(flags(tmp_path, *more))
    run_grpo.main(flags(tmp_path, *more, "--max_steps", "3", "--resume_from_checkpoint", "true"))
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 3


def test_another_distribution_stops_the_run(tmp_path):
    trainer = make_trainer(tmp_path, "--disable_dropout", "false", "--config_overrides", "resid_pdrop=0.1")
    with pytest.raises(InputError, match="sampled with other log-probabilities than training computes"):
        trainer.train()
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_thought_that_is_not_scored_stops_the_run(tmp_path, monkeypatch):
    """What the plain GRPOTrainer does: it samples after the thought and scores without."""
    from latent_cot.training.trainers import reward as reward_trainer

    def sample(prompts, trainer):
        sampled, opening = sample_answers(prompts, trainer), len(trainer.model.thought_ids())
        return sampled | {"prompt_ids": [ids[:-opening] for ids in sampled["prompt_ids"]]}

    sample_answers = reward_trainer.sample_answers
    monkeypatch.setattr(reward_trainer, "sample_answers", sample)
    with pytest.raises(InputError, match="they differ by"):
        make_trainer(tmp_path).train()


def test_the_plain_trainer_is_refused(tmp_path):
    """It would sample after a thought that `generate()` adds, and score without it."""
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(SHIPPED),
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        args=RewardTrainingArguments(
            str(tmp_path), use_cpu=True, max_steps=1, per_device_train_batch_size=4, num_generations=4, report_to="none"
        ),
        train_dataset=Dataset.from_list([{"prompt": "1+2="}] * 4),
        processing_class=AutoTokenizer.from_pretrained(SHIPPED),
    )
    with pytest.raises(ValueError, match=r"pass prompts of open_prompt\(\)"):
        trainer.train()


def test_a_reward_of_ones_own(tmp_path, monkeypatch):
    """It alone is followed where exact match weighs nothing: the rewarded token gets likelier."""
    (tmp_path / "my_rewards.py").write_text(
        "def fives(completions, answer, question, **kwargs):\n    return [float(text.startswith('5')) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    more = ["--reward_function", "my_rewards:fives", "--reward_weights", "0", "1", "--max_steps", "8"]
    more += ["--per_device_train_batch_size", "64", "--learning_rate", "0.01", "--logging_steps", "1"]
    run_grpo.main(flags(tmp_path / "out", *more))
    logged = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    rewards = [entry["rewards/fives/mean"] for entry in logged if "rewards/fives/mean" in entry]
    assert len(rewards) == 8 and rewards[-1] > rewards[0] + 0.2


def judge(kind):
    """A reward function that gives `kind` for its first answer; of "none" for all of them."""

    def rewards(completions, **kwargs):
        given = {"inf": float("inf"), "nan": float("nan"), "none": None, "some": None, "huge": 1e39}[kind]
        return [given, *([None if kind == "none" else 0.5] * (len(completions) - 1))]

    return rewards


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("inf", "the reward function rewards gave inf: rewards must be finite numbers"),
        ("nan", "the reward function rewards gave nan: rewards must be finite numbers"),
        ("huge", "the reward function rewards gave 1e+39: rewards must be finite numbers"),
        ("none", "the reward function rewards gave None for every answer of a step"),
    ],
)
def test_a_reward_that_is_no_number_stops_the_run(kind, said, tmp_path):
    with pytest.raises(InputError, match=re.escape(said)):
        make_trainer(tmp_path, reward_function=judge(kind)).train()


def test_a_reward_may_leave_answers_out(tmp_path):
    trainer = make_trainer(tmp_path, "--max_steps", "1", reward_function=judge("some"))
    assert trainer.train().global_step == 1


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
def test_the_reference_thinks_as_the_model_does(lora, tmp_path):
    """With the T and the weights of the run's first step, and from a checkpoint without code: nothing has diverged yet."""
    more = ["--use_peft", "--lora_r", "2"] if lora else []
    more += ["--beta", "0.1", "--config_overrides", "num_iterations=1", "--logging_steps", "1", "--max_steps", "6"]
    trainer = make_trainer(tmp_path, *more)
    trainer.train()
    first, *_, last = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert first == pytest.approx(0, abs=1e-6) and last > 1e-6


def test_rows_are_evaluated(tmp_path):
    trainer = make_trainer(tmp_path)
    rows = [{name: row[name] for name in ("question", "steps", "answer")} for row in tasks.generate("chain")["test"]][
        :4
    ]
    assert trainer.evaluate(rows).keys() >= {"eval_ccot_exact_match", "eval_cot_exact_match"}
    assert [row["gold"] for row in trainer.predictions("test", rows)] == [row["answer"] for row in rows]
    with pytest.raises(InputError, match="no rows"):
        trainer.evaluate([])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--reward_weights", "nan"], "--reward_weights must be finite numbers, got [nan]"),
        (["--reward_weights", "inf", "1"], "--reward_weights must be finite numbers"),
        (["--beta", "nan"], "--beta must be a finite number"),
        (["--beta", "0.1", "--sync_ref_model"], "--beta is not supported with FSDP, DeepSpeed and --sync_ref_model"),
        (["--reward_function", "json:nothing"], "--reward_function json:nothing: module 'json' has no attribute"),
        (["--reward_function", "no_such_module:f"], "--reward_function no_such_module:f: No module named"),
        (["--reward_function", "json"], "expected module:function"),
        (["--max_logprob_difference", "0"], "--max_logprob_difference must be above 0"),
        (["--rollout_noise_strength", "2"], "of the temperature pass --temperature"),
        (["--rollout_noise", "dropout", "--rollout_noise_strength", "1"], "must be above 0 and below 1, got 1.0"),
        (["--rollout_noise", "weights", "--gradient_checkpointing", "true"], "leave --gradient_checkpointing and"),
        (["--rollout_noise", "weights", "--use_peft"], "--use_peft out, which know no noise"),
        (["--train_only_values", "--weight_decay", "0.1"], "leave --use_peft and --weight_decay out"),
        (["--use_vllm"], "--use_vllm is not supported here"),
        (["--on_nan", "skip"], "--on_nan is no flag here"),
        (["--streaming"], "unknown arguments: --streaming"),
        (["--num_samples", "4"], "unknown arguments: --num_samples 4"),
        (["--model_name_or_path", "gpt2-untrained"], "trains pccot models, and this is a gpt2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(more, said, tmp_path, monkeypatch):
    from transformers import GPT2Config, GPT2LMHeadModel

    monkeypatch.chdir(tmp_path)
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=40)).save_pretrained("gpt2-untrained")
    with pytest.raises(InputError) as error:
        run_grpo.main(flags(tmp_path / "out", *more))
    assert said in str(error.value)
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_two_processes(tmp_path):
    done = launch("run_grpo.py", *flags(tmp_path, "--ddp_backend", "gloo", "--learning_rate", "1e-4"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "all_results.json").read_text())["eval_ccot_exact_match"] == 1.0


NOISES = {"latents": "0.5", "dropout": "0.2", "weights": "0.6"}


@pytest.mark.parametrize("noise", NOISES)
def test_a_thought_is_scored_with_the_noise_that_it_was_sampled_with(noise, tmp_path):
    """At the first step and after the weights have moved; with a reference, which thinks with the same draws; scored in parts."""
    more = ["--rollout_noise", noise, "--rollout_noise_strength", NOISES[noise], "--learning_rate", "0.01"]
    more += ["--beta", "0.1", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"]
    more += ["--num_iterations", "2"]
    trainer = make_trainer(tmp_path, *more)
    assert largest_difference(trainer) < 1e-5
    trainer.is_checked, trainer.reward.max_logprob_difference = False, 1e-4
    trainer.train()
    assert trainer.is_checked and largest_difference(trainer) < 1e-4
    one, other = trainer.sources[:2]
    inputs = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    assert len({int(key) for key in inputs["rollout_sources"][:, 0]}) == 4 and not torch.equal(one, other)


def test_a_rollout_is_reproducible():
    """By seed, question and number among the samples of that question: alone, in a batch and in another order."""
    both = sources_of(["1+2=", "3+4=", "1+2="], (7, 0))[:, 0].tolist()
    assert sources_of(["3+4="], (7, 0))[0, 0] == both[1]
    assert sources_of(["1+2=", "1+2=", "3+4="], (7, 0))[:, 0].tolist() == [both[0], both[2], both[1]]
    assert len({*both, *sources_of(["1+2=", "3+4=", "1+2="], (8, 0))[:, 0].tolist()}) == 6


def test_what_a_checkpoint_suppresses_is_not_sampled(tmp_path):
    trainer = make_trainer(tmp_path)
    likely = trainer.model.config.eot_token_id
    trainer.unwrapped.generation_config.suppress_tokens = [likely]
    add = torch.zeros(trainer.model.config.vocab_size).index_fill(0, torch.tensor(likely), 1e3)
    trainer.model.lm_head.register_forward_hook(lambda module, args, logits: logits + add)
    assert all(likely not in row for row in sample_answers(["7+3*4-2+9="], trainer)["completion_ids"])


def test_only_values_are_trained(tmp_path):
    trainer = make_trainer(tmp_path, "--rollout_noise", "weights", "--train_only_values", "--learning_rate", "0.01")
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    trainer.train()
    width = trainer.model.config.hidden_size
    for name, weight in trainer.model.state_dict().items():
        moved = weight != before[name]
        if name.endswith("attn.c_attn.weight"):
            assert moved[:, -width:].any() and not moved[:, :-width].any()
        else:
            assert not moved.any(), name


def test_the_gradient_is_that_of_the_expected_reward(tmp_path, monkeypatch):
    """Two rewarded tokens, each weighed by how often it is sampled: the loss's gradient is the slope of the mean reward."""
    more = ["--rollout_noise", "weights", "--loss_type", "dr_grpo", "--max_completion_length", "1"]
    trainer = make_trainer(tmp_path, *more)
    model, tokenizer, questions = trainer.model.double().eval(), trainer.processing_class, ["7+3*4-2+9="] * 4
    bases = {projection: basis_of(projection) for projection in value_projections(model.base_model)}
    monkeypatch.setattr(value_noise, "basis_of", bases.get)  # which counts as a constant
    opened, sources = (
        model.open_thought(tokenizer(questions, return_tensors="pt")["input_ids"]),
        sources_of(questions, (0,)),
    )
    rewards = dict(zip(tokenizer.convert_tokens_to_ids(["1", "2"]), (1.0, -0.5), strict=True))

    @torch.no_grad()
    def chances():
        logits = model(**opened, latent_sources=sources, **trainer.reward.noise_options).logits[:, -1]
        return (logits / trainer.temperature).softmax(dim=-1)

    def mean_reward():
        return sum(reward * chances()[:, token].mean() for token, reward in rewards.items()).item()

    for token, reward in rewards.items():
        inputs = {"completion_ids": torch.full((4, 1), token), "completion_mask": torch.ones(4, 1, dtype=torch.long)}
        inputs |= {
            "prompt_ids": opened["input_ids"],
            "prompt_mask": opened["attention_mask"],
            "rollout_sources": sources,
        }
        trainer.compute_loss(model, inputs | {"advantages": reward * chances()[:, token]}).backward()
    torch.manual_seed(0)
    direction = [(weight, torch.randn_like(weight)) for weight in model.parameters()]
    slope, rewards_beside = sum((weight.grad * step).sum() for weight, step in direction).item(), []
    for size in (1e-6, -2e-6):
        with torch.no_grad():
            for weight, step in direction:
                weight += size * step
        rewards_beside.append(mean_reward())
    assert abs(slope) > 1e-3
    assert -slope == pytest.approx((rewards_beside[0] - rewards_beside[1]) / 2e-6, rel=1e-3)
