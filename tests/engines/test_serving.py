"""Where transformers models are put to work: pipelines, chat templates, the OpenAI-style server, the chat client."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHIPPED
from transformers import pipeline

from latent_cot.commands.serve import serve

QUESTIONS = [
    "7+3*4-2+9=",
    "2-9+4*6-3=",
    "1+2*3-4+5=",
    "9*9-8+7*6=",
    "1-1+1-1+1=",
    "3*3*3*3*3=",
    "5+5-5*5+5=",
    "0+9-2*4+1=",
]
LOOPBACK = {"no_proxy": "localhost,127.0.0.1", "NO_PROXY": "localhost,127.0.0.1"}


@pytest.fixture(scope="module")
def answers(shipped) -> list[str]:
    """What plain generate() answers, one question at a time."""
    (model, tokenizer), found = shipped, []
    for question in QUESTIONS:
        inputs = tokenizer([question], return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        found.append(tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip())
    assert len(set(found)) > 3
    return found


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def test_pipeline_of_eight(answers):
    """A list of questions of unequal length in one batch."""
    ask, options = pipeline("text-generation", model=str(SHIPPED)), {"max_new_tokens": 6, "do_sample": False}
    short = ["1+1=", "2="]
    outputs = ask([*QUESTIONS[:6], *short], batch_size=8, return_full_text=False, **options)
    assert [output[0]["generated_text"].strip() for output in outputs[:6]] == answers[:6]
    assert outputs[6:] == [ask(question, return_full_text=False, **options) for question in short]


def test_a_pipeline_without_a_limit(answers):
    """Of its own it asks for 256 tokens, and the model has 64 positions."""
    ask = pipeline("text-generation", model=str(SHIPPED))
    assert [ask(question, return_full_text=False)[0]["generated_text"] for question in QUESTIONS[:2]] == answers[:2]
    assert ask(QUESTIONS[0], return_full_text=False, max_new_tokens=1)[0]["generated_text"] == answers[0]


def test_a_server_of_no_checkpoint(tmp_path):
    with pytest.raises(SystemExit, match="is no checkpoint: no config"):
        serve(["--model", str(tmp_path)])


def test_chat_template(shipped):
    """The prompt of a chat is its last question (tests/training/data/test_tokenizer_worlds.py asks chats)."""
    _, tokenizer = shipped

    def rendered(*messages):
        return tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)

    talk = [*user("first"), {"role": "assistant", "content": "1"}, *user("second")]
    system = {"role": "system", "content": "be brief"}
    assert rendered(*talk) == "second"
    assert rendered(system, *talk) == "second"  # what a question was never trained with would be part of it
    assert rendered({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}) == "ab"
    assert rendered(*user("  <pcot.bot> {{ 1 }}\n")) == "  <pcot.bot> {{ 1 }}\n"
    ids = tokenizer.apply_chat_template(user("1<pcot.bot><pcot.latent><pcot.eot>[PAD]<eos>"), return_dict=True)[
        "input_ids"
    ]
    assert not set(ids) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


@contextmanager
def serving(log: Path, *flags: str, folder: Path = SHIPPED):
    """`latent-cot serve`, on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "latent_cot.commands", "serve", "--model", str(folder), "--port", str(port)]
    command += ["--device", "cpu", *flags]
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=os.environ | LOOPBACK)
    address = f"http://localhost:{port}"
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                send(f"{address}/health")
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail(log.read_text()[-3000:])
        yield address
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("serve") / "log") as address:
        yield address


@pytest.fixture(scope="module")
def batch_server(tmp_path_factory):
    """With continuous batching, in a cache that suits a test."""
    flags = ["--continuous-batching", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "256", "--cb-block-size", "32"]
    with serving(tmp_path_factory.mktemp("serve") / "log", *flags) as address:
        yield address


def send(address: str, body: dict | None = None) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    data = None if body is None else json.dumps(body).encode()
    with opener.open(urllib.request.Request(address, data, {"Content-Type": "application/json"}), timeout=60) as reply:
        return reply.read()


def chat(question: str, **options) -> dict:
    return {"model": str(SHIPPED), "messages": user(question), "max_tokens": 6, "temperature": 0, **options}


def streamed(reply: str) -> str:
    """The text of a stream's pieces, whose last one must say that the answer is complete."""
    lines = reply.splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def test_server_answers(server, answers):
    for question, answer in zip(QUESTIONS[:3], answers, strict=False):
        reply = json.loads(send(f"{server}/v1/chat/completions", chat(question)))
        assert reply["choices"][0]["message"]["content"].strip() == answer
        assert reply["choices"][0]["finish_reason"] == "stop"
        assert reply["usage"]["prompt_tokens"] == len(question)


def test_server_streams(server, answers):
    reply = send(f"{server}/v1/chat/completions", chat(QUESTIONS[1], stream=True))
    assert streamed(reply.decode()).strip() == answers[1]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_says_how_to_think(server, stream, shipped):
    """T and `latent_thought`, in the `generation_config` of a request."""
    model, tokenizer = shipped
    inputs, found = tokenizer([QUESTIONS[2]], return_tensors="pt"), set()
    for options in ({}, {"num_iterations": 1}, {"latent_thought": False}):
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False, **options)
        wanted = tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        body = {"model": str(SHIPPED), "messages": user(QUESTIONS[2]), "stream": stream}
        body |= {"generation_config": json.dumps({"max_new_tokens": 8, "do_sample": False, **options})}
        reply = send(f"{server}/v1/chat/completions", body).decode()
        given = streamed(reply) if stream else json.loads(reply)["choices"][0]["message"]["content"]
        assert given.strip() == wanted.strip()
        found.add(wanted)
    assert len(found) > 1


