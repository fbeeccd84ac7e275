"""`generate()` as for any causal language model."""

from functools import partial

import pytest
import torch
from conftest import CONFIGS, make_model, question_batch, with_span
from torch._dynamo.utils import counters
from transformers import (
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from latent_cot import backbone_pccot
from latent_cot.spans_pccot import find_thought_spans

QUESTIONS = [3, 7, 5]


@pytest.fixture
def prompt():
    ids, mask = question_batch(QUESTIONS)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def greedy(model, prompt):
    return model.generate(**prompt, max_new_tokens=5, do_sample=False)


def greedily_by_hand(model, ids, steps=5):
    """Question, span and answer so far in one forward pass a token, without any cache."""
    full, _ = with_span(model, ids, torch.ones_like(ids), tail=0)
    for _ in range(steps):
        with torch.no_grad():
            token = model(input_ids=full, use_cache=False).logits[:, -1].argmax(dim=-1, keepdim=True)
        full = torch.cat([full, token], dim=1)
        if token.item() == model.config.eos_token_id:
            break
    return full[0, -(full.shape[1] - ids.shape[1] - len(model.thought_ids())) :].tolist()


def test_greedy_is_the_plain_loop(model, prompt, greedy):
    """The caller sees question + answer, nothing of the thought."""
    assert torch.equal(greedy[:, : max(QUESTIONS)], prompt["input_ids"])
    assert greedy.shape[1] <= max(QUESTIONS) + 5
    for row, length in enumerate(QUESTIONS):
        wanted = greedily_by_hand(model, prompt["input_ids"][row : row + 1, -length:])
        assert greedy[row, max(QUESTIONS) :][: len(wanted)].tolist() == wanted


def test_the_span_that_was_written_is_not_looked_for(gpt2, prompt, monkeypatch):
    """... but after a cached prompt and in chunks, where its column is another one."""
    wanted = gpt2.generate(**prompt, max_new_tokens=5, do_sample=False)
    looked: list[int] = []

    def look(ids, *args):
        looked.append(ids.shape[1])
        return find_thought_spans(ids, *args)

    monkeypatch.setattr(backbone_pccot, "find_thought_spans", look)
    for options in ({}, {"use_cache": False}, {"num_beams": 1, "num_return_sequences": 1, "prefill_chunk_size": 64}):
        got = gpt2.generate(**prompt, max_new_tokens=5, do_sample=False, **options)
        assert torch.equal(got, wanted) and bool(looked) is ("prefill_chunk_size" in options)
    question = {name: tensor[:, :-2] for name, tensor in prompt.items()}
    cache = gpt2(**question, use_cache=True, num_iterations=0).past_key_values
    assert torch.equal(gpt2.generate(**prompt, past_key_values=cache, max_new_tokens=5, do_sample=False), wanted)


MACHINERY = [
    {"cache_implementation": "static"},
    {"use_cache": False},
    {"cache_implementation": "dynamic"},
    {"cache_implementation": "offloaded"},
    {"num_beams": 1, "generation_config": GenerationConfig(max_new_tokens=5)},
    {"position_ids": True},
]


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        pytest.param(backbone, options, marks=[] if backbone == "gpt2" or number < 2 else pytest.mark.slow)
        for backbone in CONFIGS
        for number, options in enumerate(MACHINERY)
    ],
    ids=lambda value: value if isinstance(value, str) else f"{next(iter(value))}={next(iter(value.values()))!s:.8}",
)
def test_same_answer_whatever_the_machinery(model, prompt, greedy, options):
    options = dict(options)
    if options.get("cache_implementation") == "offloaded" and not torch.accelerator.is_available():
        pytest.skip("an offloaded cache needs an accelerator")
    if "position_ids" in options:
        options["position_ids"] = (prompt["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)

    output = model.generate(**prompt, max_new_tokens=5, do_sample=False, **options)
    assert torch.equal(output, greedy)


def test_prompt_lookup_gives_the_greedy_answer(model):
    ids = torch.randint(7, 36, (1, 4), generator=torch.Generator().manual_seed(0)).repeat(1, 3)
    if model.config.model_type == "pccot-mistral":
        model = make_model("mistral", sliding_window=64)
    wanted = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3), wanted)


