"""iCoT models: how they are asked; and run_icot.py end to end."""

import json

import pytest
import torch
from conftest import ROPE, SMALL, question_batch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

import run_icot
from latent_cot.converters.convert_icot import convert
from latent_cot.training.data.small_tokenizers import byte_tokenizer
from latent_cot.training.errors import InputError

TOKENS = {"start_token_id": 33, "pause_token_id": 34, "ready_token_id": 35, "answer_prompt_ids": [5]}
LEARNED = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128}
BACKBONES = {"icot-gpt2": LEARNED, "icot-llama": ROPE, "icot-mistral": ROPE | {"sliding_window": 9}}
QUESTIONS = [3, 7, 5]


def make(backbone: str, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(backbone, **(SMALL | TOKENS | BACKBONES[backbone] | changes))
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(params=BACKBONES)
def backbone(request):
    return request.param


def generated_after(model, ids, mask, opening):
    """The backbone's own generation after a prompt with the opening written out."""
    end = torch.tensor(opening).expand(len(ids), -1)
    full = torch.cat([ids, end], dim=1)
    mask = torch.nn.functional.pad(mask, (0, len(opening)), value=1)
    output = super(type(model).__mro__[2], model).generate(full, attention_mask=mask, max_new_tokens=5, do_sample=False)
    return output[:, full.shape[1] :]


OPENINGS = [
    ({}, {}, [33]),
    ({"num_internalized_tokens": 3}, {}, [33]),
    ({"num_internalized_tokens": -1}, {}, [33, 35, 5]),
    ({"num_internalized_tokens": -1}, {"explicit_steps": True}, [33]),
    ({}, {"explicit_steps": False}, [33, 35, 5]),
    ({"filler_mode": "prefilled", "num_fillers": 4}, {}, [33, 34, 34, 34, 34, 35, 5]),
    ({"filler_mode": "prefilled", "num_fillers": 4}, {"num_fillers": 1}, [33, 34, 35, 5]),
    ({"filler_mode": "written", "num_fillers": 4}, {}, [33]),
]


@pytest.mark.parametrize(
    ("backbone", "settings", "options", "opening"),
    [
        pytest.param(backbone, *opening, marks=[] if backbone == "icot-gpt2" or number in (0, 6) else pytest.mark.slow)
        for backbone in BACKBONES
        for number, opening in enumerate(OPENINGS)
    ],
)
def test_what_stands_after_a_question(backbone, settings, options, opening):
    """The opening is prefilled and hidden; rows answer as they do alone."""
    model = make(backbone, **settings)
    ids, mask = question_batch(QUESTIONS)
    output = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, **options)
    assert torch.equal(output[:, : ids.shape[1]], ids)
    assert torch.equal(output[:, ids.shape[1] :], generated_after(model, ids, mask, opening))
    for row, length in enumerate(QUESTIONS):
        alone = model.generate(ids[row : row + 1, -length:], max_new_tokens=5, do_sample=False, **options)[0, length:]
        assert output[row, ids.shape[1] :][: len(alone)].tolist() == alone.tolist()


@pytest.mark.parametrize("seeds", [range(6), pytest.param(range(6, 20), marks=pytest.mark.slow)], ids=["6", "20"])
def test_left_padding_shifts_nothing(backbone, seeds):
    """Logits of 20 random left-padded batches are those of each row alone."""
    model = make(backbone)
    for seed in seeds:
        lengths = torch.randint(2, 12, (4,), generator=torch.Generator().manual_seed(seed)).tolist()
        ids, mask = question_batch(lengths, seed)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits
            for row, length in enumerate(lengths):
                alone = model(input_ids=ids[row : row + 1, -length:]).logits[0]
                assert (logits[row, -length:] - alone).abs().max() <= 1e-4


