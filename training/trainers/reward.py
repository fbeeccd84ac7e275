"""A Trainer that rewards right answers: TRL's GRPO (arXiv 2402.03300), with the thought in what it samples and scores.

TRL samples answers with `generate()`, which hides the thought, and scores prompt and answer with the model's base model,
which thinks only where the token ids hold a thought span. So prompts are opened (`latent_cot.prompt_suffix.PromptSuffixMixin.open_prompt`)
before either; the base model then thinks in every scoring pass, and gradients reach the question through the latents.
"""

import copy
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from transformers import PreTrainedModel
from transformers.trainer_utils import PredictionOutput
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

import latent_cot  # noqa: F401  registers the model types
from latent_cot.analysis.comparison import Comparison, check_source, comparison
from latent_cot.analysis.evaluation import Answers, answer_questions, longest
from latent_cot.answer_modes import EXPLICIT, LATENT
from latent_cot.configuration_prompt import LATENTS
from latent_cot.training.arguments import (
    CoTTrainingArguments,
    EvaluationArguments,
    LoraArguments,
    ModelArguments,
    option,
)
from latent_cot.training.checkpoints.loading import is_set_up, load_config, load_model, load_tokenizer
from latent_cot.training.checkpoints.lora import lora_config
from latent_cot.training.data.collators import pad
from latent_cot.training.data.tokenization import strip_eos
from latent_cot.training.errors import InputError
from latent_cot.training.families import PCCOT
from latent_cot.training.method_arguments import RewardArguments
from latent_cot.training.processes import asks_for_sharding
from latent_cot.training.resume.resumable_training import ResumableTrainingMixin

from .answer_evaluation import GeneratedAnswersMixin
from .rollout_noise import WithNoise, freeze_all_but_values, sources_of
from .saving import ModelSavingMixin


@dataclass
class RewardTrainingArguments(CoTTrainingArguments, GRPOConfig):
    """The other scripts' training arguments and TRL's `GRPOConfig`."""

    learning_rate: float = option(1e-6, "The initial learning rate for AdamW.")
    logging_steps: float = option(10, "Log every so many steps.")
    disable_dropout: bool = option(True, "Must stay on: with dropout, sampling and training are not the same model.")
    max_completion_length: int = option(32, "Longest sampled answer in tokens.")
    trust_remote_code: bool = field(default=False, init=False)  # a flag of ModelArguments

    def __post_init__(self):
        for name in ("use_vllm", "use_transformers_continuous_batching", "use_transformers_paged", "use_liger_kernel"):
            if getattr(self, name):
                raise InputError(f"--{name} is not supported here: answers are sampled by the model's own generate()")
        super().__post_init__()
        if not all(map(math.isfinite, self.reward_weights or ())):
            raise InputError(f"--reward_weights must be finite numbers, got {self.reward_weights}")
        if not math.isfinite(self.beta):
            raise InputError(f"--beta must be a finite number, got {self.beta}")


