"""Settings for data that nobody has trained on: sizes by the data, hyper-parameters by what a run starts from."""

import math
from dataclasses import dataclass
from itertools import chain

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from latent_cot.analysis.comparison import repeats_answer
from latent_cot.training.data.small_tokenizers import character_tokenizer, word_tokenizer

MOST_WORDS = 5000  # of a vocabulary for random weights
MOST_LATENTS = 32  # from random weights
REPEATED = 0.9  # of the last steps repeat the answer: they are left out

# The demo's recipe (configs/recipes/chain_pccot_gpt2-2x64.yaml), and its steps and the teacher's share of them for chains of three steps.
DEMO = {"per_device_train_batch_size": 64, "learning_rate": 0.002, "lr_scheduler_type": "cosine", "warmup_steps": 50}
DEMO |= {"adam_beta2": 0.98, "weight_decay": 0.01, "max_grad_norm": 1.0, "per_device_eval_batch_size": 250}
DEMO_MODEL = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "initializer_range": 0.1}
DEMO_MODEL |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
DEMO_STEPS, DEMO_WARMUP, DEMO_CHAIN = 1000, 0.3, 3
# chain_icot_gpt2-4x96.yaml
DEMO_ICOT = {"learning_rate": 0.0005, "lr_scheduler_type": "constant_with_warmup", "removal_gate": 0.95}
DEMO_ICOT |= {"remove_per_epoch": 0, "eval_strategy": "steps", "eval_steps": 100, "max_eval_samples": 500}
DEMO_ICOT_MODEL = "n_embd=96,n_layer=4,initializer_range=0.08"
DEMO_ICOT_STEPS, DEMO_ICOT_SECONDS = 10000, 0.08  # per step, on one CPU core