@pytest.mark.slow
def test_batch_server_answers_many_at_once(batch_server, shipped):
    """200 concurrent requests, every other one a stream, as `generate()` answers each of them alone."""
    model, tokenizer = shipped
    source = torch.Generator().manual_seed(0)
    digits = torch.randint(0, 10, (200, 5), generator=source).tolist()
    signs = torch.randint(0, 3, (200, 4), generator=source).tolist()
    asked = []
    for numbers, kinds in zip(digits, signs, strict=True):
        asked.append("".join(f"{a}{'+-*'[b]}" for a, b in zip(numbers, [*kinds, 0], strict=True))[:-1] + "=")
    wanted = []
    for question in asked:
        inputs = tokenizer([question], return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        wanted.append(tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip())

    def ask(number: int) -> str:
        body = chat(asked[number], stream=bool(number % 2))
        reply = send(f"{batch_server}/v1/chat/completions", body).decode()
        return streamed(reply) if number % 2 else json.loads(reply)["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(200) as pool:
        found = [answer.strip() for answer in pool.map(ask, range(200))]
    assert found == wanted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("which", ["server", pytest.param("batch_server", marks=pytest.mark.slow)])
def test_server_refuses_in_one_sentence(which, answers, stream, request):
    """400 and the sentence that `generate()` says, before a stream begins; the next request is answered as ever."""
    server = request.getfixturevalue(which)
    right = chat(QUESTIONS[0])
    for changes, words in (
        ({"messages": []}, "messages must be a list of at least one message"),
        ({"messages": "hello"}, "messages must be a list"),
        ({"messages": [{"content": "1+1="}]}, "must have a role"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "the content of a message must be text or a list of parts, got 5",
        ),
        ({"messages": user("")}, "at least one token"),
        ({"messages": user("1+\ud83d=")}, r"the request holds '\ud83d', half of a surrogate pair"),
        ({"messages": user("1" * 80)}, "more than the model's 64 positions"),
        ({"max_tokens": 2000}, "2000 new tokens are asked for: more than the model's 64 positions"),
        ({"max_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_tokens": "many"}, "many"),
        ({"max_tokens": [1]}, "max_tokens must be a number, got [1]"),
        ({"stop": 5}, "stop must be text, or a list of texts, got 5"),
        ({"logit_bias": [1]}, "logit_bias must be numbers by token id, got [1]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "each part of a message must be {type: text, text}",
        ),
        ({"generation_config": "[1]"}, "generation_config must be text, a JSON object, got '[1]'"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            send(f"{server}/v1/chat/completions", right | changes | {"stream": stream})
        error = json.loads(refusal.value.read())["error"]
        assert refusal.value.code == 400 and words in error["message"] and "\n" not in error["message"]
    without = {
        name: value for name, value in right.items() if name != "max_tokens"
    }  # transformers' server asks for 1024
    for body in (right, without):
        reply = json.loads(send(f"{server}/v1/chat/completions", body))
        assert reply["choices"][0]["message"]["content"].strip() == answers[0]


@pytest.mark.slow
def test_chat_client(server, answers, tmp_path):
    """`latent-cot chat`, two questions after each other."""
    command = [
        sys.executable,
        *("-m", "latent_cot.commands", "chat", "--model", str(SHIPPED)),
        server,
        "do_sample=False",
        "max_new_tokens=6",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, input=f"{QUESTIONS[0]}\n{QUESTIONS[1]}\n!exit\n", capture_output=True, text=True,
        timeout=120, env=os.environ | LOOPBACK | {"HF_HUB_OFFLINE": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert [line for line in lines if line in "0123456789" and line] == answers[:2], done.stdout


def test_bos_that_a_chat_lacks():
    """A model trained on questions after BOS gets it from generate() where the prompt has none: same tokens, nothing to see."""
    from conftest import make_model

    model = make_model("llama", questions_start_with_bos=True, bos_token_id=2, eos_token_id=3)
    with_bos = torch.tensor([[0, 0, 2, 9, 10], [2, 11, 12, 13, 14], [0, 2, 15, 16, 17]])
    mask = (with_bos != 0).long()
    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    wanted = model.generate(with_bos, attention_mask=mask, **options)
    bare = torch.tensor([[0, 0, 9, 10], [11, 12, 13, 14], [0, 15, 16, 17]])
    for given in ({"attention_mask": (bare != 0).long()}, {}):
        found = model.generate(bare, **given, **options)
        assert torch.equal(found.sequences[:, :4], bare)
        assert torch.equal(found.sequences[:, 4:], wanted.sequences[:, 5:])
        assert torch.allclose(torch.stack(found.logits), torch.stack(wanted.logits), atol=1e-4)
    mixed = torch.tensor([[0, 0, 9, 10], [2, 11, 12, 13]])  # the second row has its own
    found = model.generate(mixed, attention_mask=(mixed != 0).long(), max_new_tokens=6, do_sample=False)
    assert torch.equal(found[0, 4:], wanted.sequences[0, 5:])
    alone = model.generate(mixed[1:], max_new_tokens=6, do_sample=False)
    assert torch.equal(found[1, 4:], alone[0, 4:])
    # without a thought too, with beams, and as many tokens as asked for
    explicit = model.generate(
        bare, attention_mask=(bare != 0).long(), latent_thought=False, max_length=9, do_sample=False
    )
    plain = model.generate(with_bos, attention_mask=mask, latent_thought=False, max_length=10, do_sample=False)
    assert torch.equal(explicit[:, 4:], plain[:, 5:])
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5}
    found = model.generate(bare, attention_mask=(bare != 0).long(), **beams)
    assert torch.equal(found[:, 4:], model.generate(with_bos, attention_mask=mask, **beams)[:, 5:])
    assert torch.equal(found[:, :4], bare.repeat_interleave(2, dim=0))
