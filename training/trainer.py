"""The Trainer of all scripts: loss parts logged without waiting for the device, evaluation by generation."""

from collections import defaultdict
from contextlib import contextmanager

import numpy as np
import torch
from transformers import Trainer

from .arguments import EvaluationArguments
from .evaluation import Answers, count_new_tokens, final_answer, same_answer, timed_generate
from .hub import check_access
from .liger import know_model_type

LOSS_PARTS = ("cot_loss", "ccot_loss", "kd_loss", "step_loss", "teacher_std")
STUDENT_INPUTS = (
    "input_ids",
    "attention_mask",
    "labels",
    "thought_span",
    "kd_indices",
    "step_labels",
    "answer_labelled",
)
PADDING = -100


class CoTTrainer(Trainer):
    """Trains and evaluates explicit and latent chains of thought.

    Args:
        kinds: which answers evaluation generates: "ccot" (after latent thought), "cot" (explicit steps) or "no_cot".
        evaluation: how.
        eval_collator: makes evaluation batches; its features have a `row` column, and `question_text` and
            `answer_text` beside.
        teacher_warmup_steps: steps that train the explicit chain alone.
        **kwargs: of transformers' Trainer.
    """

    def __init__(
        self,
        *,
        kinds: list[str],
        evaluation: EvaluationArguments,
        eval_collator,
        teacher_warmup_steps: int = 0,
        **kwargs,
    ):
        self.hub_model_id: str | None = None  # until init_hf_repo()
        if kwargs["args"].use_liger_kernel:
            know_model_type(kwargs["model"].config.model_type)
        super().__init__(compute_metrics=self.answer_metrics, **kwargs)
        self.kinds, self.evaluation, self.eval_collator = kinds, evaluation, eval_collator
        self.teacher_warmup_steps = teacher_warmup_steps
        self.generation_seconds = defaultdict(float)
        self.answers: dict[str, Answers] = {}  # of the last evaluation, in the order of its data
        self._part_sums: dict[str, torch.Tensor] = {}
        self._part_counts = defaultdict(int)

    # --- training ---

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss; its parts are added up on the device."""
        if model.training and self.state.global_step < self.teacher_warmup_steps:
            inputs = {name: value for name, value in inputs.items() if name not in STUDENT_INPUTS}
        if "cot_input_ids" not in inputs:
            inputs = {name: value for name, value in inputs.items() if name != "question_length"}
        else:
            inputs = inputs | {"return_logits": return_outputs}
        outputs = model(**inputs)
        loss = outputs.loss.mean()  # one entry a device under DataParallel
        if model.training:
            for name in LOSS_PARTS:
                part = getattr(outputs, name, None)
                if part is not None:
                    part = part.detach().mean()
                    self._part_sums[name] = self._part_sums[name] + part if name in self._part_sums else part
                    self._part_counts[name] += 1
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Adds the mean of every loss part since the last log: the only moment that reads them."""
        if "loss" in logs and self._part_sums:
            means = torch.stack([total / self._part_counts[name] for name, total in self._part_sums.items()])
            means = self.accelerator.reduce(means, reduction="mean")
            logs |= dict(zip(self._part_sums, (round(mean, 6) for mean in means.tolist()), strict=True))
            self._part_sums, self._part_counts = {}, defaultdict(int)
        super().log(logs, *args, **kwargs)

    # --- the Hub: a checkpoint is pushed once, when it is complete (see pipeline.py) ---

    def init_hf_repo(self, token=None):
        if self.is_world_process_zero():
            self.hub_model_id = check_access(self.args)

    def _push_from_checkpoint(self, checkpoint_folder):
        pass

    # --- evaluation ---

    @contextmanager
    def _evaluation_batches(self):
        training_collator, self.data_collator = self.data_collator, self.eval_collator
        try:
            yield
        finally:
            self.data_collator = training_collator

    def get_eval_dataloader(self, eval_dataset=None):
        with self._evaluation_batches():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._evaluation_batches():
            return super().get_test_dataloader(test_dataset)

    def evaluation_loop(self, *args, **kwargs):
        self.generation_seconds.clear()
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss, and the tokens generated for each kind of answer: `(batch, new tokens)`, padded with -100."""
        inputs = self._prepare_inputs(inputs)
        rows, shared = inputs.pop("rows"), inputs["question_length"]
        with torch.inference_mode(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach()
        if prediction_loss_only:
            return loss, None, None
        prompts = inputs.get("cot_input_ids", inputs.get("input_ids"))[:, :shared]
        mask = inputs.get("cot_attention_mask", inputs.get("attention_mask"))[:, :shared]
        generator = self.accelerator.unwrap_model(model)
        generated = []
        for kind in self.kinds:
            options = self.generation_options(kind, generator, shared)
            tokens, seconds = timed_generate(generator, prompts, mask, **options)
            self.generation_seconds[kind] += seconds
            counts = count_new_tokens(tokens, self.processing_class.eos_token_id)
            beyond = torch.arange(tokens.shape[1], device=tokens.device) >= counts[:, None]
            generated.append(tokens.masked_fill(beyond, PADDING))
        return loss, tuple(generated), rows

    def generation_options(self, kind: str, model, question_length: int) -> dict:
        """Arguments of `generate()` for one kind of answer."""
        thinks = hasattr(model.config, "num_latent_tokens")
        most = self.evaluation.max_cot_tokens if kind == "cot" else self.evaluation.max_new_tokens
        if kind == "no_cot":
            most += len(model.config.answer_prompt_ids)  # which this model writes itself
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is not None:
            span = model.config.num_latent_tokens + 2 + len(model.config.answer_prompt_ids) if kind == "ccot" else 1
            most = max(1, min(most, limit - question_length - span))
        options = {"max_new_tokens": most}
        if thinks:
            options["latent_thought"] = kind == "ccot"
        if kind == "ccot" and self.evaluation.latent_tolerance is not None:
            options["latent_tolerance"] = self.evaluation.latent_tolerance
        return options

    def answer_metrics(self, prediction) -> dict[str, float]:
        """Metrics of every kind of answer; the answers themselves stay in `self.answers`."""
        dataset = self.callback_handler.eval_dataloader.dataset
        generated = prediction.predictions if isinstance(prediction.predictions, tuple) else (prediction.predictions,)
        order = np.argsort(prediction.label_ids, kind="stable")
        golds = dataset["answer_text"][:]
        tokenizer = self.processing_class
        prompt = tokenizer.decode(self.accelerator.unwrap_model(self.model).config.answer_prompt_ids)
        metrics = {}
        for kind, tokens in zip(self.kinds, generated, strict=True):
            rows = [[token for token in tokens[index].tolist() if token != PADDING] for index in order]
            texts = [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
            answers = [self.answer_of(kind, text, prompt) for text in texts]
            self.answers[kind] = Answers(texts, answers, sum(map(len, rows)), self.generation_seconds[kind])
            metrics |= self.answers[kind].metrics(kind, golds)
        return metrics

    def answer_of(self, kind: str, text: str, prompt: str) -> str | None:
        """The answer in what was generated: all of it behind a thought, else what stands behind the answer prompt."""
        return text if kind == "ccot" else final_answer(text, prompt)

    def record_progress(self) -> None:
        """Put what training has changed about how the model is asked into its configuration."""

    def predictions(self, split: str, dataset) -> list[dict]:
        """The last evaluation, a row a question: gold, and for each kind the answer, whether right, and the text."""
        rows = []
        for index, (question, gold) in enumerate(zip(dataset["question_text"], dataset["answer_text"], strict=True)):
            row = {"split": split, "question": question, "gold": gold}
            for kind, answers in self.answers.items():
                row[f"{kind}_answer"] = answers.answers[index]
                row[f"{kind}_right"] = same_answer(answers.answers[index], gold)
                row[f"{kind}_text"] = answers.texts[index]
            rows.append(row)
        return rows
