"""Evaluation of a Trainer by generation: what it answers in each mode, and how right that is."""

from collections import defaultdict

import numpy as np
import torch
from transformers import PreTrainedModel

from models.chunked_cross_entropy import IGNORED

from .evaluation import (
    Answers,
    count_new_tokens,
    mode_of,
    read_answers,
    same_answer,
    timed_generate,
    token_budget,
    warn_of_long_answers,
)


class AnswerEvaluationMixin:
    """For `CoTTrainer`: its metrics are those of generated answers, in each of its `mode_names`.

    Attributes:
        generation_seconds: of the running evaluation, by mode.
        answers: of the last evaluation, by mode, in the order of its data.
    """

    def __init__(self, *args, **kwargs):
        self.generation_seconds = defaultdict(float)
        self.answers: dict[str, Answers] = {}
        super().__init__(*args, compute_metrics=self.answer_metrics, **kwargs)

    def warn_of_long_answers(self) -> None:
        """Say so before a run where gold answers are longer than what evaluation lets a model write."""
        for split in self.splits.keys() - {"train"}:
            for name in self.mode_names:
                mode, features = mode_of(self.unwrapped, name), self.splits[split]
                warn_of_long_answers(split, features, mode, self.data_collator, self.evaluation)

    def evaluation_loop(self, *args, **kwargs):
        self.generation_seconds.clear()
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss, and the tokens generated in each mode: `(batch, new tokens)`, padded with -100."""
        inputs = self._prepare_inputs(inputs)
        rows, asked = inputs.pop("rows"), inputs["question_length"]
        questions, mask = inputs["input_ids"][:, :asked], inputs["attention_mask"][:, :asked]
        with torch.inference_mode(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self.model_inputs(inputs, training=False)).detach()
        if prediction_loss_only:
            return loss, None, None
        generator, generated = self.accelerator.unwrap_model(model), []
        for name in self.mode_names:
            options = self.generation_options(name, generator, asked)
            tokens, seconds = timed_generate(generator, questions, mask, **options)
            self.generation_seconds[name] += seconds
            counts = count_new_tokens(tokens, self.processing_class.eos_token_id)
            beyond = torch.arange(tokens.shape[1], device=tokens.device) >= counts[:, None]
            generated.append(tokens.masked_fill(beyond, IGNORED))
        return loss, tuple(generated), rows

    def generation_options(self, name: str, model: PreTrainedModel, question_length: int) -> dict:
        """Arguments of `generate()` for one mode."""
        mode = mode_of(model, name)
        limits = self.evaluation.max_new_tokens, self.evaluation.max_cot_tokens
        return mode.options | {"max_new_tokens": token_budget(model, mode, question_length, *limits)}

    def answer_metrics(self, prediction) -> dict[str, float]:
        """Metrics of every mode; the answers themselves stay in `self.answers`."""
        dataset = self.callback_handler.eval_dataloader.dataset
        generated = prediction.predictions if isinstance(prediction.predictions, tuple) else (prediction.predictions,)
        order, golds, metrics = np.argsort(prediction.label_ids, kind="stable"), dataset["answer_text"][:], {}
        for name, tokens in zip(self.mode_names, generated, strict=True):
            rows = [[token for token in tokens[index].tolist() if token != IGNORED] for index in order]
            mode, seconds = mode_of(self.unwrapped, name), self.generation_seconds[name]
            self.answers[name] = read_answers(self.unwrapped, self.processing_class, mode, rows, seconds)
            metrics |= self.answers[name].metrics(name, golds)
        return metrics

    def predictions(self, split: str, dataset) -> list[dict]:
        """The last evaluation, a row per question: gold, and for each mode the answer, whether right, and the text."""
        rows = []
        for index, (question, gold) in enumerate(zip(dataset["question_text"], dataset["answer_text"], strict=True)):
            row = {"split": split, "question": question, "gold": gold}
            for name, answers in self.answers.items():
                row[f"{name}_answer"] = answers.answers[index]
                row[f"{name}_right"] = same_answer(answers.answers[index], gold)
                row[f"{name}_text"] = answers.texts[index]
            rows.append(row)
        return rows
