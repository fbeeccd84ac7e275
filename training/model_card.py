"""The card of a checkpoint, written from what was measured."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

KINDS = {"ccot": "latent thought", "cot": "explicit chain of thought", "no_cot": "no chain of thought"}


def write_card(
    folder: Path,
    *,
    name: str,
    task: str,
    method: str,
    command: str,
    seed: int,
    config,
    metrics: dict,
    base_model: str | None,
) -> None:
    """Write `README.md` into a checkpoint's folder.

    Args:
        folder: of the checkpoint.
        name: of the model.
        task: the data it was trained on.
        method: one line on how it was trained.
        command: that trained it.
        seed: of the training.
        config: its configuration.
        metrics: as `Trainer.evaluate` returns them: `eval_ccot_exact_match`, `test_...`.
        base_model: the checkpoint it was fine-tuned from, if any.
    """
    rows, results = [], []
    for split, label in (("eval", "validation"), ("test", "test")):
        for kind, title in KINDS.items():
            prefix = f"{split}_{kind}"
            if f"{prefix}_exact_match" not in metrics:
                continue
            accuracy = metrics[f"{prefix}_exact_match"]
            low, high = metrics[f"{prefix}_exact_match_low"], metrics[f"{prefix}_exact_match_high"]
            rows.append(
                f"| {label} | {title} | {accuracy:.3f} ({low:.3f} to {high:.3f}) | "
                f"{metrics[f'{prefix}_examples_per_second']:.1f} | {metrics[f'{prefix}_new_tokens']:.1f} |"
            )
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=task,
                    dataset_name=task,
                    dataset_split=label,
                    metric_type="exact_match",
                    metric_name=f"exact match, {title}",
                    metric_value=round(accuracy, 4),
                )
            )
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["latent-chain-of-thought", config.model_type],
        base_model=base_model,
        model_name=name,
        eval_results=results or None,
    )
    thought = ""
    if hasattr(config, "num_latent_tokens"):
        thought = (
            f"It thinks in c = {config.num_latent_tokens} latent tokens that are refined in parallel "
            f"T = {config.num_iterations} times (PCCoT, arXiv 2506.18582) before it answers.\n"
        )
    card = f"""---
{data.to_yaml()}
---

# {name}

{method}
{thought}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
inputs = tokenizer(["your question"], padding=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=32)
print(tokenizer.decode(output[0, inputs.input_ids.shape[1]:], skip_special_tokens=True))
```

| split | answer after | exact match (95 % interval) | examples per second | new tokens |
|---|---|---|---|---|
{chr(10).join(rows)}

Answers are generated greedily; numbers are compared as numbers. Trained from seed {seed} by:

```
{command}
```
"""
    ModelCard(card).save(folder / "README.md")
