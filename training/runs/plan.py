"""What `--dry_run` prints: what a command would train, how long and how large, counted before anything is trained."""

import math
from dataclasses import dataclass

from datasets import Dataset, IterableDataset

from latent_cot.training.data.collators import CoTCollator
from latent_cot.training.trainers.cot import CoTTrainer

from .memory_estimate import Mode, Sharding, device_memory, kind_of, measured, named_error, size_text
from .step_work import Work, sequence_work, thought_work


@dataclass(frozen=True)
class Lengths:
    """Tokens of one example: question, steps with what opens them, and answer prompt, answer and end of sequence.

    `sequence` is the longest sequence of it that training may read.
    """

    question: int
    chain: int
    ending: int
    sequence: int

    @property
    def tokens(self) -> int:
        return self.question + self.chain + self.ending

    @classmethod
    def of(cls, feature: dict, collator: CoTCollator) -> "Lengths":
        question, tail = collator.parts(feature)
        ending = min(len(tail), len(collator.ending(feature)))
        return cls(len(question), len(tail) - ending, ending, feature["length"])


def lengths_of(features: Dataset, collator: CoTCollator) -> list[Lengths]:
    """Of every row of a tokenized split."""
    rows = features.select_columns(["question", "steps", "answer", "length"])
    return [Lengths.of(row, collator) for row in rows]


def longest_of(rows: list[Lengths]) -> Lengths:
    """No row may be so long: what a batch is padded to at most, its questions and what follows them each by themselves."""
    return Lengths(*(max(getattr(row, name) for row in rows) for name in ("question", "chain", "ending", "sequence")))


def work_of(trainer: CoTTrainer, lengths: Lengths) -> Work:
    """What the model computes for one example in a training step; for iCoT while its whole chain is there."""
    config = trainer.unwrapped.config
    if trainer.family != "pccot":
        return sequence_work(lengths.sequence)
    thought = config.num_latent_tokens, config.num_iterations
    windows = bool(config.loss_delta) and has_windows(trainer)
    return thought_work(lengths.question, lengths.chain, lengths.ending, *thought, windows)


def has_windows(trainer: CoTTrainer) -> bool:
    """Whether the training data says what the latents stand for after each pass."""
    train = trainer.splits.get("train")
    return train is not None and "windows" in (train.column_names or [])


def print_plan(trainer: CoTTrainer) -> None:
    """Print the plan, in the first process alone."""
    if trainer.is_world_process_zero():
        print("\n".join(f"{name:<12}{text}".rstrip() for name, text in plan(trainer)))


def plan(trainer: CoTTrainer) -> list[tuple[str, str]]:
    """Pairs of a heading (empty where it is the one before) and a text."""
    rows = {
        name: lengths_of(split, trainer.data_collator) for name, split in trainer.splits.items() if is_counted(split)
    }
    lines = [("plan", "nothing is trained, and nothing is written")]
    for name in trainer.splits:
        counted = (
            f"{len(rows[name]):,} rows, {sum(row.tokens for row in rows[name]):,} tokens" if name in rows else None
        )
        lines.append((name, counted or "a stream: its rows are not counted"))
    if trainer.args.do_train:
        lines += training_lines(trainer, rows.get("train"))
    weights = list(trainer.unwrapped.parameters())
    trained = sum(weight.numel() for weight in weights if weight.requires_grad) if trainer.args.do_train else 0
    lines.append(("parameters", f"{sum(weight.numel() for weight in weights):,}, of which {trained:,} are trained"))
    if trainer.step_decoder is not None:
        decoder = sum(weight.numel() for weight in trainer.step_decoder.parameters())
        lines.append(("", f"{decoder:,} of them are the step decoder's, which the finished model does not have"))
    if trainer.args.do_train:
        lines += memory_lines(trainer, rows.get("train")) + saving_lines(trainer)
    return lines


def is_counted(split) -> bool:
    return not isinstance(split, IterableDataset)