def test_the_fillers_are_one_pass(backbone):
    """Prefilled fillers answer as fillers that are fed one at a time, and the first layer runs once for all."""
    model = make(backbone, filler_mode="prefilled", num_fillers=16, num_internalized_tokens=-1)
    ids, mask = question_batch([6])
    wanted = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)[:, 6:]
    with torch.no_grad():
        state = model(input_ids=ids, use_cache=True)
        for token in model.suffix_ids():
            state = model(input_ids=torch.tensor([[token]]), past_key_values=state.past_key_values)
        fed = []
        for _ in range(wanted.shape[1]):
            fed.append(state.logits[:, -1].argmax(dim=-1, keepdim=True))
            state = model(input_ids=fed[-1], past_key_values=state.past_key_values)
    assert torch.equal(torch.cat(fed, dim=1), wanted)

    passes = []
    layers = model.base_model.h if hasattr(model.base_model, "h") else model.base_model.layers
    layers[0].register_forward_hook(lambda module, args, output: passes.append(output))
    model.generate(ids, attention_mask=mask, max_new_tokens=1, do_sample=False)
    assert len(passes) == 1


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"num_beams": 2}, {"use_cache": False}])
def test_something_else_in_the_place_of_fillers(backbone, options):
    """`filler_embeds` of another token answers as that token written out; rows have their own."""
    model = make(backbone, filler_mode="prefilled", num_fillers=4)
    ids, mask = question_batch(QUESTIONS)
    embeds = model.get_input_embeddings()(torch.tensor([9, 9, 12])[:, None].expand(-1, 4))
    asked = {"max_new_tokens": 5, "do_sample": False, **options}
    output = model.generate(ids, attention_mask=mask, filler_embeds=embeds, **asked)[:, ids.shape[1] :]
    model.config.pause_token_id = 9
    nines = model.generate(ids, attention_mask=mask, **asked)[:, ids.shape[1] :]
    model.config.pause_token_id = 12
    twelves = model.generate(ids, attention_mask=mask, **asked)[:, ids.shape[1] :]
    assert torch.equal(output[:2], nines[:2]) and torch.equal(output[2], twelves[2])


def test_filler_embeds_that_do_not_fit():
    model = make("icot-gpt2", filler_mode="prefilled", num_fillers=4)
    ids = torch.tensor([[7, 8]])
    with pytest.raises(
        ValueError, match=r"filler_embeds must be \(batch, fillers, hidden\) = \(1, 4, 32\), got \(1, 3, 32\)"
    ):
        model.generate(ids, filler_embeds=torch.zeros(1, 3, 32))
    with pytest.raises(ValueError, match=r"\(1, 0, 32\), got \(1, 4, 32\)"):
        model.generate(ids, filler_embeds=torch.zeros(1, 4, 32), explicit_steps=True)
    with pytest.raises(ValueError, match="leave prefill_chunk_size out"):
        model.generate(ids, filler_embeds=torch.zeros(1, 4, 32), prefill_chunk_size=2)


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"num_beams": 2}, {"use_cache": False}])
def test_other_ways_to_generate(backbone, options):
    model = make(backbone, num_internalized_tokens=-1)
    ids, mask = question_batch(QUESTIONS)
    output = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, **options)
    if "num_beams" not in options:
        assert torch.equal(output, model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False))
    assert torch.equal(output[:, : ids.shape[1]], ids)


def test_the_second_end_of_sequence_stops():
    """In published checkpoints the chain and the answer end with the same token; rows stop on their own."""
    model = make("icot-gpt2", start_token_id=1, ready_token_id=1)
    ids, mask = question_batch(QUESTIONS)
    with torch.no_grad():
        model.lm_head.weight[1] = model.lm_head.weight.mean(dim=0) * 1.2  # the end comes now and then
    output = model.generate(ids, attention_mask=mask, max_new_tokens=40, do_sample=True)[:, max(QUESTIONS) :]
    for row in output.tolist():
        ends = [place for place, token in enumerate(row) if token == 1]
        if len(ends) >= 2:
            assert set(row[ends[1] + 1 :]) <= {0}
    at_once = model.generate(ids, attention_mask=mask, max_new_tokens=40, explicit_steps=False)[:, max(QUESTIONS) :]
    for row in at_once.tolist():
        assert 1 not in row or set(row[row.index(1) + 1 :]) <= {0}


