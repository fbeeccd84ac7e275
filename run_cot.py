#!/usr/bin/env python
"""Train and evaluate the two baselines: an explicit chain of thought, or with --no_cot none at all.

    python run_cot.py configs/recipes/chain_nocot_gpt2-2x64.yaml --output_dir outputs/no-cot
    accelerate launch run_cot.py --model_name_or_path gpt2 --dataset_name whynlp/gsm8k-aug \
        --use_peft --do_train --do_eval --output_dir outputs/cot-gpt2
"""

from latent_cot.commands.train_cot import ARGUMENTS, main
from latent_cot.training.cli import run

__all__ = ["ARGUMENTS", "main"]

if __name__ == "__main__":
    run(main)
