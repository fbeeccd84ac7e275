"""Trainers as people call them: each call does what transformers' Trainer does, or is refused before anything is loaded."""

import json
import logging

import pytest
import torch
from conftest import SHIPPED, chain_model
from datasets import Dataset, DatasetDict, IterableDataset
from transformers import AutoModelForCausalLM, TrainingArguments

import run_icot
from latent_cot import tasks
from latent_cot.modeling_pccot import PCCoTGPT2LMHeadModel
from latent_cot.training.arguments import CoTTrainingArguments, DataArguments, LatentEvaluationArguments
from latent_cot.training.data.small_tokenizers import character_tokenizer
from latent_cot.training.errors import InputError
from latent_cot.training.method_arguments import CoTArguments, ICoTArguments, PCCoTArguments
from latent_cot.training.trainers.cot import CoTTrainer
from latent_cot.training.trainers.icot import ICoTTrainer
from latent_cot.training.trainers.pccot import PCCoTTrainer, check_output_head

DATA = tasks.generate("chain", "train=16,validation=6,test=4")
ROWS = {split: [{name: row[name] for name in ("question", "steps", "answer")} for row in DATA[split]] for split in DATA}


@pytest.fixture
def make(characters, tmp_path):
    def make(model=None, args_class=CoTTrainingArguments, flags=None, **options):
        defaults = {"max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": "none"}
        args = args_class(str(tmp_path), use_cpu=True, disable_tqdm=True, **(defaults | (flags or {})))
        options = {"train_dataset": ROWS["train"], "eval_dataset": ROWS["validation"]} | options
        options |= {"evaluation": LatentEvaluationArguments(max_new_tokens=3, explicit_cot=False)}
        return PCCoTTrainer(
            model or chain_model(characters, num_latent_tokens=3), args, processing_class=characters, **options
        )

    return make


def test_transformers_own_arguments(make):
    """The same run as with ours."""
    stock, ours = make(args_class=TrainingArguments), make()
    assert type(stock.args) is CoTTrainingArguments and stock.args.max_steps == 2
    assert stock.args.to_dict() == ours.args.to_dict()
    stock.train(), ours.train()
    for a, b in zip(stock.model.parameters(), ours.model.parameters(), strict=True):
        assert torch.equal(a, b)


def stream(rows: list[dict]) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize("kind", [list, Dataset.from_list, stream], ids=["list", "Dataset", "IterableDataset"])
def test_rows_of_every_kind_are_evaluated(kind, make):
    """At the start, by `evaluate(rows)`, and by `predict(rows)`: as the split would be."""
    trainer = make(eval_dataset=kind(ROWS["validation"]))
    found = trainer.evaluate()
    assert trainer.evaluate(kind(ROWS["validation"]))["eval_loss"] == found["eval_loss"]
    assert len(trainer.predictions("validation", trainer.eval_dataset)) == 6
    predicted = trainer.predict(kind(ROWS["test"]))
    assert "test_ccot_exact_match" in predicted.metrics
    golds = [row["gold"] for row in trainer.predictions("test", kind(ROWS["test"]))]
    assert golds == [row["answer"] for row in ROWS["test"]]


def test_several_sets_are_evaluated(make):
    found = make().evaluate({"a": ROWS["validation"], "b": Dataset.from_list(ROWS["test"])})
    assert {"eval_a_ccot_exact_match", "eval_b_ccot_exact_match"} <= found.keys()