def test_kept_positions():
    """The answer prompt stands where it would after the removed tokens."""
    model = make("icot-gpt2", keep_position=True, num_internalized_tokens=4)
    ids, mask = question_batch([3, 5])
    seen = []
    model.transformer.wpe.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    model.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False, explicit_steps=False, eos_token_id=None)
    assert seen[0][:, -4:].tolist() == [[2, 3, 8, 9], [4, 5, 10, 11]]
    assert seen[1].tolist() == [[10], [12]]
    with pytest.raises(
        ValueError, match=r"left free .* need the whole prompt in one pass: leave prefill_chunk_size out"
    ):
        model.generate(ids, attention_mask=mask, max_new_tokens=2, explicit_steps=False, prefill_chunk_size=5)
    with pytest.raises(ValueError, match=r"left free .* need a cache: leave use_cache=False out"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2, explicit_steps=False, use_cache=False)
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"left free .* need a cache"):
        model.train().generate(ids, attention_mask=mask, max_new_tokens=2, explicit_steps=False)
    model.eval().generate(ids, attention_mask=mask, max_new_tokens=2, explicit_steps=False)


def test_base_model_and_bad_settings():
    model = make("icot-gpt2")
    assert type(AutoModel.from_config(model.config)) is model.base_model_class
    with pytest.raises(ValueError, match="num_fillers"):
        model.generate(torch.tensor([[7]]), num_fillers=-1)
    model.config.start_token_id = None
    with pytest.raises(ValueError, match="start_token_id"):
        model.generate(torch.tensor([[7]]))


CHAIN = ["--config_name", "configs/icot_gpt2_chain.json", "--tokenizer_name", "characters", "--dataset_name", "chain"]
CHAIN += ["--task_args", "train=64,validation=8,test=8", "--answer_prompt", "#", "--use_cpu", "--disable_tqdm", "true"]
CHAIN += ["--per_device_train_batch_size", "8", "--max_new_tokens", "3", "--max_cot_tokens", "8", "--do_train"]


def run(folder, *flags: str) -> tuple[dict, dict]:
    """Metrics and configuration of a small run."""
    metrics = run_icot.main([*CHAIN, "--output_dir", str(folder), *flags])
    return metrics, json.loads((folder / "config.json").read_text())


def test_a_first_token_counts_as_no_end():
    """Of the model's own; before it the question looks shorter by one than it is."""
    model = make("icot-llama", start_token_id=1, ready_token_id=1, bos_token_id=2, questions_start_with_bos=True)
    chain, said = [5, 6, 1, 7, 8, 1, 9], []

    def say(*_):
        logits = torch.full((1, 1, 40), -9.0)
        logits[..., chain[len(said)]] = 9
        return said.append(1) or logits

    model.lm_head.register_forward_hook(lambda module, args, output: say())
    for question in ([[2, 7, 9]], [[7, 9]]):
        said.clear()
        output = model.generate(torch.tensor(question), max_new_tokens=9, do_sample=False, stopping_criteria=None)
        assert output[0, len(question[0]) :].tolist() == [5, 6, 1, 7, 8, 1]


