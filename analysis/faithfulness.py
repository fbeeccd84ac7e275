"""Is the answer read from the thought? Thoughts are changed before they are answered from (docs/faithfulness.md).

latent-cot faithfulness --model checkpoints/pccot-gpt2-chain --dataset_name chain
latent-cot faithfulness --model outputs/model --test_file test.jsonl --output_dir outputs/faithfulness
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latent_cot.answer_modes import LATENT
from latent_cot.chunked_cross_entropy import IGNORED
from latent_cot.configuration_prompt import LATENTS, WORDS
from latent_cot.training.arguments import AskedDataArguments, option
from latent_cot.training.checkpoints.model_card import replace_section
from latent_cot.training.checkpoints.read import load
from latent_cot.training.cli import parse
from latent_cot.training.data.collators import PCCoTCollator
from latent_cot.training.data.sources import dataset_label, load_splits
from latent_cot.training.data.tokenization import tokenize, warn_of_unknown
from latent_cot.training.errors import InputError
from latent_cot.training.families import between
from latent_cot.training.flags import check_least

from .comparison import Comparison, comparison, same_answer
from .evaluation import Answers, answer_mode, answer_questions, longest, token_budget
from .faithfulness_report import PCCoTReport, Report, Row, majority_row, write_report
from .icot_faithfulness import change_icot, measure_icot
from .interventions import AS_THEY_ARE, LABELS, change_thoughts, partners


@dataclass
class FaithfulnessArguments:
    """What is tested, and what is written (`latent-cot faithfulness`)."""

    model: str | None = option(None, "The checkpoint: a folder or a name on the Hub.")
    revision: str = option("main", "Branch, tag or commit on the Hub.")
    trust_remote_code: bool = option(False, "Run code that a checkpoint brings along. Only for sources you trust.")
    split: Literal["train", "validation", "test"] = option("test", "The split whose questions are asked.")
    max_new_tokens: int = option(32, "Longest answer in tokens.")
    max_cot_tokens: int = option(256, "Longest answer where an iCoT model writes what is left of its chain, in tokens.")
    compare: str | None = option(None, "When an answer is right: as in training.")
    per_device_eval_batch_size: int = option(64, "Questions that are answered together.")
    seed: int = option(0, "Of what is drawn: partners, orders, noise.")
    use_cpu: bool = option(False, "Leave an accelerator alone.")
    output_dir: str | None = option(None, "A folder for the report as JSON, text and plot.")
    update_card: bool = option(False, "Write the report into the checkpoint's model card, README.md.")

    def __post_init__(self):
        check_least(self, max_new_tokens=1, max_cot_tokens=1, per_device_eval_batch_size=1)


ARGUMENTS = (AskedDataArguments, FaithfulnessArguments)
MOST_SWEPT = 9  # values of T, and of c


def answers_under(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[str],
    intervention: str = AS_THEY_ARE,
    *,
    golds: list[str] | None = None,
    latent: int | None = None,
    num_iterations: int | None = None,
    num_latent_tokens: int | None = None,
    num_fillers: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    max_cot_tokens: int = 256,
) -> Answers:
    """Greedy answers to questions after a change of what stands between question and answer.

    Of a `pccot-*` model, the inputs of the latents in the last pass are what is changed, and that pass is run with them:
    its keys and values are what an answer reads. What is changed in an earlier pass, the later ones compute anew from the
    question. Of an `icot-*` model, its fillers or what is left of its chain are changed (`icot_faithfulness.py`).

    Args:
        questions: in text. A question's answer is the same in every batch.
        intervention, golds, seed: see `interventions.change_thoughts` and `icot_faithfulness.change_icot`.
        latent: see `interventions.change_thoughts`.
        num_iterations, num_latent_tokens: T and c; the model's if absent.
        num_fillers: of an `icot-*` model, given in one pass; the model's if absent.
        max_cot_tokens: the longest answer where an `icot-*` model writes what is left of its chain.

    Raises:
        InputError: for a model with nothing that could be changed, T = 0 with an intervention, an argument of the other
            family, and what `change_thoughts` or `change_icot` refuses.
    """
    given = {"num_iterations": num_iterations, "num_latent_tokens": num_latent_tokens}
    asked = {name: value for name, value in given.items() if value is not None}
    limits = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    check_thinks(model, num_iterations if intervention != AS_THEY_ARE else None, intervention != AS_THEY_ARE)
    in_words = model.config.between == WORDS
    others = given | {"latent": latent} if in_words else {"num_fillers": num_fillers}
    if foreign := [name for name, value in others.items() if value is not None]:
        raise InputError(f"{foreign[0]}= is not for {model.config.model_type} models")
    if in_words:
        limits |= {"max_cot_tokens": max_cot_tokens}
        return change_icot(
            *(model, tokenizer, questions, intervention), golds=golds, num_fillers=num_fillers, seed=seed, **limits
        )
    if intervention == AS_THEY_ARE:
        return answers_from(model, tokenizer, questions, None, **limits, **asked)
    thoughts, _ = think(model, tokenizer, questions, batch_size=batch_size, **asked)
    changed = change_thoughts(thoughts, questions, intervention, golds=golds, latent=latent, seed=seed)
    return answers_from(model, tokenizer, questions, changed, **limits)


def check_thinks(model: PreTrainedModel, num_iterations: int | None = None, changed: bool = True) -> None:
    """Raises InputError for a model that is none of ours, and (where thoughts are to be `changed`) at T = 0."""
    if between(model.config, LATENTS, WORDS, cannot="has no thoughts that could be changed") == WORDS:
        return
    iterations = model.config.num_iterations if num_iterations is None else num_iterations
    if changed and iterations == 0:
        raise InputError("at T = 0 the latents are filler tokens, the same for every question: nothing to change")


@torch.inference_mode()
def think(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[str], *, batch_size: int, **options
) -> tuple[torch.Tensor, torch.Tensor]:
    """The thoughts that answers are read from, and the hidden states that became them; both `(questions, c, hidden)`."""
    inputs, sources = [], []
    for start in range(0, len(questions), batch_size):
        batch = tokenizer(questions[start : start + batch_size], padding=True, return_tensors="pt").to(model.device)
        trace = model.trace_thought(batch.input_ids, batch.attention_mask, **options)
        inputs.append(trace.inputs[-1].cpu())
        sources.append(trace.sources[-1].cpu())
    return torch.cat(inputs), torch.cat(sources)


def answers_from(
    model,
    tokenizer,
    questions: list[str],
    thoughts: torch.Tensor | None,
    *,
    batch_size: int,
    max_new_tokens: int,
    **options,
) -> Answers:
    """Answers read from given thoughts `(questions, c, hidden)`; None lets the model think. They end where positions do."""
    limit = token_budget(
        model, answer_mode(model, LATENT.name), longest(tokenizer, questions), max_new_tokens, max_new_tokens
    )
    given = None if thoughts is None else {"latent_embeds": thoughts}
    return answer_questions(
        *(model, tokenizer, questions),
        mode=LATENT.name,
        batch_size=batch_size,
        per_row=given,
        max_new_tokens=limit,
        **options,
    )


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset | list[dict],
    *,
    data: str,
    seed: int = 0,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    max_cot_tokens: int = 256,
    keep_last_step: bool | None = None,
    same: Comparison = same_answer,
) -> Report:
    """Every intervention that applies; of latents also T and c swept, and each read as the step that it should hold.
    Raises InputError for a model with nothing that could be changed, T = 0, or fewer than two examples.

    Args:
        examples: rows of `question`, `steps` and `answer`.
        data: their name, for the report.
        max_cot_tokens: the longest answer where an `icot-*` model writes what is left of its chain.
        keep_last_step: the model's teacher was shown the last step too; by default what the configuration says.
    """
    check_thinks(model)
    config, examples = model.config, list(examples)
    questions, golds = ([row[name] for row in examples] for name in ("question", "answer"))
    limits = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    if config.between == WORDS:
        limits |= {"max_cot_tokens": max_cot_tokens}
        return measure_icot(model, tokenizer, questions, golds, data=data, seed=seed, same=same, **limits)
    partner = partners(questions, golds, seed)
    thoughts, sources = think(model, tokenizer, questions, batch_size=batch_size)
    plain = answers_from(model, tokenizer, questions, None, **limits).answers
    rows = [Row.of(AS_THEY_ARE, LABELS[AS_THEY_ARE], plain, golds, same=same)]

    latents = config.num_latent_tokens
    planned = [(name, None) for name in LABELS if name not in (AS_THEY_ARE, "removed", "shuffled" * (latents == 1))]
    for name, latent in planned + [("removed", latent) for latent in range(1, latents + 1)]:
        changed = change_thoughts(thoughts, questions, name, golds=golds, latent=latent, seed=seed)
        answers = answers_from(model, tokenizer, questions, changed, **limits).answers
        label = LABELS[name] if latent is None else f"latent {latent} removed"
        others = [golds[row] for row in partner] if name == "swapped" else None
        rows.append(Row.of(name, label, answers, golds, plain=plain, others=others, same=same))

    def swept(name: str, label: str, values: list[int]) -> list[Row]:
        asked = [answers_from(model, tokenizer, questions, None, **limits, **{name: value}) for value in values]
        return [
            Row.of(f"{label}{value}", f"{label} = {value}", some.answers, golds, plain=plain, same=same)
            for value, some in zip(values, asked, strict=True)
        ]

    return PCCoTReport(
        model_type=config.model_type,
        data=data,
        num_latent_tokens=latents,
        num_iterations=config.num_iterations,
        seed=seed,
        chance=majority_row(golds),
        interventions=rows,
        iterations=swept("num_iterations", "T", spread(0, latents)),
        latents=swept("num_latent_tokens", "c", spread(1, latents)),
        reading=read_steps(
            model, tokenizer, examples, sources, config.keep_last_step if keep_last_step is None else keep_last_step
        ),
    )


def spread(low: int, high: int) -> list[int]:
    """The whole numbers from `low` to `high`, or some evenly among them where there are many."""
    count = min(high - low + 1, MOST_SWEPT)
    return sorted({round(low + (high - low) * place / max(1, count - 1)) for place in range(count)})


@torch.inference_mode()
def read_steps(model, tokenizer, examples: list[dict], sources: torch.Tensor, keep_last_step: bool) -> list[Row]:
    """How often the output head reads each latent as the token of the step that it stands for; see `step_labels`."""
    columns = {name: [row[name] for row in examples] for name in ("question", "steps", "answer")}
    steps = tokenize(columns, tokenizer, keep_last_step)["steps"]
    collator = PCCoTCollator(tokenizer, model.config)
    labels = torch.tensor([collator.step_labels(row, sources.shape[1]) for row in steps])
    read = torch.cat([model.lm_head(some.to(model.device)).argmax(dim=-1).cpu() for some in sources.split(64)])
    rows = []
    for latent in range(sources.shape[1]):
        known = labels[:, latent] != IGNORED
        if known.any():
            right = int((read[known, latent] == labels[known, latent]).sum())
            rows.append(Row.counted(f"latent{latent + 1}", f"latent {latent + 1}", right, int(known.sum())))
    return rows


def main(argv: list[str]) -> Report:
    """Run with command line arguments (see `--help`); prints and returns the report."""
    data, args = parse(ARGUMENTS, argv)
    same = comparison(args.compare)
    if args.model is None:
        raise InputError("no model: latent-cot faithfulness --model MODEL --dataset_name ...")
    card = Path(args.model) / "README.md"
    if args.update_card and not card.is_file():
        raise InputError(f"--update_card: there is no {card}")
    model, tokenizer = load(args.model, args.revision, trust_remote_code=args.trust_remote_code)
    check_thinks(model)
    if not args.use_cpu and torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    examples = load_splits(data, [args.split], with_steps=False)[args.split]
    warn_of_unknown(examples["question"][:], tokenizer)
    report = measure(
        model,
        tokenizer,
        examples,
        data=f"{dataset_label(data)}, {args.split}",
        seed=args.seed,
        batch_size=args.per_device_eval_batch_size,
        max_new_tokens=args.max_new_tokens,
        max_cot_tokens=args.max_cot_tokens,
        keep_last_step=data.keep_last_step,
        same=same,
    )
    print(report.text())
    if args.output_dir is not None:
        write_report(Path(args.output_dir), report)
    if args.update_card:
        replace_section(card, report.section())
    return report
