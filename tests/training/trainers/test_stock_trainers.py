"""Other people's trainers on our checkpoints: with opened prompts they keep what a model knows."""

import pytest
from conftest import SHIPPED, make_any
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from latent_cot import tasks
from latent_cot.training import open_prompts
from latent_cot.training.errors import InputError

STEPS = {"max_steps": 100, "learning_rate": 1e-4, "per_device_train_batch_size": 16, "save_strategy": "no"}
STEPS |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True}


@pytest.fixture(scope="module")
def data():
    return tasks.generate("chain", "train=1600,validation=200,test=1")


def accuracy(model, tokenizer, rows) -> float:
    inputs = tokenizer([row["question"] for row in rows], padding=True, return_tensors="pt")
    output = model.eval().generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs.input_ids.shape[1] :]
    texts = tokenizer.batch_decode(output, skip_special_tokens=True)
    return sum(text.strip() == row["answer"] for text, row in zip(texts, rows, strict=True)) / len(rows)


def opened(tokenizer, model, rows) -> Dataset:
    rows = Dataset.from_list([{"question": row["question"], "answer": row["answer"]} for row in rows])
    return rows.map(open_prompts(tokenizer, model), remove_columns=rows.column_names)


def test_rows_hold_what_generate_adds(shipped):
    model, tokenizer = shipped
    open_row = open_prompts(tokenizer, model)
    row = open_row({"prompt": "7+3=", "completion": "0"})
    assert row == open_row({"question": "7+3=", "answer": "0"})
    prompt = tokenizer("7+3=")["input_ids"] + model.thought_ids()
    answer = [tokenizer.convert_tokens_to_ids("0"), tokenizer.eos_token_id]
    assert row["input_ids"] == prompt + answer and row["labels"] == [-100] * len(prompt) + answer
    assert row["attention_mask"] == [1] * len(row["labels"])
    shorter = open_prompts(tokenizer, model, num_latent_tokens=2)({"question": "7+3=", "answer": "0"})
    assert shorter["input_ids"].count(model.config.latent_token_id) == 2
    with pytest.raises(InputError, match="no column 'answer'"):
        open_row({"question": "7+3="})


def test_rows_hold_the_separators_of_icot(characters):
    model = make_any("icot-gpt2", vocab_size=len(characters), start_token_id=3, ready_token_id=4, pause_token_id=5)
    row = open_prompts(characters, model)({"question": "1+2=", "answer": "3"})
    assert row["input_ids"][:-2] == characters("1+2=")["input_ids"] + model.suffix_ids()


@pytest.mark.slow
def test_transformers_trainer_keeps_what_is_known(data, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED)
    before = accuracy(model, tokenizer, data["validation"])
    args = TrainingArguments(str(tmp_path), label_names=["labels"], **STEPS)
    rows = opened(tokenizer, model, data["train"])
    Trainer(model, args, train_dataset=rows, data_collator=DataCollatorForSeq2Seq(tokenizer)).train()
    assert accuracy(model, tokenizer, data["validation"]) >= before >= 0.99


@pytest.mark.slow
def test_trl_keeps_what_is_known(data, tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install '.[rl]'")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED)
    args = trl.SFTConfig(str(tmp_path), bf16=False, **STEPS)
    rows = opened(tokenizer, model, data["train"])
    trl.SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer).train()
    assert accuracy(model, tokenizer, data["validation"]) == 1.0
