#!/usr/bin/env python
"""Train a PCCoT checkpoint by reward: GRPO on its own sampled answers, each after a latent thought.

    python run_grpo.py configs/recipes/chain_grpo_gpt2-2x64.yaml --model_name_or_path outputs/early --output_dir outputs/grpo
    python run_grpo.py --model_name_or_path outputs/early --dataset_name chain --reward_function my_rewards:short \
        --learning_rate 1e-5 --max_steps 100 --do_train --do_eval --output_dir outputs/short
"""

from latent_cot.commands.train_grpo import argument_classes, main
from latent_cot.training.cli import run

__all__ = ["argument_classes", "main"]

if __name__ == "__main__":
    run(main)
