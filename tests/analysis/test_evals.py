"""lm-evaluation-harness: the accuracy of our own evaluation, example by example; also started as a user starts it."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import lm_eval
import pytest
import torch
from conftest import FIXTURES, ROOT, SHIPPED, chain_model
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel

import latent_cot  # noqa: F401
from latent_cot import tasks
from latent_cot.analysis.evaluation import answer_questions, same_answer
from latent_cot.evals.latent_lm import LatentHFLM
from latent_cot.training.errors import InputError

TASK = "operations=4,train=1,validation=1,test=40,seed=77"
ROWS = tasks.generate("chain", TASK)["test"]
SAMPLES = dict[str, list[dict]]


@pytest.fixture(scope="module")
def unsure(tmp_path_factory):
    """The shipped model made to think less, so that it is right on some questions only."""
    folder = tmp_path_factory.mktemp("unsure")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED)
    model.config.num_iterations = 2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def evaluate(folder: Path, names: str, metadata: dict, **options) -> SAMPLES:
    """The logged samples of each task, in this process: the command spends ten seconds on looking for other tasks."""
    results = lm_eval.simple_evaluate(
        model="latent-cot",
        model_args=f"pretrained={folder}",
        tasks=names.split(","),
        task_manager=TaskManager(include_path=str(ROOT / "evals"), include_defaults=False, metadata=metadata),
        device="cpu",
        bootstrap_iters=0,
        **options,
    )
    return {name: sorted(results["samples"][name], key=lambda sample: sample["doc_id"]) for name in names.split(",")}


def command(folder: Path, names: str, metadata: dict, **options) -> SAMPLES:
    """The same by `latent-cot lm_eval`, where this repository's folder is not the working one."""
    flags = []
    for name, value in options.items():
        flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    out = Path(tempfile.mkdtemp(dir=folder.parent))
    words = [sys.executable, "-m", "latent_cot.commands", "lm_eval", "--model_args", f"pretrained={folder}"]
    words += ["--tasks", names, "--device", "cpu", "--log_samples"]
    words += ["--output_path", str(out), "--metadata", json.dumps(metadata), *flags]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(words, cwd=out, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for name in names.split(","):
        (path,) = out.rglob(f"samples_{name}_*.jsonl")
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        found[name] = sorted(samples, key=lambda sample: sample["doc_id"])
    return found


ALONE, CHATS = {"batch_size": 1}, {"batch_size": 8, "apply_chat_template": True}
WAYS = [
    (evaluate, CHATS),
    *(pytest.param(*way, marks=pytest.mark.slow) for way in ((evaluate, ALONE), (command, CHATS))),
]


@pytest.mark.parametrize(("run_harness", "options"), WAYS)
def test_the_same_accuracy_to_the_last_example(unsure, run_harness, options):
    """... by generation and, of the ten digits, by likelihood with the latents in place."""
    samples = run_harness(unsure, "chain_latent,chain_choice", {"task_args": TASK}, **options)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(unsure), AutoTokenizer.from_pretrained(unsure)
    ours = answer_questions(model, tokenizer, [row["question"] for row in ROWS], batch_size=16, max_new_tokens=8)
    right = [float(same_answer(given, row["answer"])) for given, row in zip(ours.answers, ROWS, strict=True)]
    assert 0.05 < sum(right) / len(right) < 0.6
    assert [sample["exact_match"] for sample in samples["chain_latent"]] == right
    assert [sample["resps"][0][0].strip() for sample in samples["chain_latent"]] == ours.texts

    # The likelihood of each digit after the thought, computed by hand; without the thought it is another.
    digits = tokenizer([str(digit) for digit in range(10)], add_special_tokens=False)["input_ids"]
    for row, sample in list(zip(ROWS, samples["chain_choice"], strict=True))[:10]:
        ids = torch.tensor([tokenizer(row["question"])["input_ids"]])
        thought = torch.tensor([model.thought_ids()])
        with torch.no_grad():
            after = model(torch.cat([ids, thought], dim=1)).logits[0, -1].log_softmax(dim=-1)
            without = model(ids).logits[0, -1].log_softmax(dim=-1)
        scores = torch.tensor([float(response[0][0]) for response in sample["resps"]])
        assert torch.allclose(scores, after[torch.tensor(digits)[:, 0]], atol=1e-4)
        assert not torch.allclose(scores, without[torch.tensor(digits)[:, 0]], atol=1e-2)
        assert sample["acc"] == float(scores.argmax() == int(row["answer"]))


def test_every_task_reads_a_local_file(tmp_path, characters):
    """Offline; the published text format, a file like ProsQA's, and plain questions."""
    model = chain_model(characters, n_positions=1024, num_latent_tokens=2)
    model.save_pretrained(tmp_path / "model")
    characters.save_pretrained(tmp_path / "model")
    words = "gsm8k_latent,svamp_latent,gsm_hard_latent,multiarith_latent,own_latent"
    data = {"data_file": str(FIXTURES / "published" / "gsm8k_valid.txt")}
    samples = evaluate(tmp_path / "model", words, data, limit=2, batch_size=2)
    questions = [line.partition("||")[0] for line in Path(data["data_file"]).read_text().splitlines()[:2]]
    for name in words.split(","):
        assert [sample["doc"]["question"] for sample in samples[name]] == questions
        assert {sample["exact_match"] for sample in samples[name]} <= {0.0, 1.0}
    row = {"question": "Tom is a terpus. Is Tom a lempus or scrompus?", "steps": [], "answer": "Tom is a lempus."}
    (tmp_path / "graph.json").write_text(json.dumps([row]))
    samples = evaluate(tmp_path / "model", "prosqa_choice", {"data_file": str(tmp_path / "graph.json")})
    (sample,) = samples["prosqa_choice"]
    choices = [choice for _, choice in sample["arguments"]]
    assert choices == ["Tom is a lempus.", "Tom is a scrompus."]


@pytest.fixture
def functions():
    """The module that the task files name their functions from."""
    return importlib.import_module("latent_cot.evals.harness")


def test_every_task_file_is_complete(functions):
    """Each names a function that exists, and what it includes is there."""
    files = sorted((ROOT / "evals").glob("[a-z]*.yaml"))
    assert len(files) >= 8
    for path in files:
        lines = path.read_text().splitlines()
        assert f"task: {path.stem}" in lines
        for line in lines:
            if "!function" in line:
                assert callable(getattr(functions, line.rpartition("harness.")[2])), line
            if line.startswith("include: "):
                assert (path.parent / line.removeprefix("include: ")).exists()


def test_a_model_that_is_not_ours_is_evaluated_as_the_harness_does(characters):
    plain = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=1, n_layer=1, n_positions=32, vocab_size=len(characters)))
    ours, theirs = (name(pretrained=plain, tokenizer=characters, device="cpu") for name in (LatentHFLM, HFLM))
    assert ours._encode_pair("1+2=", " 3") == theirs._encode_pair("1+2=", " 3")
    asked = [Instance("generate_until", {}, ("1+2=", {"until": [], "max_gen_toks": 4, "do_sample": False}), 0)]
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def stock(model: PreTrainedModel) -> GPT2LMHeadModel:
    """The backbone of a PCCoT model as run_cot.py leaves one: it knows its answer prompt, and no latents."""
    known = GPT2Config().to_dict().keys() - {"model_type", "architectures"}
    config = GPT2Config(**{name: value for name, value in model.config.to_dict().items() if name in known})
    config.answer_prompt_ids = model.config.answer_prompt_ids
    plain = GPT2LMHeadModel(config).eval()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "latent_gain" not in name})
    return plain