def trainer_log(folder) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_a_run_takes_the_chain_away(tmp_path):
    flags = ["--max_steps", "12", "--remove_every_n_step", "2", "--eval_strategy", "steps", "--eval_steps", "4"]
    metrics, config = run(tmp_path, *flags, "--do_eval", "--do_predict", "--reset_optimizer", "--save_strategy", "no")
    assert config["num_internalized_tokens"] == -1 and config["start_token_id"] is not None
    assert {"test_icot_exact_match", "test_cot_exact_match", "test_icot_examples_per_second"} <= metrics.keys()
    logged = [entry["removed_tokens"] for entry in trainer_log(tmp_path) if "removed_tokens" in entry]
    # a chain of four one-token steps, one gone every two steps from the third on
    assert logged and logged == sorted(logged) and logged[0] < logged[-1] == 4
    assert (tmp_path / "accuracy_against_removal.png").stat().st_size > 5_000
    assert {"modeling_icot.py", "prompt_suffix.py", "positions.py", "example.py"} <= {
        p.name for p in tmp_path.iterdir()
    }
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.generate(**tokenizer(["1+1="], return_tensors="pt"), max_new_tokens=2).shape[1] > 4
    # Before the first step of another run, however that is scheduled, the weights are those that lost their chain.
    again = ["--model_name_or_path", str(tmp_path), "--dataset_name", "chain", *CHAIN[6:-1], "--do_train"]
    run_icot.main(
        [
            *again,
            "--output_dir",
            str(tmp_path / "again"),
            "--max_steps",
            "1",
            "--learning_rate",
            "0",
            "--partial_removal",
            "--eval_strategy",
            "steps",
            "--eval_on_start",
            "--logging_steps",
            "1",
        ]
    )
    assert [entry["removed_tokens"] for entry in trainer_log(tmp_path / "again") if "removed_tokens" in entry][:2] == [
        4,
        0,
    ]


@pytest.mark.parametrize(("mode", "written"), [("random", False), ("sequential", True), ("depth", False)])
def test_a_run_with_fillers(mode, written, tmp_path):
    flags = ["--max_steps", "6", "--switch_tokens", "--switch_from_n_rate", "50", "--switch_every_n_step", "1"]
    flags += ["--switch_mode", mode, "--switch_token_ratio", "2", "--save_strategy", "no"]
    flags += ["--switch_from_n_steps", "0", *([] if written else ["--no_write_fillers"])]
    _, config = run(tmp_path, *flags)
    assert config["filler_mode"] == ("written" if written else "prefilled") and config["num_fillers"] >= 1


def weights_of(folder) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def test_the_schedule_survives_everything(tmp_path):
    """Same weights with loader workers and after an interruption; accumulation follows the same schedule."""
    flags = ["--max_steps", "4", "--remove_every_n_step", "1", "--removal_smoothing_lambda", "1", "--do_eval"]
    flags += ["--eval_strategy", "steps", "--eval_steps", "2", "--removal_gate", "0.0", "--reset_optimizer"]
    flags += ["--explicit_cot", "false", "--logging_steps", "1"]
    run(tmp_path / "whole", *flags, "--save_strategy", "steps", "--save_steps", "2")
    whole = weights_of(tmp_path / "whole")
    run(tmp_path / "workers", *flags, "--save_strategy", "no", "--dataloader_num_workers", "2")
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    run(tmp_path / "resumed", *flags, "--save_strategy", "no", "--resume_from_checkpoint", checkpoint)
    for other in ("workers", "resumed"):
        for name, parameter in weights_of(tmp_path / other).items():
            assert torch.equal(parameter, whole[name]), (other, name)


