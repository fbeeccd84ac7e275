"""What `latent_tolerance` saves and costs on the shipped checkpoint, one unseen question at a time."""

from transformers import AutoModelForCausalLM, AutoTokenizer

from latent_cot import tasks
from latent_cot.analysis.evaluation import answer_questions, same_answer, wilson_interval
from latent_cot.training.cli import read_recipe

from .measure import summary
from .report import Column, draw, panels
from .workload import ROOT, Bench

NAME = "tolerance"
TITLE = "latent_tolerance on checkpoints/pccot-gpt2-chain"
COLUMNS = [
    Column("tolerance", "tolerance"),
    Column("passes after pass 0", "mean_passes", "{:.3f}"),
    Column("passes saved", "saved", "{:.3f}"),
    Column("exact match", "exact_match", "{:.3f}"),
    Column("95 % interval, low", "low", "{:.3f}"),
    Column("high", "high", "{:.3f}"),
    Column("ms per answer", "seconds", "{:.1f}", 1000),
]
TOLERANCES = (None, 0, 0.01, 0.1, 0.3, 1, 3)


def unseen_questions(count: int) -> list[dict]:
    """Questions of the chain task that the checkpoint was not trained on."""
    recipe = read_recipe(ROOT / "configs" / "recipes" / "chain_pccot_gpt2-2x64.yaml")
    trained = {row["question"] for row in tasks.generate("chain", recipe["task_args"])["train"]}
    fresh = tasks.generate("chain", f"operations=4,train=1,validation=1,test={count + 200},seed=77")["test"]
    return [row for row in fresh if row["question"] not in trained][:count]


def measure(bench: Bench) -> list[dict]:
    folder = ROOT / "checkpoints" / "pccot-gpt2-chain"
    model = AutoModelForCausalLM.from_pretrained(folder).to(bench.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    questions = unseen_questions(20 if bench.quick else 1000 if bench.whole else 300)
    calls = []
    blocks = model.base_model.h
    handle = blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))

    # One question after the other meets every tolerance, so that a slow moment of the machine slows them all.
    given = {tolerance: {"answers": [], "passes": [], "seconds": []} for tolerance in TOLERANCES}
    for row in questions:
        for tolerance, own in given.items():
            calls.clear()
            result = answer_questions(
                model, tokenizer, [row["question"]], batch_size=1, max_new_tokens=8, latent_tolerance=tolerance
            )
            own["answers"].append(same_answer(result.answers[0], row["answer"]))
            # Pass 0 is not counted, nor are the passes that write the answer's later tokens.
            own["passes"].append(len(calls) - result.new_tokens)
            own["seconds"].append(result.seconds)
    handle.remove()

    rows, count = [], len(questions)
    full = sum(given[None]["passes"]) / count
    for tolerance, own in given.items():
        right, passes = sum(own["answers"]), sum(own["passes"]) / count
        low, high = wilson_interval(right, count)
        rows.append(
            {
                "tolerance": "off" if tolerance is None else tolerance,
                "questions": count,
                "passes": summary(own["passes"]),
                "mean_passes": passes,
                "saved": full - passes,
                "exact_match": right / count,
                "low": low,
                "high": high,
                "seconds": summary(own["seconds"]),
            }
        )
    return rows


def plot(rows: list[dict]):
    figure, (axes,) = panels(1, 1, width=6.5)
    places = range(len(rows))
    match = [{"median": row["exact_match"], "q1": row["low"], "q3": row["high"]} for row in rows]
    draw(axes, places, match, color="tab:blue", label="exact match (95 % interval)")
    axes.set(ylabel="exact match", xlabel="latent_tolerance", ylim=(0, 1.05))
    axes.set_xticks(places, [str(row["tolerance"]) for row in rows])
    passes = axes.twinx()
    draw(passes, places, [row["mean_passes"] for row in rows], color="tab:red", label="passes after pass 0", marker="x")
    most = max(row["mean_passes"] for row in rows)
    passes.set(ylabel="passes after pass 0, mean", ylim=(0, 1.25 * most))
    lines = [*axes.get_legend_handles_labels()[0], *passes.get_legend_handles_labels()[0]]
    axes.legend(lines, [line.get_label() for line in lines], loc="lower left")
    return figure
