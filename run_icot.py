#!/usr/bin/env python
"""Train and evaluate iCoT: the explicit chain of thought is taken away token by token, or turned into fillers.

    python run_icot.py configs/recipes/chain_icot_gpt2-4x96.yaml --output_dir outputs/icot
    accelerate launch run_icot.py --model_name_or_path gpt2 --train_file train.txt --validation_file valid.txt \
        --remove_per_epoch 8 --removal_smoothing_lambda 4 --reset_optimizer --num_train_epochs 200 \
        --do_train --do_eval --output_dir outputs/icot-gpt2
"""

from latent_cot.commands.train_icot import ARGUMENTS, main
from latent_cot.training.cli import run

__all__ = ["ARGUMENTS", "main"]

if __name__ == "__main__":
    run(main)
