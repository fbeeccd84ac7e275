"""The plan of a comparison of methods: what each is called with, chosen by the data and the start where nobody says it."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset

from latent_cot import PromptConfigMixin
from latent_cot.answer_modes import AnswerMode
from latent_cot.training.arguments import ModelArguments, StepwiseDataArguments
from latent_cot.training.checkpoints.loading import apply_overrides, load_tokenizer, texts_of
from latent_cot.training.checkpoints.read import read_config
from latent_cot.training.cli import RECIPE_SUFFIXES, ArgumentParser, parse, read_entries
from latent_cot.training.data.sources import dataset_label, load_splits
from latent_cot.training.errors import InputError
from latent_cot.training.families import check_family, stock_config
from latent_cot.training.flags import option, whole_numbers
from latent_cot.training.trainers.cot import CoTTrainer

from .first_settings import DEMO, DEMO_MODEL, facts_of, small_tokenizer, thought_settings, training_settings
from .stages import public_path

OF_EACH_RUN = ("--do_train=true", "--do_eval=true", "--do_predict=true", "--disable_tqdm=true", "--save_total_limit=1")
OWN = ("methods", "seeds", "output_dir", "dry_run", "seed", "no_cot", "do_train", "do_eval", "do_predict")


@dataclass
class CompareArguments:
    """What is compared. All flags of `latent-cot train` are taken too, each by the methods that know it."""

    methods: str = option("cot,none,pccot,icot", "Which methods; the others are tested against the first.")
    seeds: str = option("0,1,2", "The seeds of each method.")
    output_dir: str = option("outputs/compare", "Where everything goes; what is there already is not run again.")
    dry_run: bool = option(False, "Print the plan and stop.")


@dataclass(frozen=True)
class Method:
    """A subcommand of `latent-cot` with its groups of flags, what it is called with, and the answers that are measured."""

    command: str
    arguments: tuple[type, ...]
    trainer: type[CoTTrainer]
    mode: AnswerMode
    flags: tuple[str, ...] = ()


@dataclass
class Plan:
    """What is run."""

    folder: Path
    seeds: list[int]
    data: str
    digest: str  # of the data; changes with any row
    questions: int  # of the test split
    dry_run: bool
    lines: list[tuple[str, str]] = field(default_factory=list)  # headings and texts, for people
    argv: dict[str, list[str]] = field(default_factory=dict)  # by method, without seed and output folder
    steps: dict[str, int] = field(default_factory=dict)
    config: dict | None = None  # of random weights; None where it is given

    @property
    def config_file(self) -> Path:
        return self.folder / "model.json"

    def record_of(self, name: str, seed: int) -> Path:
        return self.folder / name / f"seed-{seed}.json"

    def pending(self) -> list[tuple[int, str]]:
        """Seeds and methods of the runs without a record; all methods of a seed come before the next seed."""
        return [(seed, name) for seed in self.seeds for name in self.argv if not self.record_of(name, seed).is_file()]

    def keep(self) -> None:
        """Write down what the folder's runs have in common. Raises InputError where runs of other data or settings are
        in it.
        """
        path, kept = self.folder / "plan.json", {"data": self.digest, "flags": {}}
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
        flags = {name: list(map(public_path, argv)) for name, argv in self.argv.items()}
        changed = [] if kept["data"] == self.digest else ["of other data"]
        for name, words in flags.items():
            before, now = values_of(kept["flags"].get(name, words)), values_of(words)
            names = sorted(flag for flag in before | now if before.get(flag) != now.get(flag))
            changed += [f"{flag} {before.get(flag, 'left out')} (now {now.get(flag, 'left out')})" for flag in names]
        if changed:
            raise InputError(
                f"--output_dir {self.folder} holds runs with {', '.join(dict.fromkeys(changed))}: choose another"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.config is not None:
            self.config_file.write_text(json.dumps(self.config, indent=1), encoding="utf-8")
        path.write_text(json.dumps(kept | {"flags": kept["flags"] | flags}, indent=1), encoding="utf-8")


def make_plan(argv: list[str], methods: dict[str, Method]) -> Plan:
    """Read the arguments and the data, and choose what they leave open. Raises InputError for a method, flag or seed
    that cannot be, missing data, and a start that a method cannot begin from.

    Args:
        argv: flags, after a recipe if any; those of `latent-cot train` go to each method that knows them.
    """
    entries = {}
    if argv and Path(argv[0]).suffix in RECIPE_SUFFIXES:
        entries, argv = read_entries(Path(argv[0])), argv[1:]
    own, groups = ArgumentParser((CompareArguments, ModelArguments, StepwiseDataArguments)), grouped(argv)
    entries = {name: entry for name, entry in entries.items() if name not in OWN}
    recipe = asked_flags(own, entries, [])
    args, model, data, *_ = own.parse_args_into_dataclasses([*recipe, *argv], return_remaining_strings=True)
    names = args.methods.split(",")
    if unknown := [name for name in names if name not in methods or names.count(name) > 1]:
        raise InputError(f"--methods {args.methods}: {unknown[0]!r} is not one of {', '.join(methods)}, each once")
    asked = {name: asked_flags(ArgumentParser(methods[name].arguments), entries, groups) for name in names}
    for words in groups:
        if not knows(own, words[0]) and not any(words[0] in flags for flags in asked.values()):
            own.error(f"no method here has this flag: {' '.join(words)}")
    parsers = [ArgumentParser(methods[name].arguments) for name in names]
    if strange := [name for name in entries if not any(knows(parser, f"--{name}") for parser in parsers)]:
        own.error(f"the recipe's {strange[0]!r} is no flag of these methods")
    if data.streaming:
        raise InputError("--streaming: settings go by all rows here; leave the flag out")
    splits = load_splits(data, ["train", "validation", "test"], with_steps=names != ["none"])
    digest = hashlib.sha256()
    for rows in splits.values():
        for batch in rows.iter(batch_size=1000):
            digest.update(json.dumps([batch["question"], batch["steps"], batch["answer"]]).encode())
    seeds, questions = whole_numbers("seeds", args.seeds), len(splits["test"])
    plan = Plan(Path(args.output_dir), seeds, dataset_label(data), digest.hexdigest(), questions, args.dry_run)
    given = {*entries, *(words[0].partition("=")[0].removeprefix("--").removeprefix("no_") for words in groups)}
    choose(plan, methods, asked, given, model, splits, data.keep_last_step if "keep_last_step" in given else None)
    count, left = len(names) * len(plan.seeds), len(plan.pending())
    there = f", {count - left} of them in {plan.folder} already" if left < count else f", into {plan.folder}"
    if yours := sorted(given - own.hints.keys()):
        plan.lines.append(("yours", f"{', '.join(yours)}: as asked, whatever is said above of other values"))
    plan.lines.insert(0, ("plan", f"{len(names)} methods, {len(plan.seeds)} seeds: {count} runs{there}"))
    return plan


def values_of(argv: list[str]) -> dict[str, str]:
    """The last value of each flag of a command line."""
    pairs = [(words[0].partition("="), words[1:]) for words in grouped(argv)]
    return {flag: " ".join([*([value] if value else []), *rest]) for (flag, _, value), rest in pairs}


def knows(parser: ArgumentParser, flag: str) -> bool:
    return flag.partition("=")[0] in parser._option_string_actions


def grouped(argv: list[str]) -> list[list[str]]:
    """A command line's flags, each with its values."""
    groups: list[list[str]] = []
    for word in argv:
        if not word.startswith("--") and not groups:
            raise InputError(f"{word}: expected a recipe (.yaml, .json) or a flag (--help lists them)")
        groups += [[word]] if word.startswith("--") else []
        groups[-1] += [] if word.startswith("--") else [word]
    return groups


