#!/usr/bin/env python
"""Ask a model that thinks in latent tokens.

python example.py
python example.py --model outputs/chain "8*8+1-5*3=" "1+1*2-3+4="
python example.py --model whynlp/pccot-gpt2 --explicit "Tom has 3 apples and buys 4 more. How many?"
"""

import argparse
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
SHIPPED = HERE / "checkpoints" / "pccot-gpt2-chain"


def load(name: str, trust_remote_code: bool):
    """Model and tokenizer. Inside the repository also of adapters, and of checkpoints that the original published."""
    try:
        from training.convert_pccot import load
    except ImportError:
        if not trust_remote_code:
            sys.exit("error: outside the repository pass --trust_remote_code to run the checkpoint's own code")
        model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True, use_safetensors=True)
        return model, AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    return load(name, trust_remote_code=trust_remote_code)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = SHIPPED if SHIPPED.is_dir() else HERE  # beside a checkpoint, the checkpoint itself
    parser.add_argument("--model", default=str(default), help="a folder or a name on the Hub")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code that the checkpoint brings")
    parser.add_argument("--explicit", action="store_true", help="show the written chain of thought too")
    parser.add_argument("--num_iterations", type=int, help="T, instead of the checkpoint's")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("questions", nargs="*", default=["7+3*4-2+9=", "2-9+4*6-3=", "1+2*3-4+5="])
    args = parser.parse_args()
    logging.disable_progress_bar()
    try:
        model, tokenizer = load(args.model, args.trust_remote_code)
    except (OSError, ValueError) as error:
        sys.exit(f"error: cannot load {args.model}: {' '.join(str(error).split())}")
    inputs = tokenizer(args.questions, padding=True, return_tensors="pt")
    asked = inputs.input_ids.shape[1]

    def answers(**options):
        output = model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False, **options)
        return tokenizer.batch_decode(output[:, asked:], skip_special_tokens=True)

    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None:  # room for the thought
        args.max_new_tokens = max(1, min(args.max_new_tokens, limit - asked - len(model.thought_ids())))
    options = {} if args.num_iterations is None else {"num_iterations": args.num_iterations}
    try:
        latent = answers(**options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    explicit = answers(latent_thought=False) if args.explicit else [None] * len(latent)
    for question, answer, chain in zip(args.questions, latent, explicit, strict=True):
        print(f"{question}  ->  {answer.strip()}" + (f"   (explicit: {chain.strip()})" if chain else ""))


if __name__ == "__main__":
    main()
