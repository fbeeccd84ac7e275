"""What the documents promise: printed commands run, flags, fields, recipes, tests and links exist, code blocks work."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, ROOT, ROPE, SMALL, THOUGHT, ask_example, question_batch, with_span
from datasets import Dataset, DatasetDict
from reference import think_plainly
from test_recipes import RECIPES, script_of
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import latent_cot
import run_ccot
import run_cot
import run_grpo
import run_icot
from latent_cot import tasks
from latent_cot.analysis.faithfulness import FaithfulnessArguments
from latent_cot.training.arguments import CoTTrainingArguments, StepwiseDataArguments
from latent_cot.training.cli import parse
from latent_cot.training.data.small_tokenizers import byte_tokenizer
from latent_cot.training.method_arguments import RewardArguments

README = (ROOT / "README.md").read_text()
ACTIVATE = "source .venv/bin/activate"
GUIDES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "configs" / "recipes" / "README.md"]
# What a printed command would start, download or install is asked by these tests instead.
COVERED = {
    "serve": "tests/engines/test_serving.py::test_server_answers",
    "chat": "tests/engines/test_serving.py::test_chat_client",
    "outputs/icot.gguf": "tests/engines/test_gguf.py::test_the_command_prints_the_prompt",
    "faithfulness": "tests/analysis/test_faithfulness.py::test_the_command",
    "benchmarks.gpu": "tests/product/test_gpu.py::test_the_rehearsal",
    "old_checkpoint": "tests/models/test_icot.py::test_an_original_checkpoint_is_converted",
}
FEW_STEPS = (
    "--max_steps 2 --save_steps 2 --eval_steps 2 --per_device_train_batch_size 4 --use_cpu --overwrite_output_dir"
)
FEW_STEPS += " --max_new_tokens 2 --max_cot_tokens 4"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(path: Path) -> list[str]:
    """The commands of a document's shell blocks in their order; continued lines are one command."""
    lines = "".join(blocks(path.read_text(), "bash")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]


def with_commands(paths: list[Path]) -> list[Path]:
    return [path for path in paths if commands(path)]


def test_exists(name: str) -> bool:
    path, _, test = name.partition("::")
    return (ROOT / path).is_file() and (not test or f"def {test}(" in (ROOT / path).read_text())


test_exists.__test__ = False


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


# --- a clone in which the printed lines run ---


@pytest.fixture
def clone(tmp_path) -> Path:
    """The repository's files and its environment in a folder of their own, with local stand-ins under the Hub's names."""
    if not (Path(sys.prefix) / "bin" / "activate").is_file():
        pytest.skip("the tests do not run in a virtual environment, so there is none to activate")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    folder = tmp_path / "clone"
    for name in names:
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)

    tokenizer, ends = byte_tokenizer(), {"bos_token_id": 0, "eos_token_id": 0}
    size = {"n_embd": 32, "n_head": 2, "n_layer": 1, "n_positions": 1024, "vocab_size": len(tokenizer)} | ends
    GPT2LMHeadModel(GPT2Config(**size)).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")
    mistral = folder / "mistralai" / "Mistral-7B-v0.1"
    shape = ROPE | {"vocab_size": len(tokenizer), "max_position_embeddings": 1024} | ends
    MistralForCausalLM(MistralConfig(**shape)).save_pretrained(mistral)
    tokenizer.save_pretrained(mistral)
    smollm = folder / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(smollm)
    with_padding = byte_tokenizer()  # as SmolLM2's
    with_padding.pad_token = with_padding.eos_token
    with_padding.save_pretrained(smollm)
    small = folder / "configs" / "pccot_gpt2_small.json"
    small.write_text(json.dumps(json.loads(small.read_text()) | size))

    splits = tasks.generate("chain", "train=32,validation=4,test=4")
    data = DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})
    data.save_to_disk(folder / "whynlp" / "gsm8k-aug")
    (folder / "whynlp" / "pccot-gpt2").symlink_to(FIXTURES / "parity" / "peft_checkpoint" / "checkpoint")
    for name in ("train", "valid", "9_by_9_mult/train", "9_by_9_mult/valid", "9_by_9_mult/test_bigbench"):
        (folder / "data" / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / f"{name}.txt").write_text("How many are 1 and 1?||<<1+1=2>> #### 2\n" * 8)
    shutil.copytree(folder / "data" / "9_by_9_mult", folder / "data" / "gsm8k")
    row = {"question": "How many are 1 and 1?", "answer": "They are <<1+1=2>>2.\n#### 2"}
    (folder / "data" / "gsm8k" / "train.jsonl").write_text(f"{json.dumps(row)}\n" * 8)
    for name, split in (
        ("train", "train"),
        ("valid", "validation"),
        ("test", "test"),
    ):  # one's own, with their own columns
        rows = [{"query": row["question"], "cot": row["steps"], "response": row["answer"]} for row in splits[split]]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def template_commands() -> set[str]:
    """What the templates start, as a document may print it."""
    lines = [path.read_text().splitlines()[-1] for path in ROOT.glob("*.sh.template")]
    return {line.removesuffix(' "$@"') for line in lines}