def test_a_stream_is_trained_on(make):
    assert make(train_dataset=stream(ROWS["train"])).train().global_step == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compute_metrics": lambda prediction: {}}, "compute_metrics is not supported"),
        ({"compute_loss_func": lambda outputs, labels, **_: 0}, "compute_loss_func is not supported"),
        ({"preprocess_logits_for_metrics": lambda logits, labels: logits}, "preprocess_logits_for_metrics is not supp"),
        ({"data_collator": list}, "data_collator is not supported"),
        ({"model_init": lambda: None}, "model_init is not supported: pass the model"),
        ({"eval_dataset": []}, "eval_dataset: no rows"),
        ({"train_dataset": []}, "train_dataset: no rows"),
        ({"test_dataset": Dataset.from_list([])}, "test_dataset: no rows"),
        ({"eval_dataset": {"a": ROWS["test"]}}, "eval_dataset must be one set of rows, got dict of a: evaluate(...)"),
        ({"train_dataset": DatasetDict(train=Dataset.from_list(ROWS["test"]))}, "got DatasetDict of train: pass one"),
        ({"train_dataset": "gsm8k"}, "train_dataset must be a list of rows"),
        ({"train_dataset": [ROWS["train"][0] | {"answer": ""}]}, "row 0: the answer is empty"),
        ({"flags": {"remove_unused_columns": True}}, "--remove_unused_columns must stay off"),
        ({"flags": {"label_smoothing_factor": 0.1}}, "--label_smoothing_factor is not supported"),
        ({"flags": {"metric_for_best_model": "accuracy"}}, "--metric_for_best_model accuracy: there are loss"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_what_is_refused_before_anything_is_loaded(options, said, make):
    with pytest.raises(InputError) as error:
        make(model="no-such-model", **options)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_evaluated_of_no_rows(make):
    with pytest.raises(InputError, match="eval_dataset: no rows"):
        make().evaluate([])
    with pytest.raises(InputError, match="test_dataset: no rows"):
        make().predict(stream([]))


def test_a_search_over_hyperparameters_is_refused(make):
    with pytest.raises(InputError, match="hyperparameter_search is not supported"):
        make().hyperparameter_search()


def test_none_is_as_left_out(make):
    make(compute_metrics=None, compute_loss_func=None, data_collator=None, model_init=None)


SETTINGS = {"num_latent_tokens": 4, "latents_per_step": 2, "open_steps_with_bot": True, "num_iterations_range": "1,5"}


@pytest.mark.parametrize("trained", [False, True], ids=["not trained", "trained"])
def test_a_method_changes_a_model_object(trained, make, characters, caplog):
    """... with a warning where it was trained with other settings, as for a checkpoint."""
    model = chain_model(characters, num_latent_tokens=3)
    if not trained:
        for name in (*model.config.special_tokens, "answer_prompt_ids"):
            setattr(model.config, name, None)
    with caplog.at_level(logging.WARNING):
        trainer = make(model, method=PCCoTArguments(answer_prompt="#", **SETTINGS))
    assert {name: getattr(model.config, name) for name in SETTINGS} == SETTINGS | {"num_iterations_range": [1, 5]}
    assert trainer.data_collator([trainer.train_dataset[0]])["thought_span"].num_latents == 4
    assert ("num_latent_tokens=4 replaces the model's 3" in caplog.text) is trained


def test_a_checkpoint_keeps_its_last_step(make, caplog):
    """Whether its teacher was shown one is the model's own, until somebody says otherwise."""
    trainer = make(data=DataArguments(keep_last_step=True))
    caplog.clear()
    assert trainer.model.config.keep_last_step and len(trainer.train_dataset[0]["steps"]) == 4
    again = make(trainer.model)
    assert len(again.train_dataset[0]["steps"]) == 4 and "keep_last_step" not in caplog.text
    without = make(trainer.model, data=DataArguments(keep_last_step=False))
    assert "keep_last_step=False replaces the model's True" in caplog.text
    assert len(without.train_dataset[0]["steps"]) == 3 and not without.model.config.keep_last_step


def test_what_is_not_taught_of_steps_is_said(make, caplog):
    make(method=PCCoTArguments(loss_delta=1.0))
    assert (
        "step," not in caplog.text and "of a step" not in caplog.text
    )  # it is a digit, and the last one is the answer
    rows = [row | {"steps": [f"{step}+0={step}" for step in row["steps"][:3]]} for row in ROWS["train"]]
    make(train_dataset=rows, method=PCCoTArguments(loss_delta=1.0))
    assert "is not shown the last step, which is more than the answer in " in caplog.text
    assert (
        "teaches the first tokens of a step alone, here 1 (--latents_per_step), and steps have up to 5" in caplog.text
    )
    caplog.clear()
    for kept in (True, False):
        make(train_dataset=rows, data=DataArguments(keep_last_step=kept))
    assert "of a step" not in caplog.text and "last step, which" not in caplog.text


def test_a_method_that_does_not_fit_changes_nothing(make, characters):
    model = chain_model(characters, num_latent_tokens=3)
    with pytest.raises(ValueError, match="num_iterations must lie in num_iterations_range"):
        make(model, method=PCCoTArguments(num_latent_tokens=5, num_iterations_range="4,6"))
    assert model.config.num_latent_tokens == 3


@pytest.mark.parametrize("kind", [list, Dataset.from_list, stream], ids=["list", "Dataset", "IterableDataset"])
def test_a_system_message_that_was_trained_stays_in_the_chat(kind, make, characters):
    """Twice: the second time the rows of a `Dataset` are in the cache."""

    def rows(*first):
        talk = [*first, {"role": "user", "content": "1+1="}, {"role": "assistant", "content": "so 2\n#### 2"}]
        return kind([{"messages": talk}] * 8)

    system, asked = {"role": "system", "content": "3"}, {"role": "user", "content": "1+1="}
    for _ in range(2):
        trainer = make(train_dataset=rows(system), eval_dataset=None)
        chat = trainer.processing_class.apply_chat_template
        assert [chat(talk, tokenize=False) for talk in ([system, asked], [asked])] == ["3\n\n1+1=", "1+1="]
    trainer = make(train_dataset=rows(), eval_dataset=None)
    assert trainer.processing_class.apply_chat_template([system, asked], tokenize=False) == "1+1="


@pytest.mark.parametrize("name", ["use_projection", "scale_latents"])
def test_a_setting_that_adds_weights_is_not_for_a_model_object(name, make):
    """Nothing would be there to be trained, and the saved configuration would say that it is."""
    with pytest.raises(InputError, match=f"{name}=True: a model that is there already has its weights"):
        make(method=PCCoTArguments(**{name: True}))


@pytest.mark.parametrize("by", ["name", "object", "no name"])
def test_a_tokenizer_with_other_ids(by, characters, tmp_path):
    """It would train, and answer, as a model that is none (exact match 1.00 -> 0.69)."""
    args, other = CoTTrainingArguments(str(tmp_path), use_cpu=True), character_tokenizer(["zyx+-*=#0123456789", "#"])
    shipped = SHIPPED if by == "name" else AutoModelForCausalLM.from_pretrained(SHIPPED)
    model = chain_model(characters) if by == "no name" else shipped
    with pytest.raises(InputError, match=r"was trained with other token ids .* to use the model's own tokenizer"):
        PCCoTTrainer(model, args, train_dataset=ROWS["train"], processing_class=other)


def test_things_of_another_kind_are_named(tmp_path):
    args = CoTTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(InputError, match="processing_class must be a tokenizer, got the name 'gpt2'"):
        PCCoTTrainer(SHIPPED, args, train_dataset=ROWS["train"], processing_class="gpt2")
    with pytest.raises(InputError, match="method must be PCCoTArguments, got dict"):
        PCCoTTrainer(SHIPPED, args, train_dataset=ROWS["train"], method={"num_latent_tokens": 3})


def test_a_model_of_another_family(characters, tmp_path):
    model = chain_model(characters)
    type(model.config).family, args = "other", CoTTrainingArguments(str(tmp_path), use_cpu=True)
    try:
        with pytest.raises(InputError, match="no trainer here is for the family 'other'"):
            ICoTTrainer(model, args, train_dataset=ROWS["train"], processing_class=characters)
    finally:
        type(model.config).family = "pccot"


def test_an_explicit_chain_is_trained_with_transformers_own_arguments(characters, tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, report_to="none", disable_tqdm=True)
    trainer = CoTTrainer(
        chain_model(characters), args, train_dataset=ROWS["train"], processing_class=characters, method=CoTArguments()
    )
    assert trainer.train().global_step == 1


class Capped(PCCoTGPT2LMHeadModel):
    """As Gemma 2 caps its logits."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        if outputs.logits is not None:
            outputs.logits = 30 * torch.tanh(outputs.logits / 30)
        return outputs


def test_logits_that_are_capped_are_refused(characters, make):
    model = chain_model(characters)
    check_output_head(model)
    model.__class__ = Capped
    with pytest.raises(InputError, match="Capped changes the logits after its output head"):
        make(model)


def test_a_compiled_step_has_all_gradients(make, characters):
    """Traced, the deferred gradients would be lost."""
    trainer = make(chain_model(characters, num_latent_tokens=2, num_iterations=1, n_layer=1))
    batch = trainer.model_inputs(trainer.data_collator([trainer.train_dataset[row] for row in range(4)]), True)
    model = trainer.model.train()
    gradients = []
    for step in (model, torch.compile(model, backend="eager")):
        model.zero_grad()
        step(**batch).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    plain, compiled = gradients
    assert plain.keys() == compiled.keys()
    for name in plain:
        assert torch.allclose(plain[name], compiled[name], rtol=1e-4, atol=1e-6), name


def test_a_run_that_is_compiled_does_not_defer_gradients(make):
    trainer = make()
    inputs = trainer.data_collator([trainer.train_dataset[0]])
    assert "defer_gradients" not in trainer.model_inputs(inputs, training=True)
    trainer.args.torch_compile = True
    assert trainer.model_inputs(inputs, training=True)["defer_gradients"] is False


ICOT = "--config_name configs/icot_gpt2_chain.json --tokenizer_name characters --dataset_name chain --answer_prompt # "
ICOT += "--task_args train=16,validation=4,test=4 --use_cpu --report_to none --disable_tqdm true --save_strategy no "
ICOT += "--max_new_tokens 3 --max_cot_tokens 8"


def test_a_chain_that_is_half_gone_is_carded_so(tmp_path, caplog):
    """In the card, the results, and the label of the answer."""
    gate = "--removal_gate 0 --eval_strategy steps --eval_steps 1 --do_train --do_eval --max_steps 3 --do_predict"
    with caplog.at_level(logging.WARNING):
        run_icot.main([*ICOT.split(), *gate.split(), "--output_dir", str(tmp_path)])
    results = json.loads((tmp_path / "all_results.json").read_text())
    removed, chain = results["test_icot_removed_tokens"], results["test_icot_chain_tokens"]
    assert 0 < removed < chain
    card = (tmp_path / "README.md").read_text()
    assert f"of whose chain of thought {removed} of {chain} tokens were taken away" in card
    assert f"Of its chain of thought {removed} of {chain} tokens were internalised" in card
    assert f"| test | internalised chain of thought ({removed} of {chain} tokens removed) |" in card
    assert f"{removed} of {chain} tokens of the longest chain were removed" in caplog.text
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_internalized_tokens"], config["num_chain_tokens"]) == (removed, chain)


def test_the_size_of_latents_is_carded(make, characters, tmp_path):
    """As the last step had it; not where states are fed back as they are."""
    for scaled in (True, False):
        model = chain_model(characters, num_latent_tokens=3, scale_latents=scaled)
        trainer = make(model, flags={"logging_steps": 1})
        trainer.train()
        trainer.create_model_card()
        size = [entry["latent_scale"] for entry in trainer.state.log_history if "latent_scale" in entry][-1]
        said = f"brings its latents to {size:.2g} times the size of embeddings"
        assert (said in (tmp_path / "README.md").read_text()) == scaled


def test_a_batch_size_that_is_found_in_the_run_is_refused(characters, tmp_path):
    args = CoTTrainingArguments(str(tmp_path), use_cpu=True, auto_find_batch_size=True)
    with pytest.raises(InputError, match="--auto_find_batch_size: what is removed goes by the steps of an epoch"):
        ICoTTrainer("no-such-model", args, train_dataset=ROWS["train"], method=ICoTArguments())
