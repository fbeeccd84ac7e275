"""Step supervision through a decoder that exists only in training."""

# ruff: noqa: F811  (`make_trainer` is a fixture)

import json
import logging
import re
import shutil

import pytest
import torch
from conftest import CONFIGS, ROOT, chain_model, make_model
from safetensors.torch import load_file
from several_processes import launch_runs
from test_collators import EOS, FEATURES, NO, TOKENIZER
from test_resuming import LORA, PCCOT, RUN, assert_same, cut, with_nan
from test_training import make_trainer  # noqa: F401
from transformers import AutoModelForCausalLM

import run_ccot
from latent_cot.training import PCCoTArguments, PCCoTTrainer
from latent_cot.training.data.collators import PCCoTCollator
from latent_cot.training.errors import InputError
from latent_cot.training.resume.find_checkpoint import checkpoint_to_resume
from latent_cot.training.step_decoder import STEP_DECODER, attach_step_decoder

DECODER = ["--step_decoder_layers", "1", "--config_overrides", "loss_delta=1"]


def decoding_model(backbone: str = "gpt2", **changes):
    """A small model, its decoder, and a batch: two rows, two steps with two latents each, one step missing."""
    model = make_model(backbone, **({"loss_delta": 0.5, "num_latent_tokens": 4, "latents_per_step": 2} | changes))
    decoder = attach_step_decoder(model, 1)
    batch = PCCoTCollator(TOKENIZER, model.config, whole_steps=True)(FEATURES)
    return model, decoder, batch | {"read_steps": decoder}


def test_labels_are_whole_steps():
    config = CONFIGS["gpt2"](num_latent_tokens=4, latents_per_step=2)
    batch = PCCoTCollator(TOKENIZER, config, whole_steps=True)(FEATURES)
    assert batch["step_labels"].tolist() == [[[20, 21, EOS], [22, EOS, NO]], [[23, EOS, NO], [NO, NO, NO]]]
    few = PCCoTCollator(TOKENIZER, CONFIGS["gpt2"](num_latent_tokens=1), whole_steps=True)(FEATURES)
    assert few["step_labels"].tolist() == [[[20, 21, EOS]], [[23, EOS, NO]]]
    many = PCCoTCollator(TOKENIZER, CONFIGS["gpt2"](num_latent_tokens=60, latents_per_step=60), whole_steps=True)
    assert many.length(FEATURES[0] | {"steps": [[20] * 50]}) == 60 + 50  # a row's longest sequence is the decoder's
    none = PCCoTCollator(TOKENIZER, config, whole_steps=True)([FEATURES[0] | {"steps": []}])
    assert none["step_labels"].tolist() == [[[NO], [NO]]]


def test_the_loss_is_that_of_one_step_after_the_other(backbone):
    """Each step alone: the states of its latents, then its tokens; without padding, and with a head of its own."""
    model, decoder, batch = decoding_model(backbone)
    seen = []
    decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        output = model(**batch)
        losses = []
        for row, feature in enumerate(FEATURES):
            for number, step in enumerate(feature["steps"]):
                latents = seen[0][row, 2 * number : 2 * number + 2]
                inputs = torch.cat([latents, model.get_input_embeddings()(torch.tensor(step))])
                logits = model.lm_head(decoder.backbone(inputs_embeds=inputs[None]).last_hidden_state[0, 1:])
                wanted = torch.tensor([*step, EOS])
                losses += torch.nn.functional.cross_entropy(logits, wanted, reduction="none").tolist()
    assert len(losses) == 3 + 2 + 2
    assert output.step_loss.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    parts = output.cot_loss + output.ccot_loss + output.kd_loss + 0.5 * output.step_loss
    assert output.loss.item() == pytest.approx(parts.item(), rel=1e-5)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_reach_the_latents(checkpointed):
    """With no other loss: through the decoder, which learns as a whole, to every layer of the model."""
    off = {"loss_alpha": 0, "loss_beta": 0, "loss_gamma": 0}
    model, decoder, batch = decoding_model(**off)
    states = []
    decoder.register_forward_pre_hook(lambda module, args: args[0].register_hook(states.append) and None)
    model.train()
    if checkpointed:
        model.gradient_checkpointing_enable()
    model(**batch).loss.backward()
    assert (states[0].abs().sum(-1) > 0).tolist() == [[True] * 4, [True, True, False, False]]
    for name, weight in decoder.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name
    for layer in model.transformer.h:
        assert layer.mlp.c_fc.weight.grad.abs().sum() > 0