def asked_flags(parser: ArgumentParser, entries: dict[str, tuple], groups: list[list[str]]) -> list[str]:
    """Of a recipe's entries and the user's flags those that a command has."""
    held = [parser.flags_of(name, *entry) for name, entry in entries.items() if knows(parser, f"--{name}")]
    held += [words for words in groups if knows(parser, words[0]) and words[0].partition("=")[0][2:] not in OWN]
    return [word for words in held for word in words]


def steps_of(args, rows: int) -> int:
    """Optimiser steps of a training."""
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * math.ceil(rows / batch))


def choose(
    plan: Plan,
    methods: dict[str, Method],
    asked: dict[str, list[str]],
    given: set[str],
    model: ModelArguments,
    splits: dict[str, Dataset],
    keep_last_step: bool | None,
) -> None:
    """Put into the plan what each method is called with, and what was chosen why.

    Args:
        asked: by method, what the user and the recipe say, which wins.
        given: the names of all these flags.
        keep_last_step: of the user.
    """
    pretrained, source = model.model_name_or_path is not None, model.config_name or model.model_name_or_path
    config = None if source is None else read_config(source, model.model_revision, model.trust_remote_code)
    family = getattr(config, "family", None)
    for name in asked if pretrained and family is not None else ():
        check_family(config, methods[name].trainer.family, f"--methods {name}")
    texts = list(texts_of(splits["train"], ""))
    prompt = PromptConfigMixin.default_answer_prompt if pretrained or any("#" in text for text in texts) else "#"
    shared = {} if pretrained else {"answer_prompt": prompt}
    if pretrained or model.tokenizer_name is not None:
        tokenizer, why = load_tokenizer(model, [prompt, *texts]), model.tokenizer_name or "the model's"
    else:
        shared["tokenizer_name"], tokenizer, why = small_tokenizer([prompt, *texts], splits)
    facts = facts_of(splits, tokenizer, keep_last_step)
    thought, thought_why = thought_settings(facts, pretrained)
    shared |= {"keep_last_step": facts.keep_last_step, "max_new_tokens": facts.answer + 4}
    longest = facts.whole + thought["num_latent_tokens"] + len(tokenizer(prompt)["input_ids"]) + 16
    shared["max_cot_tokens"] = longest
    sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items())
    last = "kept" if facts.keep_last_step else "left out: it repeats the answer"
    plan.lines += [
        ("data", f"{plan.data}: {sizes} rows; chains of up to {facts.steps} steps, whose last one is {last}"),
        ("start", f"{source}: published settings" if pretrained else "random weights: settings of the demo's recipes"),
        ("tokenizer", why),
    ]
    if config is None:
        plan.config = DEMO_MODEL | {"n_positions": 32 * math.ceil(longest / 32)}
        shared["config_name"] = plan.config_file
        room = f"{plan.config['n_positions']} positions, since rows have up to {facts.whole} tokens"
        plan.lines.append(("model", f"GPT-2, 2 layers of width 64 (iCoT: 4 of 96, as in its recipe), {room}"))
    elif family is not None and not pretrained:  # what other families have of it
        apply_overrides(config, model.config_overrides)
        stock = stock_config(config)
        own = stock().to_dict()
        plan.config = {key: value for key, value in config.to_dict().items() if key in own}
        plan.config["model_type"] = stock.model_type
    for name, words in asked.items():
        method = methods[name]
        parser, steps = ArgumentParser(method.arguments), None
        if given & {"max_steps", "num_train_epochs"}:
            demo = [f"--per_device_train_batch_size={DEMO['per_device_train_batch_size']}", "--output_dir=."]
            steps = steps_of(parse(method.arguments, [*demo, *words])[-1], facts.rows)
        settings, why = training_settings(name, method.mode.name, facts, None if pretrained else steps, pretrained)
        if name == "pccot" and family != "pccot":
            settings |= thought
        if config is not None:
            settings.pop("config_overrides", None)
            if plan.config is not None and family != method.trainer.family:
                words = [*words, "--config_overrides=", f"--config_name={plan.config_file}"]
        settings = {key: value for key, value in (shared | settings).items() if knows(parser, f"--{key}")}
        argv = [*(f"--{key}={value}" for key, value in settings.items()), *words, *method.flags, *OF_EACH_RUN]
        args = parse(method.arguments, [*argv, "--output_dir=."])[-1]
        plan.argv[name], plan.steps[name] = argv, steps_of(args, facts.rows)
        batch = f"{plan.steps[name]:,} steps of {args.per_device_train_batch_size}"
        plan.lines.append((name, f"{batch}, learning rate {args.learning_rate:g} ({why})"))
        if name == "pccot" and family != "pccot":
            asked_thought = parse(method.arguments, [*argv, "--output_dir=."])[1]
            sizes = f"c = {asked_thought.num_latent_tokens}, T = {asked_thought.num_iterations}"
            plan.lines.append(("", f"{sizes} ({thought_why})"))
