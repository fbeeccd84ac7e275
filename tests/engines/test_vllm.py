"""The vLLM plugin: an unmodified vLLM answers as `generate()` does. `make test-vllm` runs this in an environment of its own."""

import os

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}

import gc
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT, make_any, question_batch
from transformers import AutoModelForCausalLM, AutoTokenizer

from latent_cot import tasks

vllm = pytest.importorskip("vllm", reason="needs vLLM: make test-vllm", exc_type=ImportError)

from vllm.distributed import cleanup_dist_env_and_memory  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.exceptions import VLLMValidationError  # noqa: E402
from vllm.plugins import load_general_plugins  # noqa: E402

from latent_cot.engines.vllm import plugin  # noqa: E402

WORDS = str(ROOT / "checkpoints" / "pccot-gpt2-words")
GPT2 = {"n_embd": 64, "n_head": 2}
ROPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
NEW = 12
MODELS = {
    "gpt2": ("pccot-gpt2", GPT2),
    "gpt2, untied, projection": ("pccot-gpt2", GPT2 | {"tie_word_embeddings": False, "use_projection": True}),
    "gpt2, gain": ("pccot-gpt2", GPT2 | {"scale_latents": True}),
    "llama, tied": ("pccot-llama", ROPE | {"tie_word_embeddings": True}),
    "llama, T = c, gain": ("pccot-llama", ROPE | {"num_iterations": 6, "scale_latents": True}),
    "mistral, window, projection": ("pccot-mistral", ROPE | {"sliding_window": 40, "use_projection": True}),
    "mistral, gain": ("pccot-mistral", ROPE | {"sliding_window": None, "scale_latents": True}),
    "qwen3, gain": ("pccot-qwen3", ROPE | {"scale_latents": True}),
    "icot-gpt2": ("icot-gpt2", GPT2),
    "icot-llama": ("icot-llama", ROPE),
}


@pytest.fixture(autouse=True, scope="module")
def registries():
    """As they were before: another test may want vLLM without the plugin."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry
    from vllm.utils.import_utils import resolve_obj_by_qualname

    held = [ModelRegistry.models, MODELS_CONFIG_MAP, RENDERER_REGISTRY.renderers, TokenizerRegistry.tokenizers]
    before = [dict(registry) for registry in held]
    plugin.register()
    load_general_plugins()  # the second time, by the entry point
    for (
        architecture,
        place,
    ) in plugin.ARCHITECTURES.items():  # as classes: vLLM would look at each place in a new process
        ModelRegistry.register_model(architecture, resolve_obj_by_qualname(place.replace(":", ".")))
    yield
    for registry, entries in zip(held, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.fixture
def engine():
    """Starts vLLM in this process, and ends it."""
    started = []

    def start(folder, **options):
        options = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 16, "disable_log_stats": True} | options
        started.append(vllm.LLM(str(folder), **options))
        return started[-1]

    yield start
    for llm in started:
        llm.llm_engine.engine_core.shutdown()
    started.clear()
    gc.collect()
    cleanup_dist_env_and_memory()


def save(kind: str, changes: dict, folder):
    """A small random model, and its folder; its gain and projection are far from doing nothing."""
    model = make_any(kind, max_position_embeddings=128, **changes)
    for name, weight in model.named_parameters():
        if "latent_gain" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    return model, folder


def asked(model, questions: list[list[int]], new: int = NEW) -> list[list[int]]:
    """`generate()`'s tokens, each question alone."""
    answers = []
    for ids in questions:
        output = model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False)
        answers.append(output[0, len(ids) :].tolist())
    return answers


def answered(llm, questions: list[list[int]], new: int = NEW) -> list[list[int]]:
    sampling = vllm.SamplingParams(temperature=0, max_tokens=new, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in questions]
    return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, sampling, use_tqdm=False)]