def test_a_step_is_the_same_however_it_is_divided(make_trainer, characters):
    """Four batches of 2 instead of one of 8, of steps of unequal length: the mean is over the tokens of all of them."""
    losses, weights = [], []
    for batch, accumulated in ((8, 1), (2, 4)):
        model = chain_model(characters, num_latent_tokens=3, loss_delta=1.0, loss_gamma=0)
        trainer = make_trainer(
            model, {"step_decoder_layers": 1}, max_steps=1, logging_steps=1, optim="sgd", learning_rate=0.1,
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated, save_strategy="no",
        )  # fmt: skip
        torch.manual_seed(3)
        for weight in trainer.step_decoder.parameters():
            weight.data.normal_(std=0.1)
        trainer.train()
        losses.append(trainer.state.log_history[0]["step_loss"])
        weights.append(torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert (weights[0] - weights[1]).abs().max() < 1e-5


def test_the_optimiser_has_the_decoder(make_trainer, characters):
    """With weight decay where the Trainer decays; DDP looks for what a warm-up leaves idle; half precision trains it too."""
    model = chain_model(characters, num_latent_tokens=3, loss_delta=1.0)
    method = {"step_decoder_layers": 1, "teacher_warmup_steps": 1}
    trainer = make_trainer(model, method, max_steps=2, bf16=True, weight_decay=0.1, save_strategy="no")
    assert trainer.leaves_weights_unused(model.config)
    before = {name: weight.clone() for name, weight in trainer.step_decoder.named_parameters()}
    trainer.train()
    decayed = {
        id(weight) for group in trainer.optimizer.param_groups if group["weight_decay"] for weight in group["params"]
    }
    for name, weight in trainer.step_decoder.named_parameters():
        assert weight.dtype == torch.float32 and not torch.equal(weight, before[name]), name
        assert (id(weight) in decayed) == (weight.ndim == 2), name


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"loss_delta": 0.0}, "loss_delta, which is 0; pass --config_overrides loss_delta=1"),
        ({"latents_per_step": 2}, "3 latents are no whole steps of 2"),
    ],
)
def test_what_is_refused(make_trainer, characters, changes, error):
    model = chain_model(characters, **({"num_latent_tokens": 3, "loss_delta": 1.0} | changes))
    with pytest.raises(InputError, match=error):
        make_trainer(model, {"step_decoder_layers": 1})


@pytest.mark.parametrize("engine", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sharding_is_refused(make_trainer, characters, engine, monkeypatch):
    """Said of a trainer that is made; no engine shards on a CPU."""
    made = property(lambda self: hasattr(self, "stop_on_signal"), lambda self, value: None)
    monkeypatch.setattr(PCCoTTrainer, engine, made, raising=False)
    with pytest.raises(InputError, match="not supported with FSDP and DeepSpeed"):
        make_trainer(chain_model(characters, num_latent_tokens=3, loss_delta=1.0), {"step_decoder_layers": 1})


def test_a_number_of_layers_below_0_is_refused():
    with pytest.raises(InputError, match="--step_decoder_layers must be at least 0, got -1"):
        PCCoTArguments(step_decoder_layers=-1)


# --- what is saved, and resumed ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a decoder, and checkpoints 2 and 4; and the same run without it."""
    folder = tmp_path_factory.mktemp("run")
    argv = [*RUN, *PCCOT, "--max_steps", "4", "--config_overrides", "loss_delta=1"]
    run_ccot.main([*argv, "--output_dir", str(folder / "without")])
    run_ccot.main([*argv, *DECODER, "--output_dir", str(folder / "with")])
    return folder


def test_a_finished_model_is_as_without_it(run):
    """The same files, tensors and configuration; the weights are others, so it did learn from the decoder."""
    folders = [run / name for name in ("without", "with")]
    names, keys = ({path.name for path in folder.iterdir()} for folder in folders), []
    assert len({frozenset(found) for found in names}) == 1
    for folder in folders:
        keys.append({name: values.shape for name, values in load_file(folder / "model.safetensors").items()})
    assert keys[0] == keys[1]
    assert (folders[0] / "config.json").read_text() == (folders[1] / "config.json").read_text()
    AutoModelForCausalLM.from_pretrained(folders[1])
    first, second = (load_file(folder / "model.safetensors") for folder in folders)
    assert any(not torch.equal(values, second[name]) for name, values in first.items())


def test_a_model_that_someone_saves_is_as_without_it(tmp_path):
    model, decoder, _ = decoding_model()
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "step_decoder" in name]
    assert decoder.state_dict().keys() == dict(decoder.named_parameters()).keys()


