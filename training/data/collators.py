"""Tokenized examples to padded batches.

A feature is `{question, steps, answer}`, some with `windows`, in token ids (see `tokenization.tokenize`). Questions are
padded on the left and what follows on the right, so that all thought spans of a batch stand in the same columns.
"""

import math
from collections.abc import Sequence
from zlib import crc32

import torch

from latent_cot.chunked_cross_entropy import IGNORED
from latent_cot.positions import positions_from_mask
from latent_cot.spans_pccot import ThoughtSpan
from latent_cot.training.errors import InputError


def pad(rows: Sequence[list[int]], value: int, left: bool = False) -> torch.Tensor:
    """Rows of unequal length as one tensor `(batch, longest)`."""
    longest = max(map(len, rows))
    padding = [[value] * (longest - len(row)) for row in rows]
    padded = [fill + row if left else row + fill for row, fill in zip(rows, padding, strict=True)]
    return torch.tensor(padded, dtype=torch.long)


def join(
    questions: Sequence[list[int]], tails: Sequence[list[int]], pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded questions with right-padded tails: ids and attention mask, both `(batch, length)`."""
    ids = torch.cat([pad(questions, pad_token_id, left=True), pad(tails, pad_token_id)], dim=1)
    ones = [[[1] * len(row) for row in part] for part in (questions, tails)]
    return ids, torch.cat([pad(ones[0], 0, left=True), pad(ones[1], 0)], dim=1)


# Questions count as of one length within so many tokens: of 4 to 32, the least padding on GSM8K's lengths.
QUESTION_STEP = 16
LONGER_THAN_ANY_TAIL = 2**20


class CoTCollator:
    """The explicit chain of thought: question, steps, answer prompt, answer, end of sequence.

    Args:
        opening: tokens that the steps open with; part of the prompt, so not labelled.
        with_steps: False leaves the steps out (no chain of thought).
    """

    def __init__(
        self,
        eos_token_id: int,
        pad_token_id: int,
        answer_prompt_ids: list[int],
        opening: tuple[int, ...] = (),
        with_steps: bool = True,
    ):
        self.eos_token_id, self.pad_token_id = eos_token_id, pad_token_id
        self.answer_prompt_ids, self.opening, self.with_steps = answer_prompt_ids, list(opening), with_steps

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch of a training: what is drawn by random goes by it."""

    def chain(self, feature: dict) -> list[int]:
        """The tokens between the question and the answer prompt."""
        return [token for step in feature["steps"] for token in step] if self.with_steps else []

    def ending(self, feature: dict) -> list[int]:
        return [*self.answer_prompt_ids, *feature["answer"], self.eos_token_id]

    def parts(self, feature: dict) -> tuple[list[int], list[int]]:
        """The question, and all that comes after it."""
        return feature["question"], self.opening + self.chain(feature) + self.ending(feature)

    def length(self, feature: dict) -> int:
        """How many tokens the longest sequence of an example has."""
        return len(feature["question"]) + len(self.opening) + len(self.chain(feature)) + len(self.ending(feature))

    def sort_key(self, feature: dict) -> int:
        """Rows that stand side by side in its order need little padding.

        Questions and what follows them are padded by themselves (in a batch all questions end in the same column), so
        an order by the length of both together is not enough: questions of about one length, then by their chains.
        """
        tail = len(self.chain(feature)) + len(self.ending(feature))
        return len(feature["question"]) // QUESTION_STEP * LONGER_THAN_ANY_TAIL + tail

    def __call__(self, features: list[dict]) -> dict:
        """A batch: `input_ids`, `attention_mask`, `position_ids`, `labels`, each `(batch, length)`; `question_length`.

        Features of an evaluation give `rows` `(batch,)` too.
        """
        questions, tails = zip(*map(self.parts, features), strict=True)
        ids, mask = join(questions, tails, self.pad_token_id)
        shared = max(map(len, questions))
        labels = ids.masked_fill(mask == 0, IGNORED)
        labels[:, : shared + len(self.opening)] = IGNORED
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "question_length": shared}
        batch["position_ids"] = positions_from_mask(mask)  # backbones do not count them from the mask by themselves
        if is_evaluation(features):
            batch["rows"] = torch.tensor([feature["row"] for feature in features])
        return batch


