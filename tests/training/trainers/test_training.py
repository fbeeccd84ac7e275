"""The Trainer: loss parts, warm-up, checkpoints, adapters, old flags."""

import logging

import pytest
import torch
from conftest import chain_model, question_batch, with_span
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import run_ccot
from latent_cot import tasks
from latent_cot.training import CoTTrainingArguments, EvaluationArguments, LoraArguments, PCCoTArguments, PCCoTTrainer
from latent_cot.training.checkpoints.lora import add_adapters
from latent_cot.training.data.collators import PCCoTCollator


@pytest.fixture
def make_trainer(characters, tmp_path):
    def make(model=None, method=None, **options):
        model = model or chain_model(characters, num_latent_tokens=3, loss_delta=1.0)
        splits = tasks.generate("chain", "train=64,validation=12,test=4")
        defaults = {"max_steps": 4, "per_device_train_batch_size": 8, "logging_steps": 2, "save_strategy": "no"}
        args = CoTTrainingArguments(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, **(defaults | options))
        return PCCoTTrainer(
            model,
            args,
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            processing_class=characters,
            evaluation=EvaluationArguments(max_new_tokens=4, max_cot_tokens=12),
            method=PCCoTArguments(**(method or {})),
        )

    return make


def test_loss_parts_are_logged(make_trainer):
    """The logged parts add up to the logged loss."""
    trainer = make_trainer()
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "cot_loss" in entry]
    assert len(logs) == 2
    for entry in logs:
        parts = sum(entry[name] for name in ("cot_loss", "ccot_loss", "kd_loss", "step_loss"))
        assert float(entry["loss"]) == pytest.approx(parts, rel=1e-3)
        assert entry["teacher_std"] > 0


def test_teacher_warmup_trains_the_teacher_alone(make_trainer):
    trainer = make_trainer(method={"teacher_warmup_steps": 2})
    trainer.train()
    first, second = [entry for entry in trainer.state.log_history if "cot_loss" in entry]
    assert "ccot_loss" not in first and first["loss"] == pytest.approx(first["cot_loss"], rel=1e-3)
    assert "ccot_loss" in second


def test_validation_chooses_the_checkpoint(make_trainer):
    """Generation metrics drive `load_best_model_at_end`; predictions keep the order of the data."""
    trainer = make_trainer(
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, load_best_model_at_end=True,
        metric_for_best_model="eval_ccot_exact_match", per_device_eval_batch_size=5,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_metric is not None
    metrics = trainer.evaluate()
    rows = trainer.predictions("validation", trainer.eval_dataset)
    assert [row["question"] for row in rows] == trainer.eval_dataset["question_text"][:]
    assert metrics["eval_ccot_exact_match"] == sum(row["ccot_right"] for row in rows) / 12
    model, tokenizer = trainer.model, trainer.processing_class
    for row in rows:  # each answer is what the question gets alone
        inputs = tokenizer([row["question"]], return_tensors="pt")
        alone = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs.input_ids.shape[1] :]
        assert tokenizer.decode(alone, skip_special_tokens=True).strip() == row["ccot_text"]


def test_evaluation_leaves_the_mixed_curriculum_aside(make_trainer, characters):
    trainer = make_trainer()
    trainer.data_collator = PCCoTCollator(characters, trainer.model.config, curriculum_prob=1.0)
    assert {batch["thought_span"].num_latents for batch in trainer.get_eval_dataloader()} == {3}
    assert {batch["thought_span"].num_latents for batch in trainer.get_train_dataloader()} <= {1, 2}


