"""The Trainer of iCoT: takes the chain of thought away while it trains (arXiv 2405.14838)."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import mode

import numpy as np
import torch
from datasets import IterableDataset
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import ExportableState

from latent_cot.analysis.plots import plot_internalization
from latent_cot.answer_modes import EXPLICIT, INTERNALIZED
from latent_cot.configuration_icot import ALL_TOKENS
from latent_cot.training.checkpoints.loading import extend_positions, is_set_up, reinitialize, set_up_text_format
from latent_cot.training.data.collators import ICoTCollator
from latent_cot.training.data.text_format import check_format, is_of_the_fork, tokenize_spaced
from latent_cot.training.data.tokenization import column
from latent_cot.training.errors import InputError
from latent_cot.training.families import ICOT
from latent_cot.training.method_arguments import ICoTArguments

from .cot import CoTTrainer
from .icot_removal import Internalizer
from .icot_schedule import check_schedule, filler_schedule, removal_schedule

logger = logging.getLogger(__name__)

CHECKED_ROWS = 20  # of each split, when a text format is set up


class ICoTTrainer(CoTTrainer):
    """Trains `icot-*` models, from a stock backbone too. Arguments as those of `CoTTrainer`; `method` is
    `ICoTArguments`.

    What training has removed is a function of the step (`icot_schedule.py`), or grows with each evaluation that passes
    `--removal_gate`; `record_progress` writes it into the configuration.
    """

    family = ICOT.name
    method_class = ICoTArguments

    def __init__(self, model, args, *, method: ICoTArguments | None = None, train_dataset=None, **kwargs):
        method = method or self.method_class()
        if args.auto_find_batch_size:
            raise InputError(
                "--auto_find_batch_size: what is removed goes by the steps of an epoch, which would change in the run; choose "
                "--per_device_train_batch_size"
            )
        if getattr(args, "early_stopping_patience", None) is not None:
            raise InputError(
                "--early_stopping_patience: answers get worse whenever tokens are removed, so a run would stop with its chain half "
                "there; leave the flag out"
            )
        self.removal = removal_schedule(method, args)
        if isinstance(train_dataset, IterableDataset):
            raise InputError("--streaming: run_icot.py has to know every chain before it starts; leave the flag out")
        super().__init__(model, args, method=method, train_dataset=train_dataset, **kwargs)
        config = self.unwrapped.config
        self.internalizer = Internalizer(
            smoothing=method.removal_smoothing_lambda,
            side=config.removal_side,
            keep_position=config.keep_position,
            switch_mode=method.switch_mode,
            switch_ratio=method.switch_token_ratio,
            label_fillers=method.write_fillers,
            pause_token_id=config.pause_token_id,
            max_length=at_least_one(method.max_len_train),
            seed=args.seed,
        )
        self.chain_lengths = (
            column(self.splits["train"], "chain_length") if "train" in self.splits else np.zeros(1, int)
        )
        self.longest_chain = int(self.chain_lengths.max())
        if config.keep_position and self.chain_lengths.min() < self.longest_chain:
            logger.warning(
                "--keep_position: chains have %d to %d tokens, and how many a question's own has is not known when it is "
                "asked: answers take the number that most rows have",
                self.chain_lengths.min(),
                self.longest_chain,
            )
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * self.steps_per_epoch)
        trains = self.train_dataset is not None
        self.fillers = filler_schedule(method, steps) if method.switch_tokens and trains else None
        if trains:
            removes = method.removal_gate is None and not method.switch_tokens and not method.partial_removal
            longest = self.longest_chain if removes else 0
            check_schedule(self.removal, method.removal_smoothing_lambda, steps, self.steps_per_epoch, longest)
        self.chains_gone: list[bool] = []  # of each batch of the present step: whether nothing is left of its chains
        if method.reset_optimizer:
            self.add_callback(OptimizerReset(self))

    def answer_prompt(self, config: PreTrainedConfig) -> str | None:
        prompt = self.method.answer_prompt
        return config.default_answer_prompt if prompt is None and config.answer_prompt_ids is None else prompt

    def set_up(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """The text format decides about separators and spaces; a checkpoint keeps its own."""
        asked, self.unspaced = self.method.text_format, None
        if is_set_up(config):
            if asked not in (None, config.text_format):
                raise InputError(f"--text_format {asked}: the checkpoint was trained with {config.text_format!r}")
        else:
            form = asked or ("fork" if is_of_the_fork(tokenizer) else "plain")
            if asked is None and form == "fork":
                logger.warning("the tokenizer has the filler-token fork's tokens: its text format is used (fork)")
            self.unspaced = set_up_text_format(config, tokenizer, form)
        if config.text_format == "original" and self.method.switch_tokens:
            raise InputError("--switch_tokens: the original text format has no fillers; use plain or fork")
        super().set_up(config, tokenizer)

    def encoder(self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> Callable[[dict], dict]:
        if config.text_format == "plain":
            return super().encoder(tokenizer, config)
        encode = partial(
            tokenize_spaced,
            tokenizer=tokenizer,
            keep_last_step=self.data.keep_last_step,
            answer_prompt_ids=config.answer_prompt_ids,
        )
        if self.unspaced is not None and self.data.keep_last_step:
            odd = (
                {name: values[index] for name, values in batch.items()}
                for split in self.rows.values()
                for batch in split.iter(batch_size=1000)
                for index, question in enumerate(batch["question"])
                if question != question.strip()
            )
            rows = [row for split in self.rows.values() for row in islice(split, CHECKED_ROWS)]
            rows += islice(odd, CHECKED_ROWS)  # where the formats are likeliest to differ
            batch = {name: [row[name] for row in rows] for name in ("question", "steps", "answer")}
            check_format(rows, encode(batch), config, self.unspaced)
        return encode

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.method.reinitialize_weights:
            model = reinitialize(model)
        if self.truncation is not None:
            extend_positions(model, self.truncation)
        for name in ("removal_side", "keep_position"):
            if (value := getattr(self.method, name)) is not None:
                setattr(model.config, name, value)
        return model

    def make_collator(self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> ICoTCollator:
        growth = max(1.0, self.method.switch_token_ratio) if self.method.switch_tokens else 1.0
        return ICoTCollator(tokenizer, config, self.truncation, growth)

    @property
    def truncation(self) -> int | None:
        return at_least_one(self.method.truncation)

    @property
    def mode_names(self) -> list[str]:
        return [INTERNALIZED.name, EXPLICIT.name] if self.evaluation.explicit_cot else [INTERNALIZED.name]

    def describe_method(self) -> str:
        chain = "of whose chain of thought {} of {} tokens were" if self.removed_part else "whose chain of thought was"
        chain = chain.format(*self.removed_part or ())
        return f"`{self.model_type}`, {chain} taken away stepwise in training (iCoT)."

    @property
    def steps_per_epoch(self) -> int:
        if self.train_dataset is None:
            return 1
        batches = len(self.train_dataset) / (self.args.train_batch_size * self.args.world_size)
        batches = math.floor(batches) if self.args.dataloader_drop_last else math.ceil(batches)
        return max(1, math.ceil(batches / self.args.gradient_accumulation_steps))

    @property
    def steps_seen(self) -> int:
        """By the present weights: what is asked or saved goes by the last of them, not by the next one."""
        return self.state.global_step if self.weights_step is None else self.weights_step

    @property
    def removed(self) -> float:
        """Tokens that the present weights do without: what training removed last, or before it what the checkpoint names."""
        if self.steps_seen and self.train_dataset is not None:
            return self.scheduled(self.steps_seen - 1)
        count = self.unwrapped.config.num_internalized_tokens
        return math.inf if count == ALL_TOKENS else count

    def scheduled(self, step: int) -> float:
        """Tokens to remove at a step: from the schedule, or one for each evaluation that passed the gate."""
        gate = self.method.removal_gate
        if gate is None:
            return self.removal.tokens(step, self.steps_per_epoch)
        seen = (entry for entry in self.state.log_history if entry["step"] <= step)
        scheduled = self.removal.start_from + sum(entry.get("eval_icot_exact_match", -1) >= gate for entry in seen)
        return math.inf if scheduled >= self.removal.all_beyond else scheduled

    def filler_rate(self, step: int) -> float:
        return 0.0 if self.fillers is None else self.fillers.rate(step)

    def model_inputs(self, batch: dict, training: bool) -> dict:
        """What this step leaves of the chain; whole tensors, chosen on the host without waiting."""
        step = self.state.global_step if training else max(0, self.steps_seen - 1)
        removed = self.scheduled(step) if training else self.removed
        smooth = training and step >= self.removal.waiting_steps(self.steps_per_epoch)
        if training and self.method.reset_optimizer:
            self.chains_gone.append(self.internalizer.removes_all(batch, step, removed, smooth))
        # `--max_len_train` is about training alone, there too: what is evaluated is all of it.
        apply = self.internalizer if training else replace(self.internalizer, max_length=None)
        return apply(batch, step, removed, self.filler_rate(step), smooth=smooth)

    def figures_to_log(self, logs: dict[str, float]) -> dict[str, float]:
        figures = super().figures_to_log(logs)
        if "loss" in logs or "eval_loss" in logs:
            if self.train_dataset is not None:
                figures["removed_tokens"] = min(self.removed, self.longest_chain)
            if self.fillers is not None:
                figures["filler_rate"] = self.filler_rate(max(0, self.steps_seen - 1))
        return figures

    def train(self, *args, **kwargs):
        result = super().train(*args, **kwargs)
        self.record_progress()
        if self.removed_part:
            logger.warning(
                "%d of %d tokens of the longest chain were removed: the model still writes the rest before it answers",
                *self.removed_part,
            )
        return result

    @property
    def removed_part(self) -> tuple[int, int] | None:
        """How many tokens of the chain are gone, of how many; None where all are, fillers stand for them, or nothing is known."""
        config = self.unwrapped.config
        partly = config.num_internalized_tokens != ALL_TOKENS and config.filler_mode == "none"
        return (config.num_internalized_tokens, config.num_chain_tokens) if partly and config.num_chain_tokens else None

    def answer_metrics(self, prediction) -> dict[str, float]:
        """... and, of a chain that is not all gone, how much of it is."""
        part = dict(zip(("icot_removed_tokens", "icot_chain_tokens"), self.removed_part or (), strict=False))
        return super().answer_metrics(prediction) | part

    def evaluation_loop(self, *args, **kwargs):
        self.record_progress()
        return super().evaluation_loop(*args, **kwargs)

    def save_model(self, *args, **kwargs):
        self.record_progress()
        return super().save_model(*args, **kwargs)

    def record_progress(self) -> None:
        """Writes into the configuration what the weights do without. Before the first step that is the checkpoint's own word."""
        if self.train_dataset is None or self.steps_seen == 0:
            return
        config, scheduled, rate = self.unwrapped.config, self.removed, self.filler_rate(self.steps_seen - 1)
        config.num_internalized_tokens = ALL_TOKENS if scheduled >= self.longest_chain else int(scheduled)
        config.num_chain_tokens = self.longest_chain
        if config.keep_position:
            config.position_gap = mode(min(scheduled, length) for length in self.chain_lengths.tolist())
        config.filler_mode = "none"
        if rate > 0:
            config.filler_mode = "written" if self.internalizer.label_fillers else "prefilled"
            left = float(np.maximum(self.chain_lengths - scheduled, 0).mean())
            config.num_fillers = math.ceil(left * rate * self.internalizer.switch_ratio - 1e-9)

    def plot(self, folder: Path) -> None:
        """Accuracy against removed tokens, if there were evaluations."""
        plot_internalization(self.state.log_history, folder / "accuracy_against_removal.png")


