"""Command line arguments of the `run_*.py` scripts, grouped; every field's help is what `--help` shows.

Flags of the original PCCoT scripts keep their names.
"""

import logging
import math
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import TrainingArguments

from .errors import InputError, check_installed
from .flags import AddOverrides, absent, check_least, option, whole_numbers
from .processes import check_packages

logger = logging.getLogger(__name__)

NOISE = 0.3
OLD_FLAGS = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "no_cuda": "use_cpu",
    "group_by_length": "train_sampling_strategy",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}


@dataclass
class ModelArguments:
    """Which model."""

    model_name_or_path: str | None = option(None, "Checkpoint to start from: a name on the Hub or a folder.")
    gguf_file: str | None = option(
        None,
        "A GGUF file in the folder or repository --model_name_or_path: its backbone, dequantised, and its tokenizer.",
    )
    config_name: str | None = option(
        None, "Configuration file (configs/*.json) or name. Without --model_name_or_path the weights are random."
    )
    config_overrides: str | None = option(
        None,
        "Changes to the configuration: n_layer=3,n_positions=512. They are added to a recipe's own, by name; "
        "--config_overrides= takes those away.",
        action=AddOverrides,
    )
    tokenizer_name: str | None = option(
        None,
        "Tokenizer, if not the model's: a name, a folder, or `characters` (one token per character of the training "
        "data), `words` (one per word, and per mark at its end) or `bytes` (one per byte of UTF-8), which need no download.",
    )
    model_revision: str = option("main", "Branch, tag or commit of the checkpoint.")
    torch_dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = option(
        None, "Number format of the weights (`dtype` in current transformers)."
    )
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = option(
        None, "Attention kernel; flash_attention_2 needs a GPU and the flash-attn package."
    )
    trust_remote_code: bool = option(False, "Run code that a checkpoint brings along. Only for sources you trust.")


@dataclass
class LoraArguments:
    """Low-rank adapters (PEFT)."""

    use_peft: bool = option(False, "Train LoRA adapters and the rows of new tokens instead of all weights.")
    lora_r: int = option(128, "Rank.")
    lora_alpha: float = option(32, "Scale; the update is multiplied by alpha / rank.")
    lora_dropout: float = option(0.1, "Dropout on the adapters' input.")
    lora_target_modules: str | None = option(
        None, "Modules to adapt, joined by '-': c_attn-c_fc-c_proj. Default: every linear layer of the blocks."
    )
    lora_modules_to_save: str = option("", "Modules to train in full beside the adapters, joined by '-'.")
    save_merged: bool = option(True, "Save the merged model beside `adapter/`.")
    save_base: bool = option(True, "Save in `adapter/` the base model too; without it, it is found by its name.")
    load_in_4bit: bool = option(
        False,
        "With --use_peft, hold the frozen weights in 4 bits (NF4, by bitsandbytes) while adapters are trained; what is saved is in "
        "the usual format.",
    )

    def __post_init__(self):
        if self.load_in_4bit and not self.use_peft:
            raise InputError("--load_in_4bit is for frozen weights: pass --use_peft, which trains adapters beside them")
        if self.load_in_4bit:
            check_installed("bitsandbytes", "--load_in_4bit")