def test_positions_are_extended_and_weights_drawn_again(tmp_path):
    run(tmp_path / "base", "--max_steps", "2", "--partial_removal", "--save_strategy", "no")
    flags = ["--model_name_or_path", str(tmp_path / "base"), "--dataset_name", "chain", *CHAIN[6:]]
    flags += ["--truncation", "80", "--reinitialize_weights", "--max_steps", "2", "--partial_removal"]
    run_icot.main([*flags, "--learning_rate", "0", "--save_strategy", "no", "--output_dir", str(tmp_path / "long")])
    old, new = weights_of(tmp_path / "base"), weights_of(tmp_path / "long")
    assert new["transformer.wpe.weight"].shape[0] == 80
    assert torch.equal(new["transformer.wpe.weight"][64], new["transformer.wpe.weight"][63])
    name = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(old[name], new[name])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--removal_smoothing_lambda", "0"], "must be above 0"),
        (["--remove_per_epoch", "-1"], "--remove_per_epoch must be at least 0"),
        (["--remove_every_n_step", "0"], "at least 1"),
        (["--remove_per_epoch", "0.1"], "can never finish"),
        (["--remove_all_when_remove_beyond", "many"], "must be a number or inf"),
        (["--switch_tokens", "--switch_from_n_rate", "200"], "must be a percentage, 0 to 100"),
        (["--switch_tokens", "--switch_token_ratio", "0"], "must be above 0"),
        (["--switch_tokens", "--switch_every_n_step", "0"], "at least 1"),
        (["--removal_gate", "0.9"], "needs --eval_strategy"),
        (["--remove_from_n_tokens", "5"], "is for schedules with --remove_every_n_step"),
        (["--remove_every_n_step", "5", "--pretrain_epochs", "1"], "for schedules without --remove_every_n_step"),
        (["--pretrain_epochs", "-3"], "--pretrain_epochs must be at least 0"),
        (["--remove_all_when_remove_beyond", "nan"], "must be a number or inf"),
    ],
)
def test_bad_schedules(flags, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", "--max_steps", "6", *flags)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_an_original_checkpoint_is_converted(tmp_path):
    """`config.json` + `state_dict.bin`: the same logits on the original's own prompt, and its answer."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", **(LEARNED | {"vocab_size": len(tokenizer), "initializer_range": 0.3}))
    config.eos_token_id = config.bos_token_id = tokenizer.eos_token_id
    plain = GPT2LMHeadModel(config).eval()
    plain.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "old").mkdir()
    names = {"base_model": str(tmp_path / "gpt2"), "tokenizer_name": str(tmp_path / "gpt2")}
    (tmp_path / "old" / "config.json").write_text(json.dumps(names))
    state = {f"base_model.{name}": value for name, value in plain.state_dict().items()}
    torch.save(state, tmp_path / "old" / "state_dict.bin")
    convert(tmp_path / "old", tmp_path / "new")

    model, converted = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "new"),
        AutoTokenizer.from_pretrained(tmp_path / "new"),
    )
    eos = tokenizer.eos_token_id
    prompt = [*tokenizer(" 5 6 * 7 4 ")["input_ids"], eos, eos, *tokenizer(" ####")["input_ids"]]
    wanted = plain.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=eos)[
        0, len(prompt) :
    ]
    inputs = converted(["5 6 * 7 4"], return_tensors="pt")
    got = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs.input_ids.shape[1] :]
    assert got.tolist() == wanted.tolist()
    assert not list((tmp_path / "new").glob("*.bin"))
    with pytest.raises(InputError, match="not empty"):
        convert(tmp_path / "old", tmp_path / "new")
    with pytest.raises(InputError, match=r"no .base_model. in config\.json"):
        convert(tmp_path / "gpt2", tmp_path / "other")


def test_a_row_that_truncation_leaves_no_label_does_not_end_the_run(tmp_path):
    """Alone in its batch of evaluation it has a loss of 0, and none that is no number."""
    rows = [{"question": f"{n}+1=", "steps": [str(n)], "answer": str(n + 1)} for n in range(8)]
    rows.append({"question": "1+" * 30 + "1=", "steps": ["1"], "answer": "31"})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--config_name", "configs/icot_gpt2_2x2.json", "--tokenizer_name", "characters", "--use_cpu"]
    flags += ["--truncation", "40", "--train_file", str(path), "--validation_file", str(path), "--do_train"]
    flags += ["--do_eval", "--max_steps", "2", "--remove_start_from", "9", "--per_device_eval_batch_size", "8"]
    flags += ["--max_new_tokens", "4", "--save_strategy", "no"]
    metrics = run_icot.main([*flags, "--output_dir", str(tmp_path / "out")])
    assert 0 < metrics["eval_loss"] < 10
