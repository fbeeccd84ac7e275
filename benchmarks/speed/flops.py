"""How many FLOPs a training step must do, counted from the method and the model's shapes.

A pass over n new positions after p cached ones costs every matrix of the blocks 2 FLOPs per weight and position, and
attention 4 per channel and visible key. Backward costs the same again for the gradient of the inputs and, where the
matrix is trained, for that of the weights. Lookups, norms, activations and losses are not counted; whole blocks are,
although nothing reads what the last one makes of the question and of the last pass's latents (3 % at T = 3).
"""

from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from latent_cot.training.runs.step_work import Work, thought_work

from .workload import Setting

# Dense FLOP/s in bf16 of the vendor's data sheets; a name further up is looked for first.
BF16_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


def bf16_peak(device_name: str) -> float | None:
    """What a GPU's data sheet promises, in FLOP/s; None for one that is not in the table."""
    return next((peak for name, peak in BF16_PEAKS.items() if name in device_name), None)


def needed_work(setting: Setting, iterations: int) -> Work:
    """What no implementation can do without: see `training/runs/step_work.py`."""
    ending = setting.prompt + setting.answer
    return thought_work(setting.question, setting.cot - ending, ending, setting.latents, iterations)


def reference_work(setting: Setting, iterations: int) -> Work:
    """What `reference.py` does."""
    question, latents, answer = setting.question, setting.latents, 1 + setting.prompt + setting.answer
    first = question + 1 + latents
    passes = ((question + setting.cot, 0), (first, 0), *[(latents, question + 1)] * iterations, (answer, first))
    return Work(passes, question + setting.cot + answer)


def matrix_flops(model: PreTrainedModel, work: Work) -> int:
    """FLOPs of the blocks' matrices and the output head in one example's forward and backward pass."""
    matrices = [module.weight for module in model.base_model.modules() if isinstance(module, (nn.Linear, Conv1D))]
    blocks = sum(weight.numel() * cost(weight.requires_grad) for weight in matrices)
    vocabulary = model.config.vocab_size
    head_trained = any(weight.requires_grad and weight.shape[0] == vocabulary for weight in model.parameters())
    # PEFT's own trained rows are written into a copy of the whole matrix, which then gets a gradient as a whole.
    head_trained |= any(type(module) is TrainableTokensLayer for module in model.modules())
    head = vocabulary * model.config.hidden_size * cost(head_trained)
    return work.positions * blocks + work.logits * head


def attention_flops(model: PreTrainedModel, work: Work) -> int:
    """FLOPs of attention over the keys that each position may see, in one example's forward and backward pass."""
    config = model.config
    channels = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    keys = sum(new * behind + new * (new + 1) // 2 for new, behind in work.passes)
    return config.num_hidden_layers * 2 * cost(True) * channels * keys  # scores and values: two products


def step_flops(model: PreTrainedModel, work: Work, batch: int) -> int:
    """FLOPs of a training step."""
    return batch * (matrix_flops(model, work) + attention_flops(model, work))


def cost(trained: bool) -> int:
    """FLOPs per weight and position: forward, gradient of the input and, if trained, of the weight."""
    return 6 if trained else 4
