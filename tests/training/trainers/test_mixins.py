"""Each mixin of the trainers works alone with transformers' Trainer, and what it says that it needs."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, default_data_collator

from latent_cot.training.arguments import CoTTrainingArguments, LoraArguments
from latent_cot.training.data.small_tokenizers import character_tokenizer
from latent_cot.training.resume.find_checkpoint import newest_first
from latent_cot.training.resume.resumable_training import ResumableTrainingMixin
from latent_cot.training.trainers.saving import ModelSavingMixin


class Resumable(ResumableTrainingMixin, Trainer):
    pass


class Saving(ModelSavingMixin, Trainer):
    lora, base_model_name, hub_model_id = LoraArguments(), None, None

    def describe_method(self) -> str:
        return "Trained by a test."


@pytest.fixture
def make(tmp_path):
    tokenizer = character_tokenizer(["0123456789+= "])

    def make(trainer_class: type, args_class: type):
        args = args_class(str(tmp_path), use_cpu=True, max_steps=2, save_steps=1, report_to="none", disable_tqdm=True)
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = GPT2Config(n_layer=1, n_embd=8, n_head=1, n_positions=8, vocab_size=len(tokenizer), **ids)
        model = GPT2LMHeadModel(config)
        rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 16
        given = {"model": model, "args": args, "train_dataset": rows, "processing_class": tokenizer}
        return trainer_class(**given, data_collator=default_data_collator)

    return make


def test_resuming_alone(make, tmp_path):
    make(Resumable, TrainingArguments).train()
    (newest, *_) = newest_first(tmp_path)
    assert newest.name == "checkpoint-2"
    again = make(Resumable, TrainingArguments)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert again.state.global_step == 2


def test_saving_alone(make, tmp_path):
    trainer = make(Saving, CoTTrainingArguments)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(dataset="rows")
    assert GPT2LMHeadModel.from_pretrained(tmp_path).config.n_embd == 8
    assert "Trained by a test." in (tmp_path / "README.md").read_text()
