"""Runs whose weights are sharded over two processes on a CPU, by the same code that shards them on GPUs; and the same runs in one.

accelerate shards only on accelerators. `shard_on_cpu` takes that check out and nothing else: `fully_shard`, the Trainer's
checkpoints and ours are the real ones.
"""

import dataclasses
import json
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import StoppingCriteria, StoppingCriteriaList

from latent_cot import tasks
from latent_cot.training import (
    CoTTrainingArguments,
    EvaluationArguments,
    ICoTArguments,
    ICoTTrainer,
    LoraArguments,
    ModelArguments,
    PCCoTArguments,
    PCCoTTrainer,
)
from latent_cot.training.cli import leave_process_group

CONFIGS = {"pccot-gpt2": "pccot_gpt2_tiny", "pccot-llama": "pccot_llama_tiny", "icot-gpt2": "icot_gpt2_chain"}
DATA = tasks.generate("chain", "train=32,validation=5,test=4")


@dataclasses.dataclass(frozen=True)
class Case:
    """A run: the model type, whether input and output matrix are one, LoRA, changes to arguments and configuration, and
    whether it is interrupted and resumed."""

    kind: str
    tied: bool
    lora: bool
    options: tuple = ()
    overrides: str = ""
    resumes: bool = False
    state_dict: str = "SHARDED_STATE_DICT"

    @property
    def name(self) -> str:
        words = [self.kind, "tied" if self.tied else "untied", "lora" if self.lora else "full", *dict(self.options)]
        words += [text.partition("=")[0] for text in (self.overrides,) if text]
        return "-".join([*words, *(["whole-state"] if self.state_dict.startswith("FULL") else [])])


def make_trainer(case: Case, folder: Path, sharded: bool):
    """The trainer of a case; a step's batch is the same 8 rows in one process and in two."""
    options: dict = {
        "per_device_train_batch_size": 4 if sharded else 8,
        "per_device_eval_batch_size": 2,
        "max_steps": 2,
    }
    options |= {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 1000.0}
    options |= {"save_steps": 1, "logging_steps": 1, "disable_tqdm": True, "report_to": "none", "use_cpu": True}
    if sharded:
        options |= {
            "ddp_backend": "gloo",
            "fsdp": "full_shard",
            "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"},
        }
    overrides = f"tie_word_embeddings={str(case.tied).lower()}"
    trainer_class, method = PCCoTTrainer, PCCoTArguments(answer_prompt="#")
    if case.kind == "icot-gpt2":
        trainer_class, method = ICoTTrainer, ICoTArguments(answer_prompt="#", partial_removal=True)
    else:
        overrides += ",loss_gamma=0"  # the other losses are means over tokens, whichever process they are in
    model = ModelArguments(
        config_name=f"configs/{CONFIGS[case.kind]}.json",
        tokenizer_name="characters",
        config_overrides=",".join(filter(None, [overrides, case.overrides])),
    )
    return trainer_class(
        model,
        CoTTrainingArguments(str(folder), **(options | dict(case.options))),
        train_dataset=DATA["train"],
        eval_dataset=DATA["validation"],
        method=method,
        lora=LoraArguments(use_peft=case.lora, lora_r=2, lora_dropout=0.0),
        evaluation=EvaluationArguments(max_new_tokens=4, max_cot_tokens=8),
    )


class UnequalLengths(StoppingCriteria):
    """Ends the only row of a batch after 1 to 4 tokens, by its question: processes are done at unequal times."""

    def __init__(self, asked: int):
        self.asked = asked

    def __call__(self, input_ids, scores, **kwargs):
        self.length = getattr(self, "length", input_ids.shape[1])  # with the first token
        end = input_ids.shape[1] > self.length + int(input_ids[0, : self.asked].sum()) % 4 - 1
        return torch.full((len(input_ids),), end, device=input_ids.device)


def run_case(case: Case, folder: Path, sharded: bool) -> None:
    """Train for two steps, answer, save to `final`; or go on from the first step's checkpoint and save to `resumed`."""
    folder = folder / case.name
    trainer = make_trainer(case, folder, sharded)
    trainer.train()
    plain_options = trainer.generation_options
    trainer.generation_options = lambda name, model, asked: (
        plain_options(name, model, asked)
        | {"stopping_criteria": StoppingCriteriaList([UnequalLengths(asked)]), "eos_token_id": -1}
    )
    trainer.evaluate()
    trainer.save_model(folder / "final")
    if trainer.is_world_process_zero():
        record = {
            "log": trainer.state.log_history,
            "answers": trainer.predictions("validation", trainer.splits["validation"]),
        }
        (folder / "record.json").write_text(json.dumps(record))
    if sharded:
        assert any(isinstance(weight, DTensor) for weight in trainer.model.parameters()), "nothing is sharded"
    if sharded and case.resumes:
        again = make_trainer(case, folder, sharded)
        again.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
        again.save_model(folder / "resumed")


def refuse_broken_weights(folder: Path) -> None:
    """A weight that is not finite in one process's part: all processes refuse to save, and none waits for the others."""
    trainer = make_trainer(Case("pccot-gpt2", True, False), folder / "broken", True)
    trainer.train()
    name, weight = list(trainer.model.named_parameters())[-1]
    with torch.no_grad():
        if trainer.args.process_index == 1:
            weight.to_local().fill_(float("nan"))
    for internal in (False, True):
        try:
            trainer.save_model(folder / "broken" / "final", _internal_call=internal)
        except FloatingPointError as error:
            assert name in str(error), error
        else:
            raise AssertionError("it was saved")
    assert not (folder / "broken" / "final").exists()


def shard_on_cpu() -> None:
    """accelerate's state takes an FSDP plugin on a CPU too."""
    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = init


def main() -> None:
    shard_on_cpu()
    folder = Path(sys.argv[1])
    for fields in json.loads((folder / "cases.json").read_text()):
        run_case(Case(**fields), folder, sharded=True)
    refuse_broken_weights(folder)
    leave_process_group()


if __name__ == "__main__":
    main()
