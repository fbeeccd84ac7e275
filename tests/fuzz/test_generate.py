"""`generate()` with random prompts, masks, lengths and arguments: an answer, or one clear error."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.small import DOCUMENTED, KINDS, QUIET, check_memory, make

MODELS = {kind: make(kind)[0] for kind in KINDS}
WRONG = st.sampled_from([None, -1, 0, 1.5, True, "3", [2], float("nan"), 10**9, 10**30])
NUMBERS = st.one_of(st.integers(0, 60), WRONG)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("max_new_tokens", "max_length"), st.one_of(st.integers(1, 50), WRONG)),
        **dict.fromkeys(("min_length", "min_new_tokens", "num_latent_tokens", "num_fillers", "position_gap"), NUMBERS),
        "num_iterations": st.one_of(st.integers(0, 4), WRONG),
        "latent_tolerance": st.one_of(st.floats(), WRONG),
        "latent_thought": st.sampled_from([True, False, None, "no", 1]),
        "explicit_steps": st.sampled_from([True, False, None, "no", 1]),
        "num_beams": st.sampled_from([1, 2, 0, -1, "2", 1.5]),
        "do_sample": st.booleans(),
        "use_cache": st.booleans(),
        "pad_token_id": st.sampled_from([0, 1, -1, 10**6, None]),
    },
)
SHAPES = st.one_of(
    st.tuples(st.integers(1, 3), st.integers(1, 50)), st.sampled_from([(), (3,), (0, 3), (1, 0), (1, 2, 3)])
)


def generate(kind: str, shape, seed: int, reach: int, mask: str, dtype, arguments: dict) -> None:
    model, source = MODELS[kind], torch.Generator().manual_seed(seed)
    own = ("num_fillers", "position_gap", "explicit_steps")
    thinks = ("num_latent_tokens", "num_iterations", "latent_tolerance", "latent_thought")
    for name in own if kind.startswith("pccot") else thinks:
        arguments.pop(name, None)
    ids = torch.randint(0, max(1, model.config.vocab_size + reach), shape, generator=source).to(dtype)
    ones = torch.ones(shape, dtype=torch.long)
    masks = {
        "none": None,
        "ones": ones,
        "random": torch.randint(0, 2, shape, generator=source),
        "short": torch.ones(1, 2),
    }
    if not kind.endswith("gpt2"):  # rotary positions do not end, so it would be done
        for name in ("max_new_tokens", "max_length"):
            if arguments.get(name) in (10**9, 10**30):
                arguments[name] = 60
    if not {"max_new_tokens", "max_length"} & set(arguments):
        arguments["max_new_tokens"] = 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            output = model.generate(ids, attention_mask=masks[mask], **arguments)
        except DOCUMENTED as error:
            assert str(error).strip()
        else:
            assert torch.equal(output[:, : shape[1]], ids) and output.shape[1] > shape[1]
    check_memory()


CASES = given(
    kind=st.sampled_from(KINDS),
    shape=SHAPES,
    seed=st.integers(0, 10**6),
    reach=st.sampled_from([0, 0, 0, 0, 1, 1000]),
    mask=st.sampled_from(["none", "ones", "random", "random", "short"]),
    dtype=st.sampled_from([torch.long, torch.long, torch.long, torch.int, torch.float32, torch.bool]),
    arguments=ARGUMENTS,
)
test_a_share = settings(max_examples=100, **QUIET)(CASES(generate))
test_ten_thousand = pytest.mark.slow(settings(max_examples=10_000, **QUIET)(CASES(generate)))
