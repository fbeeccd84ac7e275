#!/usr/bin/env python
"""Train and evaluate iCoT: the explicit chain of thought is taken away token by token, or turned into fillers.

    python run_icot.py configs/recipes/icot_chain.json --output_dir outputs/icot
    accelerate launch run_icot.py --model_name_or_path gpt2 --train_file train.txt --validation_file valid.txt \
        --remove_per_epoch 8 --removal_smoothing_lambda 4 --reset_optimizer --num_train_epochs 200 \
        --do_train --do_eval --output_dir outputs/icot-gpt2
"""

import math
from pathlib import Path

from transformers import set_seed

from training.arguments import (
    CoTTrainingArguments,
    EvaluationArguments,
    InternalizationArguments,
    LoraArguments,
    ModelArguments,
    StepwiseDataArguments,
    ThoughtArguments,
)
from training.cli import parse, run
from training.collators import InternalizingCollator
from training.curriculum import FillerSchedule, Internalizer, RemovalSchedule, check_schedule
from training.data import load_splits
from training.errors import InputError
from training.internalization import InternalizingTrainer
from training.loading import extend_positions, load_config, load_model, load_tokenizer, reinitialize, texts_of
from training.model_card import Card
from training.pipeline import check_arguments, describe_source, needed_splits, run_stages, tokenize_splits
from training.plots import plot_internalization

ARGUMENTS = (ModelArguments, InternalizationArguments, StepwiseDataArguments, EvaluationArguments, CoTTrainingArguments)


def main(argv: list[str]) -> dict:
    """Run with command line arguments (see `--help`); returns the metrics."""
    model_args, method, data, evaluation, args = parse(ARGUMENTS, argv)
    check_arguments(args, data)
    removal = removal_schedule(method, args)
    config = load_config(model_args, ThoughtArguments(), family="icot")
    splits = load_splits(data, needed_splits(args))
    prompt = method.answer_prompt
    if prompt is None and config.answer_prompt_ids is None:
        prompt = "####"
    tokenizer = load_tokenizer(model_args, texts_of(splits, prompt), family="icot")

    set_seed(args.seed)
    model = load_model(model_args, config, tokenizer, prompt)
    if method.reinitialize_weights:
        model = reinitialize(model)
    if method.truncation is not None:
        extend_positions(model, method.truncation)
    config = model.config
    config.removal_side, config.keep_position = method.removal_side, method.keep_position
    collator = InternalizingCollator(tokenizer, config, method.truncation)
    splits = tokenize_splits(splits, tokenizer, collator, data, config.max_position_embeddings)
    chains = [sum(map(len, steps)) for steps in splits["train"]["steps"]] if args.do_train else [0]

    trainer = InternalizingTrainer(
        model=model,
        args=args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=collator,
        eval_collator=collator,
        evaluation=evaluation,
        removal=removal,
        fillers=None,
        internalizer=Internalizer(
            smoothing=method.removal_smoothing_lambda,
            side=method.removal_side,
            keep_position=method.keep_position,
            switch_mode=method.switch_mode,
            switch_ratio=method.switch_token_ratio,
            label_fillers=method.write_fillers,
            pause_token_id=config.pause_token_id,
            max_length=method.max_len_train,
            seed=args.seed,
        ),
        gate=method.removal_gate,
        longest_chain=max(chains),
        mean_chain=sum(chains) / len(chains),
        reset_optimizer=method.reset_optimizer,
    )
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * trainer.steps_per_epoch)
    if args.do_train:
        removes = method.removal_gate is None and not method.switch_tokens and not method.partial_removal
        check_schedule(
            removal, method.removal_smoothing_lambda, steps, trainer.steps_per_epoch, max(chains) if removes else 0
        )
    if method.switch_tokens:
        trainer.fillers = filler_schedule(method, steps)
    card = Card(
        task=describe_source(data),
        method=f"`{config.model_type}`, whose chain of thought was taken away stepwise in training (iCoT).",
        base_model=model_args.model_name_or_path,
    )
    metrics = run_stages(trainer, splits, LoraArguments(), card)
    if args.do_train and trainer.is_world_process_zero():
        plot_internalization(trainer.state.log_history, Path(args.output_dir) / "accuracy_against_removal.png")
    return metrics


def removal_schedule(method: InternalizationArguments, args: CoTTrainingArguments) -> RemovalSchedule:
    """The removal schedule of the arguments.

    Raises:
        InputError: for a limit that is no number, or a gate without evaluation.
    """
    try:
        beyond = float(method.remove_all_when_remove_beyond)
    except ValueError:
        raise InputError(
            f"--remove_all_when_remove_beyond must be a number or inf, got {method.remove_all_when_remove_beyond!r}"
        ) from None
    if method.removal_gate is not None and args.eval_strategy == "no":
        raise InputError("--removal_gate needs --eval_strategy steps (or epoch): it waits for validation accuracy")
    by_steps = method.remove_every_n_step is not None
    return RemovalSchedule(
        # Fillers alone: nothing is removed unless it is asked for by steps.
        per_epoch=0.0 if method.switch_tokens else method.remove_per_epoch,
        all_beyond=beyond,
        pretrain_epochs=method.pretrain_epochs,
        start_from=method.remove_from_n_tokens if by_steps else method.remove_start_from,
        from_n_steps=method.remove_from_n_steps,
        every_n_step=method.remove_every_n_step,
    )


def filler_schedule(method: InternalizationArguments, steps: int) -> FillerSchedule:
    """The filler schedule of the arguments, for a run of `steps`."""
    if not 0 <= method.switch_from_n_rate <= 1:
        raise InputError(f"--switch_from_n_rate must be between 0 and 1, got {method.switch_from_n_rate}")
    if not method.switch_token_ratio >= 1:
        raise InputError(f"--switch_token_ratio must be at least 1, got {method.switch_token_ratio}")
    every = method.switch_every_n_step or max(1, int((steps - method.switch_from_n_steps) * 0.8 / 100))
    return FillerSchedule(method.switch_from_n_steps, method.switch_from_n_rate, every)


if __name__ == "__main__":
    run(main)