@pytest.mark.parametrize("more", [[], pytest.param(LORA, marks=pytest.mark.slow)], ids=["all weights", "LoRA"])
def test_a_checkpoint_leads_to_the_same_weights_and_losses(more, run, tmp_path, caplog):
    start = ["--model_name_or_path", str(run / "without"), *more] if more else PCCOT
    argv = [*RUN, *start, *DECODER, "--max_steps", "4", "--logging_steps", "1"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_ccot.main([*argv, "--output_dir", str(whole)])
    with caplog.at_level(logging.WARNING):
        run_ccot.main([*argv, "--output_dir", str(resumed), "--resume_from_checkpoint", str(whole / "checkpoint-2")])
    assert "step_decoder" not in caplog.text
    assert_same(whole, resumed)
    assert_same(whole / "checkpoint-4", resumed / "checkpoint-4")
    assert (whole / "checkpoint-4" / STEP_DECODER).is_file() and not (whole / STEP_DECODER).exists()
    logs = [json.loads((folder / "trainer_state.json").read_text())["log_history"][:4] for folder in (whole, resumed)]
    losses = [[(entry["loss"], entry["step_loss"]) for entry in entries] for entries in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    if more:
        assert not [
            name for path in whole.rglob("adapter/*.safetensors") for name in load_file(path) if "step_decoder" in name
        ]


DAMAGES = {
    "step_decoder.safetensors is missing": lambda path: path.unlink(),
    "step_decoder.safetensors is damaged": cut,
    "in step_decoder.safetensors is not finite": with_nan,
}


@pytest.mark.parametrize("why", DAMAGES)
def test_a_checkpoint_without_a_whole_decoder_is_passed_over(why, run, tmp_path, caplog):
    folder = shutil.copytree(run / "with", tmp_path / "run")
    DAMAGES[why](folder / "checkpoint-4" / STEP_DECODER)
    assert checkpoint_to_resume("true", folder, decodes=True) == folder / "checkpoint-2"
    assert why in caplog.text
    argv = [*RUN, *PCCOT, *DECODER, "--max_steps", "4", "--output_dir", str(folder)]
    with pytest.raises(InputError, match=re.escape(why)):
        run_ccot.main([*argv, "--resume_from_checkpoint", str(folder / "checkpoint-4")])


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ([], "its run had --step_decoder_layers, and this one has not"),
        (["--step_decoder_layers", "2"], "not a decoder of this run's --step_decoder_layers and model"),
    ],
)
def test_a_checkpoint_of_another_decoder_is_refused(flags, error, run, tmp_path):
    argv = [*RUN, *PCCOT, "--config_overrides", "loss_delta=1", *flags, "--max_steps", "4"]
    checkpoint = str(run / "with" / "checkpoint-2")
    with pytest.raises(InputError, match=error):
        run_ccot.main([*argv, "--output_dir", str(tmp_path), "--resume_from_checkpoint", checkpoint])


def test_the_best_model_is_loaded_and_saved_without_it(tmp_path, caplog):
    argv = [*RUN, *PCCOT, *DECODER, "--max_steps", "4", "--load_best_model_at_end", "--eval_strategy", "steps"]
    argv += ["--eval_steps", "2", "--explicit_cot", "false", "--output_dir", str(tmp_path)]
    with caplog.at_level(logging.WARNING):
        run_ccot.main(argv)
    assert "step_decoder" not in caplog.text and not (tmp_path / STEP_DECODER).exists()
    best = json.loads((tmp_path / "trainer_state.json").read_text())["best_global_step"]
    best_weights = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == best_weights.keys()
    assert all(torch.equal(values, best_weights[name]) for name, values in saved.items())


