"""What `--dry_run` prints: what a command would train, how long and how large, counted before anything is trained."""

import math
from collections.abc import Iterable

import torch
from datasets import IterableDataset
from torch import nn
from transformers import Trainer

from latent_cot.training.data.collators import CoTCollator
from latent_cot.training.trainers.cot import CoTTrainer

Lengths = tuple[int, int, int]  # tokens of the question, of the steps with what opens them, of what comes after them


def print_plan(trainer: Trainer) -> None:
    """Print the plan, in the first process only."""
    if trainer.is_world_process_zero():
        print("\n".join(f"{name:<12}{text}".rstrip() for name, text in plan(trainer)))


def plan(trainer: Trainer) -> list[tuple[str, str]]:
    """Pairs of a heading (empty where it is the one before) and a text."""
    lines, tokens = [("plan", "nothing is trained, and nothing is written")], {}
    for name, split in trainer.splits.items():
        if isinstance(split, IterableDataset):
            lines.append((name, "a stream: its rows are not counted"))
        else:
            tokens[name] = tokens_of(trainer, split)
            lines.append((name, f"{len(split):,} rows, {sum(tokens[name]):,} tokens"))
    if trainer.args.do_train:
        lines += training_lines(trainer, tokens.get("train"))
    weights = list(trainer.unwrapped.parameters())
    trained = [weight for weight in weights if weight.requires_grad and trainer.args.do_train]
    lines.append(("parameters", f"{count(weights):,}, of which {count(trained):,} are trained"))
    if trainer.step_decoder is not None:
        decoder = count(trainer.step_decoder.parameters())
        lines.append(("", f"{decoder:,} of them are the step decoder's, which the finished model does not have"))
    if trainer.args.do_train:
        lines += memory_lines(trainer, weights, trained) + saving_lines(trainer)
    return lines


def count(weights: Iterable[nn.Parameter]) -> int:
    return sum(weight.numel() for weight in weights)


def lengths_of(feature: dict, collator: CoTCollator) -> Lengths:
    """Of a tokenized row."""
    question, tail = collator.parts(feature)
    ending = min(len(tail), len(collator.ending(feature)))
    return len(question), len(tail) - ending, ending


def tokens_of(trainer: Trainer, split) -> list[int]:
    """Tokens of each row: question, steps and answer, or the question of a row whose answer is to be sampled."""
    if not isinstance(trainer, CoTTrainer):
        return [len(ids) for ids in trainer.processing_class(split["question_text"][:])["input_ids"]]
    return [
        sum(lengths_of(row, trainer.data_collator)) for row in split.select_columns(["question", "steps", "answer"])
    ]


def new_positions(lengths: Lengths, latents: int, iterations: int) -> list[int]:
    """How many positions each pass of PCCoT's training step computes for an example: the student's passes first, with the
    window of `jacobi_window`, then the teacher's.

    The question is read once for both, and nothing is predicted from the end of sequence.
    """
    question, chain, ending = lengths
    iterations = min(iterations, latents)
    window = latents - iterations + 1
    student = [question + window, *[window] * iterations] if iterations else [question + latents + 1]
    student[-1] += ending
    return [*student, chain + ending - 1]


