"""`latent-cot compare`: its plan, a whole small comparison, what is not run again, and its statistics."""

import json
import math

import pytest
from conftest import ROOT, SHIPPED

from latent_cot.analysis.recorded_runs import STUDENT, interval, paired_test
from latent_cot.commands import compare
from latent_cot.training.cli import read_recipe
from latent_cot.training.errors import InputError
from latent_cot.training.runs import first_settings
from latent_cot.training.runs.comparison import make_plan

CHAIN = ["--dataset_name", "chain", "--task_args", "train=48,validation=8,test=12", "--use_cpu"]
SMALL = [*CHAIN, "--methods", "cot,pccot", "--seeds", "0,1", "--max_steps", "4", "--per_device_train_batch_size", "8"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three columns of other names."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"q": f"turn {a}{b} over", "how": [f"{a} {b}", f"{b}{a}"], "gives": f"{b}{a}"} for a in "abcd" for b in "abcd"
    ]
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--train_file", "train.jsonl", "--validation_file", "valid.jsonl", "--test_file", "test.jsonl"]
    return [*flags, "--column", "question=q,steps=how,answer=gives"]


# --- the plan ---


def test_the_plan_of_files(files, tmp_path, capsys):
    """Nothing but files and columns; what is chosen, and why; nothing is written."""
    before = sorted(tmp_path.iterdir())
    assert compare.main([*files, "--dry_run"]) is None and sorted(tmp_path.iterdir()) == before
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "plan 4 methods, 3 seeds: 12 runs, into outputs/compare",
        "16 train, 16 validation, 16 test rows; chains of up to 1 steps, whose last one is left out: it repeats",
        "start random weights: settings of the demo's recipes",
        "tokenizer words: all of the validation data are among the 2",
        "cot 1,000 steps of 64, learning rate 0.002",
        "the teacher alone for the first 300",
        "c = 2, T = 2 (chains have up to 1 steps of up to 2 tokens; latents per step: 2",
        "icot 10,000 steps of 64, learning rate 0.0005 (the recipe's, 10,000 for a chain of 3 steps; about 13 minutes per seed",
    ):
        assert part in said, part


@pytest.mark.parametrize("pretrained", [False, True])
def test_steps_are_supervised_where_they_fit(pretrained):
    """Of a step with more tokens than latents only the first ones would be taught."""
    for tokens, weight in ((3, 1.0), (4, 0.0)):
        settings, why = first_settings.thought_settings(
            first_settings.Facts(10, True, steps=2, step=tokens), pretrained
        )
        assert settings["loss_delta"] == weight and ("not supervised" in why or pretrained) is (
            weight == 0 or pretrained
        )


def test_flags_go_to_the_methods_that_know_them(files):
    plan = make_plan(
        [*files, "--num_iterations", "1", "--removal_side=right", "--num_train_epochs", "64"], compare.METHODS
    )
    assert [name for name, words in plan.argv.items() if "--num_iterations" in words] == ["pccot"]
    assert [name for name, words in plan.argv.items() if "--removal_side=right" in words] == ["icot"]
    assert plan.steps == dict.fromkeys(compare.METHODS, 64) and "--teacher_warmup_steps=19" in plan.argv["pccot"]
    assert (
        "yours",
        "num_iterations, num_train_epochs, removal_side: as asked, whatever is said above of other values",
    ) in plan.lines
    with pytest.raises(InputError, match="no method here has this flag: --num_thoughts 3"):
        make_plan([*files, "--num_thoughts", "3"], compare.METHODS)
    with pytest.raises(InputError, match="'coconut' is not one of cot, none, pccot, icot"):
        make_plan([*files, "--methods", "cot,coconut"], compare.METHODS)
    with pytest.raises(InputError, match="no test data"):
        make_plan([*files[:4], *files[6:]], compare.METHODS)