def at_least_one(limit: int | None) -> int | None:
    """A limit as the original's flags give it: at most 0 is none."""
    return None if limit is None or limit <= 0 else limit


class OptimizerReset(TrainerCallback, ExportableState):
    """Forgets the optimiser's moments when one more token is removed, unless the step before had no chain left (as
    published; with `removal_side` "right" the published code stops earlier than it means to)."""

    def __init__(self, trainer: ICoTTrainer):
        self.trainer, self.all_gone = trainer, False

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(type(self).__name__, {})
        self.all_gone = saved.get("attributes", {}).get("all_gone", False)

    def on_step_begin(self, args, state, control, **kwargs):
        before, now = (self.trainer.scheduled(step) for step in (state.global_step - 1, state.global_step))
        all_from_the_start = self.trainer.removal.start_from >= self.trainer.removal.all_beyond
        if before < now and not self.all_gone and not all_from_the_start:
            self.trainer.optimizer.state.clear()
        gone = all(self.trainer.chains_gone)
        if args.world_size > 1:  # every process has other rows, and all must decide alike
            gone = bool(self.trainer.accelerator.gather(torch.tensor(gone, device=args.device)).all())
        self.all_gone = gone
        self.trainer.chains_gone.clear()

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        return {"args": {}, "attributes": {"all_gone": self.all_gone}}
