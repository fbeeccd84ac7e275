"""How many latents and passes do K intermediate results need? Train each, write a JSON file per run, print a Markdown table, plot.

    python -m benchmarks.results.depth
    python -m benchmarks.results.depth --steps 15 --forms blocks       # some of the runs
    python -m benchmarks.results.depth --tables                        # run nothing

Chains of K + 1 operations mod 7 that forget nothing (docs/data-and-tasks.md). A run whose file is already in `results/depth` is not made again.
"""

from functools import partial
from pathlib import Path

from latent_cot.analysis.recorded_runs import markdown_table
from latent_cot.training.flags import joined

from . import runs

RECIPE = "configs/recipes/chain16_pccot_gpt2-2x64.yaml"
NO_CHAIN = "configs/recipes/chain16_cot_gpt2-2x64.yaml"
STEPS = (3, 5, 8, 12, 15, 31)
TWO_CHARACTERS_PER_OPERATION = 2
OPTIMISER_STEPS = {31: 4500}  # what the recipe has is not enough here: 0.1575


FORMS = {
    "steps": "a latent per result",
    "blocks": "two latents per result",
    "range": "a latent per result, T drawn from a range",  # one training with T up to K, asked at each T
    "none": "none, no chain",  # T = 0 in the tables
}


def passes_of(steps: int) -> list[int]:
    """The T that are tried for K results: quarters of K, and K."""
    return sorted({max(1, round(steps * part / 4)) for part in (1, 2, 3, 4)})


def command_of(form: str, steps: int, passes: int) -> list[str]:
    per_step = 2 if form == "blocks" else 1
    latents = steps * per_step
    positions = TWO_CHARACTERS_PER_OPERATION * (steps + 1) + 2 + latents + 30
    overrides = {"n_positions": -(-positions // 32) * 32}
    if form != "none":
        overrides |= {"num_latent_tokens": latents, "num_iterations": passes}
        overrides |= {"latents_per_step": per_step, "loss_delta": 1.0}
    words = ["run_cot.py", NO_CHAIN] if form == "none" else ["run_ccot.py", RECIPE]
    words += ["--task_args", f"operations={steps + 1},modulus=7,invertible=1,train=40000"]
    words += ["--config_overrides", joined(overrides), "--max_cot_tokens", str(steps + 10)]
    if form == "range":
        low, *between = passes_of(steps)[:-1]
        words += ["--num_iterations_range", f"{low},{steps}", "--eval_iterations", ",".join(map(str, [low, *between]))]
    if steps in OPTIMISER_STEPS:
        words += ["--max_steps", str(OPTIMISER_STEPS[steps])]
    return [*words, "--eval_strategy", "no", "--seed", "0"]


def runs_of(form: str, steps: int) -> list[runs.Run]:
    """Of a form and K: one run per T, or one for all of them."""
    every = passes_of(steps)
    made = {"none": [0], "range": every[-1:]}.get(form, every)
    return [
        runs.Run(
            f"depth/{form}/steps-{steps}-T-{passes}",
            command_of(form, steps, passes),
            {"form": form, "steps": steps},
            partial(measured, passes=passes, others=every[:-1] if form == "range" else []),
        )
        for passes in made
    ]


def measured(metrics: dict, passes: int, others: list[int]) -> dict:
    matches = {T: metrics[f"test_ccot_T{T}_exact_match"] for T in others}
    matches[passes] = metrics[f"test_{'ccot' if passes else 'no_cot'}_exact_match"]
    seconds = metrics["train_runtime"]
    return {"exact_match": matches, "explicit": metrics.get("test_cot_exact_match"), "train_seconds": seconds}


def found(name: str) -> dict[int, dict[int, float]]:
    """Exact match of a form by K and T."""
    matches: dict[int, dict[int, float]] = {}
    for row in runs.recorded(f"depth/{name}/*"):
        own = {int(T): match for T, match in row["exact_match"].items()}
        matches[row["steps"]] = matches.get(row["steps"], {}) | own
    return matches


def tables() -> str:
    rows = [
        [label, str(steps), ", ".join(f"{T}: {matches[T]:.4f}" for T in sorted(matches))]
        for name, label in FORMS.items()
        for steps, matches in sorted(found(name).items())
    ]
    return "\n".join(markdown_table(["latents", "K", "T, and exact match"], rows))


def show(path: Path) -> None:
    print(tables())
    by_depth = {
        f"K = {steps}": {T / steps: match for T, match in matches.items()}
        for steps, matches in sorted(found("steps").items())
    }
    by_form = {label: found(name)[15] for name, label in FORMS.items() if 15 in found(name)}
    panels = [
        runs.Panel("T / K", by_depth, title="a latent per result"),
        runs.Panel("T", by_form, title="K = 15"),
    ]
    runs.plot_lines(panels, path)


AXES = {"forms": (FORMS, FORMS), "steps": ((), STEPS)}

if __name__ == "__main__":
    runs.command_line(__doc__, AXES, runs_of, show, "depth.png")