def is_evaluation(features: list[dict]) -> bool:
    """Whether these are questions to be answered: only their features keep the texts (`tokenization.tokenize_split`)."""
    return "answer_text" in features[0]


class PCCoTCollator(CoTCollator):
    """Both views of PCCoT training: the teacher's explicit chain (`cot_*`), and the student's latent thought.

    Args:
        curriculum_prob: share of the training batches that keep their last steps explicit after `<eot>`: the mixed
            curriculum (after Coconut, arXiv 2412.06769).
        whole_steps: label a step's latents with all of its tokens, for a `StepDecoder`.
    """

    def __init__(self, tokenizer, config, curriculum_prob: float = 0.0, seed: int = 0, whole_steps: bool = False):
        self.suffix = config.question_suffix_ids or []
        opening = [*self.suffix, *([config.bot_token_id] if config.open_steps_with_bot else [])]
        super().__init__(tokenizer.eos_token_id, tokenizer.pad_token_id, config.answer_prompt_ids, opening)
        self.config, self.whole_steps = config, whole_steps
        self.curriculum_prob, self.most_steps = curriculum_prob, config.num_latent_tokens // config.latents_per_step
        self.seed, self.epoch = seed, torch.zeros((), dtype=torch.long).share_memory_()  # data loading processes see it

    def set_epoch(self, epoch: int) -> None:
        self.epoch.fill_(epoch)

    def source(self, features: list[dict]) -> torch.Generator:
        """Random numbers for a batch. They go by what is in it, not by how many were drawn before: batches are made ahead
        of their step, so a resumed run would draw others."""
        rows = [feature.get("row", feature["question"]) for feature in features]
        return torch.Generator().manual_seed(crc32(repr((self.seed, int(self.epoch), rows)).encode()))

    def length(self, feature: dict) -> int:
        if self.curriculum_prob and feature.get("windows") is not None:
            raise InputError("--latent_curriculum mixed does not go with data that has 'windows': leave one out")
        steps, thoughts = feature["steps"], [self.config.num_latent_tokens]
        for count in range(1, min(len(steps), self.most_steps)) if self.curriculum_prob else ():
            thoughts.append(count * self.config.latents_per_step + sum(map(len, steps[count:])))
        thought = len(self.suffix) + max(thoughts) + 2
        decoded = self.config.latents_per_step + max(map(len, feature["steps"]), default=0) if self.whole_steps else 0
        return max(super().length(feature), len(feature["question"]) + thought + len(self.ending(feature)), decoded)

    def __call__(self, features: list[dict]) -> dict:
        """The arguments of `latent_cot.distillation_pccot.distillation_step`; what is not a tensor tells where things are."""
        config = self.config
        teacher = super().__call__(features)
        shared = teacher["question_length"]

        latent_steps = self.latent_steps(features)
        latents = config.num_latent_tokens if latent_steps is None else latent_steps * config.latents_per_step
        left = [() if latent_steps is None else feature["steps"][latent_steps:] for feature in features]
        explicit = [[token for step in steps for token in step] for steps in left]
        span = [*self.suffix, config.bot_token_id, *[config.latent_token_id] * latents, config.eot_token_id]
        tails = [span + steps + self.ending(feature) for steps, feature in zip(explicit, features, strict=True)]
        ids, mask = join([feature["question"] for feature in features], tails, self.pad_token_id)
        labels = ids.masked_fill(mask == 0, IGNORED)
        labels[:, : shared + len(span)] = IGNORED

        prompt = len(self.answer_prompt_ids)
        chains = [len(self.opening) + len(self.chain(feature)) for feature in features]
        rows = {"rows": teacher["rows"]} if "rows" in teacher else {}
        return rows | {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "thought_span": ThoughtSpan(shared + len(self.suffix), latents),
            "kd_indices": torch.tensor([shared + len(span) + len(steps) + prompt - 1 for steps in explicit]),
            "cot_input_ids": teacher["input_ids"],
            "cot_attention_mask": teacher["attention_mask"],
            "cot_labels": teacher["labels"],
            "cot_kd_indices": torch.tensor([shared + chain + prompt - 1 for chain in chains]),
            "question_length": shared,
            "answer_labelled": (labels.flatten() != IGNORED).nonzero()[:, 0],
            "cot_labelled": (teacher["labels"].flatten() != IGNORED).nonzero()[:, 0],
            "step_labels": self.whole_step_labels(features, latents)
            if self.whole_steps
            else torch.tensor([self.step_labels(feature["steps"], latents) for feature in features]),
            **self.window_labels(features, latents),
        }

    def latent_steps(self, features: list[dict]) -> int | None:
        """How many leading steps of a batch are latents, by random; None for all of them (the usual case)."""
        if not self.curriculum_prob or is_evaluation(features):
            return None
        source, most = self.source(features), min(max(len(row["steps"]) for row in features), self.most_steps)
        if most < 2 or torch.rand((), generator=source) >= self.curriculum_prob:
            return None
        return int(torch.randint(1, most, (), generator=source))

    def step_labels(self, steps: list[list[int]], latents: int) -> list[int]:
        """The token each latent stands for: `latents_per_step` latents per step, -100 where there is none."""
        per_step = self.config.latents_per_step
        labels = [token for step in steps for token in (step + [IGNORED] * per_step)[:per_step]][:latents]
        return labels + [IGNORED] * (latents - len(labels))

    def whole_step_labels(self, features: list[dict], latents: int) -> torch.Tensor:
        """`(batch, steps, tokens)`: of each step that has latents its tokens and the end of sequence, then -100."""
        count = latents // self.config.latents_per_step
        ended = [[[*step, self.eos_token_id] for step in feature["steps"][:count]] for feature in features]
        rows = [row for steps in ended for row in steps + [[IGNORED]] * (count - len(steps))]
        return pad(rows, IGNORED).unflatten(0, (len(features), count))

    def window_labels(self, features: list[dict], latents: int) -> dict[str, torch.Tensor]:
        """`window_labels` `(batch, passes, c)`: the token each latent stands for after each pass, -100 where there is none.

        Rows with fewer passes than others repeat their last. Nothing if no row has `windows`.
        """
        windows = [feature.get("windows") for feature in features]
        if not any(windows):
            return {}
        passes = max(len(row) for row in windows if row)
        repeated = [(row or [[]]) + (row or [[]])[-1:] * passes for row in windows]
        rows = [[self.step_labels(texts, latents) for texts in row[:passes]] for row in repeated]
        return {"window_labels": torch.tensor(rows)}