class RewardTrainer(ModelSavingMixin, ResumableTrainingMixin, GeneratedAnswersMixin, GRPOTrainer):
    """Trains `pccot-*` checkpoints by reward: exact match, and a function of the user's.

    Args:
        model: names the checkpoint.
        args: TRL's arguments and the other scripts'.
        train_dataset, eval_dataset, test_dataset: rows of `question`, `steps` and `answer`; steps are not read.
        reward: what is rewarded.
        reward_function: beside exact match; see TRL's `GRPOTrainer`. It is given the columns `question`, `steps`, `answer`.
        lora: trains adapters where it says so.
        evaluation: how answers are generated in evaluation.

    Raises:
        InputError: for a model that was not trained to think, or whatever cannot be loaded; in training for a reward that
            is no finite number, or of which a batch has none.
    """

    def __init__(
        self,
        model: ModelArguments,
        args: RewardTrainingArguments,
        *,
        train_dataset=None,
        eval_dataset=None,
        test_dataset=None,
        reward: RewardArguments | None = None,
        reward_function=None,
        lora: LoraArguments | None = None,
        evaluation: EvaluationArguments | None = None,
    ):
        self.reward, self.lora = reward or RewardArguments(), lora or LoraArguments()
        self.evaluation = evaluation or EvaluationArguments()
        self.answers: dict[str, Answers] = {}
        self.is_checked, self.hub_model_id = False, None
        self.sources: torch.Tensor | None = None  # of the noise of the present rollouts; `sources_of`
        self.check_metric(args)
        self.same = comparison(self.evaluation.compare)
        check_source(self.evaluation.answer_from)
        self.base_model_name = model.model_name_or_path
        beta, args.beta = args.beta, 0.0 if self.has_own_reference(args) else args.beta
        loaded, tokenizer = load_trained(model, self.lora.load_in_4bit)
        if self.reward.rollout_noise == "weights" and (args.gradient_checkpointing or self.lora.use_peft):
            raise InputError(
                "--rollout_noise weights: leave --gradient_checkpointing and --use_peft out, which know no noise"
            )
        if self.reward.train_only_values:
            if self.lora.use_peft or args.weight_decay:
                raise InputError("--train_only_values: leave --use_peft and --weight_decay out")
            freeze_all_but_values(loaded)
        if self.evaluation.answer_from is not None:
            loaded.config.answer_from = self.evaluation.answer_from
        rows = {"train": train_dataset, "validation": eval_dataset, "test": test_dataset}
        self.splits = {
            split: self.features_of(examples, split) for split, examples in rows.items() if examples is not None
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You are using 'rollout_func'")  # TRL may yet change it
            super().__init__(
                model=loaded,
                reward_funcs=[exact_match_by(self.same, loaded.config.answer_from)]
                + ([] if reward_function is None else [checked(reward_function)]),
                args=args,
                # TRL wants rows to train on even where a run only evaluates.
                train_dataset=self.splits.get("train", next(iter(self.splits.values()))),
                eval_dataset=self.splits.get("validation"),
                processing_class=tokenizer,
                # Without rows of the vocabulary: a trained model knows its tokens, and TRL reads a plain output head.
                peft_config=lora_config(loaded, self.lora, with_rows=False) if self.lora.use_peft else None,
                rollout_func=sample_answers,
            )
        self.model_type = loaded.config.model_type
        if beta != args.beta:
            self.beta = args.beta = beta
            self.ref_model = self.make_reference()

    def has_own_reference(self, args: RewardTrainingArguments) -> bool:
        """Whether `--beta` compares with a copy of the model, which thinks as the model does. With adapters the
        reference is the model without them. Raises InputError where a copy cannot be made.
        """
        if args.beta == 0.0 or self.lora.use_peft:
            return False
        if asks_for_sharding(args) or args.sync_ref_model:
            raise InputError("--beta is not supported with FSDP, DeepSpeed and --sync_ref_model: pass --use_peft")
        return True

    def make_reference(self) -> PreTrainedModel:
        """The model as it is before training. TRL would load it by its name: with the T and the code that are there."""
        reference = copy.deepcopy(self.unwrapped).requires_grad_(False)
        return self.accelerator.prepare_model(reference, evaluation_mode=True)

    @property
    def mode_names(self) -> list[str]:
        return [LATENT.name, *([EXPLICIT.name] if self.evaluation.explicit_cot else [])]

    def make_features(self, rows: Dataset, split: str) -> Dataset:
        return with_prompts(rows)

    def describe_method(self) -> str:
        return f"`{self.model_type}` with latent chain of thought, trained by reward (GRPO, arXiv 2402.03300)."

    # --- training ---

    def _generate_and_score_completions(self, inputs):
        return super()._generate_and_score_completions(inputs) | {"rollout_sources": self.sources}

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        """TRL's, of thoughts with the noise that they were sampled with."""
        if self.reward.noise_options:
            model = WithNoise(model, self.sources, self.reward.noise_options)
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.sources = inputs["rollout_sources"]
        if not self.is_checked and model.training:
            self.check_logprobs(model, inputs)
            self.is_checked = True
        return super().compute_loss(model, inputs, *args, **kwargs)

    @torch.no_grad()
    def check_logprobs(self, model, inputs: dict) -> None:
        """Compare what the first answers were sampled with to what training computes for them. Raises InputError if the
        log-probabilities differ by more than `max_logprob_difference`.
        """
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        self.sources = inputs["rollout_sources"]
        length = inputs["completion_ids"].shape[1]
        trained, _, _ = self._get_per_token_logps_and_entropies(model, ids, mask, length)
        difference = (trained - inputs["sampling_per_token_logps"]) * inputs["completion_mask"]
        # Of all processes, so that all of them stop.
        largest = self.accelerator.gather(difference.abs().max()).max().item()
        limit = self.reward.max_logprob_difference
        if not largest <= limit:
            raise InputError(
                f"answers were sampled with other log-probabilities than training computes (they differ by {largest:.2g}, more "
                f"than {limit:g}): train without dropout and in float32, or raise --max_logprob_difference"
            )

    def create_model_card(self, *args, **kwargs) -> None:
        """The card is written at the end, from what was measured (stages.py)."""

    # --- evaluation: greedy answers, as the other scripts evaluate ---

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Metrics of greedy answers in every mode. Every process answers all questions."""
        dataset = self.features_of(self.eval_dataset if eval_dataset is None else eval_dataset, "validation")
        metrics: dict[str, float] = {}
        was_training, model = self.model.training, self.unwrapped.eval()
        questions, golds = dataset["question_text"][:], dataset["answer_text"][:]
        for name in self.mode_names:
            answers = answer_questions(
                model,
                self.processing_class,
                questions,
                mode=name,
                batch_size=self.args.per_device_eval_batch_size,
                **self.generation_options(name, model, longest(self.processing_class, questions)),
            )
            self.answers[name] = answers
            metrics |= answers.metrics(f"{metric_key_prefix}_{name}", golds, self.same)
        self.log(metrics)
        model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix: str = "test") -> PredictionOutput:
        return PredictionOutput(None, None, self.evaluate(test_dataset, metric_key_prefix=metric_key_prefix))


def load_trained(source: ModelArguments, in_4bit: bool = False) -> tuple:
    """Model and tokenizer of a checkpoint that thinks. Raises InputError for anything else: a reward only strengthens
    what a model does already.
    """
    if source.model_name_or_path is None:
        raise InputError("run_grpo.py goes on with a trained model: pass --model_name_or_path (see run_ccot.py)")
    config = load_config(source)
    if getattr(config, "between", None) != LATENTS or not is_set_up(config):
        raise InputError(
            f"run_grpo.py trains {PCCOT.name} models, and this is a {config.model_type}: train one with {PCCOT.script}"
        )
    tokenizer = load_tokenizer(source, ())
    return load_model(source, config, tokenizer, in_4bit=in_4bit), tokenizer


def with_prompts(rows: Dataset) -> Dataset:
    """Rows as TRL (`prompt`), rewards and evaluation (`question_text`, `answer_text`) read them."""
    rows = rows.add_column("prompt", rows["question"][:]).add_column("question_text", rows["question"][:])
    return rows.add_column("answer_text", rows["answer"][:])


def exact_match_by(same: Comparison, source: str):
    """The reward of a right answer, as evaluation counts: see `analysis/comparison.py`.

    Args:
        source: where in a text its answer is (`answer_modes.ANSWER_SOURCES`).
    """

    def exact_match(completions: list[str], answer: list[str], **kwargs) -> list[float]:
        """1 for a right answer and 0 for another."""
        given = [LATENT.read(text, "", source) for text in completions]
        return [float(same(one, gold)) for one, gold in zip(given, answer, strict=True)]

    return exact_match


def checked(function: Callable) -> Callable:
    """A reward function whose rewards are looked at.

    None says that the function is not about an answer.

    Raises InputError in training, at the first batch with a reward that is no finite number, or without any.
    """
    name = getattr(function, "__name__", type(function).__name__)

    def check(rewards: list) -> list:
        given = [reward for reward in rewards if reward is not None]
        if not given:
            raise InputError(f"the reward function {name} gave None for every answer of a step: it has to judge some")
        odd = next((reward for reward in given if not torch.tensor(reward, dtype=torch.float32).isfinite()), None)
        if odd is not None:
            raise InputError(f"the reward function {name} gave {odd}: rewards must be finite numbers")
        return rewards

    if inspect.iscoroutinefunction(function):

        async def judge(*args, **kwargs):
            return check(await function(*args, **kwargs))
    else:

        def judge(*args, **kwargs):
            return check(function(*args, **kwargs))

    judge.__name__ = name  # which TRL logs it by
    return judge


def sample_answers(prompts: list[str], trainer: RewardTrainer) -> dict[str, list | None]:
    """TRL's `rollout_func`: answers to opened prompts, a list of token ids each, and until checked their log-probabilities."""
    tokenizer, device = trainer.processing_class, trainer.accelerator.device
    now = (trainer.args.seed, trainer.state.global_step, trainer._step, trainer.accelerator.process_index)
    trainer.sources = sources_of(prompts, now).to(device)
    noise = trainer.reward.noise_options and trainer.reward.noise_options | {"latent_sources": trainer.sources}
    rows = [strip_eos(ids, tokenizer) for ids in tokenizer(prompts)["input_ids"]]
    ids, mask = pad(rows, tokenizer.pad_token_id, left=True), pad([[1] * len(row) for row in rows], 0, left=True)
    config = copy.copy(trainer.generation_config)
    config.return_dict_in_generate, config.output_logits = True, not trainer.is_checked
    suppressed = trainer.unwrapped.generation_config.suppress_tokens or []
    config.suppress_tokens = [*suppressed, trainer.model.config.latent_token_id]  # which would be scored as a thought
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model, torch.no_grad():
        opened = model.open_thought(ids.to(device), mask.to(device))
        output = model.generate(**opened, generation_config=config, **noise)
    answers = output.sequences[:, opened["input_ids"].shape[1] :]
    ends = torch.isin(answers, torch.tensor(trainer.eos_token_ids, device=device))
    written = (ends.cumsum(dim=1) - ends.long() == 0).cpu()  # up to and including the first end
    logprobs = None if trainer.is_checked else logprobs_of(answers, output.logits, trainer.temperature).cpu()
    return {
        "prompt_ids": select(opened["input_ids"].cpu(), opened["attention_mask"].cpu().bool()),
        "completion_ids": select(answers.cpu(), written),
        "logprobs": None if logprobs is None else select(logprobs, written),
    }


def logprobs_of(tokens: torch.Tensor, logits: tuple[torch.Tensor, ...], temperature: float) -> torch.Tensor:
    """Log-probabilities `(batch, new)` of sampled tokens `(batch, new)`, from logits `(batch, vocabulary)` of each."""
    logprobs = (torch.stack(logits, dim=1).float() / temperature).log_softmax(dim=-1)
    return logprobs.gather(2, tokens[..., None])[..., 0]


def select(values: torch.Tensor, mask: torch.Tensor) -> list[list]:
    """Of each row the values where the mask is true."""
    return [row[kept].tolist() for row, kept in zip(values, mask, strict=True)]
