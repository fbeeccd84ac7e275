"""Prefilled fillers against fillers decoded one at a time: the same answer, how much faster.

    python -m benchmarks.results.fillers

GPT-2 small's shape with random weights, one question of 32 tokens, an answer of 4. Both ways alternate in one process;
printed are the medians and the median of the ratios.
"""

import argparse

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import latent_cot  # noqa: F401  registers the model types
from benchmarks.speed.measure import alternate, ratio, summary
from latent_cot.analysis.recorded_runs import markdown_table


def one_at_a_time(model, question: torch.Tensor, answer: int) -> torch.Tensor:
    """The same prompt, each filler a pass of its own after the cache; `(1, answer)`."""
    state = model(input_ids=question, use_cache=True)
    for token in model.suffix_ids():
        state = model(input_ids=torch.tensor([[token]]), past_key_values=state.past_key_values)
    tokens = [state.logits[:, -1].argmax(dim=-1, keepdim=True)]
    while len(tokens) < answer:
        state = model(input_ids=tokens[-1], past_key_values=state.past_key_values)
        tokens.append(state.logits[:, -1].argmax(dim=-1, keepdim=True))
    return torch.cat(tokens, dim=1)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fillers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--answer", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokens = {"start_token_id": 1, "pause_token_id": 2, "ready_token_id": 3, "answer_prompt_ids": []}
    tokens |= {"eos_token_id": None, "bos_token_id": None}
    config = AutoConfig.for_model("icot-gpt2", **tokens, filler_mode="prefilled", num_internalized_tokens=-1)
    model = AutoModelForCausalLM.from_config(config).eval()
    question, cells = torch.randint(10, 50_000, (1, 32)), []

    def fast():
        return {"answer": model.generate(question, max_new_tokens=args.answer, do_sample=False)[:, question.shape[1] :]}

    def slow():
        return {"answer": one_at_a_time(model, question, args.answer)}

    for fillers in args.fillers:
        model.config.num_fillers = fillers
        alternate({"fast": fast, "slow": slow}, question.device, rounds=1)
        times = alternate({"fast": fast, "slow": slow}, question.device, args.repeats, least=args.repeats)
        answers = [answer for way in times.values() for answer in way["answer"]]
        if not all(torch.equal(answer, answers[0]) for answer in answers):
            raise SystemExit(f"{fillers} fillers: the answers differ")
        ours, theirs = times["fast"]["seconds"], times["slow"]["seconds"]
        milliseconds = [f"{1000 * summary(seconds)['median']:.0f}" for seconds in (ours, theirs)]
        cells.append([str(fillers), *milliseconds, f"{ratio(theirs, ours)['median']:.2f}"])
    print("\n".join(markdown_table(["fillers", "prefilled, ms", "one at a time, ms", "ratio"], cells)))


if __name__ == "__main__":
    main()
