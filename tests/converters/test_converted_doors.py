"""Converted models in every other door, which answers as `generate()` does; training on top of one, and sharded sources."""

import json

import pytest
import torch
from batching import settings
from conftest import ROOT
from references import CASES, NEW, CodiCase
from safetensors.torch import load_file, save_file
from test_foreign_weights import QUESTIONS
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

from latent_cot.analysis.evaluation import answer_questions
from latent_cot.analysis.faithfulness import answers_under
from latent_cot.converters.detect import convert
from latent_cot.training import CoTTrainingArguments, EvaluationArguments, LoraArguments, PCCoTTrainer

READ = {"codi gpt2": "last_number", "sim-cot coconut": "hashes", "lotus": "last_number"}
ASKED = QUESTIONS[:5]


@pytest.fixture(scope="module", params=[*list(READ)[:2], pytest.param("lotus", marks=pytest.mark.slow)])
def converted(request, tmp_path_factory):
    """A converted folder, its model and tokenizer, and how its answers are read."""
    root = tmp_path_factory.mktemp("converted")
    case = CASES[request.param](root)
    convert(str(case.source), root / "out", base_model=case.base and str(case.base))
    model = AutoModelForCausalLM.from_pretrained(root / "out").eval()
    return root / "out", model, AutoTokenizer.from_pretrained(root / "out"), READ[request.param]


def alone(model, tokenizer) -> list[list[int]]:
    """The tokens of `generate()`, one question at a time."""
    found = []
    for question in ASKED:
        inputs = tokenizer([question], return_tensors="pt")
        found.append(model.generate(**inputs, max_new_tokens=NEW)[0, inputs["input_ids"].shape[1] :].tolist())
    return found


class Kept(BaseStreamer):
    def __init__(self):
        self.parts = []

    def put(self, value):
        self.parts.append(value.flatten().tolist())

    def end(self):
        pass


def test_streams_and_the_batch_engine(converted):
    _, model, tokenizer, _ = converted
    wanted, streamer = alone(model, tokenizer), Kept()
    inputs = tokenizer(ASKED[:1], return_tensors="pt")
    model.generate(**inputs, max_new_tokens=NEW, streamer=streamer)
    streamed = [token for part in streamer.parts[1:] for token in part]
    assert (streamer.parts[0], streamed) == (inputs["input_ids"][0].tolist(), wanted[0])
    outputs = model.generate_batch(
        tokenizer(ASKED)["input_ids"], None, settings(max_batch_tokens=256), max_new_tokens=NEW
    )
    assert [output.error for output in outputs.values()] == [None] * len(ASKED)
    assert [output.generated_tokens for output in outputs.values()] == wanted


def test_the_harness_and_faithfulness_read_answers_alike(converted, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    from latent_cot.evals import latent_lm  # noqa: F401  registers the class

    folder, model, tokenizer, source = converted
    assert model.config.answer_from == source
    (tmp_path / "test.json").write_text(json.dumps([{"question": text, "answer": "1"} for text in ASKED]))
    ours = answer_questions(model, tokenizer, ASKED, batch_size=2, max_new_tokens=NEW)
    manager = TaskManager(
        include_path=str(ROOT / "evals"),
        include_defaults=False,
        metadata={"data_file": str(tmp_path / "test.json"), "pretrained": str(folder)},
    )
    results = lm_eval.simple_evaluate(
        model="latent-cot",
        model_args=f"pretrained={folder}",
        tasks=["gsm8k_latent"],
        task_manager=manager,
        device="cpu",
        batch_size=2,
        gen_kwargs=f"max_gen_toks={NEW}",
        bootstrap_iters=0,
    )
    samples = sorted(results["samples"]["gsm8k_latent"], key=lambda sample: sample["doc_id"])
    assert [sample["resps"][0][0] for sample in samples] == [answer or "" for answer in ours.answers]
    limits = {"batch_size": 2, "max_new_tokens": NEW}
    assert answers_under(model, tokenizer, ASKED, **limits).answers == ours.answers
    assert answers_under(model, tokenizer, ASKED, "noise", **limits).texts != ours.texts


def test_training_on_top(converted, tmp_path):
    """LoRA: the model then has an answer prompt, and its answers are read after it."""
    folder, _, _, source = converted
    rows = [{"question": text, "steps": ["1+1=2"], "answer": "2"} for text in ASKED]
    args = CoTTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=1, report_to="none", save_strategy="no"
    )
    limits = EvaluationArguments(max_new_tokens=2, max_cot_tokens=4)
    evaluated = PCCoTTrainer(str(folder), args, test_dataset=rows, evaluation=limits)
    assert (evaluated.model.config.answer_prompt_ids, evaluated.model.config.answer_from) == ([], source)
    lora = LoraArguments(use_peft=True, lora_r=2)
    trainer = PCCoTTrainer(str(folder), args, train_dataset=rows, lora=lora, evaluation=limits)
    trainer.train()
    trainer.save_model(tmp_path / "trained")
    model, tokenizer = (kind.from_pretrained(tmp_path / "trained") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert tokenizer.decode(model.config.answer_prompt_ids).strip() == "The answer is:"
    assert model.config.answer_from == "prompt"
    assert len(answer_questions(model.eval(), tokenizer, ASKED, batch_size=2, max_new_tokens=2).answers) == len(ASKED)


def test_a_sharded_source(tmp_path):
    """`model.safetensors.index.json` names the files; one that is missing is told."""
    case = CodiCase(tmp_path, "gpt2", sim_cot=True)
    whole, shards = load_file(case.source / "model.safetensors"), tmp_path / "shards"
    shards.mkdir()
    names = sorted(whole)
    place = {name: f"model-0000{1 + (at > len(names) // 2)}-of-00002.safetensors" for at, name in enumerate(names)}
    for file in set(place.values()):
        save_file({name: whole[name] for name in names if place[name] == file}, shards / file)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    for source, out in ((case.source, "one"), (shards, "two")):
        convert(str(source), tmp_path / out, base_model=str(case.base))
    one, two = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