@dataclass
class DataArguments:
    """Which data. Rows have a `question`, `steps` (a list of strings) and an `answer`."""

    dataset_name: str | None = option(
        None,
        "A task of tasks/ (chain, graph, word_problems, ...), a DatasetDict folder, or a name on the Hub "
        "(whynlp/gsm8k-aug).",
    )
    dataset_config_name: str | None = option(None, "Configuration of the data set on the Hub.")
    task_args: str | None = option(None, "Settings of a task: operations=6,train=20000")
    train_file: str | None = option(
        None,
        "Training data: .json, .jsonl, .csv, .txt (question||steps #### answer), .parquet, .arrow, or .gz and .zst of the "
        "texts; several files or patterns joined by commas.",
    )
    validation_file: str | None = option(None, "Validation data, which chooses the checkpoint.")
    test_file: str | None = option(None, "Test data for --do_predict.")
    train_split: str | None = option(None, "Name of the training split (train), or a part of it: train[:1000].")
    validation_split: str | None = option(
        None,
        "Name of the validation split (validation, valid, dev or val), or a share that is cut off the training data: 0.1.",
    )
    test_split: str | None = option(None, "Name of the test split (test), or a share of the training data: 0.1.")
    max_train_samples: int | None = option(None, "Use only the first so many training rows.")
    max_eval_samples: int | None = option(None, "Use only the first so many validation rows.")
    max_predict_samples: int | None = option(None, "Use only the first so many test rows.")
    streaming: bool = option(
        False, "Read the training data as a stream, over and over, without holding it (needs --max_steps)."
    )
    shuffle_buffer: int = option(
        1000, "Rows of a stream among which the next one is drawn, in each pass anew; 0 keeps the order of the data."
    )
    preprocessing_num_workers: int | None = option(None, "Processes that tokenize.")
    block_size: int | None = option(None, "Longest sequence in tokens; the model's own limit by default.")
    keep_last_step: bool | None = option(
        None,
        "Show the teacher the last step too, which usually repeats the answer (by default as the checkpoint was trained).",
    )
    drop_long: bool = option(False, "Leave out (and count) rows that are too long instead of stopping.")
    max_bad_rows: int = option(0, "Leave out (and name) up to so many rows that cannot be read.")
    column: str | None = option(
        None, "Columns by other names: question=query,steps=cot,answer=response (usual layouts are recognized)."
    )
    split_seed: int = option(0, "Seed of what --validation_split 0.1 and --test_split 0.1 cut off.")

    def __post_init__(self):
        self.dataset_name = self.dataset_name or None  # `--dataset_name=` takes a recipe's away
        check_least(
            self, block_size=1, max_train_samples=1, max_eval_samples=1, max_predict_samples=1, shuffle_buffer=0
        )


@dataclass
class StepwiseDataArguments(DataArguments):
    """Which data. The last step of a chain is kept."""

    keep_last_step: bool | None = option(True, "Keep the last step (--no_keep_last_step leaves it out of the chain).")


@dataclass
class ICoTDataArguments(StepwiseDataArguments):
    """Which data. All of it is read before training, which has to know every chain."""

    streaming: bool = absent(False)
    shuffle_buffer: int = absent(0)


@dataclass
class AskedDataArguments(DataArguments):
    """Which data. Its questions are asked as they are, all of them at hand."""

    streaming: bool = absent(False)
    shuffle_buffer: int = absent(0)
    block_size: int | None = absent(None)
    drop_long: bool = absent(False)


@dataclass
class RewardDataArguments(AskedDataArguments):
    """Which data. Questions and answers are read, and steps are not."""

    preprocessing_num_workers: int | None = absent(None)
    keep_last_step: bool | None = absent(False)


@dataclass
class EvaluationArguments:
    """How answers are generated and compared."""

    # What only some scripts have flags for, and a trainer reads of any.
    explicit_cot = True
    faithfulness = False
    latent_tolerance = None
    num_samples = 1
    eval_iterations = None

    max_new_tokens: int = option(32, "Longest answer in tokens.")
    max_cot_tokens: int = option(256, "Longest explicit chain of thought, answer included, in tokens.")
    compare: str | None = option(
        None,
        "When an answer is right: `number` (the default: numbers as numbers, other text as text), `text`, `math` "
        "(math-verify: fractions, units, LaTeX), or module:function of two texts, the given and the right answer.",
    )
    answer_from: Literal["prompt", "hashes", "last_number", "all"] | None = option(
        None,
        "Where in a generated text its answer is: after the answer prompt, after ###, its last number, or all of it. "
        "Default: as the model's configuration says; new models have `prompt`. Saved with a model that is trained.",
    )

    def __post_init__(self):
        check_least(self, max_new_tokens=1, max_cot_tokens=1, num_samples=1, latent_tolerance=0)


@dataclass
class ThoughtEvaluationArguments(EvaluationArguments):
    """How answers are generated and compared, after a thought and after the explicit chain."""

    explicit_cot: bool = option(True, "Also measure the same model's explicit chain of thought.")


@dataclass
class ICoTEvaluationArguments(ThoughtEvaluationArguments):
    """How answers are generated and compared, after what is left of the chain and after the whole of it."""

    faithfulness: bool = option(
        False,
        "With --do_predict, also change the thoughts before they are answered from, to see if answers are read from them.",
    )


@dataclass
class RewardEvaluationArguments(ThoughtEvaluationArguments):
    """How answers are generated and compared, after a latent thought and after the explicit chain."""

    latent_tolerance: float | None = option(
        None, "End the iteration early once the latents change by less than this, relatively."
    )