# gsm8k-aug_pccot_gpt2.yaml, but for its evaluations, which are after each epoch.
PUBLISHED = {"use_peft": True, "lora_r": 128, "lora_alpha": 32, "lora_dropout": 0.1, "num_train_epochs": 40}
PUBLISHED |= {"per_device_train_batch_size": 128, "learning_rate": 0.003, "lr_scheduler_type": "cosine"}
PUBLISHED |= {"warmup_steps": 0.03, "weight_decay": 0.01, "per_device_eval_batch_size": 32}
PUBLISHED |= {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
PUBLISHED_LATENTS, PUBLISHED_ITERATIONS, PUBLISHED_PER_STEP = 24, 3, 3
# multiplication-9x9_icot_gpt2.yaml: after the last removal a quarter of the epochs is left.
PUBLISHED_ICOT = {"per_device_train_batch_size": 32, "learning_rate": 0.00005, "remove_per_epoch": 8}
PUBLISHED_ICOT |= {"removal_smoothing_lambda": 4, "reset_optimizer": True, "save_strategy": "epoch"}


@dataclass
class Facts:
    """What settings go by. Numbers of tokens are the largest of all splits, those of a chain without a last step that is left out."""

    rows: int  # of the training split
    keep_last_step: bool  # False where most last steps repeat the answer
    steps: int = 0  # steps of a chain; tokens of a step, a chain, an answer and all of a row
    step: int = 0
    chain: int = 0
    answer: int = 0
    whole: int = 0


def facts_of(splits: dict[str, Dataset], tokenizer: PreTrainedTokenizerBase, keep_last_step: bool | None) -> Facts:
    """Read every row of every split once. `keep_last_step`: of the user; None for what the training data say."""
    if keep_last_step is None:
        columns = (splits["train"][name] for name in ("steps", "answer"))
        last = [(steps[-1], answer) for steps, answer in zip(*columns, strict=True) if steps]
        keep_last_step = sum(repeats_answer(step, answer) for step, answer in last) < REPEATED * max(1, len(last))
    facts = Facts(len(splits["train"]), keep_last_step)

    def lengths(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    for batch in chain.from_iterable(rows.iter(batch_size=1000) for rows in splits.values()):
        questions, answers = lengths(batch["question"]), lengths(batch["answer"])
        for question, steps, answer in zip(questions, batch["steps"], answers, strict=True):
            steps = lengths(steps if keep_last_step else steps[:-1])
            facts.steps, facts.step = max(facts.steps, len(steps)), max(facts.step, *steps, 0)
            facts.chain, facts.answer = max(facts.chain, sum(steps)), max(facts.answer, answer)
            facts.whole = max(facts.whole, question + sum(steps) + answer)
    return facts


def small_tokenizer(texts: list[str], splits: dict[str, Dataset]) -> tuple[str, PreTrainedTokenizerBase, str]:
    """The tokenizer for random weights: its name for `--tokenizer_name`, itself, and which and why.

    Args:
        texts: all of the training data, and the answer prompt.
    """
    words = word_tokenizer(texts)
    unknown = words.unk_token_id
    others = chain.from_iterable((*batch["question"], *batch["answer"]) for batch in splits["validation"].iter(1000))
    questions = splits["train"]["question"][:1000]
    if sum(len(question.split()) for question in questions) < 2 * len(questions):
        why = "questions are not several words"
    elif len(words) > MOST_WORDS:
        why = f"the training data have {len(words):,} words"
    elif any(unknown in ids for ids in words(list(others))["input_ids"]):
        why = "the validation data have words that the training data have not"
    else:
        why = f"words: all of the validation data are among the {len(words) - 2:,} of the training data"
        return "words", words, why
    return "characters", character_tokenizer(texts), f"characters, since {why}"


def thought_settings(facts: Facts, pretrained: bool) -> tuple[dict, str]:
    """Flags of PCCoT for c and T, and why."""
    if pretrained:
        latents = max(1, min(PUBLISHED_LATENTS, PUBLISHED_PER_STEP * facts.steps))
        settings = {"num_latent_tokens": latents, "num_iterations": min(PUBLISHED_ITERATIONS, latents)}
        whole = facts.step <= PUBLISHED_PER_STEP  # of a longer step only a beginning would be taught
        return settings | {"loss_delta": float(whole)}, (
            f"the published T = {PUBLISHED_ITERATIONS}, and three latents per step of at most {facts.steps}, up to the published "
            f"{PUBLISHED_LATENTS}; unlike the published run, latents are scaled{' and steps supervised' if whole else ''}"
        )
    per_step = max(1, min(PUBLISHED_PER_STEP, facts.step, MOST_LATENTS // max(1, facts.steps)))
    latents = max(1, min(MOST_LATENTS, per_step * facts.steps))
    settings = {"num_latent_tokens": latents, "num_iterations": latents, "latents_per_step": per_step}
    whole = facts.step <= per_step  # of a longer step only the first tokens would be taught
    supervised = "supervised" if whole else "not supervised"
    return settings | {"loss_delta": float(whole), "open_steps_with_bot": True}, (
        f"chains have up to {facts.steps} steps of up to {facts.step} tokens; latents per step: {per_step}, {supervised}; "
        "T = c, since fewer passes are not learned reliably from random weights"
    )


def training_settings(method: str, mode: str, facts: Facts, steps: int | None, pretrained: bool) -> tuple[dict, str]:
    """Flags of the training of a method ("cot", "none", "pccot" or "icot"), and why.

    Args:
        mode: the answers that are measured (`models/answer_modes.py`).
        steps: optimiser steps, from random weights; None for as many as the data ask for.
    """
    if pretrained:
        if method == "icot":
            epochs = math.ceil(4 / 3 * (facts.chain / PUBLISHED_ICOT["remove_per_epoch"] + 1))
            why = f"published, all weights; 8 of at most {facts.chain} tokens removed per epoch, and a quarter of the epochs after that"
            return PUBLISHED_ICOT | {"num_train_epochs": epochs}, why
        best = {"metric_for_best_model": f"eval_{mode}_exact_match"}
        return PUBLISHED | best, "published, LoRA; the best epoch on validation data"
    scale, icot = max(1, facts.steps / DEMO_CHAIN), method == "icot"
    least = math.ceil(facts.rows / DEMO["per_device_train_batch_size"])
    wanted = max(least, math.ceil(scale * (DEMO_ICOT_STEPS if icot else DEMO_STEPS)))
    count = wanted if steps is None else steps
    settings = DEMO | {"max_steps": count, "logging_steps": max(1, count // 20), "eval_strategy": "no"}
    settings |= {"save_strategy": "steps", "save_steps": max(1, count // 10)}
    if icot:
        minutes = count * DEMO_ICOT_SECONDS / 60
        why = f"the recipe's, {DEMO_ICOT_STEPS:,} for a chain of {DEMO_CHAIN} steps; about {minutes:.0f} minutes per seed on a CPU core of its own"
        return settings | DEMO_ICOT | {"config_overrides": DEMO_ICOT_MODEL}, why
    why = f"the demo's, {DEMO_STEPS:,} for a chain of {DEMO_CHAIN} steps, and at least one epoch"
    if method == "pccot":
        settings["teacher_warmup_steps"] = round(DEMO_WARMUP * count)
        why += f"; the teacher alone for the first {settings['teacher_warmup_steps']}"
    return settings, why
