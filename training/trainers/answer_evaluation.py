"""Evaluation of a Trainer by generation: what it answers in each mode, and how right that is."""

import logging
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel

from latent_cot.analysis.evaluation import (
    METRICS,
    Answers,
    answer_mode,
    count_new_tokens,
    read_answers,
    timed_generate,
    token_budget,
    warn_of_long_answers,
)
from latent_cot.analysis.faithfulness import check_thinks
from latent_cot.analysis.sampled_answers import sample_metrics
from latent_cot.answer_modes import LATENT
from latent_cot.chunked_cross_entropy import IGNORED
from latent_cot.training.arguments import EvaluationArguments
from latent_cot.training.checkpoints.sharding import is_sharded, options_in_step
from latent_cot.training.errors import InputError

from .trainer_options import Examples, held_rows

logger = logging.getLogger(__name__)


class GeneratedAnswersMixin:
    """For a Trainer that measures generated answers, in each of its `mode_names`.

    Attributes:
        evaluation: how they are generated.
        answers: of the last evaluation, by mode, in the order of its data.
        make_features: what `features_of` gives for rows that are checked.
        same: whether an answer is right, as `--compare` says; of the trainer.
    """

    evaluation: EvaluationArguments
    answers: dict[str, Answers]
    make_features: Callable[[Dataset, str], Dataset]

    def check_metric(self, args) -> None:
        """Refuse, before any training, a `--metric_for_best_model` that evaluation does not give. Raises InputError,
        naming those that there are.
        """
        known = ["loss", *(f"{mode}_{name}" for mode in self.mode_names for name in METRICS)]
        asked = (args.metric_for_best_model or "loss").removeprefix("eval_")
        if asked not in known:
            raise InputError(f"--metric_for_best_model {args.metric_for_best_model}: there are {', '.join(known)}")

    def generation_options(self, name: str, model: PreTrainedModel, question_length: int) -> dict:
        """Arguments of `generate()` for one mode."""
        mode = answer_mode(model, name)
        limits = self.evaluation.max_new_tokens, self.evaluation.max_cot_tokens
        options = mode.options | {"max_new_tokens": token_budget(model, mode, question_length, *limits)}
        if name.startswith(LATENT.name) and self.evaluation.latent_tolerance is not None:
            options["latent_tolerance"] = self.evaluation.latent_tolerance
        return options

    def predictions(self, split: str, dataset) -> list[dict]:
        """The last evaluation, a row per question: gold, and for each mode the answer, whether right, and the text.

        Args:
            dataset: what was evaluated: `splits[...]`, or rows.
        """
        dataset, rows = self.features_of(dataset, split), []
        for index, (question, gold) in enumerate(zip(dataset["question_text"], dataset["answer_text"], strict=True)):
            row = {"split": split, "question": question, "gold": gold}
            for name, answers in self.answers.items():
                row[f"{name}_answer"] = answers.answers[index]
                row[f"{name}_right"] = self.same(answers.answers[index], gold)
                row[f"{name}_text"] = answers.texts[index]
            rows.append(row)
        return rows

    def features_of(self, rows: Examples, split: str) -> Dataset:
        """What evaluation reads of rows of `question`, `steps` and `answer`; of features, the features. Raises
        InputError for what is no rows, or none.
        """
        if isinstance(rows, Dataset) and "question_text" in rows.column_names:
            return rows
        return self.make_features(held_rows(rows, split), split)