def test_assisted_decoding_gives_the_greedy_answer(backbone):
    changes = {"sliding_window": 64} if backbone == "mistral" else {}
    model, assistant = make_model(backbone, **changes), make_model(backbone, seed=1, **changes)
    ids, _ = question_batch([6])
    wanted = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False, assistant_model=assistant), wanted)
    with pytest.raises(ValueError, match="assistant_model would be given num_iterations too"):
        model.generate(ids, assistant_model=assistant, num_iterations=2)


def test_stopping_criteria(gpt2, prompt):
    class AfterTwo(StoppingCriteria):
        calls = 0

        def __call__(self, input_ids, scores, **kwargs):
            self.calls += 1
            return torch.full((input_ids.shape[0],), self.calls >= 2)

    output = gpt2.generate(
        **prompt, max_new_tokens=9, do_sample=False, stopping_criteria=StoppingCriteriaList([AfterTwo()])
    )
    assert output.shape[1] == max(QUESTIONS) + 2


def test_beams_and_several_returns(model, prompt):
    beams = model.generate(**prompt, max_new_tokens=5, num_beams=3, num_return_sequences=2, do_sample=False)
    assert beams.shape[0] == 6
    assert torch.equal(beams[:, : max(QUESTIONS)], prompt["input_ids"].repeat_interleave(2, dim=0))
    alone = model.generate(prompt["input_ids"][:1, -3:], max_new_tokens=5, num_beams=3, do_sample=False)
    new = alone[0, 3:].tolist()
    assert beams[0, max(QUESTIONS) :][: len(new)].tolist() == new


def test_sampling_is_seeded(model, prompt):
    def sample(seed):
        torch.manual_seed(seed)
        return model.generate(**prompt, max_new_tokens=5, do_sample=True, num_return_sequences=2, temperature=1.5)

    first = sample(0)
    assert first.shape[0] == 6
    assert torch.equal(first, sample(0))
    assert not torch.equal(first, sample(1))


def test_return_dict(model, prompt, greedy):
    output = model.generate(
        **prompt,
        max_new_tokens=5,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    assert torch.equal(output.sequences, greedy)
    assert len(output.scores) == greedy.shape[1] - max(QUESTIONS)
    assert output.past_key_values is None  # it would not fit the sequences


def test_streamer_sees_question_and_answer(gpt2, characters):
    from conftest import chain_model

    model = chain_model(characters)
    inputs = characters(["1+2*3="], return_tensors="pt")
    streamer = TextIteratorStreamer(characters)
    output = model.generate(**inputs, max_new_tokens=6, do_sample=False, streamer=streamer)
    assert "".join(streamer) == characters.decode(output[0])
    streamer = TextIteratorStreamer(characters, skip_prompt=True)
    model.generate(**inputs, max_new_tokens=6, do_sample=False, streamer=streamer)
    assert "".join(streamer) == characters.decode(output[0, 6:])


@pytest.mark.parametrize("length", [{"max_length": 12}, {"generation_config": GenerationConfig(max_length=12)}])
def test_max_length_counts_what_the_caller_sees(gpt2, prompt, length):
    output = gpt2.generate(**prompt, do_sample=False, eos_token_id=None, **length)
    assert output.shape[1] == 12


def test_min_length(gpt2, prompt):
    first = gpt2.generate(**prompt, max_new_tokens=1, do_sample=False)[0, -1].item()
    stop = {"eos_token_id": first, "do_sample": False, "max_new_tokens": 5}
    assert gpt2.generate(prompt["input_ids"][:1, -3:], **stop).shape[1] == 4
    assert gpt2.generate(prompt["input_ids"][:1, -3:], min_length=6, **stop).shape[1] > 5


def test_settings_per_call(model, prompt, greedy):
    """T and c for one call equal the same settings in the configuration."""
    for name, value in (("num_iterations", 0), ("num_iterations", 6), ("num_latent_tokens", 2)):
        now = model.generate(**prompt, max_new_tokens=5, do_sample=False, **{name: value})
        before = getattr(model.config, name)
        setattr(model.config, name, value)
        assert torch.equal(model.generate(**prompt, max_new_tokens=5, do_sample=False), now)
        setattr(model.config, name, before)
    tolerant = model.generate(**prompt, max_new_tokens=5, do_sample=False, latent_tolerance=1e9)
    assert torch.equal(tolerant, model.generate(**prompt, max_new_tokens=5, do_sample=False, num_iterations=1))


def test_explicit_chain_leaves_the_prompt_alone(model, prompt):
    """`latent_thought=False` is the backbone's own generate."""
    output = model.generate(**prompt, max_new_tokens=5, do_sample=False, latent_thought=False)
    wanted = GenerationMixin.generate(model, **prompt, max_new_tokens=5, do_sample=False)
    assert torch.equal(output, wanted)


def test_explicit_chain_opens_with_bot_where_trained_so(gpt2, prompt):
    gpt2.config.open_steps_with_bot = True
    output = gpt2.generate(**prompt, max_new_tokens=5, do_sample=False, latent_thought=False)
    gpt2.config.open_steps_with_bot = False
    ids = torch.nn.functional.pad(prompt["input_ids"], (0, 1), value=gpt2.config.bot_token_id)
    mask = torch.nn.functional.pad(prompt["attention_mask"], (0, 1), value=1)
    wanted = gpt2.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, latent_thought=False)
    assert torch.equal(output[:, max(QUESTIONS) :], wanted[:, max(QUESTIONS) + 1 :])


