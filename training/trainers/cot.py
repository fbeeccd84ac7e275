"""Trainers in TRL's manner: model, data set, arguments; they prepare tokenizer, configuration and batches themselves.

    from latent_cot.training import CoTTrainer, CoTTrainingArguments

    trainer = CoTTrainer("gpt2", CoTTrainingArguments("outputs/cot"), train_dataset=rows, eval_dataset=other_rows)
    trainer.train()
    trainer.evaluate()

Here is what all of them share, which by itself trains an explicit chain of thought, or none.
"""

import logging
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import has_length

from latent_cot.analysis.comparison import check_source, comparison
from latent_cot.answer_modes import DIRECT, EXPLICIT
from latent_cot.chunked_cross_entropy import IGNORED
from latent_cot.complete_weights import NEW_PARTS
from latent_cot.training.arguments import (
    DataArguments,
    EvaluationArguments,
    LoraArguments,
    ModelArguments,
    StepwiseDataArguments,
)
from latent_cot.training.checkpoints.liger import register_with_liger
from latent_cot.training.checkpoints.loading import (
    extend_vocabulary,
    is_set_up,
    load_config,
    load_model,
    load_tokenizer,
    own_tokenizer,
    set_up,
    texts_of,
)
from latent_cot.training.checkpoints.lora import add_adapters
from latent_cot.training.checkpoints.sharding import prepare_sharding
from latent_cot.training.data.collators import CoTCollator
from latent_cot.training.data.sources import WITH_SYSTEM, as_dataset
from latent_cot.training.data.streaming import endless
from latent_cot.training.data.tokenization import (
    CHAT_TEMPLATE,
    SYSTEM_TEMPLATE,
    set_special_ids,
    tokenize,
    tokenize_split,
)
from latent_cot.training.errors import InputError
from latent_cot.training.families import check_family, has_family
from latent_cot.training.method_arguments import CoTArguments
from latent_cot.training.resume.checkpoint_fit import check_vocabulary, special_ids
from latent_cot.training.resume.resumable_training import ResumableTrainingMixin
from latent_cot.training.step_decoder import StepDecoder

from .answer_evaluation import AnswerEvaluationMixin
from .saving import ModelSavingMixin
from .trainer_options import REFUSED, Examples, check_kinds, check_options, check_rows, held_rows, own_arguments

logger = logging.getLogger(__name__)

LOSS_PARTS = ("cot_loss", "ccot_loss", "kd_loss", "step_loss", "teacher_std", "latent_scale")


