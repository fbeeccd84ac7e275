"""Does an iCoT model's answer depend on its fillers, or on what is left of its chain? (docs/faithfulness.md)

What stands between question and answer decides what can be changed: "fillers", "steps" that the model writes, or "nothing".
"""

import random
from itertools import takewhile

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latent_cot.answer_modes import INTERNALIZED, AnswerMode
from latent_cot.training.errors import InputError

from .comparison import Comparison, same_answer
from .evaluation import Answers, answer_questions, count_new_tokens, generate_rows, longest, read_answers, token_budget
from .faithfulness_report import ICoTReport, Row, majority_row
from .interventions import AS_THEY_ARE, change_thoughts, partners

LABELS = {
    "fillers": {
        AS_THEY_ARE: "fillers as they are",
        "left_out": "no fillers, their positions free",
        "zeroed": "fillers zeroed",
        "noise": "noise of the same norm",
        "other_token": "another token in their place",
    },
    "steps": {
        AS_THEY_ARE: "steps as the model writes them",
        "left_out": "no steps, answered at once",
        "swapped": "steps of another question",
    },
    "nothing": {AS_THEY_ARE: "as it is"},
}
ALIKE = (
    "Fillers are the same for every question and at every place, so they are not swapped, shuffled or removed singly."
)
TOO_MANY = " Twice as many do not fit into the model's positions."
WRITTEN = "The steps are words of the model's own, so they are not counted, zeroed or replaced by noise."
FREE = " Nor are they swapped, because the model leaves positions free (keep_position)."
NOTHING = "Nothing stands between question and answer, so no change applies."


def what_stands_between(model: PreTrainedModel) -> str:
    """A key of `LABELS`."""
    if model.config.filler_mode != "none" and model.config.num_fillers > 0:
        return "fillers"
    return "nothing" if model.answers_at_once else "steps"


def change_icot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[str],
    intervention: str,
    *,
    golds: list[str] | None = None,
    num_fillers: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    max_cot_tokens: int = 256,
) -> Answers:
    """Greedy answers after an intervention on what stands between question and answer. Raises InputError for an
    intervention that the model has nothing for, fillers that do not fit, and `swapped` where the model leaves positions
    free.

    Args:
        intervention: one of the model's `LABELS`. Fillers: `left_out`: there are none, and what follows keeps its
            positions; `zeroed`; `noise`: Gaussian noise, as long as the filler's embedding; `other_token`: an ordinary
            token, drawn by seed. Steps: `left_out`: the answer is asked for at once; `swapped`: each question has the steps
            that the model has written for another (`partners`).
        num_fillers: so many fillers, given in one pass.
        golds, seed: see `interventions.change_thoughts`.
    """
    between, config = what_stands_between(model), model.config
    if intervention not in LABELS[between]:
        raise InputError(
            f"no intervention {intervention!r} where {between} stand{'s' * (between == 'nothing')} between question and "
            f"answer; there are: {', '.join(LABELS[between])}"
        )
    if num_fillers is not None and between != "fillers":
        raise InputError("num_fillers= is for models with fillers, and this one was not trained with any")
    limits = {"max_new_tokens": max_new_tokens, "max_cot_tokens": max_cot_tokens}
    if intervention == "swapped":
        return answers_to_other_steps(model, tokenizer, questions, golds, seed, batch_size, **limits)
    if intervention == AS_THEY_ARE and num_fillers is None:
        mode = model.answer_modes[0]
        limit = token_budget(model, mode, longest(tokenizer, questions), **limits)
        return answer_questions(model, tokenizer, questions, mode=mode, batch_size=batch_size, max_new_tokens=limit)

    count = config.num_fillers if num_fillers is None else num_fillers
    most = at_once(max(count, config.num_fillers)) if between == "fillers" else at_once()
    limit = token_budget(model, most, longest(tokenizer, questions), **limits)
    mode, per_row = at_once(count) if between == "fillers" else at_once(), None
    if between == "fillers" and intervention == "left_out":
        mode = at_once(0).of(**at_once(0).options, position_gap=model.gap_of() + count)
    elif intervention != AS_THEY_ARE and between == "fillers":
        embeds = filler_embeds(model, tokenizer, questions, intervention, count, seed)
        per_row = {"filler_embeds": embeds}
    return answer_questions(
        model, tokenizer, questions, mode=mode, batch_size=batch_size, per_row=per_row, max_new_tokens=limit
    )


def at_once(num_fillers: int | None = None) -> AnswerMode:
    """Nothing is written before the answer; fillers are given in one pass."""
    given = {} if num_fillers is None else {"num_fillers": num_fillers}
    return INTERNALIZED.of("answer", explicit_steps=False, **given)


@torch.no_grad()
def filler_embeds(model, tokenizer, questions: list[str], intervention: str, count: int, seed: int) -> torch.Tensor:
    """What stands in the place of the fillers, `(questions, count, hidden)`."""
    token = other_token(model, tokenizer, seed) if intervention == "other_token" else model.config.pause_token_id
    embedding = model.get_input_embeddings()(torch.tensor(token, device=model.device)).cpu()
    embeds = embedding.expand(len(questions), count, -1)
    return embeds if intervention == "other_token" else change_thoughts(embeds, questions, intervention, seed=seed)