def steps_of(trainer: Trainer) -> tuple[int, float]:
    """Optimizer steps and epochs of a run; of a stream the epochs are not known (NaN)."""
    args = trainer.args
    if isinstance(trainer.train_dataset, IterableDataset):
        return args.max_steps, math.nan
    per_epoch = max(1, math.ceil(len(trainer.get_train_dataloader()) / args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    return steps, steps / per_epoch


def training_lines(trainer: Trainer, tokens: list[int] | None) -> list[tuple[str, str]]:
    """Steps, batch and what a step computes."""
    args, (steps, epochs) = trainer.args, steps_of(trainer)
    batch = args.world_size * args.train_batch_size * args.gradient_accumulation_steps
    factors = f"{args.world_size} processes x {args.train_batch_size} per device x {args.gradient_accumulation_steps} accumulated"
    lines = [("steps", f"{steps:,}" + ("" if math.isnan(epochs) else f", {epochs:.4g} epochs"))]
    if not isinstance(trainer, CoTTrainer):
        lines.append(("batch", f"{batch:,} sampled answers per step, {args.num_generations} per question: {factors}"))
        return [*lines, ("", f"an answer has at most {args.max_completion_length} tokens")]
    lines.append(("batch", f"{batch:,} examples per step: {factors}"))
    if tokens is None:
        return lines
    mean = sum(tokens) / len(tokens)
    lines.append(("tokens", f"{mean * batch:,.0f} per step, {mean:,.1f} per example (without padding)"))
    rows = trainer.splits["train"].select_columns(["question", "steps", "answer", "length"])
    if not trainer.has_latents:
        mean, longest = sum(rows["length"][:]) / len(rows), max(rows["length"][:])
        whole = "" if trainer.family is None else ", while the whole chain is there"
        lines.append(("positions", f"{mean:,.1f} per example that the model computes in a step (without padding)"))
        return [*lines, ("", f"at most {longest:,}{whole}")]
    lengths, config = [lengths_of(row, trainer.data_collator) for row in rows], trainer.unwrapped.config
    thought = config.num_latent_tokens, config.num_iterations
    mean = sum(sum(new_positions(row, *thought)) for row in lengths) / len(lengths)
    lines.append(("positions", f"{mean:,.1f} per example that the model computes in a step (without padding)"))
    # Questions and what follows them are padded each by themselves, so no batch is longer than these three.
    *student, teacher = longest = new_positions(tuple(map(max, zip(*lengths, strict=True))), *thought)
    passes, sizes = " + ".join(map(str, student)), "c = {}, T = {}, {} passes".format(*thought, len(student))
    lines.append(("", f"at most {sum(longest):,}: teacher {teacher} after the question, student {passes} ({sizes})"))
    if trainer.method.teacher_warmup_steps:
        lines.append(("", f"the first {trainer.method.teacher_warmup_steps} steps train only the teacher"))
    if trainer.method.batch_curriculum_prob:
        lines.append(("", "batches that the mixed curriculum changes are not counted"))
    return lines


def memory_lines(trainer: Trainer, weights: list[nn.Parameter], trained: list[nn.Parameter]) -> list[tuple[str, str]]:
    """Bytes of what does not depend on the batch; activations are not estimated."""
    sizes = {"weights": size(weights), "gradients": size(trained), "optimizer": optimizer_size(trainer, trained)}
    texts = [f"{name} {'not known' if held is None else f'{held:,}'}" for name, held in sizes.items()]
    lines = [("bytes", ", ".join(texts) + "; activations, which go by the batch, are not counted")]
    if getattr(trainer, "ref_model", None) is not None:  # of GRPO, with --beta
        lines.append(("", f"and the reference model's weights, {size(trainer.ref_model.parameters()):,}"))
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        lines.append(("", f"of all {trainer.args.world_size} devices together, as FSDP or DeepSpeed spreads them"))
    return lines


def size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def optimizer_size(trainer: Trainer, trained: list[nn.Parameter]) -> int | None:
    """Bytes of the states after a step of the run's optimizer, taken on weights that hold no numbers; None where it cannot."""
    try:
        make, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.unwrapped)
        shapes = [nn.Parameter(torch.empty_like(weight, device="meta")) for weight in trained]
        optimizer = make(shapes, **options | ({"fused": False} if "fused" in options else {}))
        for weight in shapes:
            weight.grad = torch.empty_like(weight)
        optimizer.step()
    except Exception:  # some work only on a device, or with a model in hand
        return None
    states = [value for state in optimizer.state.values() for value in state.values()]
    return size(value for value in states if isinstance(value, torch.Tensor))


def saving_lines(trainer: Trainer) -> list[tuple[str, str]]:
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
