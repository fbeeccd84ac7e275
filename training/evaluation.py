"""Answers by generation, and how right they are."""

import math
import re
import time
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

import torch

THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")


def same_answer(given: str | None, gold: str) -> bool:
    """Whether two answers agree: numbers as numbers (`1,450,000` is `1450000`, `18.0` is `18`), other text as text."""
    if given is None:
        return False
    given, gold = (" ".join(text.split()) for text in (given, gold))
    numbers = as_number(given), as_number(gold)
    return given == gold or (None not in numbers and numbers[0] == numbers[1])


def as_number(text: str) -> Decimal | None:
    """The number a text is, or None; a currency sign, a percent sign and a final full stop are left aside."""
    text = text.strip().removeprefix("$").removesuffix(".").removesuffix("%").strip()
    if THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, 1927)."""
    if total == 0:
        return 0.0, 1.0
    z, p = 1.959964, right / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def final_answer(text: str, answer_prompt: str) -> str | None:
    """What an explicit chain of thought answers: the text behind the last answer prompt; None without one."""
    _, prompt, answer = text.rpartition(answer_prompt.strip())
    return answer.strip() if prompt else None


@dataclass
class Answers:
    """Generated answers of one kind ("ccot", "cot" or "no_cot") and the time they took.

    Args:
        texts: what was generated, in the order of the data.
        answers: what it answers; None where there is no answer in it.
        new_tokens: generated tokens, end of sequence included, over all examples.
        seconds: wall-clock time of generation.
    """

    texts: list[str] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    new_tokens: int = 0
    seconds: float = 0.0

    def metrics(self, kind: str, golds: list[str]) -> dict[str, float]:
        """Exact match with its interval, examples per second, mean new tokens."""
        total = len(golds)
        right = sum(same_answer(given, gold) for given, gold in zip(self.answers, golds, strict=True))
        low, high = wilson_interval(right, total)
        return {
            f"{kind}_exact_match": right / total,
            f"{kind}_exact_match_low": low,
            f"{kind}_exact_match_high": high,
            f"{kind}_examples_per_second": total / max(self.seconds, 1e-9),
            f"{kind}_new_tokens": self.new_tokens / total,
        }


@torch.inference_mode()
def timed_generate(model, input_ids, attention_mask, **kwargs) -> tuple[torch.Tensor, float]:
    """New tokens `(batch, new)` of a greedy `generate()`, and its seconds."""
    synchronize(input_ids.device)
    start = time.perf_counter()
    output = model.generate(input_ids=input_ids, attention_mask=attention_mask, do_sample=False, num_beams=1, **kwargs)
    synchronize(input_ids.device)
    return output[:, input_ids.shape[1] :], time.perf_counter() - start


def answer_questions(
    model, tokenizer, questions: list[str], *, batch_size: int, explicit: bool = False, **options
) -> Answers:
    """Answers to questions in text, in left-padded batches.

    Args:
        explicit: the model writes its chain (or, without one, the answer prompt) itself; its answer is what stands
            behind the answer prompt.
        **options: of `generate()`.
    """
    answers = Answers()
    if explicit and hasattr(model.config, "num_latent_tokens"):
        options["latent_thought"] = False
    prompt = tokenizer.decode(model.config.answer_prompt_ids)
    for start in range(0, len(questions), batch_size):
        inputs = tokenizer(questions[start : start + batch_size], padding=True, return_tensors="pt").to(model.device)
        tokens, seconds = timed_generate(model, inputs.input_ids, inputs.attention_mask, **options)
        texts = [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
        answers.texts += texts
        answers.answers += [final_answer(text, prompt) for text in texts] if explicit else texts
        answers.new_tokens += int(count_new_tokens(tokens, tokenizer.eos_token_id).sum())
        answers.seconds += seconds
    return answers


def synchronize(device: torch.device):
    """Wait for the device, so that a clock read on the host tells its time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_new_tokens(new_tokens: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """Tokens up to and including the first end of sequence; `(batch, new)` -> `(batch,)`."""
    ended = (new_tokens == eos_token_id).cumsum(dim=1)
    return (ended - (new_tokens == eos_token_id).long() == 0).sum(dim=1)