def as_run(command: str, text_of_script: str = "") -> str | None:
    """A printed command as a test runs it: itself, with flags after it that shorten a training; None if not at all."""
    words, whole = shlex.split(command), command + text_of_script
    if words[0] == "make":
        assert words[1] in make_targets(), command
        return None
    if words[0] == "pre-commit":
        assert (ROOT / ".pre-commit-config.yaml").is_file()
        return None
    if command in template_commands():  # test_templates
        return None
    for name, test in COVERED.items():
        if name in words:
            assert test_exists(test)
            return None
    if words[:2] == ["latent-cot", "compare"]:
        return f"{command} --seeds 0 --max_steps 20 --use_cpu"
    if "run_grpo.py" in words or words[:3] == ["latent-cot", "train", "grpo"]:
        if find_spec("trl") is None:
            return None
        command += " --num_generations 2"
    elif not re.search(r"\brun_i?c?cot\.(py|sh)|\blatent-cot train ", command) or words[0] == "cp":
        return command
    command += f" {FEW_STEPS}"
    if "icot" not in whole:
        command += " --lora_r 2"
    elif "_test" not in whole and "--do_predict" not in whole:
        command += " --partial_removal"
    if "recipes/chain" in whole or "--dataset_name chain" in whole:
        command += " --task_args train=32,validation=4,test=4"
    return command


