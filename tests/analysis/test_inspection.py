"""The page about thoughts: what is in it is what the model computes, and it can be read everywhere."""

import copy
import re
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, SHIPPED, make_any
from matplotlib.image import imread
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from latent_cot import tasks
from latent_cot.analysis.evaluation import answer_questions
from latent_cot.analysis.inspection import Pass, Place, Readings, View, inspect, read_data, step_texts
from latent_cot.analysis.inspection_page import render_page
from latent_cot.commands import inspect_thoughts
from latent_cot.training.errors import InputError

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EXAMPLE = {"question": "7+3*4-2+9=", "steps": ["0", "0", "8", "7"], "answer": "7"}


@pytest.fixture(scope="module")
def view(shipped) -> View:
    return inspect(*shipped, EXAMPLE, max_new_tokens=4)


@pytest.fixture(scope="module")
def page(shipped, view) -> str:
    examples = tasks.generate("chain", "train=1,validation=1,test=60,seed=5")["test"]
    readings = read_data(*shipped, examples, data="chain", max_new_tokens=4)
    return render_page([view, replace(view, gold=None)], readings, name="shipped", config=shipped[0].config)


# --- what is in it ---


@pytest.mark.parametrize("kept", [False, True])
def test_a_latent_stands_for_a_step_that_was_taught(shipped, kept):
    """Of four latents the last one for the last step only where the teacher was shown that."""
    config = copy.deepcopy(shipped[0].config)
    config.num_latent_tokens, config.keep_last_step = 4, kept
    texts = [text for text, _ in step_texts(SimpleNamespace(config=config), shipped[1], EXAMPLE)]
    assert texts == ["0", "0", "8", "7" if kept else None]


def test_a_view_of_the_shipped_model(shipped, view):
    model, tokenizer = shipped
    for number, one in enumerate(view.passes):
        asked = {"num_iterations": number, "batch_size": 1, "max_new_tokens": 4}
        assert [one.answer] == answer_questions(model, tokenizer, [view.question], **asked).answers
    assert view.shown == 3 and view.passes[3].right and view.explicit == "008#7" and view.explicit_right
    assert [place.step for place in view.passes[3].places] == ["0", "0", "8"]
    assert [place.right for one in view.passes[1:] for place in one.places].count(True) >= 6
    assert [place.words[0][0] for place in view.passes[3].places] == ["0", "0", "8"]
    assert all(place.words == [] and place.moved is None for place in view.passes[0].places)
    for number in (1, 2, 3):  # latent i is final after i passes
        for latent, place in enumerate(view.passes[number].places, start=1):
            assert (place.moved < 1e-4) == (latent < number) and len(place.words) == 5
            assert 0.9 < sum(share for _, share in place.words) <= 1 + 1e-5


def test_attention_is_that_of_the_answer(shipped, view):
    """Of the answer prompt's last position, which predicts the one token of this answer."""
    model, tokenizer = shipped
    eager = AutoModelForCausalLM.from_pretrained(SHIPPED, attn_implementation="eager").eval()
    asked = tokenizer([view.question], return_tensors="pt")
    with torch.no_grad():
        output = eager(**eager.open_thought(**asked), output_attentions=True)
    columns = asked.input_ids.shape[1]
    for layer, attention in zip(view.passes[3].attention, output.attentions, strict=True):
        wanted = attention[0, :, -1].mean(dim=0)
        latents = wanted[columns + 1 : columns + 4].tolist()
        assert np.allclose(layer[:-1], [float(wanted[:columns].sum()), *latents], atol=1e-4)
        assert sum(layer) == pytest.approx(1, abs=1e-4)
    assert [token for token, _ in view.passes[3].tokens] == list(view.question)
    assert model.config._attn_implementation == "sdpa"  # as it was


def test_readings_across_a_data_set(shipped):
    examples = tasks.generate("chain", "train=1,validation=1,test=100,seed=5")["test"]
    readings = read_data(*shipped, examples, data="chain", batch_size=40, max_new_tokens=4)
    assert readings.count == 100 and readings.latents[0] == [None] * 3
    for number in (1, 2, 3):
        assert [share >= 0.99 for share in readings.latents[number]] == [latent <= number for latent in (1, 2, 3)]
    assert [share >= 0.99 for share in readings.answers] == [False, False, False, True]


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, ["filler 1", "filler 2", "filler 3"]),
        ({"filler_mode": "none", "num_fillers": 0}, []),
        ({"filler_mode": "none", "num_fillers": 0, "num_internalized_tokens": 2}, None),
    ],
    ids=["fillers", "nothing left", "some of the chain"],
)
def test_icot_models(changes, labels, characters):
    names = {"start_token_id": "<pcot.bot>", "pause_token_id": "<pcot.latent>", "ready_token_id": "<pcot.eot>"}
    ids = {name: characters.convert_tokens_to_ids(token) for name, token in names.items()}
    ids |= {
        "vocab_size": len(characters),
        "eos_token_id": characters.eos_token_id,
        "pad_token_id": characters.pad_token_id,
    }
    model = make_any("icot-gpt2", **(ids | changes))
    found = inspect(model, characters, {"question": "1+2="}, max_new_tokens=5, max_cot_tokens=9)
    (only,) = found.passes
    if labels is None:
        assert only.places and all(place.label.startswith("token ") for place in only.places)
    else:
        assert [place.label for place in only.places] == labels
    assert all(
        sum(layer) == pytest.approx(1, abs=1e-4) and len(layer) == len(only.places) + 2 for layer in only.attention
    )
    text = render_page([found], None, name="icot", config=model.config)
    assert 'type="range"' not in text and ("Nothing is left of the chain" in text) == (labels == [])


