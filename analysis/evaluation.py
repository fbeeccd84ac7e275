"""Answers by generation, and how right they are. The ways to answer are described in `models/answer_modes.py`."""

import logging
import math
import time
from dataclasses import dataclass, field

import torch
from datasets import Dataset

from latent_cot.answer_modes import DIRECT, EXPLICIT, AnswerMode, mode_named
from latent_cot.training.arguments import EvaluationArguments
from latent_cot.training.data.collators import CoTCollator
from latent_cot.training.data.tokenization import column
from latent_cot.training.errors import InputError

from .comparison import Comparison, same_answer
from .devices import synchronize

logger = logging.getLogger(__name__)

METRICS = (  # of each mode
    "exact_match",
    "exact_match_low",
    "exact_match_high",
    "examples_per_second",
    "ms_per_answer",
    "new_tokens",
)


def wilson_interval(right: float, total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927)."""
    if total == 0:
        return 0.0, 1.0
    z, p = 1.959964, right / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass
class Answers:
    """Answers generated in one mode, and the time they took."""

    texts: list[str] = field(default_factory=list)  # what was generated, in the order of the data
    answers: list[str | None] = field(default_factory=list)  # what it answers; None where there is no answer in it
    new_tokens: int = 0  # generated tokens, end of sequence included, over all examples
    seconds: float = 0.0  # wall-clock time of generation; with several processes, of the slowest
    seconds_per_answer: float | None = None  # of one process, in a batch; by default `seconds` over the answers

    def metrics(self, mode: str, golds: list[str], same: Comparison = same_answer) -> dict[str, float]:
        """Exact match with its interval, examples per second (of all processes together), milliseconds per answer (of one
        process), mean new tokens; by the name of the mode.
        """
        total = len(golds)
        right = sum(same(given, gold) for given, gold in zip(self.answers, golds, strict=True))
        low, high = wilson_interval(right, total)
        each = self.seconds / total if self.seconds_per_answer is None else self.seconds_per_answer
        per_second = total / max(self.seconds, 1e-9)
        values = right / total, low, high, per_second, 1000 * each, self.new_tokens / total
        return {f"{mode}_{name}": value for name, value in zip(METRICS, values, strict=True)}


def timed_generate(model, input_ids, attention_mask, **kwargs) -> tuple[torch.Tensor, float]:
    """New tokens `(batch, new)` of a greedy `generate()`, and its seconds."""
    synchronize(input_ids.device)
    start = time.perf_counter()
    output = model.generate(input_ids=input_ids, attention_mask=attention_mask, do_sample=False, num_beams=1, **kwargs)
    synchronize(input_ids.device)
    return output[:, input_ids.shape[1] :], time.perf_counter() - start


def answer_mode(model, name: str) -> AnswerMode:
    """A mode as this model is asked for it; a stock backbone writes its chain, or the answer prompt, by itself. Raises
    InputError for a mode that the model does not have.
    """
    modes = getattr(model, "answer_modes", (EXPLICIT, DIRECT))
    found = mode_named(name, modes)
    if found is None:
        raise InputError(f"{type(model).__name__} cannot answer as {name!r}: there are {[mode.name for mode in modes]}")
    return found


def token_budget(model, mode: AnswerMode, question_length: int, max_new_tokens: int, max_cot_tokens: int) -> int:
    """How many tokens an answer may take: what the mode writes, as far as the model has positions."""
    budget = {
        "answer": max_new_tokens,
        "prompt": max_new_tokens + len(model.config.answer_prompt_ids or []),
        "chain": max_cot_tokens,
    }[mode.writes]
    if hasattr(model, "room_for_answer"):
        room = model.room_for_answer(question_length, **mode.options)
    else:
        limit = getattr(model.config, "max_position_embeddings", None)
        room = None if limit is None else limit - question_length
    return budget if room is None else max(1, min(budget, room))


def longest(tokenizer, questions: list[str]) -> int:
    """Tokens of the longest question."""
    return max(map(len, tokenizer(questions)["input_ids"]))


def warn_of_long_answers(
    split: str, features: Dataset, mode: AnswerMode, collator: CoTCollator, limits: EvaluationArguments
) -> None:
    """Say so where gold answers are longer than what a mode may write: however right a model is, they count as wrong."""
    prompt, chain = len(collator.answer_prompt_ids), mode.writes == "chain"
    flag = "max_cot_tokens" if chain else "max_new_tokens"
    limit = getattr(limits, flag)
    need = column(features, "ending_length") + (column(features, "chain_length") if chain else -prompt)
    beyond = (need > limit).sum()
    if beyond:
        logger.warning(
            "%s: %d of %d gold answers (%s) take more than --%s %d, so they count as wrong; the longest takes %d tokens",
            *(split, beyond, len(need), mode.label, flag, limit, need.max()),
        )


def read_answers(model, tokenizer, mode: AnswerMode, generated: list[list[int]], seconds: float = 0.0) -> Answers:
    """Generated tokens, a list per example without padding, as texts and the answers in them, read as the model's
    configuration says (`answer_from`)."""
    config = model.config
    prompt, source = tokenizer.decode(config.answer_prompt_ids or []), getattr(config, "answer_from", "prompt")
    texts = [text.strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]
    answers = [mode.read(text, prompt, source) for text in texts]
    return Answers(texts, answers, sum(map(len, generated)), seconds)


@torch.inference_mode()
def answer_questions(
    model,
    tokenizer,
    questions: list[str],
    *,
    mode: str | AnswerMode | None = None,
    batch_size: int,
    per_row: dict[str, torch.Tensor] | None = None,
    **options,
) -> Answers:
    """Answers to questions in text, in left-padded batches.

    Args:
        mode: one, or the name of one that the model has (`models.ANSWER_MODES`); the model's own by default.
        per_row: arguments of `generate()` with an entry for each question, of which a batch gets its own.
        **options: of `generate()`.
    """
    if not isinstance(mode, AnswerMode):
        mode = answer_mode(model, mode) if mode else getattr(model, "answer_modes", (EXPLICIT,))[0]
    options = mode.options | options
    rows, seconds = generate_rows(model, tokenizer, questions, batch_size=batch_size, per_row=per_row, **options)
    return read_answers(model, tokenizer, mode, rows, seconds)


@torch.inference_mode()
def generate_rows(
    model,
    tokenizer,
    questions: list[str],
    *,
    batch_size: int,
    per_row: dict[str, torch.Tensor] | None = None,
    **options,
) -> tuple[list[list[int]], float]:
    """New tokens of each question up to its end of sequence, and the seconds of all; see `answer_questions`."""
    rows, seconds = [], 0.0
    for start in range(0, len(questions), batch_size):
        here = slice(start, start + batch_size)
        inputs = tokenizer(questions[here], padding=True, return_tensors="pt").to(model.device)
        given = {name: value[here].to(model.device) for name, value in (per_row or {}).items()}
        tokens, taken = timed_generate(model, inputs.input_ids, inputs.attention_mask, **(options | given))
        counts = count_new_tokens(tokens, tokenizer.eos_token_id).tolist()
        rows += [row[:count] for row, count in zip(tokens.tolist(), counts, strict=True)]
        seconds += taken
    return rows, seconds


def count_new_tokens(new_tokens: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """Tokens up to and including the first end of sequence; `(batch, new)` -> `(batch,)`."""
    ended = (new_tokens == eos_token_id).cumsum(dim=1)
    return (ended - (new_tokens == eos_token_id).long() == 0).sum(dim=1)