def run(clone: Path, script: list[str | None]) -> str:
    """Run lines in a shell that finds no Python of an environment before `ACTIVATE`; returns what they print."""
    # On the path: the system's folders, without those of any environment, `python` of which would hide a mistake.
    paths = [path for path in os.environ["PATH"].split(os.pathsep) if not (Path(path) / "activate").exists()]
    env = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    env |= {"PATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env |= {"HF_HOME": str(clone / ".cache")}
    lines = "\n".join(line for line in script if line is not None)
    done = subprocess.run(["bash", "-e", "-c", lines], cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{lines}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_asking_commands_of_the_readme(monkeypatch, capsys):
    """A quick form of the next test, in this process: what asks the shipped models."""
    asking = [command for command in commands(ROOT / "README.md") if command.startswith("python example.py")]
    assert ACTIVATE in commands(ROOT / "README.md") and len(asking) == 3
    printed = "\n".join(line for asked in asking for line in ask_example(monkeypatch, capsys, *shlex.split(asked)[2:]))
    assert "7+3*4-2+9=  ->  7" in printed and "(explicit: " in printed and "does Ann have?  ->  6" in printed


@pytest.mark.slow
def test_commands_of_the_readme(clone):
    run(clone, [as_run(command) for command in commands(ROOT / "README.md")])


@pytest.mark.slow
@pytest.mark.parametrize("path", with_commands(GUIDES), ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_a_guide(path, clone):
    """In their order, since later ones use what earlier ones made; every guide goes on from the activated environment."""
    assert ACTIVATE in path.read_text() or path.name == "README.md"
    asked = {command for command in commands(ROOT / "README.md") if command.startswith("python example.py")}
    run(clone, [ACTIVATE, *(as_run(command) for command in commands(path) if command not in asked)])


@pytest.mark.slow
def test_demo(clone):
    """`make demo`, a few steps of it."""
    printed = run(clone, [ACTIVATE, "python demo.py --output_dir outputs/demo --max_steps 2 --use_cpu"])
    for row in ("explicit chain of thought", "no chain of thought", *(f"latent thought, T = {t}" for t in range(7))):
        assert re.search(rf"^{row} +[01]\.\d\d\d +\d+\.\d$", printed, flags=re.MULTILINE)
    assert printed.count("  ->  ") == 3
    assert (clone / "outputs" / "demo" / "accuracy_against_T.png").stat().st_size > 5_000


# --- Python blocks ---


def test_python_of_the_readme(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for block in blocks(README, "python"):
        exec(block, {})
    assert "7+3*4-2+9=7" in capsys.readouterr().out


@pytest.mark.slow
def test_python_of_the_training_guide(clone):
    (block,) = blocks((ROOT / "docs" / "training.md").read_text(), "python")
    (clone / "notebook.py").write_text(block)
    script = "python example.py --model outputs/notebook/final '1+2*3-4+5='"
    assert "1+2*3-4+5=  ->" in run(clone, [ACTIVATE, "python notebook.py", script])


def test_new_backbone_from_the_document():
    """The document's block makes a backbone that agrees with the plain twin."""
    (block,) = blocks((ROOT / "docs" / "adding-a-backbone.md").read_text(), "python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 20
    scope = {"__name__": "models.documented"}
    exec(block, scope)
    torch.manual_seed(0)
    config = AutoConfig.for_model("pccot-olmo2", **(SMALL | ROPE | THOUGHT))
    # In single precision rounding alone reaches 1e-5 with some weights.
    model = AutoModelForCausalLM.from_config(config).eval().double()
    assert isinstance(model, scope["PCCoTOlmo2ForCausalLM"])
    ids, mask = with_span(model, *question_batch([3, 6]))
    with torch.no_grad():
        got = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        assert (got - think_plainly(model.base_model, ids, mask)[mask.bool()]).abs().max() < 1e-5
    assert model.generate(ids[:, :6], attention_mask=mask[:, :6], max_new_tokens=3, do_sample=False).shape[1] <= 9


# --- what is described ---


def test_every_flag_and_field_is_described():
    reference = (ROOT / "docs" / "reference.md").read_text()
    scripts = {*run_ccot.ARGUMENTS, *run_cot.ARGUMENTS, *run_icot.ARGUMENTS, RewardArguments, FaithfulnessArguments}
    scripts -= {CoTTrainingArguments, StepwiseDataArguments}  # the latter is DataArguments, with another default
    for group in scripts:
        for field in filter(lambda field: field.init, fields(group)):
            text = field.metadata["help"].replace("|", "\\|")
            assert re.search(rf"^\| `--{field.name}` \|.*\| {re.escape(text)} \|$", reference, flags=re.MULTILINE), (
                field.name
            )
    for name in CoTTrainingArguments.__annotations__:  # those that are ours, not transformers'
        assert f"`--{name}`" in reference, name
    for family in (latent_cot.PCCoTConfigMixin, latent_cot.ICoTConfigMixin):
        for field in fields(family):
            assert f"`{field.name}`" in reference, field.name


def test_every_row_about_the_originals_names_its_test():
    """Or says that nobody checks it; "same" stands only where somebody does."""
    text = (ROOT / "docs" / "from-the-originals.md").read_text()
    rows = re.findall(r"^\| (?!there|---)(.+) \| (.+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert len(rows) > 45
    for there, here, checked in rows:
        if checked == "not checked":
            assert not re.search(r"\bsame\b", here.replace("the same names", "")), there
            continue
        for name in re.findall(r"`([^`]+)`", checked):
            path, _, function = name.rpartition("::") if "::" in name else ("", "", name)
            if name.endswith(".py"):
                assert (ROOT / name).is_file(), name
                continue
            files = [ROOT / path] if path else (ROOT / "tests" / "product").glob("test_originals*.py")
            source = "\n".join(file.read_text() for file in files)
            assert re.search(rf"^def {function}\(", source, flags=re.MULTILINE), name


def test_every_model_type_is_in_the_readme():
    for name in latent_cot.__all__:
        if name.endswith("Config"):
            assert f"`{getattr(latent_cot, name).model_type}`" in README


def test_the_map_of_the_code_is_true():
    """Each row of CONTRIBUTING's last table: the files exist, and the names beside them are in them."""
    _, _, table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where is what?")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]*`[^|]+) \| ([^|]+) \|$", table, flags=re.MULTILINE)
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == len(lines) - 1 >= 24  # all but its head
    for question, files, names in rows:
        text = "".join((ROOT / path).read_text() for path in re.findall(r"`([^`]+)`", files))
        for name in re.findall(r"`([^`]+)`", names):
            assert re.search(rf"\b{re.escape(name)}\b", text), (question, name)


def test_make_targets_exist():
    for path in (ROOT / "README.md", *GUIDES):
        for target in re.findall(r"`make ([\w-]+)`", path.read_text()):
            assert target in make_targets(), f"{path.name}: make {target}"


def test_extras_exist():
    project = (ROOT / "pyproject.toml").read_text()
    for path in (ROOT / "README.md", *GUIDES):
        for extra in re.findall(r"`\.\[(\w+)\]`", path.read_text()):
            assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), f"{path.name}: {extra}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path, tmp_path):
    """A recipe is read by its script's arguments, says what it is, and is in the index."""
    script = script_of(path)
    if script is run_grpo:
        pytest.importorskip("trl", reason="trl is not installed: pip install '.[rl]'")
    arguments = run_grpo.argument_classes() if script is run_grpo else script.ARGUMENTS
    parse(arguments, [str(path), "--use_cpu", "--output_dir", str(tmp_path / "out")])
    assert path.read_text().startswith("# ")
    assert f"| `{path.name}` |" in (path.parent / "README.md").read_text()


def test_recipes_that_documents_name_exist():
    names = {path.name for path in RECIPES}
    for path in (ROOT / "README.md", *GUIDES, *ROOT.glob("*.sh.template"), *ROOT.glob("*.py")):
        for name in re.findall(r"configs/recipes/([\w-]+\.\w+)", path.read_text()):
            assert name in names | {"README.md", "TASK_METHOD_MODEL.yaml"}, f"{path.name}: {name}"
    index = (ROOT / "configs" / "recipes" / "README.md").read_text()
    assert {name for name in re.findall(r"^\| `([^`]+)` \|", index, flags=re.MULTILINE)} == names


def test_files_that_documents_name_exist():
    rooms = "models|training|analysis|engines|converters|commands|benchmarks|tests|configs|tasks|evals|examples|docs"
    rooms += "|constraints"
    for path in (ROOT / "README.md", *GUIDES):
        for name in re.findall(rf"`((?:{rooms})/[\w./-]+\.\w+)(?:::\w+)?`", path.read_text()):
            assert (ROOT / name).is_file() or "TASK_METHOD_MODEL" in name, f"{path.name}: {name}"


def test_every_page_is_reached_from_the_readme():
    for path in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{path.name})" in README, path.name


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 170


def test_links_and_rooms_exist():
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    documents = [ROOT / name for name in names if "fixtures" not in name and (ROOT / name).is_file()]
    assert len(documents) > 12
    for document in documents:
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.relative_to(ROOT)}: {link}"
    rooms = re.findall(r"^(\w+)/ ", README, flags=re.MULTILINE)
    assert len(rooms) > 8
    for room in rooms:
        assert (ROOT / room).is_dir(), room