@dataclass
class LatentEvaluationArguments(RewardEvaluationArguments, ICoTEvaluationArguments):
    """How answers are generated and compared, after latent thoughts and after the explicit chain."""

    num_samples: int = option(1, "Also sample so many thoughts per question: pass@k, majority vote, distinct answers.")
    latent_noise: float = option(NOISE, "Noise of these samples, relative to a latent's input.")
    latent_dropout: float = option(0.0, "Dropout of these samples on a latent's input.")
    eval_iterations: str | None = option(None, "Also measure the latent thought at these T: 1,3,6.")

    def __post_init__(self):
        super().__post_init__()
        if not (0 <= self.latent_noise < math.inf and 0 <= self.latent_dropout < 1):
            raise InputError("--latent_noise must be at least 0, and --latent_dropout at least 0 and below 1")
        if self.num_samples > 1 and not (self.latent_noise or self.latent_dropout):
            raise InputError("--num_samples: without --latent_noise or --latent_dropout all samples are the same")
        if self.num_samples == 1 and (self.latent_noise != NOISE or self.latent_dropout):
            raise InputError("--latent_noise and --latent_dropout are of samples that --num_samples asks for: pass it")
        if self.eval_iterations is not None:
            whole_numbers("eval_iterations", self.eval_iterations)


@dataclass
class CoTTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments, with defaults that fit and flags that the library has since renamed."""

    remove_unused_columns: bool = option(False, "Must stay off: the collator makes the model's inputs.")
    length_column_name: str = option(
        "sort_key",
        "What --train_sampling_strategy group_by_length goes by; `sort_key` needs less padding than `length`.",
    )
    logging_nan_inf_filter: bool = option(False, "Off: looking for NaN in each step would wait for the device.")

    dry_run: bool = option(
        False, "Print the plan of a run (steps, positions, memory) and stop: nothing is trained or written."
    )
    early_stopping_patience: int | None = option(
        None,
        "Stop after so many evaluations in a row, on validation data, that were not the best by --metric_for_best_model.",
    )
    evaluation_strategy: str | None = option(None, "Old name of --eval_strategy.")
    overwrite_output_dir: bool = option(False, "Train into an output folder that already holds a model.")
    warmup_ratio: float | None = option(None, "Old form of --warmup_steps with a value below 1.")
    no_cuda: bool | None = option(None, "Old name of --use_cpu.")
    group_by_length: bool | None = option(None, "Old form of --train_sampling_strategy group_by_length.")
    per_gpu_train_batch_size: int | None = option(None, "Old name of --per_device_train_batch_size.")
    per_gpu_eval_batch_size: int | None = option(None, "Old name of --per_device_eval_batch_size.")

    def __post_init__(self):
        for old, now in OLD_FLAGS.items():
            value = getattr(self, old)
            if value is not None:
                new = old if old == "group_by_length" else value
                logger.warning("--%s is an old flag: use --%s %s", old, now, new)
                if value is not False and not (old == "warmup_ratio" and self.warmup_steps):
                    setattr(self, now, new)
        if self.early_stopping_patience is not None:
            self.check_early_stopping()
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # there is no device to copy to
        check_packages(self)
        asked = str(self.accelerator_config)  # fields by name: a mapping, its JSON text, or what it becomes
        super().__post_init__()
        if self.accelerator_config.dispatch_batches is None:
            # Otherwise one process reads a stream and cuts its batches up for the others, as if all were tensors.
            self.accelerator_config.dispatch_batches = False
        if self.dataloader_pin_memory and "non_blocking" not in asked:
            # Otherwise the copy of the next batch to the device waits for all that the device has still to do.
            self.accelerator_config.non_blocking = True

    def check_early_stopping(self) -> None:
        """Raises InputError for a patience below 1, and where there is no best model to wait for."""
        check_least(self, early_stopping_patience=1)
        given = {
            "--eval_strategy steps (or epoch)": str(getattr(self.eval_strategy, "value", self.eval_strategy)) != "no",
            "--load_best_model_at_end": self.load_best_model_at_end,
            "--metric_for_best_model": self.metric_for_best_model is not None,
        }
        if missing := [flag for flag, there in given.items() if not there]:
            raise InputError(f"--early_stopping_patience waits for a better model: pass {' and '.join(missing)} too")

    @property
    def n_gpu(self) -> int:
        """At most one a process: several are used by `accelerate launch`, not by splitting batches in this one."""
        return min(1, super().n_gpu)

    @property
    def should_save(self) -> bool:
        """Whether this process writes: not in a dry run, whose output folder the Trainer would make."""
        return super().should_save and not self.dry_run

    def __getstate__(self) -> dict:
        """What the Trainer pickles into its checkpoints: everything but the token."""
        return self.__dict__ | {"hub_token": None}