class CoTTrainer(ModelSavingMixin, ResumableTrainingMixin, AnswerEvaluationMixin, Trainer):
    """Trains and evaluates an explicit chain of thought, or (`CoTArguments(no_cot=True)`) answers without one.

    Args:
        model: a name on the Hub, a folder, `ModelArguments`, or a model (then with its `processing_class`).
        args: transformers' arguments, or `CoTTrainingArguments`.
        train_dataset, eval_dataset, test_dataset: rows of `question`, `steps` (a list of strings) and `answer`.
        processing_class: the tokenizer; the model's own by default. It is given the special tokens that are missing.
        method: what is particular to this way to train.
        data: how rows are tokenized: their longest length, whether the last step stays.
        lora: trains adapters where it says so.
        evaluation: how answers are generated.
        **kwargs: of transformers' Trainer (`trainer_options.REFUSED`: those that are refused).

    Raises:
        InputError: for whatever cannot be loaded, does not fit or is too long.
    """

    family: str | None = None  # whose configuration a stock backbone gets
    new_settings: dict = {}  # fields of the configuration of a model that was not trained yet
    method_class: type = CoTArguments
    data_class: type = StepwiseDataArguments

    def __init__(
        self,
        model: str | ModelArguments | PreTrainedModel,
        args: TrainingArguments,
        *,
        train_dataset: Examples | None = None,
        eval_dataset: Examples | None = None,
        test_dataset: Examples | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        method=None,
        data: DataArguments | None = None,
        lora: LoraArguments | None = None,
        evaluation: EvaluationArguments | None = None,
        **kwargs,
    ):
        check_options(kwargs)
        self.args = args = own_arguments(args)  # what is prepared before transformers sets it reads it
        self.method, self.data = method or self.method_class(), data or self.data_class()
        check_kinds(processing_class, self.method, self.method_class)
        self.lora, self.evaluation = lora or LoraArguments(), evaluation or EvaluationArguments()
        rows = {"train": train_dataset, "validation": eval_dataset, "test": test_dataset}
        rows = {split: examples for split, examples in rows.items() if examples is not None}
        for split, examples in rows.items():
            check_rows(examples, split)
        self.same = comparison(self.evaluation.compare)
        check_source(self.evaluation.answer_from)
        chains = not getattr(self.method, "no_cot", False)  # rows that are only answered need none
        self.rows = rows = {
            split: as_dataset(examples, chains) if split == "train" else held_rows(examples, split, chains)
            for split, examples in rows.items()
        }
        self.check_metric(args)
        set_seed(args.seed)
        if isinstance(model, str | Path | ModelArguments):
            source = model if isinstance(model, ModelArguments) else ModelArguments(model_name_or_path=str(model))
            self.base_model_name = source.model_name_or_path
            model, tokenizer = self.load(source, processing_class, rows.get("train"), args)
        else:
            self.base_model_name = model.config._name_or_path or None
            model, tokenizer = self.take_model(model, processing_class)
        if "train" in rows and rows["train"] in WITH_SYSTEM and tokenizer.chat_template == CHAT_TEMPLATE:
            tokenizer.chat_template = SYSTEM_TEMPLATE
        model = self.prepare_model(model)
        self.model_type, config = model.config.model_type, model.config
        if self.evaluation.answer_from is not None:
            config.answer_from = self.evaluation.answer_from

        collator = self.make_collator(tokenizer, config)
        self.tokenize_split = partial(
            tokenize_split,
            encode=self.encoder(tokenizer, config),
            collator=collator,
            data=self.data,
            positions=getattr(config, "max_position_embeddings", None),
        )
        self.splits = {split: self.make_features(examples, split) for split, examples in rows.items()}
        if isinstance(train := self.splits.get("train"), IterableDataset):
            seed = args.seed if args.data_seed is None else args.data_seed
            self.splits["train"] = endless(train, self.data.shuffle_buffer, seed)
        if self.lora.use_peft:
            model = add_adapters(model, self.lora)
        self.step_decoder = self.make_step_decoder(model)
        if args.use_liger_kernel:
            register_with_liger(config)
        self.hub_model_id: str | None = None  # until init_hf_repo()
        check_a_batch_is_there(self.splits.get("train"), args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=self.splits.get("train"),
            eval_dataset=self.splits.get("validation"),
            processing_class=tokenizer,
            data_collator=collator,
            **kwargs,
        )
        if self.step_decoder is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise InputError("--step_decoder_layers is not supported with FSDP and DeepSpeed: leave one of them out")
        if self.is_fsdp_enabled:
            prepare_sharding(self.model, self.accelerator)
        unused = self.leaves_weights_unused(config)
        if args.ddp_find_unused_parameters is None and unused is not None:
            # transformers searches in every step, and never where layers are checkpointed.
            self.accelerator.ddp_handler.find_unused_parameters = unused
        # `get_batch_samples` gives what a whole step divides by, whatever the model's signature says.
        self.model_accepts_loss_kwargs = True
        self._part_sums: dict[str, torch.Tensor] = {}
        self._part_counts, self._batches_per_step = defaultdict(float), 1
        self.warn_of_long_answers()
        self.check_faithfulness()

    # --- what is prepared; the other trainers override these ---

    def load(self, source: ModelArguments, tokenizer, train_rows, args) -> tuple:
        """Model and tokenizer from what `ModelArguments` name."""
        config = load_config(source, self.family, self.configuration_settings(), self.new_settings)
        check_family(config, self.family, type(self).__name__)
        prompt = self.answer_prompt(config)
        own = own_tokenizer(source, given=tokenizer is not None)
        if tokenizer is None:
            tokenizer = load_tokenizer(source, texts_of(train_rows, prompt))
        known, held = len(tokenizer), special_ids(config) if source.model_name_or_path else {}
        self.set_up(config, tokenizer)
        check_vocabulary(own, tokenizer, source.model_name_or_path, held, config)
        set_seed(args.seed)
        return load_model(source, config, tokenizer, len(tokenizer) - known, self.lora.load_in_4bit), tokenizer

    def set_up(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make tokenizer and configuration fit."""
        set_up(config, tokenizer, self.answer_prompt(config))

    def take_model(self, model: PreTrainedModel, tokenizer) -> tuple:
        """A model that is there already, and its tokenizer."""
        check_family(model.config, self.family, type(self).__name__)
        own = None
        if tokenizer is None:
            if not self.base_model_name:
                raise InputError("a model without a name brings no tokenizer: pass processing_class")
            tokenizer = AutoTokenizer.from_pretrained(self.base_model_name)
        elif is_set_up(model.config):
            with suppress(InputError, OSError):  # a name that is no model's
                own = own_tokenizer(ModelArguments(model_name_or_path=self.base_model_name), given=True)
        known, held = len(tokenizer), special_ids(model.config)
        self.apply_settings(model.config)
        self.set_up(model.config, tokenizer)
        check_vocabulary(own, tokenizer, self.base_model_name, held, model.config)
        extend_vocabulary(model, tokenizer, len(tokenizer) - known)
        set_special_ids(model, tokenizer)
        return model, tokenizer

    def configuration_settings(self) -> dict:
        """Fields of the configuration that the method's arguments set."""
        return {}

    def apply_settings(self, config: PreTrainedConfig) -> None:
        """Set them in a model that is there already, with a warning where it was trained with others.

        Raises:
            InputError: for one that stands for weights.
            ValueError: where they do not fit together.
        """
        settings = {
            name: value
            for name, value in self.configuration_settings().items()
            if value is not None and value != getattr(config, name)
        }
        for name in NEW_PARTS.keys() & settings.keys():
            raise InputError(f"{name}={settings[name]}: a model that is there already has its weights; pass its name")
        if settings:
            type(config).from_dict(config.to_dict() | settings)  # checks them
        for name, value in settings.items():
            if is_set_up(config):
                logger.warning("%s=%s replaces the model's %s", name, value, getattr(config, name))
            setattr(config, name, value)

    def answer_prompt(self, config: PreTrainedConfig) -> str | None:
        """The flag's; a converted model writes its own by itself, and one that is trained on gets ours."""
        prompt = self.method.answer_prompt
        has_none = getattr(config, "answer_prompt_ids", None) == [] and "train" in self.rows
        return config.default_answer_prompt if prompt is None and has_none else prompt

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        return model

    def make_collator(self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> CoTCollator:
        with_steps = not self.method.no_cot
        opening = [*(getattr(config, "question_suffix_ids", None) or [])]
        opening += [config.bot_token_id] if with_steps and getattr(config, "open_steps_with_bot", False) else []
        ids = tokenizer.eos_token_id, tokenizer.pad_token_id, config.answer_prompt_ids
        return CoTCollator(*ids, opening, with_steps=with_steps)

    def make_step_decoder(self, model: PreTrainedModel) -> StepDecoder | None:
        """What reads the latents in training and belongs to the model no longer than that."""
        return None

    def encoder(self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> Callable[[dict], dict]:
        """What makes token ids of a batch of texts: see `tokenization.tokenize`."""
        kept = self.data.keep_last_step
        kept = getattr(config, "keep_last_step", False) if kept is None else kept
        return partial(tokenize, tokenizer=tokenizer, keep_last_step=kept)

    def make_features(self, rows: Dataset | IterableDataset, split: str) -> Dataset | IterableDataset:
        with self.args.main_process_first(desc="tokenization"):  # the others find its features in the cache
            return self.tokenize_split(rows, split)

    @property
    def mode_names(self) -> list[str]:
        """The ways to answer that evaluation measures (`models/answer_modes.py`)."""
        return [DIRECT.name if self.method.no_cot else EXPLICIT.name]

    def describe_method(self) -> str:
        """One sentence for the model card."""
        kind = "without" if self.method.no_cot else "with an explicit"
        return f"`{self.model_type}`, trained {kind} chain of thought."

    def leaves_weights_unused(self, config: PreTrainedConfig) -> bool | None:
        """Whether a training step may use only some of the trained weights, which DDP then has to search for.

        None for a backbone that is not one of ours: transformers decides.
        """
        return getattr(config, "has_latent_weights", False) if has_family(config) else None  # there are no latents

    # --- training ---

    def hyperparameter_search(self, *args, **kwargs):
        """Raises InputError: a model is made once here."""
        raise InputError(f"hyperparameter_search is not supported: {REFUSED['model_init']}")

    def start_epoch(self, epoch: int) -> None:
        self.data_collator.set_epoch(epoch)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one optimiser step, as the model takes them, and what the means of its losses divide by.

        A mean is over the labelled tokens of the whole step: of all batches that are accumulated, in all processes.
        """
        batches = [self.model_inputs(batch, training=True) for batch in islice(epoch_iterator, num_batches)]
        if not batches:
            return batches, None
        self._batches_per_step = len(batches)
        sizes = sum(self.loss_sizes(batch).to(device) for batch in batches)
        if self.averages_across_processes:
            sizes = self.accelerator.reduce(sizes, reduction="sum")
        return batches, sizes.clamp(min=1)  # where nothing is to be learned, the loss is 0

    @property
    def averages_across_processes(self) -> bool:
        return self.args.average_tokens_across_devices and self.args.world_size > 1

    def model_inputs(self, batch: dict, training: bool) -> dict:
        """The model's arguments for a batch of the collator."""
        return {name: value for name, value in batch.items() if name != "question_length"}

    def loss_sizes(self, inputs: dict) -> torch.Tensor:
        """How many tokens are predicted in a batch, a scalar."""
        return (inputs["labels"][:, 1:] != IGNORED).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss; its parts are added up on the device.

        Args:
            inputs: of `model_inputs`.
            num_items_in_batch: of `get_batch_samples`; None (in evaluation) for the means of this batch alone.
        """
        sizes = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        outputs = model(**inputs, **sizes)
        if not sizes:  # a batch of which truncation left no label has a loss of 0, as in training
            outputs.loss = outputs.loss.masked_fill((inputs["labels"] == IGNORED).all(), 0.0)
        if model.training:
            parts = {name: getattr(outputs, name, None) for name in LOSS_PARTS}
            for name, part in (parts | (getattr(outputs, "other_losses", None) or {})).items():
                if part is not None:
                    part = part.detach()
                    self._part_sums[name] = self._part_sums[name] + part if name in self._part_sums else part
                    self._part_counts[name] = self._part_counts[name] + 1 / self._batches_per_step
        loss = outputs.loss
        if sizes and self.averages_across_processes:
            # Gradients are averaged over the processes, of which each has only its own part of the sum.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def figures_to_log(self, logs: dict[str, float]) -> dict[str, float]:
        """The mean of every loss part since the last log: the only moment that reads them."""
        if "loss" not in logs or not self._part_sums:
            return {}
        means = torch.stack([total / self._part_counts[name] for name, total in self._part_sums.items()])
        means = self.accelerator.reduce(means, reduction="sum" if self.averages_across_processes else "mean")
        figures = dict(zip(self._part_sums, (round(mean, 6) for mean in means.tolist()), strict=True))
        self._part_sums, self._part_counts = {}, defaultdict(float)
        return figures


def check_a_batch_is_there(rows: Dataset | IterableDataset | None, args: TrainingArguments) -> None:
    """Raises InputError where `--dataloader_drop_last` would leave nothing to train on."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and has_length(rows) and len(rows) < batch:
        raise InputError(f"--dataloader_drop_last: {len(rows)} training rows do not fill a batch of {batch}")