# --- the page ---


def test_the_page_is_self_contained(page):
    assert not re.findall(r"https?:|url\(|@import|\ssrc=|<link|<iframe|<img", page)
    assert "default-src 'none'" in page and len(page) < 200_000
    assert page.count("<article") == 2 and page.count('<section id="q1-t') == 4
    assert 'T = 3: <span class="mono">7</span> ✓' in page and "moved 0.00" in page and "✓ read" in page


def test_everything_is_escaped(shipped):
    bad = "<script>alert('x')</script>\"&"
    place = Place(bad, [(bad, 0.5)], 0.1, bad, False)
    one = Pass(bad, False, [place], [[0.2, 0.3, 0.5]], [(bad, 1.0)])
    readings = Readings(bad, 1, [[None], [0.5]], [0.0, 1.0])
    text = render_page([View(bad, bad, bad, True, [one, one], 1)], readings, name=bad, config=shipped[0].config)
    assert "alert" in text and text.count("<script>") == 1  # our own
    assert (
        bad not in text
        and "alert('x')" not in text
        and "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&#34;&amp;" in text
    )


def test_the_command(tmp_path, capsys):
    out = tmp_path / "latents.html"
    chain = ["--dataset_name", "chain", "--task_args", "train=1,validation=1,test=8", "--max_new_tokens", "4"]
    inspect_thoughts.main(["1+2*3-4+5=", "--html", str(out), *chain])
    assert capsys.readouterr().out == f"wrote {out}\n"
    text = out.read_text()
    assert text.count("<article") == 1 and "Across 8 questions of" in text and "pccot-gpt2-chain" in text
    inspect_thoughts.main(["--html", str(out), *chain])
    assert out.read_text().count("<article") == 3


def test_what_is_refused(tmp_path, characters):
    with pytest.raises(InputError, match="nothing to look at"):
        inspect_thoughts.main(["--html", str(tmp_path / "a.html")])
    with pytest.raises(InputError, match="there is no folder"):
        inspect_thoughts.main(["1=", "--html", str(tmp_path / "none" / "a.html")])
    with pytest.raises(InputError, match=r"does not know 'é' of '1\+é='"):
        inspect_thoughts.main(["1+é=", "--html", str(tmp_path / "a.html")])
    with pytest.raises(InputError, match="--max_predict_samples must be at least 1, got -5"):
        inspect_thoughts.main(
            ["--dataset_name", "chain", "--max_predict_samples", "-5", "--html", str(tmp_path / "a.html")]
        )
    stock = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=1, n_layer=1, vocab_size=60))
    with pytest.raises(InputError, match="a gpt2 model thinks in words alone"):
        inspect(stock, characters, {"question": "1="})
    with pytest.raises(InputError, match="leaves positions free"):
        inspect(make_any("icot-gpt2", keep_position=True, position_gap=2), characters, {"question": "1="})
    with pytest.raises(InputError, match="has no latents to read"):
        read_data(make_any("icot-gpt2"), characters, [], data="")


# --- in a browser ---


def browse(page: str, folder, *flags: str, width: int = 1100, height: int = 1200) -> str:
    """What a browser prints about a page."""
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}", *flags, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_in_a_browser(page, tmp_path):
    """One T at a time; nothing is wider than a phone; light and dark."""
    shown = browse(page, tmp_path, "--dump-dom")
    sections = re.findall(r'<section id="q\d-t(\d)"[^>]*?( hidden="")?>', shown)
    assert sections == [("0", ' hidden=""'), ("1", ' hidden=""'), ("2", ' hidden=""'), ("3", "")] * 2
    moved = page + "<script>document.querySelector('input').value = 1;"
    moved += "document.querySelector('input').dispatchEvent(new Event('input'));</script>"
    assert re.search(r'<section id="q1-t1" data-t="1">', browse(moved, tmp_path, "--dump-dom"))

    (tmp_path / "inner.html").write_text(page, encoding="utf-8")
    script = "onload = () => { const inner = document.querySelector('iframe').contentDocument.documentElement;"
    script += "document.title = inner.scrollWidth + ' of ' + inner.clientWidth; };"
    phone = f'<body style="margin:0"><iframe src="inner.html" width="360" height="1600" style="border:0"></iframe><script>{script}</script>'
    measured = browse(phone, tmp_path, "--dump-dom", "--allow-file-access-from-files", "--virtual-time-budget=3000")
    assert "<title>360 of 360</title>" in measured

    brightness = {}
    for name, flags in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        browse(page, tmp_path, f"--screenshot={tmp_path / name}.png", *flags)
        brightness[name] = imread(tmp_path / f"{name}.png")[:, :, :3].mean()
    browse(phone, tmp_path, f"--screenshot={tmp_path / 'phone.png'}", width=500, height=1600)
    assert imread(tmp_path / "phone.png").std() > 0.05
    assert brightness["light"] > 0.8 and brightness["dark"] < 0.3, brightness


def test_the_readme_shows_one():
    assert "(docs/inspect_latents.png)" in (ROOT / "README.md").read_text()
    assert (ROOT / "docs" / "inspect_latents.png").stat().st_size < 150_000