class ICoTCollator(CoTCollator):
    """A chain between `<start>` and `<ready>`, and what `icot_removal.Internalizer` needs to take it away.

    Args:
        truncation: longest sequence; what is longer loses its end.
        growth: how many tokens one token of the chain can become (fillers).
    """

    def __init__(self, tokenizer, config, truncation: int | None = None, growth: float = 1.0):
        opening = (*(getattr(config, "question_end_ids", None) or ()), config.start_token_id)
        super().__init__(tokenizer.eos_token_id, tokenizer.pad_token_id, config.answer_prompt_ids, opening)
        self.config, self.truncation, self.growth = config, truncation, growth

    def ending(self, feature: dict) -> list[int]:
        return [self.config.ready_token_id, *super().ending(feature)]

    def length(self, feature: dict) -> int:
        length = min(super().length(feature), self.truncation or super().length(feature))
        chain = len(self.chain(feature))
        return length + math.ceil(chain * self.growth) - chain

    def parts(self, feature: dict) -> tuple[list[int], list[int]]:
        question, tail = super().parts(feature)
        if self.truncation is None:
            return question, tail
        return question[: self.truncation], tail[: max(0, self.truncation - len(question))]

    def __call__(self, features: list[dict]) -> dict:
        """`CoTCollator`'s batch; what is not a tensor is about the rows, and stays on the host."""
        batch = super().__call__(features)
        start = batch["question_length"] + len(self.opening)
        tails = [len(self.parts(feature)[1]) for feature in features]
        chains = [sum(map(len, feature["steps"])) for feature in features]
        rooms = [max(0, tail - len(self.opening)) for tail in tails]  # truncation may have cut the chain
        return batch | {
            "chain_start": start,
            "chain_lengths": [min(chain, room) for chain, room in zip(chains, rooms, strict=True)],
            "step_lengths": [[len(step) for step in feature["steps"]] for feature in features],
            "lengths": [batch["question_length"] + tail for tail in tails],
            "row_numbers": [feature["row"] for feature in features],
        }
