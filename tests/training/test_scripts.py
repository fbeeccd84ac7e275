"""The scripts as a user starts them: whole runs."""

import json

import pytest
from conftest import ROOT
from several_processes import launch
from transformers import AutoModelForCausalLM, AutoTokenizer

import run_ccot
import run_cot
from latent_cot.training.data.rows import format_line
from latent_cot.training.errors import InputError

TINY = ["--config_name", "configs/pccot_gpt2_tiny.json", "--tokenizer_name", "characters"]
QUICK = ["--use_cpu", "--max_steps", "3", "--per_device_train_batch_size", "4", "--save_strategy", "no"]
CHAIN = str(ROOT / "checkpoints" / "pccot-gpt2-chain")
QUICK += ["--disable_tqdm", "true", "--max_cot_tokens", "12", "--max_new_tokens", "6"]


@pytest.fixture
def data(tmp_path):
    rows = [
        {"question": f"Tom has {i} and gets {i}?", "steps": [f"<<{i}+{i}={2 * i}>>"], "answer": str(2 * i)}
        for i in range(9)
    ]
    path = tmp_path / "data.txt"
    path.write_text("".join(format_line(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a few steps."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    chain = ["--dataset_name", "chain", "--task_args", "train=64,validation=8,test=8", "--answer_prompt", "#"]
    run_ccot.main([*TINY, *chain, *QUICK, "--do_train", "--do_eval", "--do_predict", "--output_dir", str(folder)])
    return folder


def test_a_run_leaves_a_whole_checkpoint(trained):
    names = {path.name for path in trained.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "example.py",
        "predictions.jsonl",
    } <= names
    assert "modeling_pccot.py" in names and not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    rows = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows] == ["validation"] * 8 + ["test"] * 8
    assert {"question", "gold", "ccot_answer", "ccot_right", "cot_answer", "cot_right"} <= rows[0].keys()
    results = json.loads((trained / "all_results.json").read_text())
    for name in ("exact_match", "exact_match_low", "exact_match_high", "examples_per_second", "new_tokens"):
        assert f"test_ccot_{name}" in results and f"eval_cot_{name}" in results
    assert results["test_ccot_exact_match"] == sum(row["ccot_right"] for row in rows[8:]) / 8
    card = (trained / "README.md").read_text()
    assert "exact match" in card and "--answer_prompt" not in card.split("---")[1]


def test_settings_come_from_the_checkpoint(trained, tmp_path, caplog):
    """A contradicting flag wins, with a warning; the weights stay."""
    ask = ["--model_name_or_path", str(trained), "--dataset_name", "chain"]
    ask += ["--task_args", "train=8,validation=4,test=4"]
    ask += ["--do_predict", "--use_cpu", "--max_cot_tokens", "8", "--max_new_tokens", "4"]
    run_ccot.main([*ask, "--output_dir", str(tmp_path / "a")])
    assert "replaces" not in caplog.text
    run_ccot.main([*ask, "--num_latent_tokens", "2", "--answer_prompt", "=", "--output_dir", str(tmp_path / "b")])
    assert "--num_latent_tokens 2 replaces the checkpoint's 6" in caplog.text
    assert "--answer_prompt '=' replaces the checkpoint's '#'" in caplog.text
    assert not (tmp_path / "a" / "model.safetensors").exists()


@pytest.mark.slow
def test_two_processes(trained, tmp_path):
    """Training under torchrun, and the same predictions from two processes as from one."""
    common = ["--dataset_name", "chain", "--task_args", "train=64,validation=8,test=7", "--use_cpu"]
    common += ["--max_cot_tokens", "12", "--max_new_tokens", "6", "--per_device_eval_batch_size", "2"]
    ask = ["--model_name_or_path", str(trained), *common, "--do_predict"]
    run_ccot.main([*ask, "--output_dir", str(tmp_path / "one")])
    both = ["--ddp_backend", "gloo", "--output_dir", str(tmp_path / "two")]
    train = ["--do_train", "--max_steps", "3", "--teacher_warmup_steps", "1", "--save_strategy", "no"]
    train += ["--learning_rate", "0"]
    done = launch("run_ccot.py", *ask, *train, *both)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [row["question"] for row in one] == [row["question"] for row in two]
    assert [row["cot_text"] for row in one] == [row["cot_text"] for row in two]


@pytest.mark.parametrize("override", ["use_projection=true", "scale_latents=false"])
def test_a_trained_gain_stays(trained, override, tmp_path):
    ask = [
        "--model_name_or_path",
        str(trained),
        "--dataset_name",
        "chain",
        "--task_args",
        "train=8,validation=2,test=2",
    ]
    with pytest.raises(InputError, match="have a trained gain"):
        run_ccot.main([*ask, "--do_train", "--use_cpu", "--config_overrides", override, "--output_dir", str(tmp_path)])


def test_text_stays_text(trained):
    """A question that spells special tokens is answered as text, like any other."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    for text in ("1+<pcot.latent>=", "<pcot.bot><pcot.latent><pcot.eot>2=", "3<eos>=", "[PAD]4="):
        inputs = tokenizer([text], return_tensors="pt")
        assert not set(inputs.input_ids[0].tolist()) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert output.shape[1] > inputs.input_ids.shape[1]


def test_no_cot_and_recipe_file(data, tmp_path):
    recipe = {
        "config_name": "configs/gpt2_chain.json",
        "tokenizer_name": "characters",
        "no_cot": True,
        "train_file": data,
    }
    recipe |= {"test_file": data, "do_train": True, "do_predict": True, "max_steps": 2, "use_cpu": True}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe))
    metrics = run_cot.main([str(path), "--output_dir", str(tmp_path / "o"), "--save_strategy", "no"])
    assert "test_no_cot_exact_match" in metrics and metrics["test_no_cot_new_tokens"] > 0


def test_what_a_model_cannot_read_or_be_right_about_is_named(data, tmp_path, caplog):
    """Text that its tokenizer does not know, and gold answers with the answer prompt in them; changed settings too."""
    rows = [{"question": q, "steps": ["3"], "answer": a} for q, a in (("1+2=", "3"), ("1%2=", "3#3"), ("é+2=", "3"))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--model_name_or_path", CHAIN, "--test_file", str(path), *QUICK, "--do_predict"]
    run_ccot.main([*argv, "--output_dir", str(tmp_path / "o"), "--config_overrides", "num_iterations=1,loss_alpha=1"])
    assert "test: 2 of 3 rows hold text that the tokenizer does not know (the first is row 1)" in caplog.text
    assert "test: 1 gold answers hold the answer prompt '#'" in caplog.text
    assert "--config_overrides num_iterations=1 replaces the checkpoint's 3" in caplog.text
    assert "loss_alpha" not in caplog.text


def test_every_question_is_asked_where_training_drops_the_last_batch(data, tmp_path):
    flags = ["--dataloader_drop_last", "--per_device_eval_batch_size", "4", "--output_dir", str(tmp_path / "o")]
    files = ["--train_file", data, "--validation_file", data]
    run_ccot.main([*TINY, *files, *QUICK, "--do_train", "--do_eval", *flags])
    assert len((tmp_path / "o" / "predictions.jsonl").read_text().splitlines()) == 9


def test_a_stock_checkpoint_keeps_its_token_ids(data, tmp_path):
    """A model of run_cot.py knows by its answer prompt that it was trained."""
    new = ["--config_name", "configs/gpt2_chain.json", "--tokenizer_name", "characters", "--train_file", data]
    run_cot.main([*new, *QUICK, "--do_train", "--output_dir", str(tmp_path / "cot")])
    again = ["--model_name_or_path", str(tmp_path / "cot"), "--train_file", data, *QUICK, "--do_train", "--output_dir"]
    run_cot.main([*again, str(tmp_path / "same"), "--tokenizer_name", "characters"])
    with pytest.raises(InputError, match="was trained with other token ids"):
        run_cot.main([*again, str(tmp_path / "other"), "--tokenizer_name", "bytes"])


def test_a_recipe_with_other_data(data, tmp_path):
    """`--dataset_name= --task_args=` take the recipe's away."""
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset_name: chain\ntask_args: operations=4\nconfig_name: configs/pccot_gpt2_tiny.json\n")
    options = ["--tokenizer_name", "characters", "--train_file", data, "--dataset_name=", "--task_args=", "--do_train"]
    run_ccot.main([str(path), *options, *QUICK, "--output_dir", str(tmp_path / "o")])
    assert "Trained on data.txt." in (tmp_path / "o" / "README.md").read_text()


def test_streaming_mixed_curriculum_and_everything(data, tmp_path):
    options = ["--train_file", data, "--streaming", "--latent_curriculum", "mixed", "--curriculum_prob", "1"]
    options += ["--keep_last_step", "--config_overrides", "loss_delta=0.5,use_projection=true,num_iterations=2"]
    options += ["--latents_per_step", "3", "--open_steps_with_bot", "true", "--gradient_checkpointing"]
    run_ccot.main([*TINY, *options, *QUICK, "--do_train", "--output_dir", str(tmp_path / "o")])
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    assert config["use_projection"] and config["open_steps_with_bot"] and config["num_iterations"] == 2


def test_flags_may_be_bare(tmp_path):
    """Boolean flags without a value, old ones too; a second run replaces what the first left."""
    chain = ["--dataset_name", "chain", "--task_args", "train=16,validation=4,test=4", "--output_dir", str(tmp_path)]
    quick = [flag for flag in QUICK if flag not in ("--save_strategy", "no")] + ["--save_steps", "3"]
    run_ccot.main([*TINY, *chain, *quick, "--do_train", "--do_predict", "--use_peft", "--lora_r", "2"])
    assert (tmp_path / "adapter").is_dir() and (tmp_path / "checkpoint-3").is_dir()
    adapted = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert adapted == sorted(adapted) and len(adapted) > 2  # PEFT's own order is another one in every process
    bare = ["--overwrite_output_dir", "--group_by_length", "--no_cuda", "--open_steps_with_bot"]
    run_ccot.main([*TINY, *chain, *QUICK, "--do_train", "--do_eval", *bare])
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "checkpoint-3").exists()
    results = json.loads((tmp_path / "all_results.json").read_text())
    assert not [name for name in results if name.startswith("test_")]