@pytest.mark.parametrize("asked", ["by mode", "by request", "a stock backbone"])
def test_an_explicit_chain_is_read(asked):
    """The answer in it is what counts, as in our own evaluation; and there is room to write the chain."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED)
    model = stock(model) if asked == "a stock backbone" else model
    mode = "cot" if asked == "by mode" else None
    lm = LatentHFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=4, mode=mode)
    options = {"until": [], "max_gen_toks": 2, "do_sample": False}
    options |= {"latent_thought": False} if asked == "by request" else {}
    questions, rows = [row["question"] for row in ROWS[:20]], ROWS[:20]
    given = lm.generate_until([Instance("generate_until", row, (row["question"], options), 0) for row in rows])
    room = (
        model.config.n_positions
        - len(tokenizer(questions[0])["input_ids"])
        - ("bot_token_id" in model.config.to_dict())
    )
    ours = answer_questions(model, tokenizer, questions, mode="cot", batch_size=4, max_new_tokens=room)
    assert given == ours.answers and min(map(len, ours.texts)) > 2
    right = sum(map(same_answer, given, [row["answer"] for row in rows])) / len(rows)
    assert right > 0.9 or asked == "a stock backbone"


def test_the_likelihood_of_an_answer_after_a_chain_is_refused(characters):
    model = chain_model(characters, num_latent_tokens=2)
    model.config.answer_prompt_ids = [4]
    lm = LatentHFLM(pretrained=model, tokenizer=characters, device="cpu", mode="cot")
    with pytest.raises(ValueError, match="ask a task that generates"):
        lm._encode_pair("1+2=", "3")
    direct = LatentHFLM(pretrained=model, tokenizer=characters, device="cpu", mode="no_cot")
    assert direct._encode_pair("1+2=", "3")[0] == [*direct.tok_encode("1+2="), 4]
    with pytest.raises(InputError, match="cannot answer as 'telepathy'"):
        LatentHFLM(pretrained=model, tokenizer=characters, device="cpu", mode="telepathy")


def test_a_class_of_the_harness_own_is_refused_for_our_models(functions, monkeypatch, characters, tmp_path):
    """It would score without the thought and count chains as wrong."""
    monkeypatch.setattr(LatentHFLM, "made", 0)
    with pytest.raises(ValueError, match="ask it by latent-cot lm_eval"):
        functions.chain(pretrained=str(SHIPPED), task_args="test=2")
    GPT2Config().save_pretrained(tmp_path)
    assert len(functions.chain(pretrained=str(tmp_path), task_args="test=2")["test"]) == 2
    LatentHFLM(pretrained=stock(AutoModelForCausalLM.from_pretrained(SHIPPED)), tokenizer=characters, device="cpu")
    assert len(functions.chain(pretrained=str(SHIPPED), task_args="test=2")["test"]) == 2
