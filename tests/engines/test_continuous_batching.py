"""transformers' batch engine answers as `generate()` does, row by row, whatever its settings."""

import itertools

import pytest
import torch
from batching import LIMIT, SPAN, batched, generated, questions_of, settings
from conftest import SHIPPED, make_any, make_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, GenerationConfig

from latent_cot.engines.batching.passes import PackedThinker
from latent_cot.spans_pccot import latents_of_spans

KINDS = ["pccot-gpt2", "pccot-llama", "pccot-mistral", "pccot-qwen3", "icot-gpt2", "icot-llama", "icot-mistral"]
LONGEST = 128 - 10 - 6  # positions but for span, answer prompt and six new tokens


BATCHES = [(SPAN, "fifo", True), (19, "prefill_first", False), (4096, "fifo", True)]


@pytest.mark.parametrize(
    ("kind", "attention", "batches"),
    [
        *zip(KINDS, itertools.cycle(("sdpa", "eager")), itertools.cycle([[batch] for batch in BATCHES])),
        *(pytest.param(kind, "sdpa", BATCHES, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_answers_of_generate(kind, attention, batches):
    """Chunks of every size from the span's length on, both schedulers, prefix sharing on and off."""
    model = make_any(kind)
    model.set_attn_implementation(attention)
    questions = questions_of([1, 3, 9, 30, LONGEST])
    questions += [questions[-1][:40] + questions[2], questions[-1][:64]]
    wanted = generated(model, questions)
    for tokens, scheduler, sharing in batches:
        config = settings(max_batch_tokens=tokens, scheduler_type=scheduler, allow_block_sharing=sharing)
        assert batched(model, questions, config) == wanted, (tokens, scheduler, sharing)
    assert model.config._attn_implementation == attention


OPTIONS = [{"num_iterations": count} for count in (0, 1, 9)] + [{"num_latent_tokens": 2}, {"latent_thought": False}]


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        *(("gpt2", options) for options in OPTIONS),
        ("llama", OPTIONS[0]),
        ("mistral", OPTIONS[3]),
        ("qwen3", OPTIONS[4]),
    ],
    ids=str,
)
def test_options_of_the_manager(options, backbone):
    """As keywords, and as attributes of a generation configuration."""
    model = make_model(backbone)
    questions = questions_of([1, 5, 20])
    wanted = generated(model, questions, **options)
    assert batched(model, questions, **options) == wanted
    assert batched(model, questions, generation_config=GenerationConfig(max_new_tokens=6, **options)) == wanted
    if "latent_thought" not in options:
        assert wanted != generated(model, questions)


@pytest.mark.parametrize("options", [{"explicit_steps": True}, {"num_fillers": 5}], ids=str)
def test_options_of_an_icot_manager(options):
    model = make_any("icot-gpt2")
    questions = questions_of([1, 5, 20])
    wanted = generated(model, questions, **options)
    assert batched(model, questions, **options) == wanted != generated(model, questions)


def test_projected_latents_and_bos():
    model = make_model("llama", use_projection=True, questions_start_with_bos=True, bos_token_id=2, eos_token_id=3)
    questions = [*questions_of([1, 5, 20]), [2, 9, 10], [0, 9]]
    wanted = generated(model, questions[:4]) + generated(model, questions[4:], attention_mask=torch.ones(1, 2).long())
    assert batched(model, questions) == wanted


def test_a_prompt_with_a_span_stays():
    model = make_model("gpt2")
    own = [[9, 10, *model.thought_ids(), 11], [36, 38, 38, 37, 12], [38, 9, 38, 10, *model.thought_ids(2)]]
    assert batched(model, own, settings(max_batch_tokens=SPAN)) == generated(model, own)
    filler = [[9, 38, 38, 10]]  # latents outside a span are tokens as any other
    assert batched(model, filler) == generated(model, filler)
    for prompt, words in (
        ([9, *model.thought_ids(), *model.thought_ids()], "2 thought span"),
        ([9, *model.thought_ids(7)], "of 7 latents: this manager thinks one span of at most num_latent_tokens=6"),
        ([9, 36, 38, 38], "cut off"),
    ):
        (output,) = model.generate_batch([prompt], None, settings(), max_new_tokens=2).values()
        assert words in output.error
    (output,) = model.generate_batch(own[:1], None, settings(), max_new_tokens=2, latent_thought=False).values()
    assert "asked for no latent thought" in output.error


def test_a_bad_prompt_fails_alone(gpt2):
    """With the sentence of `generate()`, and each of its answers."""
    bad = {
        "vocabulary ends at 39": [9, 99],
        "at least one token": [],
        "more than the model's 128 positions": [9] * 120,
        "ask for at most 2": [9] * 116,
        "a list of token ids": ["9"],
    }
    questions = [[9, 10], *bad.values(), [11]]
    outputs = gpt2.generate_batch(questions, None, settings(allow_block_sharing=False), max_new_tokens=6)
    assert list(outputs) == [f"req_{number}" for number in range(7)]
    for words, output in zip([None, *bad, None], outputs.values(), strict=True):
        assert output.error is None if words is None else words in output.error, output.error
    assert outputs["req_0"].generated_tokens == generated(gpt2, [[9, 10]])[0][2:]


def answers_by_request(model, questions, generation_config) -> dict:
    """All outputs, of further answers to a question too, which `generate_batch()` of transformers 5.17 leaves out."""
    manager = model.init_continuous_batching(generation_config, settings(seed=1))
    manager.start()
    try:
        manager.add_requests(questions)
        outputs = [
            manager.get_result(timeout=30) for _ in range(generation_config.num_return_sequences * len(questions))
        ]
    finally:
        manager.stop(block=True, timeout=20)
    assert not manager.questions.expected
    return {output.request_id: output for output in outputs}


def test_several_answers_to_a_question(gpt2):
    several = GenerationConfig(num_return_sequences=3, do_sample=True, max_new_tokens=12)
    questions = [*questions_of([5, 20]), [9, 99]]
    outputs = answers_by_request(gpt2, questions, several)
    names = [f"req_{number}{child}" for number in range(3) for child in ("", "__child#0", "__child#1")]
    assert sorted(outputs) == sorted(names)
    assert [outputs[name].prompt_ids for name in names] == [question for question in questions for _ in range(3)]
    assert [outputs[name].error is None for name in names] == [True] * 6 + [False] * 3
    assert len({tuple(outputs[name].generated_tokens) for name in names[:6]}) == 6


def test_limits_of_new_tokens_are_those_of_generate(gpt2):
    """20 where nobody says anything, less where positions end."""
    gpt2.generation_config.eos_token_id = None
    questions = questions_of([3, 115])
    wanted = [gpt2.generate(torch.tensor([question]), do_sample=False)[0].tolist() for question in questions]
    found = [
        output.prompt_ids + output.generated_tokens
        for output in gpt2.generate_batch(questions, None, settings()).values()
    ]
    assert found == wanted and [len(row) for row in wanted] == [23, 118]
    gpt2.generation_config.max_new_tokens = 9  # a checkpoint's, which nobody asked for
    wanted = [gpt2.generate(torch.tensor([question]), do_sample=False)[0].tolist() for question in questions]
    outputs = gpt2.generate_batch(questions, None, settings()).values()
    assert [output.prompt_ids + output.generated_tokens for output in outputs] == wanted


@pytest.mark.parametrize("family", ["pccot", "icot"])
def test_what_is_refused(family):
    model, question = make_any(f"{family}-gpt2"), [[9, 10]]
    with pytest.raises(ValueError, match="has no argument temperature"):
        model.generate_batch(question, temperature=0.5)
    with pytest.raises(ValueError, match=r"cache_implementation=\"paged\" would answer padding"):
        model.generate(torch.tensor(question), cache_implementation="paged", max_new_tokens=2)
    with pytest.raises(ValueError, match="no beams"):
        model.generate_batch(question, GenerationConfig(num_beams=2))
    with pytest.raises(ValueError, match="no latent_tolerance"):
        model.init_continuous_batching(GenerationConfig(latent_tolerance=0.1))


def test_what_only_some_models_are_refused():
    with pytest.raises(ValueError, match="cannot leave positions free"):
        make_any("icot-gpt2", keep_position=True, position_gap=3).generate_batch([[9]])
    chain = make_any("icot-gpt2", num_internalized_tokens=0, filler_mode="none", num_fillers=0, eos_token_id=38)
    with pytest.raises(ValueError, match="writes with the same token"):
        chain.generate_batch([[9]])
    model = make_model("gpt2")
    for options in ({"num_iterations": -1}, {"num_latent_tokens": 0}, {"latent_thought": 1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            model.generate_batch([[9]], **options)
    with pytest.raises(ValueError, match="max_batch_tokens must be at least 7"):
        model.generate_batch([[9]], None, settings(max_batch_tokens=6))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["pccot-gpt2", "icot-gpt2"])
def test_nothing_answers_beside_a_working_manager(kind, attention):
    """It would answer wrongly, and leave the model so: transformers' engine changes the configuration during its passes."""
    model, questions = make_any(kind).train(), torch.tensor(questions_of([9, 9]))
    model.set_attn_implementation(attention)
    before = dict(vars(model.config))
    manager = model.init_continuous_batching(GenerationConfig(max_new_tokens=6), settings())
    manager.start()
    try:
        ids = manager.add_requests(questions.tolist() * 8)
        for door in (model, model.generate):
            with pytest.raises(ValueError, match="a batch manager works with this model"):
                door(questions)
        with pytest.raises(ValueError, match="another batch manager works"):
            model.generate_batch(questions.tolist(), None, settings(), max_new_tokens=2)
        assert [manager.get_result(timeout=30).error for _ in ids] == [None] * 16
        model.config.is_causal = False  # as such a race leaves it
    finally:
        manager.stop(timeout=30)
    assert vars(model.config) == before and model.training
    model.init_continuous_batching(None, settings()).stop()  # never started
    assert vars(model.config) == before and model.training
    assert batched(model, questions.tolist()) == generated(model.eval(), questions.tolist())


def test_one_request_has_no_options_of_its_own(gpt2):
    manager = gpt2.init_continuous_batching(GenerationConfig(max_new_tokens=2), settings())
    for options in ({"num_iterations": 2}, {"latent_thought": False}, {"latent_tolerance": 0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is that of the whole manager"):
            manager.add_request([9], **options)
    with pytest.raises(ValueError, match="vocabulary ends"):
        manager.add_request([99])
    assert not manager.questions.expected and manager.input_queue.empty()


def test_a_kept_manager_answers_for_its_own_options_alone(gpt2):
    questions = questions_of([3, 20])
    wanted = generated(gpt2, questions, num_iterations=1)
    kept = {"persistent_manager": True, "num_iterations": 1}
    assert batched(gpt2, questions, **kept) == batched(gpt2, questions, **kept) == wanted
    for options in (
        {},
        {"num_iterations": 2},
        {"num_iterations": 1, "num_latent_tokens": 2},
        {"latent_thought": False},
    ):
        with pytest.raises(ValueError, match="a manager that was kept for"):
            gpt2.generate_batch(questions, **options)
    gpt2.destroy_cached_continuous_batching_manager()
    assert batched(gpt2, questions) == generated(gpt2, questions)


@pytest.mark.parametrize("kind", ["pccot-mistral", "pccot-gpt2"])
def test_a_step_reads_nothing_on_the_host(kind, monkeypatch):
    """As CUDA graphs demand."""
    steps, forward = [], PackedThinker.forward

    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return function(*args, **(kwargs or {}))

    def strict(self, **batch):
        steps.append(batch["input_ids"].shape[1])
        with NoReads():
            return forward(self, **batch)

    monkeypatch.setattr(PackedThinker, "forward", strict)
    model = make_any(kind)
    questions = questions_of([3, 30])
    assert batched(model, questions, settings(max_batch_tokens=19)) == generated(model, questions)
    assert max(steps) == 19 and min(steps) <= 2


def test_latents_of_spans(gpt2):
    """Those after a <bot> of the same request alone."""
    bot, eot, latent = 36, 37, 38
    ids = torch.tensor([[latent, bot, latent, latent, eot, bot, latent, 9, latent, latent]])
    starts = torch.tensor([0, 1, 6, 7, 10, 10], dtype=torch.int32)  # padded, as for CUDA graphs
    found = latents_of_spans(ids.to(torch.int32), gpt2.config, starts)
    assert found[0].nonzero()[:, 0].tolist() == [2, 3]


def test_streams_and_cancelled_requests(gpt2):
    """Outputs on the way show the question too; nothing is left of a request that is over."""
    question = [9, 10, 11]
    wanted = generated(gpt2, [question])[0]
    manager = gpt2.init_continuous_batching(GenerationConfig(max_new_tokens=100, eos_token_id=-1), settings())
    manager.start()
    try:
        manager.add_request(question, "endless")
        manager.cancel_request("endless")
        manager.add_request(question, "stream", max_new_tokens=6, streaming=True, eos_token_id=1)
        pieces = list(manager.request_id_iter("stream"))
    finally:
        manager.stop(block=True, timeout=20)
    assert [piece.prompt_ids for piece in pieces] == [question] * len(pieces)
    assert [len(piece.generated_tokens) for piece in pieces] == list(range(1, len(wanted) - 2))
    assert question + pieces[-1].generated_tokens == wanted
    assert not manager.questions.expected


def test_shipped_checkpoint():
    """Well separated logits: every token the same, many questions at once."""
    model = AutoModelForCausalLM.from_pretrained(SHIPPED)
    source = torch.Generator().manual_seed(0)
    rows = torch.randint(1, model.config.vocab_size - 3, (40, 10), generator=source).tolist()
    assert batched(model, rows) == generated(model, rows)
    (output,) = model.generate_batch([torch.tensor(rows[0])], None, settings(), max_new_tokens=2).values()
    assert output.prompt_ids == rows[0]


@pytest.mark.slow
def test_a_thousand_mixed_prompts(record_property):
    """From one token to the limit, under every setting. A difference is one of rounding: two logits are as good as equal."""
    ties, answers = [], 0
    for number, kind in enumerate(KINDS):
        source = torch.Generator().manual_seed(number)
        lengths = [1, LONGEST, *torch.randint(1, LONGEST + 1, (141,), generator=source).tolist()]
        questions = questions_of(lengths, seed=number)
        for attention in ("sdpa", "eager"):
            model = make_any(kind)
            model.set_attn_implementation(attention)
            wanted = generated(model, questions)
            for tokens in (19, 64, 500, 4096):
                config = settings(max_batch_tokens=tokens, scheduler_type="fifo" if tokens < 500 else "prefill_first")
                for question, one, other in zip(questions, wanted, batched(model, questions, config), strict=True):
                    answers += 1
                    if one != other:
                        ties.append((kind, attention, tokens, gap_where_they_part(model, question, one, other)))
    print(f"{answers} answers, {len(ties)} of them otherwise by rounding: {ties}")
    assert answers == 8 * 1001 and len(ties) <= answers // 500 and all(gap < 1e-4 for *_, gap in ties), ties


def gap_where_they_part(model, question: list[int], one: list[int], other: list[int]) -> float:
    """How far the best two logits of `generate()` are apart for the first token that differs."""
    step = next(n for n in range(len(one)) if one[: n + 1] != other[: n + 1]) - len(question)
    output = model.generate(torch.tensor([question]), **LIMIT, output_logits=True, return_dict_in_generate=True)
    best = output.logits[step][0].topk(2).values
    return float(best[0] - best[1])