def questions_of(lengths: list[int], shared: int = 0) -> list[list[int]]:
    ids, mask = question_batch(lengths)
    rows = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
    return [rows[-1][: min(shared, len(row) // 2)] + row[min(shared, len(row) // 2) :] for row in rows]


LENGTHS = [1, 2, 3, 5, 8, 13, 21, 27, 34, 40, 47, 55, 61, 62, 63, 64, 70, 80, 89, 96, 100, 104]


@pytest.mark.parametrize("name", MODELS)
def test_the_tokens_of_generate(name, engine, tmp_path):
    """From 1 token to the positions' limit; 64 tokens per batch cut questions, few blocks preempt, blocks are shared."""
    kind, changes = MODELS[name]
    model, folder = save(kind, changes, tmp_path)
    questions = questions_of(LENGTHS, shared=48)
    if kind.startswith("pccot"):  # prompts that hold spans already: with other counts, and two of them
        spans = model.thought_ids(2), model.thought_ids(9)
        questions += [[7, 8, *spans[0], 9], [7, *spans[1]], [9, *spans[0], 8, 7, *spans[1], 11]]
    llm = engine(
        folder,
        skip_tokenizer_init=True,
        max_num_batched_tokens=64,
        block_size=32,
        num_gpu_blocks_override=14,
        max_model_len=128,
    )
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    counted, preempt = [], scheduler._preempt_request
    scheduler._preempt_request = lambda *args, **kwargs: (counted.append(args), preempt(*args, **kwargs))[1]
    wanted = asked(model, questions)
    assert answered(llm, questions) == wanted
    assert answered(llm, questions) == wanted  # again, from what was shared
    assert counted or "window" in name  # a window gives its blocks back, so that none are short


@pytest.mark.parametrize("name", ["gpt2", "qwen3, gain"])
def test_compiled_and_in_large_batches(name, engine, tmp_path):
    kind, changes = MODELS[name]
    model, folder = save(kind, changes, tmp_path)
    questions = questions_of(LENGTHS)
    llm = engine(folder, skip_tokenizer_init=True, enforce_eager=False, max_num_batched_tokens=4096, max_model_len=128)
    assert answered(llm, questions) == asked(model, questions)


def test_what_converted_models_need(engine, tmp_path):
    """Tokens between a question and its thought, no answer prompt, and tokens that an answer may not hold."""
    model, folder = save("pccot-gpt2", GPT2 | {"question_suffix_ids": [9], "answer_prompt_ids": []}, tmp_path)
    questions = questions_of(LENGTHS[:8])
    free = asked(model, questions)
    model.generation_config.suppress_tokens = sorted({answer[0] for answer in free})
    model.save_pretrained(folder)
    wanted = asked(model, questions)
    assert wanted != free
    assert answered(engine(folder, skip_tokenizer_init=True, max_model_len=128), questions) == wanted


def test_whole_passes_are_the_plain_twin(engine, tmp_path, monkeypatch):
    """What runs where the attention backend is not the CPU's gives the same tokens."""
    from latent_cot.engines.vllm import models

    monkeypatch.setattr(models, "CPUAttentionMetadata", ())
    model, folder = save(*MODELS["mistral, window, projection"], tmp_path)
    questions = questions_of(LENGTHS)
    llm = engine(folder, skip_tokenizer_init=True, max_num_batched_tokens=64, block_size=32, max_model_len=128)
    assert answered(llm, questions) == asked(model, questions)


def test_two_processes(engine, tmp_path, monkeypatch):
    """Tensor parallel: the plugin comes to each process by its entry point."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    model, folder = save("pccot-llama", ROPE | {"num_key_value_heads": 2, "scale_latents": True}, tmp_path)
    questions, options = questions_of(LENGTHS), {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    llm = engine(folder, skip_tokenizer_init=True, max_num_batched_tokens=64, max_model_len=128, **options)
    assert answered(llm, questions) == asked(model, questions)


@pytest.fixture(scope="module")
def words():
    model = AutoModelForCausalLM.from_pretrained(WORDS, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(WORDS)
    problems = tasks.generate("word_problems", "train=1,validation=1,test=24")["test"]
    return model, tokenizer, [row["question"] for row in problems]


def test_words_as_text(engine, words):
    """Text that spells special tokens stays text; T and c are the server's; what is the server's is refused per request."""
    model, tokenizer, questions = words
    questions = [
        *questions[:6],
        "<pcot.bot><pcot.latent><pcot.eot>",
        f"{questions[0]} <pcot.bot>",
        questions[1] + "<eos>",
    ]
    llm = engine(WORDS, hf_overrides={"num_iterations": 3, "num_latent_tokens": 7})
    sampling = vllm.SamplingParams(temperature=0, max_tokens=20)
    outputs = llm.generate(questions, sampling, use_tqdm=False)
    for question, output in zip(questions, outputs, strict=True):
        ids = tokenizer(question, return_tensors="pt")["input_ids"]
        wanted = model.generate(ids, max_new_tokens=20, do_sample=False, num_iterations=3, num_latent_tokens=7)
        assert list(output.outputs[0].token_ids) == wanted[0, ids.shape[1] :].tolist()
        assert output.prompt_token_ids == model.open_prompt(ids, num_latent_tokens=7)["input_ids"][0].tolist()
    for name in ("num_iterations", "latent_thought"):
        with pytest.raises(VLLMValidationError, match=f"{name} is set for the whole server"):
            llm.generate("one", vllm.SamplingParams(extra_args={name: 1}), use_tqdm=False)
    for prompt, words_of in (
        ("", "the prompt is empty|cannot be empty"),
        ({"prompt_token_ids": [5] * 150}, "what follows it needs 10 positions"),
        ({"prompt_token_ids": [5, 97, 99, 5]}, "is cut off"),
        ({"prompt_token_ids": [5, 1000]}, "vocabulary"),
    ):
        with pytest.raises((ValueError, VLLMValidationError), match=words_of):
            llm.generate(prompt, sampling, use_tqdm=False)


def test_the_written_chain(engine, words):
    model, tokenizer, questions = words
    llm = engine(WORDS, hf_overrides={"latent_thought": False})
    outputs = llm.generate(questions[:6], vllm.SamplingParams(temperature=0, max_tokens=40), use_tqdm=False)
    for question, output in zip(questions, outputs, strict=False):
        ids = tokenizer(question, return_tensors="pt")["input_ids"]
        wanted = model.generate(ids, max_new_tokens=40, do_sample=False, latent_thought=False)
        assert list(output.outputs[0].token_ids) == wanted[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    ("options", "words_of"),
    [
        ({"enable_lora": True}, "LoRA requests would answer wrongly"),
        ({"pipeline_parallel_size": 2}, "pipeline parallelism would answer wrongly"),
        ({"enable_prompt_embeds": True}, "prompt embeddings would answer wrongly"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative decoding would answer"),
        ({"runner": "pooling"}, "pooling would answer wrongly"),
        ({"max_num_batched_tokens": 12, "max_num_seqs": 2}, "a thought span of 14 tokens is computed in one step"),
        ({"max_model_len": 15}, "no room for a question"),
        ({"tokenizer_mode": "mistral"}, "would not open the prompts"),
        ({"hf_overrides": {"num_iterations": -1}}, "num_iterations must be a whole number"),
        ({"hf_overrides": {"num_latent_tokens": 0}}, "num_latent_tokens must be a whole number"),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "another scheduler would answer wrongly"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_answer_wrongly_is_refused(options, words_of):
    with pytest.raises(ValueError, match=words_of):
        EngineArgs(model=WORDS, dtype="float32", **options).create_engine_config()


def test_positions_that_stay_free_are_refused(tmp_path):
    _, folder = save("icot-gpt2", GPT2 | {"keep_position": True, "position_gap": 4}, tmp_path)
    with pytest.raises(ValueError, match="leaves 4 positions free"):
        EngineArgs(model=str(folder), skip_tokenizer_init=True).create_engine_config()


@pytest.fixture(scope="module")
def server():
    """vLLM's own server of the words model, in processes of its own."""
    import subprocess
    import sys
    import time

    address = "http://127.0.0.1:8931"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", WORDS, "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", "8931", "--enforce-eager", "--served-model-name", "words"]
    process = subprocess.Popen(command, env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"})
    try:
        for _ in range(900):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except (OSError, urllib.error.URLError):
                assert process.poll() is None, "the server ended"
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def post(address: str, path: str, **body) -> tuple[int, str]:
    data = json.dumps({"model": "words", "temperature": 0, "max_tokens": 20} | body).encode()
    request = urllib.request.Request(f"{address}/v1/{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_a_server_answers_as_generate(server, words):
    """Completions, chats and streams side by side; bad requests get 400 and a sentence."""
    model, tokenizer, questions = words

    def wanted(question):
        ids = tokenizer(question, return_tensors="pt")["input_ids"]
        output = model.generate(ids, max_new_tokens=20, do_sample=False)
        return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)

    def answer(case):
        number, question = case
        if number % 3 == 0:
            return json.loads(post(server, "completions", prompt=question)[1])["choices"][0]["text"]
        messages = [{"role": "user", "content": question}]
        if number % 3 == 1:
            body = post(server, "chat/completions", messages=messages)[1]
            return json.loads(body)["choices"][0]["message"]["content"]
        lines = post(server, "chat/completions", messages=messages, stream=True)[1].splitlines()
        parts = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        return "".join(part["choices"][0]["delta"].get("content") or "" for part in parts)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, enumerate(questions)))
    assert [text.strip() for text in answers] == [wanted(question).strip() for question in questions]

    for body, sentence in (
        ({"prompt": [5] * 150}, "what follows it needs 15 positions"),
        ({"prompt": [5, 97, 99]}, "is cut off"),
        ({"prompt": "one", "vllm_xargs": {"num_iterations": 3}}, "num_iterations is set for the whole server"),
        ({"prompt": ""}, "empty"),
    ):
        status, text = post(server, "completions", **body)
        assert status == 400 and sentence in text, text
    assert post(server, "chat/completions", messages=[])[0] == 400
