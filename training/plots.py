"""Plots of a training run."""

from pathlib import Path

from matplotlib.figure import Figure


def plot_internalization(log_history: list[dict], path: Path) -> None:
    """Validation accuracy and removed tokens against the training step; nothing without evaluations.

    Args:
        log_history: of the Trainer's state; evaluations hold `eval_icot_exact_match` and `removed_tokens`.
        path: of the PNG.
    """
    points = [entry for entry in log_history if "eval_icot_exact_match" in entry and "removed_tokens" in entry]
    if not points:
        return
    steps = [entry["step"] for entry in points]
    figure = Figure(figsize=(7, 4), layout="constrained")  # not pyplot's: that would choose a notebook's backend for it
    axes = figure.subplots()
    axes.plot(steps, [entry["eval_icot_exact_match"] for entry in points], label="exact match (validation)")
    axes.set(xlabel="training step", ylabel="exact match", ylim=(0, 1.03))
    axes.grid(alpha=0.3)
    removed = axes.twinx()
    removed.step(steps, [entry["removed_tokens"] for entry in points], "tab:red", where="post", label="removed tokens")
    if "filler_rate" in points[0]:
        removed.plot(steps, [entry["filler_rate"] for entry in points], "tab:orange", label="share of fillers")
    removed.set(ylabel="removed tokens of the chain", ylim=(0, None))
    lines = axes.get_lines() + removed.get_lines()
    axes.legend(lines, [line.get_label() for line in lines], loc="lower right")
    figure.savefig(path, dpi=120)