def other_token(model, tokenizer, seed: int) -> int:
    """An ordinary token: none that was added to the vocabulary, a special one included."""
    added = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    rows = model.get_input_embeddings().num_embeddings
    ordinary = sorted(token for token in tokenizer.get_vocab().values() if token < rows and token not in added)
    return random.Random(seed).choice(ordinary)


@torch.inference_mode()
def answers_to_other_steps(
    model, tokenizer, questions: list[str], golds: list[str] | None, seed: int, batch_size: int, **limits
) -> Answers:
    """Answers to questions with the steps that the model has written for their partners."""
    if model.gap_of():
        raise InputError("steps cannot be swapped where a model leaves positions free (keep_position)")
    written = written_steps(model, tokenizer, questions, batch_size, **limits)
    return answers_to_steps(
        model, tokenizer, questions, [written[row] for row in partners(questions, golds, seed)], batch_size, **limits
    )


def written_steps(model, tokenizer, questions: list[str], batch_size: int, **limits) -> list[list[int]]:
    """The tokens that the model writes before `<ready>` (all of them where it does not write that)."""
    mode, config = model.answer_modes[0], model.config
    limit = token_budget(model, mode, longest(tokenizer, questions), **limits)
    options = mode.options | {"max_new_tokens": limit}
    rows, _ = generate_rows(model, tokenizer, questions, batch_size=batch_size, **options)
    ends = (config.ready_token_id, config.eos_token_id)
    return [list(takewhile(lambda token: token not in ends, row)) for row in rows]


def answers_to_steps(
    model, tokenizer, questions: list[str], steps: list[list[int]], batch_size: int, **limits
) -> Answers:
    """Answers to questions that are given with steps, a list of tokens each."""
    config = model.config
    ending = [config.ready_token_id, *(config.answer_prompt_ids or [])]
    opening = model.suffix_ids(explicit_steps=True)
    prompts = [
        [*ids, *opening, *row, *ending] for ids, row in zip(tokenizer(questions)["input_ids"], steps, strict=True)
    ]
    room = model.room_for_answer(max(map(len, prompts)) - len(opening), explicit_steps=True)
    limit = limits["max_new_tokens"] if room is None else max(1, min(limits["max_new_tokens"], room))
    rows = []
    for start in range(0, len(prompts), batch_size):
        some = tokenizer.pad({"input_ids": prompts[start : start + batch_size]}, return_tensors="pt").to(model.device)
        output = model.generate_with_suffix(
            [], some.input_ids, attention_mask=some.attention_mask, max_new_tokens=limit, do_sample=False
        )
        new = output[:, some.input_ids.shape[1] :]
        counts = count_new_tokens(new, tokenizer.eos_token_id).tolist()
        rows += [row[:count] for row, count in zip(new.tolist(), counts, strict=True)]
    return read_answers(model, tokenizer, at_once(), rows)


def measure_icot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[str],
    golds: list[str],
    *,
    data: str,
    seed: int = 0,
    same: Comparison = same_answer,
    **limits,
) -> ICoTReport:
    """Every intervention that applies, and other numbers of fillers: none, half, as many, twice as many. Raises
    InputError for fewer than two questions.
    """
    between, config = what_stands_between(model), model.config
    partner = partners(questions, golds, seed)
    asked = {"golds": golds, "seed": seed, **limits}
    plain = change_icot(model, tokenizer, questions, AS_THEY_ARE, **asked).answers
    labels, left_out = LABELS[between], {"fillers": ALIKE, "steps": WRITTEN, "nothing": NOTHING}[between]
    rows = [Row.of(AS_THEY_ARE, labels[AS_THEY_ARE], plain, golds, same=same)]
    changes = [name for name in labels if name != AS_THEY_ARE]
    if between == "steps" and model.gap_of():
        changes, left_out = ["left_out"], left_out + FREE
    for name in changes:
        answers = change_icot(model, tokenizer, questions, name, **asked).answers
        label = labels[name]
        if name == "other_token":
            label += f" ({tokenizer.decode([other_token(model, tokenizer, seed)])!r})"
        others = [golds[row] for row in partner] if name == "swapped" else None
        rows.append(Row.of(name, label, answers, golds, plain=plain, others=others, same=same))

    fillers = []
    if between == "fillers":
        numbers = sorted({0, config.num_fillers // 2, config.num_fillers, 2 * config.num_fillers})
        if not twice_as_many_fit(model, tokenizer, questions, **limits):
            numbers, left_out = numbers[:-1], left_out + TOO_MANY
        for number in numbers:
            answers = change_icot(model, tokenizer, questions, AS_THEY_ARE, num_fillers=number, **asked).answers
            fillers.append(Row.of(f"fillers{number}", f"fillers = {number}", answers, golds, plain=plain, same=same))
    return ICoTReport(
        model_type=config.model_type,
        data=data,
        seed=seed,
        chance=majority_row(golds),
        interventions=rows,
        between=between,
        num_fillers=config.num_fillers,
        fillers=fillers,
        left_out=left_out,
    )


def twice_as_many_fit(model, tokenizer, questions: list[str], max_new_tokens: int, max_cot_tokens: int, **_) -> bool:
    """Whether answers are as long with twice as many fillers as with those of the configuration."""
    count, length = model.config.num_fillers, longest(tokenizer, questions)
    if 2 * count > model.config.max_position_embeddings:
        return False
    now, twice = (token_budget(model, at_once(n), length, max_new_tokens, max_cot_tokens) for n in (count, 2 * count))
    return now == twice