@pytest.mark.parametrize(
    ("tied", "projection"),
    [(True, False), (False, True), *(pytest.param(same, same, marks=pytest.mark.slow) for same in (True, False))],
)
def test_adapters(make_trainer, characters, tied, projection, tmp_path):
    """LoRA trains adapters, the rows of the thought, of padding and of the end, and the projection, nothing else; merging changes no answer."""
    model = chain_model(characters, num_latent_tokens=3, tie_word_embeddings=tied, use_projection=projection, n_embd=32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora = LoraArguments(use_peft=True, lora_r=4, lora_dropout=0.0)
    peft_model = add_adapters(model, lora)
    trainer = make_trainer(model=peft_model, learning_rate=1e-2)
    trainer.train()

    ids, mask = with_span(model, *question_batch([5, 3]))
    peft_model.eval()
    wanted = peft_model(input_ids=ids, attention_mask=mask).logits
    merged = peft_model.merge_and_unload()
    assert (merged(input_ids=ids, attention_mask=mask).logits - wanted).abs().max() < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (again(input_ids=ids, attention_mask=mask).logits - wanted).abs().max() < 1e-5

    after = merged.state_dict()
    config = model.config
    special = [
        config.bot_token_id,
        config.eot_token_id,
        config.latent_token_id,
        config.eos_token_id,
        config.pad_token_id,
    ]
    ordinary = [row for row in range(len(characters)) if row not in special]
    embeddings = "transformer.wte.weight"
    assert torch.equal(after[embeddings][ordinary], before[embeddings][ordinary])
    assert not torch.equal(after[embeddings][special[0]], before[embeddings][special[0]])
    if not tied:
        assert torch.equal(after["lm_head.weight"][ordinary], before["lm_head.weight"][ordinary])
        assert not torch.equal(after["lm_head.weight"][special], before["lm_head.weight"][special])
        assert not torch.equal(
            after["lm_head.weight"][config.eos_token_id], before["lm_head.weight"][config.eos_token_id]
        )
    if projection:
        assert not torch.equal(after["transformer.prj.0.weight"], before["transformer.prj.0.weight"])


def test_a_run_that_went_wrong_does_not_look_right(tmp_path):
    """A loss that is no number stops the run at the end, where no log came before; nothing is saved."""
    argv = ["--config_name", "configs/pccot_gpt2_tiny.json", "--tokenizer_name", "characters"]
    argv += ["--dataset_name", "chain", "--task_args", "train=64,validation=2,test=2", "--do_train", "--max_steps", "6"]
    argv += ["--use_cpu", "--learning_rate", "1e10", "--max_grad_norm", "0", "--report_to", "none", "--save_steps", "2"]
    with pytest.raises(FloatingPointError, match=r"step \d: .*(not finite, so it is not saved|training stopped)"):
        run_ccot.main([*argv, "--logging_steps", "50", "--output_dir", str(tmp_path)])
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "README.md").exists()
    for path in tmp_path.glob("checkpoint-*/model.safetensors"):
        assert all(torch.isfinite(weights).all() for weights in load_file(path).values())


def test_old_flags_still_work(caplog, tmp_path):
    """Renamed and removed Trainer flags keep their effect and say what to use now."""
    with caplog.at_level(logging.WARNING):
        args = CoTTrainingArguments(
            output_dir=str(tmp_path),
            evaluation_strategy="steps",
            eval_steps=7,
            warmup_ratio=0.03,
            no_cuda=True,
            group_by_length=True,
            overwrite_output_dir=True,
        )
    assert args.eval_strategy == "steps" and args.warmup_steps == 0.03 and args.use_cpu
    assert args.get_warmup_steps(1000) == 30
    assert args.train_sampling_strategy == "group_by_length"
    for hint in ("--eval_strategy steps", "--warmup_steps 0.03", "--use_cpu", "--train_sampling_strategy"):
        assert hint in caplog.text


def test_group_by_length_keeps_evaluation_in_order(make_trainer):
    trainer = make_trainer(group_by_length=True)
    trainer.train()
    trainer.evaluate()
    rows = trainer.predictions("validation", trainer.eval_dataset)
    assert [row["gold"] for row in rows] == trainer.eval_dataset["answer_text"][:]