def test_prefill_in_chunks(gpt2, prompt):
    wanted = gpt2.generate(**prompt, max_new_tokens=3, do_sample=False)
    with pytest.raises(ValueError, match="would cut"):
        gpt2.generate(**prompt, max_new_tokens=3, do_sample=False, prefill_chunk_size=6)
    output = gpt2.generate(**prompt, max_new_tokens=3, do_sample=False, prefill_chunk_size=64)
    assert torch.equal(output, wanted)
    with pytest.raises(ValueError, match="opened already is read in one pass"):
        gpt2.generate(**gpt2.open_thought(**prompt), max_new_tokens=3, prefill_chunk_size=64)


@pytest.mark.parametrize("kind", [DynamicCache, partial(StaticCache, max_cache_len=64)], ids=["dynamic", "static"])
def test_a_cache_that_is_handed_in_stays_as_it_was(gpt2, prompt, kind):
    """It would hold what the caller does not see, and the next turn would be answered from that."""
    wanted, cache = gpt2.generate(**prompt, max_new_tokens=3, do_sample=False), kind(config=gpt2.config)
    for _ in range(2):
        assert torch.equal(gpt2.generate(**prompt, max_new_tokens=3, do_sample=False, past_key_values=cache), wanted)
        assert int(cache.get_seq_length()) == 0


def test_what_cannot_be_answered(gpt2, prompt):
    with pytest.raises(ValueError, match="num_latent_tokens"):
        gpt2.generate(**prompt, num_latent_tokens=0)
    with pytest.raises(ValueError, match="num_iterations"):
        gpt2.generate(**prompt, num_iterations=-1)
    for name, value in (("latent_tolerance", -1.0), ("num_iterations", 1.5), ("num_latent_tokens", "3")):
        with pytest.raises(ValueError, match=name):
            gpt2.generate(**prompt, **{name: value})
    with pytest.raises(ValueError, match="input_ids"):
        gpt2.generate(inputs_embeds=torch.zeros(1, 4, 32))
    assert gpt2.generate(inputs_embeds=torch.zeros(1, 4, 32), latent_thought=False, max_new_tokens=2).shape == (1, 2)
    with pytest.raises(ValueError, match="with num_iterations=0 there is none"):
        gpt2.generate(**prompt, num_iterations=0, latent_noise=0.5)
    half, _ = with_span(gpt2, *question_batch([6, 6]), tail=0)
    half[1, 6:] = 9
    with pytest.raises(ValueError, match="ragged thought spans"):
        gpt2.generate(half, max_new_tokens=2)
    gpt2.config.bot_token_id = None
    with pytest.raises(ValueError, match="bot_token_id"):
        gpt2.generate(**prompt)