def test_the_decoder_of_the_best_model_measures_it(tmp_path, caplog):
    argv = [*RUN, *PCCOT, *DECODER, "--max_steps", "4", "--load_best_model_at_end", "--eval_strategy", "steps"]
    argv += ["--eval_steps", "2", "--explicit_cot", "false", "--do_eval", "--metric_for_best_model", "eval_loss"]
    argv += ["--greater_is_better", "true", "--learning_rate", "0.01"]  # so that it is not the last one
    metrics = run_ccot.main([*argv, "--output_dir", str(tmp_path / "whole")])
    state = json.loads((tmp_path / "whole" / "trainer_state.json").read_text())
    assert state["best_global_step"] == 2
    best, last = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry][:2]
    assert metrics["eval_loss"] == pytest.approx(best, abs=1e-6) and best - last > 1e-3
    with caplog.at_level(logging.WARNING):
        run_ccot.main([*argv, "--save_only_model", "--output_dir", str(tmp_path / "model")])
    assert "checkpoint-2 holds no decoder of steps (--save_only_model)" in caplog.text


def test_nothing_is_measured_with_an_untrained_one(tmp_path):
    run_ccot.main([*RUN, *PCCOT, "--output_dir", str(tmp_path / "model")])
    argv = ["--model_name_or_path", str(tmp_path / "model"), "--dataset_name", "chain", "--do_eval", "--use_cpu"]
    argv += ["--task_args", "train=64,validation=8,test=8", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(InputError, match="--step_decoder_layers: a decoder exists in training alone"):
        run_ccot.main([*argv, *DECODER])
    assert not [*(tmp_path / "out").glob("*")]


def test_the_plan_counts_it(tmp_path, capsys):
    counts = []
    for flags in ([], DECODER):
        run_ccot.main([*RUN, *PCCOT, *flags, "--dry_run", "--output_dir", str(tmp_path / "out")])
        printed = capsys.readouterr().out
        counts.append(int(re.search(r"parameters +([\d,]+)", printed)[1].replace(",", "")))
    own = int(re.search(r"([\d,]+) of them are the step decoder's", printed)[1].replace(",", ""))
    assert counts[1] - counts[0] == own > 0


# --- slow: several processes, and whether it learns ---


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(tmp_path):
    """Decoder and model, after a warm-up that leaves the decoder idle."""
    argv = [*RUN, *PCCOT, "--step_decoder_layers", "1", "--config_overrides", "loss_delta=1,loss_gamma=0"]
    argv += ["--optim", "sgd", "--learning_rate", "0.1", "--max_steps", "3", "--save_steps", "3"]
    argv += ["--teacher_warmup_steps", "1", "--max_grad_norm", "1000", "--lr_scheduler_type", "constant"]
    launch_runs(
        [("run_ccot", [*argv, "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "two")])], tmp_path
    )
    run_ccot.main([*argv, "--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "one")])
    for name in ("model.safetensors", STEP_DECODER):
        one, two = (load_file(tmp_path / folder / "checkpoint-3" / name) for folder in ("one", "two"))
        assert one.keys() == two.keys()
        assert max((values - two[weight]).abs().max() for weight, values in one.items()) < 1e-5, name


@pytest.mark.slow
def test_it_learns_a_chain(tmp_path):
    """The demo's recipe on two operations mod 3: the decoder writes the step, and answers are right."""
    argv = [str(ROOT / "configs/recipes/chain_pccot_gpt2-2x64.yaml"), "--loss_delta", "1", "--step_decoder_layers", "1"]
    argv += [
        "--use_cpu",
        "--task_args",
        "operations=2,modulus=3,train=3000,validation=50,test=200",
        "--num_latent_tokens",
        "1",
    ]
    argv += ["--max_steps", "300", "--teacher_warmup_steps", "150", "--learning_rate", "0.003", "--logging_steps", "25"]
    argv += ["--eval_strategy", "no", "--do_eval", "false", "--explicit_cot", "false", "--report_to", "none"]
    metrics = run_ccot.main([*argv, "--disable_tqdm", "true", "--output_dir", str(tmp_path)])
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [entry["step_loss"] for entry in log if "step_loss" in entry][-1] < 0.02
    assert metrics["test_ccot_exact_match"] > 0.95
