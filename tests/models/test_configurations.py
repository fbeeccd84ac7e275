"""What a configuration refuses: wrong types, ranges and combinations, each in one sentence that names the field."""

import json

import pytest
from conftest import CONFIGS, GONE, make_any, make_model
from transformers import AutoConfig, AutoModelForCausalLM

from latent_cot.training.checkpoints import read as checkpoint
from latent_cot.training.checkpoints.loading import registered_types
from latent_cot.training.errors import InputError

NOT_WHOLE = (1.5, True, "3", [3], None)
WRONG = {
    "pccot": {
        "num_latent_tokens": (*NOT_WHOLE, 0, -1, 129, 10**9),
        "num_iterations": (*NOT_WHOLE, -1),
        "latents_per_step": (*NOT_WHOLE, 0, 129),
        "bot_token_id": (1.5, True, "3", [3], -1, 10**30),
        "loss_alpha": ("1", True, None, float("nan"), float("inf")),
        "use_projection": (1, "false", None),
    },
    "icot": {
        "num_internalized_tokens": (*NOT_WHOLE, -2, 10**9),
        "num_fillers": (*NOT_WHOLE, -1, 129, 10**9),
        "position_gap": (1.5, True, "3", -1, 129),
        "removal_side": ("up", 1, None, ["left"]),
        "filler_mode": ("on", True, None),
        "text_format": ("markdown", None),
        "keep_position": (1, "true", None),
        "question_end_ids": (3, "3", [1.5], [True], [None], [-1], {"a": 1}),
    },
}
SHARED = {
    "eos_token_id": (10**30, [1, 10**30]),
    "answer_prompt_ids": (3, "3", [1.5], [True], ["a"], [None], [-1], {"a": 1}),
    "questions_start_with_bos": (1, "true", None),
    "vocab_size": (0, -1, 10**9),
    "hidden_size": (0, -1, 10**9),
    "num_hidden_layers": (0, -1, 10**9),
    "num_attention_heads": (0, -1, 10**9),
    "max_position_embeddings": (0, -1, 10**9),
}
CASES = [
    (kind, field, value)
    for kind in ("pccot-gpt2", "pccot-llama", "icot-gpt2", "icot-mistral")
    for field, values in (WRONG[kind.split("-")[0]] | SHARED).items()
    for value in values
]


def fields_of(kind: str) -> dict:
    family, _, backbone = kind.partition("-")
    fields = {name: value for name, value in CONFIGS[backbone]().to_dict().items() if name != "model_type"}
    return fields | (GONE if family == "icot" else {})


@pytest.mark.parametrize("kind", registered_types())
def test_what_is_right_stays(kind):
    config = AutoConfig.for_model(kind, **fields_of(kind))
    assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert type(config)().answer_prompt_ids is None  # the defaults are right, too


@pytest.mark.parametrize(("kind", "field", "value"), CASES)
def test_what_is_wrong_is_named(kind, field, value):
    fields = fields_of(kind)
    known = AutoConfig.for_model(kind).attribute_map.get(field, field)  # GPT-2's own name for it
    with pytest.raises(ValueError) as error:
        AutoConfig.for_model(kind, **(fields | {known: value}))
    message = str(error.value)
    assert field in message and "\n" not in message and len(message) < 200


def test_rules_between_fields():
    for changes, words in (
        ({"bot_token_id": 38}, "bot_token_id and latent_token_id must be different tokens, and both are 38"),
        ({"eos_token_id": 36}, "bot_token_id and eos_token_id must be different"),
        ({"eos_token_id": [2, 37]}, "eot_token_id and eos_token_id must be different"),
        ({"pad_token_id": 38}, "latent_token_id and pad_token_id must be different"),
        ({"answer_prompt_ids": [1, 38]}, "latent_token_id and answer_prompt_ids must be different"),
        ({"questions_start_with_bos": True, "bos_token_id": None}, "no bos_token_id"),
        ({"n_embd": 33}, r"num_attention_heads must divide hidden_size \(33\), got 4"),
    ):
        with pytest.raises(ValueError, match=words):
            CONFIGS["gpt2"](**changes)
    for name in ("start_token_id", "eos_token_id", "pad_token_id"):
        with pytest.raises(ValueError, match=f"pause_token_id and {name} must be different"):
            make_any("icot-gpt2", pause_token_id=5, **{name: 5})
    with pytest.raises(ValueError, match=r"num_key_value_heads must divide num_attention_heads \(4\), got 3"):
        CONFIGS["llama"](num_key_value_heads=3)
    with pytest.raises(ValueError, match="there is no activation 'foo'"):
        CONFIGS["llama"](hidden_act="foo")


@pytest.mark.parametrize("kind", ["pccot-gpt2", "icot-gpt2"])
def test_a_file_is_checked_too(kind, tmp_path):
    make_any(kind).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"answer_prompt_ids": [1.5]}))
    for load in (AutoConfig.from_pretrained, AutoModelForCausalLM.from_pretrained, checkpoint.read_config):
        with pytest.raises(
            ValueError, match=r"answer_prompt_ids must be a list of whole numbers, or null, got \[1\.5\]"
        ):
            load(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_latent_tokens": 1.5}, "num_latent_tokens must be a whole number, got 1.5"),
        ({"bot_token_id": "36"}, "bot_token_id must be a whole number, or null, got '36'"),
        ({"answer_prompt": None}, "answer_prompt must be text, got None"),
        ({"eot_token_id": ...}, "no eot_token_id in it"),
    ],
)
def test_settings_of_the_original_are_checked(settings, words, tmp_path, characters):
    """`pccot_args.json`: 1.5 does not become 1."""
    make_model("gpt2").save_pretrained(tmp_path)
    characters.save_pretrained(tmp_path)
    given = {
        "num_latent_tokens": 2,
        "bot_token_id": 36,
        "eot_token_id": 37,
        "latent_token_id": 38,
        "answer_prompt": "#",
    }
    given = {name: value for name, value in (given | settings).items() if value is not ...}
    (tmp_path / checkpoint.SETTINGS).write_text(json.dumps(given))
    with pytest.raises(InputError, match=words):
        checkpoint.read_config(str(tmp_path))