def test_a_pretrained_start_and_a_recipe(monkeypatch):
    """Published settings; of a checkpoint that thinks its own c and T; a recipe's configuration for every family."""
    monkeypatch.chdir(ROOT)
    plan = make_plan([*CHAIN, "--model_name_or_path", str(SHIPPED), "--methods", "none,pccot"], compare.METHODS)
    assert ("start", f"{SHIPPED}: published settings") in plan.lines and plan.config is None
    words = set(plan.argv["pccot"])
    assert {"--use_peft=True", "--learning_rate=0.003", "--metric_for_best_model=eval_ccot_exact_match"} <= words
    assert not [word for word in words if word.startswith("--num_latent_tokens")]
    with pytest.raises(InputError, match="--methods icot cannot train a pccot-gpt2 model"):
        make_plan([*CHAIN, "--model_name_or_path", str(SHIPPED)], compare.METHODS)
    few = ["--task_args", "operations=16,train=48,validation=8,test=8"]
    plan = make_plan(["configs/recipes/chain16_pccot_gpt2-2x64.yaml", *few], compare.METHODS)
    assert plan.steps["pccot"] == 1500 and plan.config["n_positions"] == 128 and plan.config["model_type"] == "gpt2"
    assert not [word for word in plan.argv["pccot"] if "num_latent_tokens" in word and word.startswith("--num_")]
    assert plan.argv["cot"].count(f"--config_name={plan.config_file}") == 1 and "num_iterations" not in plan.config


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        (
            "chain_pccot_gpt2-2x64",
            first_settings.DEMO | {"max_steps": first_settings.DEMO_STEPS, "teacher_warmup_steps": 300},
        ),
        ("chain_icot_gpt2-4x96", first_settings.DEMO_ICOT | {"max_steps": first_settings.DEMO_ICOT_STEPS}),
        ("gsm8k-aug_pccot_gpt2", first_settings.PUBLISHED),
        ("multiplication-9x9_icot_gpt2", first_settings.PUBLISHED_ICOT),
    ],
)
def test_the_settings_are_the_recipes(recipe, settings):
    held = read_recipe(ROOT / "configs" / "recipes" / f"{recipe}.yaml")
    free = {"max_eval_samples", "eval_strategy", "save_strategy"}
    assert {name: held.get(name) for name in settings.keys() - free} == {
        name: settings[name] for name in settings.keys() - free
    }


# --- a comparison ---


def test_a_comparison_that_is_cut_and_goes_on(tmp_path, monkeypatch, capsys):
    """Cut in its third run, it makes only the steps that are left, and at last none."""
    argv = [*SMALL, "--output_dir", str(tmp_path / "out")]
    made, counted = [], compare.Progress.on_step_end

    def cut(self, args, state, control, **kwargs):
        made.append(state.global_step)
        if len(made) == 11:
            raise RuntimeError("cut")
        counted(self, args, state, control, **kwargs)

    monkeypatch.setattr(compare.Progress, "on_step_end", cut)
    with pytest.raises(RuntimeError, match="cut"):
        compare.main(argv)
    assert made == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3] and len(list((tmp_path / "out").glob("*/seed-*.json"))) == 2
    page = compare.main(argv)
    assert made[11:] == [3, 4, 1, 2, 3, 4]
    rows = {
        path.parent.name + path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/seed-*.json")
    }
    assert len(rows) == 4 and rows["cotseed-1"]["train_seconds"] is None and rows["cotseed-0"]["train_seconds"] > 0
    for row in rows.values():
        assert len(row["right"]) == 12 and row["exact_match"] == row["right"].count("1") / 12
        assert str(tmp_path) not in row["command"] and f"--seed={row['seed']}" in row["command"]
    text = page.read_text()
    assert text.startswith("# Methods on chain (train=48,validation=8,test=12)\n") and str(tmp_path) not in text
    mean = (rows["pccotseed-0"]["exact_match"] + rows["pccotseed-1"]["exact_match"]) / 2
    assert f"| latent thought (`pccot`) | 2 | {mean:.4f} | " in text and "| against `cot` |" in text
    assert (page.parent / "comparison.png").stat().st_size > 5000 and not list(page.parent.glob("*/*/checkpoint-*"))
    assert f"{page}\n" in capsys.readouterr().out
    compare.main(argv)
    assert len(made) == 17
    for other, said in (
        (["--learning_rate", "0.1"], r"--learning_rate 0.002 \(now 0.1\): choose"),
        (["--task_args", "train=40,test=12"], "of other data"),
    ):
        with pytest.raises(InputError, match=f"out holds runs with .*{said}"):
            compare.main([*argv, *other])


# --- statistics ---


def test_the_paired_test():
    """By hand: 1 question for the first, 6 for the other; two-sided 2 (1 + 7) / 2^7. With two seeds a question counts once."""
    assert paired_test({0: "1000000" + "11"}, {0: "0111111" + "11"}) == (1, 6, 0.125)
    assert paired_test({0: "100", 1: "110"}, {0: "011", 1: "011"}) == (1, 2, 1.0)
    assert paired_test({0: "11"}, {0: "11"}) == (0, 0, 1.0)
    assert paired_test({0: "1"}, {1: "1"}) is None
    assert paired_test({0: "0" * 3000}, {0: "1" * 3000})[2] < 1e-300


def test_the_interval_over_seeds():
    """Student's: 0.5 +- 4.303 x 0.1 / sqrt(3); seeds that agree leave the questions' interval (Wilson: 300 of 300)."""
    low, high = interval([0.4, 0.5, 0.6], 10_000)
    assert math.isclose(high - 0.5, 4.303 * 0.1 / math.sqrt(3)) and math.isclose(low + high, 1)
    low, high = interval([1.0, 1.0, 1.0], 300)
    assert math.isclose(low, 300 / (300 + 1.959964**2)) and high == 1.0
    stats = pytest.importorskip("scipy.stats")
    for freedom in range(1, 30):
        student = STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.96 + 2.6 / freedom
        assert abs(student - stats.t.ppf(0.975, freedom)) < 0.02
