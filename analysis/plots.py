"""Plots of a training run, and of what was measured after it."""

from pathlib import Path

from matplotlib.figure import Figure

READING = "latents read as their steps"  # a panel of proportions that are no answers


def plot_internalization(log_history: list[dict], path: Path) -> None:
    """Validation accuracy and removed tokens against the training step; nothing without evaluations.

    Args:
        log_history: of the Trainer's state; evaluations hold `eval_icot_exact_match` and `removed_tokens`.
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


def plot_faithfulness(report, path: Path) -> None:
    """Exact match under every intervention and against what is swept, and how often latents are read as their steps."""
    rows, panels = report.interventions, report.groups()[1:]
    height, lower = 0.9 + 0.3 * len(rows), 2.6 if panels else 0.1
    figure = Figure(figsize=(8, height + lower + 1.3), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[height, lower])
    above.suptitle(f"exact match, {report.data} ({report.chance.count} questions)", fontsize="medium")
    axes = above.subplots()
    axes.barh([row.label for row in rows], [row.rate for row in rows], xerr=errors(rows), capsize=3, color="tab:blue")
    axes.axvline(
        report.chance.rate, color="tab:red", linestyle=":", label=f"most frequent answer ({report.chance.rate:.2f})"
    )
    for place, row in enumerate(rows):
        axes.text(1.12, place, f"{row.rate:.3f}", va="center", ha="right")
    axes.set(xlim=(0, 1.13), xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.invert_yaxis()
    axes.legend(loc="lower right", bbox_to_anchor=(0.92, 0))
    for place, (title, held) in enumerate(panels):
        axes = below.add_subplot(1, len(panels), place + 1)
        numbers = [int(row.label.rpartition(" ")[2]) for row in held]
        axes.errorbar(numbers, [row.rate for row in held], yerr=errors(held), marker="o", capsize=3)
        if title != READING:
            axes.axhline(report.chance.rate, color="tab:red", linestyle=":")
        axes.set(title=title, ylim=(0, 1.05), xticks=numbers)
        axes.title.set_fontsize("medium")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_comparison(
    labels: list[str], rates: list[list[float]], intervals: list[tuple[float, float]], path: Path
) -> None:
    """Exact match of methods: the mean over seeds with its interval, and each seed.

    Args:
        rates, intervals: by method, the seeds' and the mean's.
    """
    figure = Figure(figsize=(7, 0.8 + 0.6 * len(labels)), layout="constrained")
    axes = figure.subplots()
    for place, (seeds, (low, high)) in enumerate(zip(rates, intervals, strict=True)):
        mean = sum(seeds) / len(seeds)
        axes.errorbar(
            mean, place, xerr=[[max(0, mean - low)], [max(0, high - mean)]], marker="o", capsize=4, color="tab:blue"
        )
        axes.scatter(seeds, [place] * len(seeds), marker="|", color="black", zorder=3)
    axes.set(
        yticks=range(len(labels)),
        yticklabels=labels,
        xlabel="exact match (bar: 95 % interval, lines: seeds)",
        xlim=(-0.03, 1.03),
    )
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


def errors(rows) -> list[list[float]]:
    """Distances to the ends of the rows' intervals, below and above."""
    return [[max(0, row.rate - row.low) for row in rows], [max(0, row.high - row.rate) for row in rows]]
