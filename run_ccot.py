#!/usr/bin/env python
"""Train and evaluate PCCoT: latent chain of thought, distilled from the model's own explicit one.

    python run_ccot.py configs/recipes/chain_pccot_gpt2-2x64.yaml --output_dir outputs/chain
    accelerate launch run_ccot.py --model_name_or_path gpt2 --config_name configs/pccot_gpt2_small.json \
        --dataset_name whynlp/gsm8k-aug --use_peft --do_train --do_eval --output_dir outputs/pccot-gpt2
    python run_ccot.py --model_name_or_path outputs/chain --dataset_name chain --do_predict --output_dir outputs/test
"""

from latent_cot.commands.train_pccot import ARGUMENTS, main
from latent_cot.training.cli import run

__all__ = ["ARGUMENTS", "main"]

if __name__ == "__main__":
    run(main)
