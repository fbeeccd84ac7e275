"""Prefilled fillers against fillers decoded one at a time: the same answer, how much faster.

    python -m benchmarks.results.fillers

GPT-2 small's shape with random weights, one question of 32 tokens, an answer of 4. Both ways alternate in one process;
printed are the medians and the median of the ratios.
"""

import argparse
import statistics
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import latent_cot  # noqa: F401


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


def timed(run) -> tuple[torch.Tensor, float]:
    start = time.perf_counter()
    with torch.inference_mode():
        result = run()
    return result, 1000 * (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fillers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--answer", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokens = {"start_token_id": 1, "pause_token_id": 2, "ready_token_id": 3, "answer_prompt_ids": []}
    config = AutoConfig.for_model(
        "icot-gpt2", **tokens, filler_mode="prefilled", num_internalized_tokens=-1, eos_token_id=None, bos_token_id=None
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    question = torch.randint(10, 50_000, (1, 32))
    print("| fillers | prefilled, ms | one at a time, ms | ratio |\n|---|---|---|---|")
    for fillers in args.fillers:
        model.config.num_fillers = fillers
        times = []
        for repeat in range(args.repeats + 1):
            slow, slow_ms = timed(lambda: one_at_a_time(model, question, args.answer))
            fast, fast_ms = timed(lambda: model.generate(question, max_new_tokens=args.answer, do_sample=False))
            if not torch.equal(fast[:, question.shape[1] :], slow):
                raise SystemExit(f"{fillers} fillers: the answers differ")
            if repeat:  # the first is warming up
                times.append((fast_ms, slow_ms, slow_ms / fast_ms))
        fast_ms, slow_ms, ratio = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {fillers} | {fast_ms:.0f} | {slow_ms:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
