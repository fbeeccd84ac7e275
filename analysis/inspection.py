"""A look inside a thought: what each latent holds, how it moves, and what the answer attends to (`latent-cot inspect`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from latent_cot.answer_modes import EXPLICIT
from latent_cot.chunked_cross_entropy import IGNORED
from latent_cot.configuration_prompt import LATENTS, WORDS
from latent_cot.training.data.collators import PCCoTCollator
from latent_cot.training.data.tokenization import tokenize
from latent_cot.training.errors import InputError
from latent_cot.training.families import between

from .comparison import Comparison, same_answer
from .evaluation import answer_mode, answer_questions, count_new_tokens, read_answers, token_budget
from .faithfulness import answers_from

TOP = 5
Words = list[tuple[str, float]]  # and their probabilities


@dataclass
class Place:
    """A latent (or filler, or token of the chain) in one pass."""

    label: str  # what it is
    words: Words  # the most likely tokens that the output head reads from it
    moved: float | None = None  # of its input from that of the pass before, relative to that one's length
    step: str | None = None  # the step that it stands for, where it is known
    right: bool | None = None  # whether the most likely token is the first of that step


@dataclass
class Pass:
    """What there is after one pass, T of them.

    The answer's attention is a mean over heads and over the positions that its tokens are predicted at.
    """

    answer: str | None  # what is answered from it
    right: bool | None  # whether that is the gold answer; None where none is known
    places: list[Place]  # the latents
    attention: list[list[float]]  # of each layer: to the question, to each place, to all else
    tokens: Words  # the question's tokens, each with its share of that attention, the mean over layers


@dataclass
class View:
    """A question. `passes` has one entry per T, from 0; `shown` is the T that the model answers with."""

    question: str
    gold: str | None
    explicit: str
    explicit_right: bool | None
    passes: list[Pass]
    shown: int


@dataclass
class Readings:
    """Across a data set, for each T: how often each latent reads as its step, and how often the answer is right."""

    data: str
    count: int
    latents: list[list[float | None]] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)


def check_inspectable(model: PreTrainedModel) -> None:
    """Raises InputError for a model with nothing inside to look at, or one that this cannot show."""
    between(model.config, *PASSES, cannot="thinks in words alone")
    if model.gap_of():
        raise InputError("a model that leaves positions free (keep_position) cannot be inspected")


@torch.inference_mode()
def inspect(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    example: dict,
    *,
    max_new_tokens: int = 32,
    max_cot_tokens: int = 256,
    same: Comparison = same_answer,
) -> View:
    """Everything about one question. Raises InputError for a model that cannot be inspected."""
    check_inspectable(model)
    question, gold = example["question"], example.get("answer")
    length = len(tokenizer(question)["input_ids"])
    written = token_budget(model, answer_mode(model, EXPLICIT.name), length, max_new_tokens, max_cot_tokens)
    answered = token_budget(model, model.answer_modes[0], length, max_new_tokens, max_cot_tokens)
    explicit = answer_questions(model, tokenizer, [question], mode=EXPLICIT.name, batch_size=1, max_new_tokens=written)
    with eager_attention(model):
        passes = PASSES[model.config.between](model, tokenizer, example, answered, same)
    return View(
        question=question,
        gold=gold,
        explicit=explicit.texts[0],
        explicit_right=right(explicit.answers[0], gold, same),
        passes=passes,
        shown=min(len(passes) - 1, getattr(model.config, "num_iterations", 0)),
    )


def right(answer: str | None, gold: str | None, same: Comparison) -> bool | None:
    return None if gold is None else same(answer, gold)


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """The one kind of attention that can say where it went."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def latent_passes(model, tokenizer, example: dict, max_new_tokens: int, same: Comparison) -> list[Pass]:
    """A latent thought after every number of passes that gives another one."""
    asked = tokenizer([example["question"]], return_tensors="pt").to(model.device)
    latents, most = model.config.num_latent_tokens, most_passes(model.config)
    trace = model.trace_thought(**asked, num_iterations=most)
    opened = model.open_thought(asked.input_ids, asked.attention_mask)["input_ids"]
    thoughts, steps = trace.inputs[:, 0], step_texts(model, tokenizer, example)
    rows = asked.input_ids.expand(most + 1, -1)
    output = model.generate(
        rows,
        attention_mask=torch.ones_like(rows),
        latent_embeds=thoughts,
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    first = int((opened[0] == model.config.bot_token_id).nonzero()[-1]) + 1
    passes = []
    for number, thought in enumerate(thoughts):
        words = likely_words(model, tokenizer, trace.sources[number, 0]) if number else [[]] * latents
        before = thoughts[number - 1]
        moved = ((thought - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-12)).tolist()
        places = []
        for latent in range(latents):
            text, ids = steps[latent]
            place = Place(f"latent {latent + 1}", words[latent], moved[latent] if number else None, text)
            if number and ids is not None:
                place.right = int(model.lm_head(trace.sources[number, 0, latent]).argmax()) == ids
            places.append(place)
        new = answer_tokens(output[number, asked.input_ids.shape[1] :], tokenizer)
        ids = torch.cat([opened[0], new])
        attention = answer_attention(model, ids, len(opened[0]), {"latent_embeds": thought[None]})
        answer = read_answers(model, tokenizer, model.answer_modes[0], [new.tolist()]).answers[0]
        is_right, goes = right(answer, example.get("answer"), same), shares(attention, first - 1, first, latents)
        passes.append(Pass(answer, is_right, places, goes, question_shares(tokenizer, ids[: first - 1], attention)))
    return passes


def most_passes(config) -> int:
    """After c passes more of them change nothing; under a rule that never settles (`LatentUpdate`) the model's T are shown."""
    return config.num_latent_tokens if config.latent_rule.settles else config.num_iterations


def step_texts(model, tokenizer, example: dict) -> list[tuple[str | None, int | None]]:
    """For each latent the step that it stands for and the token that it should read as; None where there is none."""
    latents, steps = model.config.num_latent_tokens, example.get("steps") or []
    steps = steps if model.config.keep_last_step else steps[:-1]
    columns = {"question": [example["question"]], "steps": [steps], "answer": [example.get("answer") or "0"]}
    ids = tokenize(columns, tokenizer, keep_last_step=True)["steps"][0]
    labels = PCCoTCollator(tokenizer, model.config).step_labels(ids, latents)
    per_step = model.config.latents_per_step
    texts = [steps[latent // per_step] if latent // per_step < len(steps) else None for latent in range(latents)]
    return [(text, None if label == IGNORED else label) for text, label in zip(texts, labels, strict=True)]


def written_passes(model, tokenizer, example: dict, max_new_tokens: int, same: Comparison) -> list[Pass]:
    """An iCoT model's one pass: fillers and what is left of the chain, each read as what it predicts."""
    asked = tokenizer([example["question"]], return_tensors="pt").to(model.device)
    opened = model.open_prompt(asked.input_ids, asked.attention_mask)["input_ids"][0]
    mode, config = model.answer_modes[0], model.config
    output = model.generate(**asked, max_new_tokens=max_new_tokens, do_sample=False, **mode.options)
    new = answer_tokens(output[0, asked.input_ids.shape[1] :], tokenizer)
    ids = torch.cat([opened, new])
    first = int((ids == config.start_token_id).nonzero()[-1]) + 1
    ready = (ids == config.ready_token_id).nonzero().flatten().tolist()
    end = ready[-1] if ready and ready[-1] >= first else len(ids)
    begins = min(max(len(opened), end + 1 + len(config.answer_prompt_ids or [])), len(ids))
    states = model.base_model(input_ids=ids[None]).last_hidden_state[0, first:end]
    words = likely_words(model, tokenizer, states)
    places = []
    for place, token in enumerate(ids[first:end].tolist()):
        is_filler = token == config.pause_token_id
        label = f"filler {place + 1}" if is_filler else f"token {place + 1}: {show(tokenizer, token)}"
        places.append(Place(label, words[place]))
    attention = answer_attention(model, ids, begins, {})
    answer = read_answers(model, tokenizer, mode, [new.tolist()]).answers[0]
    question = first - 1 - len(config.question_end_ids or [])
    is_right, goes = right(answer, example.get("answer"), same), shares(attention, question, first, end - first)
    return [Pass(answer, is_right, places, goes, question_shares(tokenizer, ids[:question], attention))]


PASSES = {LATENTS: latent_passes, WORDS: written_passes}


def answer_tokens(new: torch.Tensor, tokenizer) -> torch.Tensor:
    """New tokens `(new,)` up to the end of sequence, without it."""
    count = int(count_new_tokens(new[None], tokenizer.eos_token_id)[0])
    return new[:count] if count == 0 or new[count - 1] != tokenizer.eos_token_id else new[: count - 1]


def answer_attention(model, ids: torch.Tensor, prompt: int, options: dict) -> torch.Tensor:
    """Where the positions that predict an answer attend to, `(layers, length)`: means over them and over heads.

    Args:
        ids: prompt and answer, `(length,)`.
        prompt: how many of them are the prompt; its last one predicts the answer's first.
    """
    output = model(input_ids=ids[None], output_attentions=True, **options)
    end = max(prompt, len(ids) - 1)
    return torch.stack([layer[0, :, prompt - 1 : end].float().mean(dim=(0, 1)) for layer in output.attentions])


def shares(attention: torch.Tensor, question: int, first: int, places: int) -> list[list[float]]:
    """For each layer the attention `(layers, length)` to the question, to each of the places, and to all else."""
    found = []
    for layer in attention:
        known = [layer[:question].sum(), *layer[first : first + places]]
        found.append([float(value) for value in [*known, layer.sum() - sum(known)]])
    return found


def question_shares(tokenizer, ids: torch.Tensor, attention: torch.Tensor) -> Words:
    means = attention.mean(dim=0).tolist()
    return [(show(tokenizer, token), share) for token, share in zip(ids.tolist(), means, strict=False)]


def likely_words(model, tokenizer, states: torch.Tensor) -> list[Words]:
    """What the output head reads from hidden states `(places, hidden)`: the `TOP` likeliest tokens of each."""
    found = model.lm_head(states).float().softmax(dim=-1).topk(TOP)
    return [
        [(show(tokenizer, token), share) for token, share in zip(tokens, probabilities, strict=True)]
        for tokens, probabilities in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def show(tokenizer, token: int) -> str:
    """A token's text, with what would be invisible made visible."""
    text = tokenizer.decode([token]) or str(tokenizer.convert_ids_to_tokens(token))
    return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")


@torch.inference_mode()
def read_data(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: list[dict],
    *,
    data: str,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    same: Comparison = same_answer,
) -> Readings:
    """How often latent i reads as the step it stands for, and the answer is right, for T = 0 to c (`most_passes`). Raises
    InputError for a model without latents.
    """
    between(model.config, LATENTS, cannot="has no latents to read across a data set")
    latents, most, examples = model.config.num_latent_tokens, most_passes(model.config), list(examples)
    steps = [step_texts(model, tokenizer, example) for example in examples]
    labels = torch.tensor([[IGNORED if label is None else label for _, label in row] for row in steps])
    found, thoughts = [], []
    for start in range(0, len(examples), batch_size):
        questions = [row["question"] for row in examples[start : start + batch_size]]
        asked = tokenizer(questions, padding=True, return_tensors="pt").to(model.device)
        trace = model.trace_thought(**asked, num_iterations=most)
        found.append(model.lm_head(trace.sources).argmax(dim=-1).cpu())
        thoughts.append(trace.inputs.cpu())
    read, given, known = torch.cat(found, dim=1), torch.cat(thoughts, dim=1), labels != IGNORED
    readings = Readings(data, len(examples))
    questions = [row["question"] for row in examples]
    for number in range(most + 1):
        hits = (read[number] == labels) & known
        counts = [(int(hits[:, latent].sum()), int(known[:, latent].sum())) for latent in range(latents)]
        readings.latents.append([None if total == 0 or number == 0 else hit / total for hit, total in counts])
        limits = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
        answers = answers_from(model, tokenizer, questions, given[number], **limits).answers
        golds = [row["answer"] for row in examples]
        readings.answers.append(sum(map(same, answers, golds)) / len(golds))
    return readings