class AnswerEvaluationMixin(GeneratedAnswersMixin):
    """For `CoTTrainer`: its metrics are those of generated answers.

    Attributes:
        family, rows, splits, unwrapped: the Trainer's: the family of its models, its data as texts and as features by
            split, and the model without what distributes it.
        generation_seconds: of the running evaluation in this process, by mode.
        num_generated: the questions that this process answered in them (some twice, where shares would be unequal).
    """

    family: str | None
    rows: dict[str, Dataset | IterableDataset]
    splits: dict[str, Dataset | IterableDataset]
    unwrapped: PreTrainedModel
    has_latents = False  # whether there is a latent thought to iterate and to sample

    def __init__(self, *args, **kwargs):
        asked = self.evaluation
        latent = {
            "--num_samples": asked.num_samples > 1,
            "--eval_iterations": asked.eval_iterations is not None,
            "--latent_tolerance": asked.latent_tolerance is not None,
        }
        if any(latent.values()) and not self.has_latents:
            flags = " and ".join(flag for flag, given in latent.items() if given)
            raise InputError(f"{flags}: about latent thoughts, which only the models of run_ccot.py have")
        self.generation_seconds, self.num_generated = defaultdict(float), 0
        self.answers: dict[str, Answers] = {}
        super().__init__(*args, compute_metrics=self.answer_metrics, **kwargs)

    def warn_of_long_answers(self) -> None:
        """Say so before a run where gold answers are longer than what evaluation lets a model write."""
        for split in self.splits.keys() - {"train"}:
            for name in self.mode_names:
                mode, features = answer_mode(self.unwrapped, name), self.splits[split]
                warn_of_long_answers(split, features, mode, self.data_collator, self.evaluation)
            prompt = self.processing_class.decode(self.data_collator.answer_prompt_ids).strip()
            holding = sum(prompt in gold for gold in self.splits[split]["answer_text"][:]) if prompt else 0
            if holding:
                logger.warning(
                    "%s: %d gold answers hold the answer prompt %r: in a written chain they are read from after it and count as "
                    "wrong; choose another --answer_prompt",
                    *(split, holding, prompt),
                )

    def check_faithfulness(self) -> None:
        """Raises InputError, before a run, where `--faithfulness` could not be measured at its end."""
        if not self.evaluation.faithfulness:
            return
        check_thinks(self.unwrapped)
        if self.family is None:
            raise InputError(
                "--faithfulness: this trainer trains no thought; run latent-cot faithfulness on the checkpoint"
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise InputError("--faithfulness needs whole weights: run latent-cot faithfulness on the checkpoint")
        if len(self.rows.get("test", ())) < 2:
            raise InputError("--faithfulness asks test questions: pass --do_predict, with two rows or more")

    def get_eval_dataloader(self, *args, **kwargs):
        with self.whole_batches():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args, **kwargs):
        with self.whole_batches():
            return super().get_test_dataloader(*args, **kwargs)

    @contextmanager
    def whole_batches(self):
        """Evaluation asks every question, whatever `--dataloader_drop_last` says of training."""
        asked, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = asked

    def evaluate(self, eval_dataset=None, *args, **kwargs) -> dict[str, float]:
        """As of transformers' Trainer; other data may be rows, as `eval_dataset` of the constructor, or a dict of them."""
        if eval_dataset is not None and not isinstance(eval_dataset, str | dict):
            eval_dataset = self.features_of(eval_dataset, "validation")
        return super().evaluate(eval_dataset, *args, **kwargs)

    def predict(self, test_dataset, *args, **kwargs):
        """As of transformers' Trainer; the data may be rows, as `test_dataset` of the constructor."""
        return super().predict(self.features_of(test_dataset, "test"), *args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        self.generation_seconds.clear()
        self.num_generated = 0
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss, and the tokens generated in each mode: `(batch, new tokens)`, padded with -100."""
        inputs = self._prepare_inputs(inputs)
        rows, asked = inputs.pop("rows"), inputs["question_length"]
        questions, mask = inputs["input_ids"][:, :asked], inputs["attention_mask"][:, :asked]
        sharded = is_sharded(model)
        # What inference mode collects of sharded weights could not be trained after it.
        without_gradients = torch.no_grad if sharded else torch.inference_mode
        with without_gradients(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self.model_inputs(inputs, training=False)).detach()
        if prediction_loss_only:
            return loss, None, None
        self.num_generated += len(questions)
        generator, generated = self.accelerator.unwrap_model(model), []
        for name in self.mode_names:
            options = self.generation_options(name, generator, asked)
            if sharded:
                options = options_in_step(options, self.accelerator)
            with without_gradients():
                tokens, seconds = timed_generate(generator, questions, mask, **options)
            self.generation_seconds[name] += seconds
            generated.append(self.up_to_end(tokens))
        if self.evaluation.num_samples > 1:
            generated.append(self.sampled_tokens(generator, questions, mask))
        return loss, tuple(generated), rows

    def sampled_tokens(self, model: PreTrainedModel, questions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Greedy answers to `--num_samples` thoughts, `(batch, samples x max_new_tokens)`, padded with -100."""
        asked, limit = self.evaluation, self.evaluation.max_new_tokens
        options = self.generation_options(self.mode_names[0], model, questions.shape[1])
        options |= {"latent_noise": asked.latent_noise, "latent_dropout": asked.latent_dropout}
        options |= {"latent_seed": self.args.seed, "num_return_sequences": asked.num_samples}
        tokens, _ = timed_generate(model, questions, mask, **options)
        tokens = torch.nn.functional.pad(self.up_to_end(tokens), (0, limit - tokens.shape[1]), value=IGNORED)
        return tokens.reshape(len(questions), -1)

    def up_to_end(self, tokens: torch.Tensor) -> torch.Tensor:
        """New tokens `(batch, new)`, with -100 after the end of sequence."""
        counts = count_new_tokens(tokens, self.processing_class.eos_token_id)
        return tokens.masked_fill(torch.arange(tokens.shape[1], device=tokens.device) >= counts[:, None], IGNORED)

    def answer_metrics(self, prediction) -> dict[str, float]:
        """Metrics of every mode; the answers themselves stay in `self.answers`."""
        dataset = self.callback_handler.eval_dataloader.dataset
        # With --eval_do_concat_batches false, lists with an entry per batch.
        concatenated = self.args.eval_do_concat_batches
        batches = [prediction.predictions] if concatenated else prediction.predictions
        numbers = prediction.label_ids if concatenated else np.concatenate(prediction.label_ids)
        order, golds, metrics = np.argsort(numbers, kind="stable"), dataset["answer_text"][:], {}
        timings = gather_object([(self.generation_seconds, self.num_generated)])  # of every process
        for place, name in enumerate(self.mode_names):
            tokens = [row for batch in batches for row in (batch[place] if isinstance(batch, tuple) else batch)]
            rows = [[token for token in tokens[index].tolist() if token != IGNORED] for index in order]
            answers = self.read(name, rows)
            answers.seconds = max(seconds[name] for seconds, _ in timings)
            answers.seconds_per_answer = sum(seconds[name] for seconds, _ in timings) / sum(n for _, n in timings)
            self.answers[name] = answers
            metrics |= answers.metrics(name, golds, self.same)
        if self.evaluation.num_samples > 1:
            samples = [row for batch in batches for row in batch[-1]]
            metrics |= self.metrics_of_samples(np.stack(samples)[order], golds)
        return metrics

    def read(self, name: str, rows: list[list[int]]) -> Answers:
        """Generated tokens as answers."""
        return read_answers(self.unwrapped, self.processing_class, answer_mode(self.unwrapped, name), rows)

    def metrics_of_samples(self, tokens: np.ndarray, golds: list[str]) -> dict[str, float]:
        """Metrics of what `sampled_tokens` gave, in the order of the data."""
        name, count = self.mode_names[0], self.evaluation.num_samples
        rows = [[token for token in row.tolist() if token != IGNORED] for row in tokens.reshape(len(golds) * count, -1)]
        answers = self.read(name, rows).answers
        return sample_metrics(
            name, [answers[at : at + count] for at in range(0, len(answers), count)], golds, self.same
        )