def steps_of(trainer: CoTTrainer) -> tuple[int, float]:
    """Optimiser steps and epochs of a run."""
    args = trainer.args
    if not is_counted(trainer.train_dataset):
        return args.max_steps, math.nan
    per_epoch = max(1, math.ceil(len(trainer.get_train_dataloader()) / args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    return steps, steps / per_epoch


def training_lines(trainer: CoTTrainer, rows: list[Lengths] | None) -> list[tuple[str, str]]:
    """Steps, batch and what a step computes."""
    args, (steps, epochs) = trainer.args, steps_of(trainer)
    batch = args.world_size * args.train_batch_size * args.gradient_accumulation_steps
    lines = [
        ("steps", f"{steps:,}" + ("" if math.isnan(epochs) else f", {epochs:.4g} epochs")),
        (
            "batch",
            f"{batch:,} examples per step: {args.world_size} processes x {args.train_batch_size} per device x "
            f"{args.gradient_accumulation_steps} accumulated",
        ),
    ]
    if rows is None:
        return lines
    works = [work_of(trainer, row) for row in rows]
    tokens, positions = (
        sum(values) / len(rows) for values in ([row.tokens for row in rows], [w.positions for w in works])
    )
    lines.append(("tokens", f"{tokens * batch:,.0f} per step, {tokens:,.1f} per example (without padding)"))
    lines.append(("positions", f"{positions:,.1f} per example that the model computes in a step (without padding)"))
    longest = work_of(trainer, longest_of(rows))
    if trainer.family == "pccot":
        config = trainer.unwrapped.config
        *student, (teacher, _) = longest.passes
        passes = " + ".join(str(new) for new, _ in student)
        lines.append(
            (
                "",
                f"at most {longest.positions:,}: teacher {teacher} after the question, student {passes} (c = "
                f"{config.num_latent_tokens}, T = {config.num_iterations}, {len(student)} passes)",
            )
        )
        if trainer.method.teacher_warmup_steps:
            lines.append(("", f"the first {trainer.method.teacher_warmup_steps} steps train the teacher alone"))
        if trainer.method.batch_curriculum_prob:
            lines.append(("", "batches that the mixed curriculum changes are not counted"))
    else:
        whole = ", while the whole chain is there" if trainer.family == "icot" else ""
        lines.append(("", f"at most {longest.positions:,}{whole}"))
    return lines


def mode_of(trainer: CoTTrainer, sharding: Sharding) -> Mode | None:
    """What the coefficients of the memory estimate depend on, None where nothing was measured."""
    model, args = trainer.unwrapped, trainer.args
    kind = kind_of(trainer.model_type, trainer.family == "pccot")
    if kind is None:
        return None
    mode = Mode(
        kind,
        adapters=trainer.lora.use_peft,
        autocast=trainer.accelerator.mixed_precision in ("bf16", "fp16"),
        half=model.get_input_embeddings().weight.element_size() == 2,
        # The second is its name from transformers 5.23 on.
        checkpointed=bool(args.gradient_checkpointing or getattr(args, "activation_checkpointing", False)),
        sharded=sharding.weights > 1,
    )
    return mode if mode.name in measured()["coefficients"] else None


def sharding_of(trainer: CoTTrainer) -> Sharding:
    """As the launcher's file asks for it (`configs/accelerate/`)."""
    devices = trainer.args.world_size
    if trainer.is_fsdp_enabled:
        return Sharding(devices, devices, devices)
    if trainer.is_deepspeed_enabled:
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
        return Sharding(*(devices if stage >= least else 1 for least in (3, 2, 1)))
    return Sharding(replicated=devices > 1)


def memory_lines(trainer: CoTTrainer, rows: list[Lengths] | None) -> list[tuple[str, str]]:
    """The estimate for the longest batch that there can be."""
    args, sharding = trainer.args, sharding_of(trainer)
    mode = mode_of(trainer, sharding) if rows else None
    memory = device_memory(
        trainer.unwrapped,
        mode,
        work_of(trainer, longest_of(rows)) if rows else sequence_work(0),
        args.train_batch_size,
        rank=trainer.lora.lora_r if trainer.lora.use_peft else 0,
        device=args.device.type,
        optimiser=str(getattr(args.optim, "value", args.optim)),
        sharding=sharding,
    )
    parts = {"weights": memory.weights, "gradients": memory.gradients, "optimiser": memory.optimiser}
    parts |= {"copies of weights": memory.copies} if memory.copies else {}
    parts |= {} if memory.activations is None else {"activations of the longest batch": memory.activations}
    text = " + ".join(f"{name} {size_text(size)}" for name, size in parts.items())
    decoder = [] if trainer.step_decoder is None else [("", "what the step decoder computes is not counted")]
    if memory.total is None:
        return [
            ("memory", f"per device, estimated: {text}; activations: nothing was measured for such a step"),
            *decoder,
        ]
    return [
        ("memory", f"{size_text(memory.total)} per device, estimated: {text}"),
        ("", f"the estimate was wrong by up to {named_error():.0%} where it was checked (docs/scaling.md)"),
        *decoder,
    ]


def saving_lines(trainer: CoTTrainer) -> list[tuple[str, str]]:
    """Where checkpoints go."""
    args, when = trainer.args, str(getattr(trainer.args.save_strategy, "value", trainer.args.save_strategy))
    often = {
        "no": "none on the way",
        "steps": f"{args.output_dir}/checkpoint-N every {args.save_steps:g} steps",
        "epoch": f"{args.output_dir}/checkpoint-N after each epoch",
        "best": f"{args.output_dir}/checkpoint-N whenever it is the best",
    }[when]
    if when != "no" and args.save_total_limit:
        often += f", at most {args.save_total_limit} kept"
    lines = [("checkpoints", f"{often}; the model at the end in {args.output_dir}")]
    if args.push_to_hub:
        lines.append(("", f"then pushed to {args.hub_model_id or 'the Hub'}; whether it may be is not asked here"))
    return lines
