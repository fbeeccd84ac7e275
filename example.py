#!/usr/bin/env python
"""Ask a model that thinks in latent tokens, or any other that the `run_*.py` scripts have trained.

python example.py
python example.py "Tom has 3 apples. Ann has twice as many apples as Tom. How many apples does Ann have?"
python example.py --model outputs/chain "8*8+1-5*3=" "1+1*2-3+4="
python example.py --model whynlp/pccot-gpt2 --explicit "Tom has 3 apples and buys 4 more. How many?"
"""

from pathlib import Path

from latent_cot.training.checkpoints import example


def main() -> None:
    example.main(shipped=Path(__file__).resolve().parent / "checkpoints")


if __name__ == "__main__":
    main()