def test_the_teacher_never_runs(gpt2, prompt):
    """One answer token costs question + span + answer prompt once, in T + 1 passes."""
    columns = []
    gpt2.transformer.h[0].register_forward_hook(lambda module, args, output: columns.append(args[0].shape[1]))
    gpt2.generate(**prompt, max_new_tokens=1, do_sample=False)
    window = 6 - 3 + 1
    assert columns == [max(QUESTIONS) + window, window, window, window + 1 + 2]


COMPILED = [("gpt2", 3)]
COMPILED += [
    pytest.param(backbone, iterations, marks=pytest.mark.slow)
    for iterations in (3, 6)
    for backbone in CONFIGS
    if (backbone, iterations) not in COMPILED
]


@pytest.mark.parametrize(("backbone", "iterations"), COMPILED)
def test_one_compilation_for_questions_of_every_length(backbone, iterations):
    """With a static cache and a fixed `max_length`, thought and answer are compiled once; the tokens stay the same."""
    # A window that slides within 40 tokens has a shape of its own.
    depth = {"n_layer": 1} if backbone == "gpt2" else {"num_hidden_layers": 1}
    model = make_model(backbone, **depth, **({"sliding_window": None} if backbone == "mistral" else {}))
    compilation = CompileConfig(backend="eager", fullgraph=True)
    compilation._compile_all_devices = True  # transformers compiles on accelerators only, unless told
    options = {"max_length": 40, "do_sample": False, "eos_token_id": None, "num_iterations": iterations}
    torch._dynamo.reset()
    graphs = []
    for length in (5, 9, 3):
        ids, mask = question_batch([length, 2])
        plain = model.generate(ids, attention_mask=mask, **options)
        static = {"cache_implementation": "static", "compile_config": compilation}
        assert torch.equal(model.generate(ids, attention_mask=mask, **options, **static), plain)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] == graphs[2]


def test_passes_in_a_static_cache(model, prompt):
    """A thought that overwrites itself in a static cache gives the states and the keys of one that does not."""
    ids, _ = with_span(model, prompt["input_ids"], prompt["attention_mask"], tail=2)
    mask = torch.nn.functional.pad(prompt["attention_mask"], (0, ids.shape[1] - max(QUESTIONS)), value=1)
    cache = StaticCache(config=model.config, max_cache_len=40)
    with torch.no_grad():
        wanted = model.base_model(ids, attention_mask=mask, use_cache=True, output_hidden_states=True)
        given = model.base_model(ids, attention_mask=mask, past_key_values=cache, output_hidden_states=True)
    assert given.past_key_values is cache and int(cache.get_seq_length()) == ids.shape[1]
    for one, other in zip(given.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(one[mask.bool()], other[mask.bool()])


@pytest.mark.parametrize("where", [pytest.param("configuration", marks=pytest.mark.slow), "call"])
def test_states_of_every_layer_while_compiling(where):
    """Compiled passes give the last states alone, so they are left out where every layer's are asked for."""
    model = make_model("llama", num_hidden_layers=1)
    ids, mask = question_batch([5, 3])
    compilation = CompileConfig(backend="eager")
    compilation._compile_all_devices = True
    options = {"max_length": 40, "do_sample": False, "return_dict_in_generate": True, "attention_mask": mask}
    if where == "configuration":
        model.config.output_hidden_states = True
    else:
        options["output_hidden_states"] = True
    plain = model.generate(ids, **options)
    given = model.generate(ids, **options, cache_implementation="static", compile_config=compilation)
    assert torch.equal(given.sequences, plain.sequences)


def test_a_static_cache_that_is_not_wanted_stays_empty(gpt2, prompt):
    ids, mask = with_span(gpt2, prompt["input_ids"], prompt["attention_mask"], tail=1)
    cache = StaticCache(config=gpt2.config, max_cache_len=40)
    with torch.no_grad():
        output = gpt2.base_model(ids, attention_mask=mask, past_key_values=cache, use_cache=False)
    assert output.past_key_values is None and int(cache.get_seq_length()) == 0
