"""How a Trainer saves: complete checkpoints, and one push to the Hub when the model is complete (see stages.py)."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from transformers import PreTrainedModel

from latent_cot.analysis.comparison import describe
from latent_cot.training.arguments import EvaluationArguments, LoraArguments
from latent_cot.training.checkpoints.hub import check_access, push
from latent_cot.training.checkpoints.model_card import SPLITS, Card, write_card
from latent_cot.training.checkpoints.sharding import gather_model, is_sharded, names_of_broken_weights
from latent_cot.training.checkpoints.write import add_to_manifest, refuse_foreign_files, write_final_model
from latent_cot.training.errors import InputError
from latent_cot.training.resume.checkpoint_fit import check_optimizer
from latent_cot.training.resume.interruption import refuse_other_handler
from latent_cot.training.resume.run_lock import locked
from latent_cot.training.resume.whole_folders import replacing_model
from latent_cot.training.step_decoder import detach_step_decoder

UNNAMED = "data of the trainer's own"  # in the card of a model whose data was handed over as rows


class ModelSavingMixin:
    """For a Trainer, before it in the order of classes; what it has to bring:

    Attributes:
        lora: whether its model has adapters, which a saved one has not.
        base_model_name: what the card says that training began from.
        hub_model_id: the repository that is pushed to, once `init_hf_repo` has asked for it.
        weights_step: the step that the present weights come from, where it is not the last one.
        describe_method: one sentence for the card.
        evaluation: how answers are compared, for the card; None for as numbers.
    """

    lora: LoraArguments
    base_model_name: str | None
    hub_model_id: str | None
    weights_step: int | None = None
    describe_method: Callable[[], str]
    evaluation: EvaluationArguments | None = None

    def __init__(self, *args, **kwargs):
        refuse_other_handler(kwargs["args"])
        super().__init__(*args, **kwargs)

    def train(self, *args, **kwargs):
        """As everywhere; no other run may write into the output folder meanwhile."""
        with self.locked():
            return super().train(*args, **kwargs)

    def locked(self):
        """`run_lock.locked` of the output folder in the process that writes there; the others have nothing to lock."""
        writes = self.is_world_process_zero() and self.args.should_save
        return locked(Path(self.args.output_dir)) if writes else nullcontext()

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            check_optimizer(Path(checkpoint), self.optimizer, self.args.optim.value)
        super()._load_optimizer_and_scheduler(checkpoint)

    # --- evaluation in half precision changes no trained weight ---

    def evaluate(self, *args, **kwargs):
        with self.keeping_weights():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        with self.keeping_weights():
            return super().predict(*args, **kwargs)

    @contextmanager
    def keeping_weights(self) -> Iterator[None]:
        """Afterwards every tensor of the model is what it was: `--bf16_full_eval` and `--fp16_full_eval` round them in place."""
        if self.is_in_train or not (self.args.bf16_full_eval or self.args.fp16_full_eval):
            yield
            return
        weights = [(weight, weight.data.cpu()) for weight in self.model.parameters()]
        buffers = [(module, dict(module._buffers)) for module in self.model.modules()]
        try:
            yield
        finally:
            for weight, data in weights:
                weight.data = data.to(weight.device)
            for module, held in buffers:
                module._buffers.update(held)

    @property
    def unwrapped(self) -> PreTrainedModel:
        """The model without what distributes it."""
        return self.accelerator.unwrap_model(self.model)

    def record_progress(self) -> None:
        """Write what training has changed about how to ask the model into `model.config`, where `generate()` reads it."""

    def plot(self, folder: Path) -> None:
        """Plots of the run, where a method has one."""

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """Write a complete checkpoint: weights, configuration, code, tokenizer, `example.py` (`write_final_model`).

        What transformers itself saves on the way (`_internal_call`) is what resuming needs; of sharded weights it saves that
        elsewhere. With `push_to_hub` the folder's model is pushed too, with its card.
        """
        self.check_weights()
        if not _internal_call:
            folder = Path(output_dir or self.args.output_dir)
            with self.replacing_model(folder) as new:
                self.write_model(new)
                if self.args.push_to_hub and self.is_world_process_zero():
                    self.write_card(new, UNNAMED)
            if self.args.push_to_hub:
                self.push_folder(folder, self.args, "Model save")
            return
        if not is_sharded(self.unwrapped):
            super().save_model(output_dir, _internal_call=True)

    def replacing_model(self, folder: Path):
        """`whole_folders.replacing_model` in the process that writes; the others have nothing to replace."""
        return replacing_model(folder) if self.is_world_process_zero() else nullcontext(folder)

    def write_model(self, folder: Path) -> None:
        """What `save_model` writes, into a folder as it is; `check_weights` first."""
        if is_sharded(self.unwrapped):
            model = gather_model(self.unwrapped, self.model_wrapped, self.accelerator, self.lora)
        elif self.is_world_process_zero():
            # The adapters of a LoRA model are taken out to save it: of a copy, since training may go on.
            model = copy.deepcopy(self.unwrapped) if self.lora.use_peft else self.unwrapped
            if self.lora.use_peft:
                detach_step_decoder(model)  # its layers are none that adapters belong to
        if self.is_world_process_zero():
            write_final_model(model, self.processing_class, folder, self.lora)

    def check_weights(self) -> None:
        """Raises FloatingPointError for a weight that is not finite, so that none is saved."""
        broken = names_of_broken_weights(self.unwrapped, self.accelerator)
        if broken:
            raise FloatingPointError(f"step {self.state.global_step}: {broken[0]} is not finite, so it is not saved")

    # --- the card ---

    def write_card(self, folder: Path, task: str, **given) -> None:
        """Write the model's card, by default of what was measured of the present weights.

        Args:
            task: see `Card`.
            **given: other fields of it.
        """
        compare = None if self.evaluation is None else self.evaluation.compare
        fields = {
            "name": self.hub_model_id or Path(self.args.output_dir).resolve().name,
            "method": self.describe_method(),
            "config": self.unwrapped.config,
            "metrics": self.measured(),
            "seed": self.args.seed,
            "batch_size": self.args.per_device_eval_batch_size,
            "device": self.args.device,
            "judging": describe(compare, getattr(self.unwrapped.config, "answer_from", "prompt")),
            "base_model": self.base_model_name,
        }
        write_card(
            folder, Card(task=task, **fields | {name: value for name, value in given.items() if value is not None})
        )

    def measured(self) -> dict[str, float]:
        """The logged metrics of the weights as they are, by the names of a card's splits."""
        step = self.weights_step or self.state.global_step
        entries = [entry for entry in self.state.log_history if entry.get("step") == step]
        named = tuple(f"{split}_" for split in SPLITS)
        return {name: value for entry in entries for name, value in entry.items() if name.startswith(named)}

    def create_model_card(self, model_name=None, license=None, dataset=None, **others) -> None:
        """Write our card into the output folder.

        Args:
            dataset: a name of the training data.
            **others: of transformers' method; none of them is known here.
        """
        if given := sorted(name for name, value in others.items() if value):
            raise InputError(f"create_model_card: {given[0]} is not supported, only model_name, license and dataset")
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        refuse_foreign_files(folder)
        names = dataset if isinstance(dataset, list) else [dataset or UNNAMED]
        self.write_card(folder, ", ".join(names), license=license, name=model_name)
        add_to_manifest(folder, ["README.md"])

    # --- the Hub: a checkpoint is pushed once, when it is complete (see stages.py) ---

    def push_to_hub(
        self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **kwargs
    ):
        """Save the model with its card into the output folder and upload what its manifest names, in one commit. Raises
        InputError when the Hub refuses, or the connection is lost.

        Args:
            blocking: as if it were always true.
            **kwargs: of `create_model_card`.

        Returns:
            The address of the commit; None in the processes that do not write.
        """
        args = copy.copy(self.args)  # which leaves the token out
        given = {"hub_token": token or self.args.hub_token, "hub_revision": revision, "hub_private_repo": private}
        for name, value in given.items():
            if value is not None:
                setattr(args, name, value)
        if self.is_world_process_zero():
            self.hub_model_id = check_access(args)
        self.check_weights()
        with self.replacing_model(Path(self.args.output_dir)) as new:
            self.write_model(new)
        ModelSavingMixin.create_model_card(self, **kwargs)
        return self.push_folder(Path(self.args.output_dir), args, commit_message)

    def push_folder(self, folder: Path, args, message: str) -> str | None:
        return push(folder, self.hub_model_id, args, message) if self.is_world_process_zero() else None

    def init_hf_repo(self, token=None, private=None):
        if self.is_world_process_zero() and not self.args.dry_run:
            self.hub_model_id = check_access(self.args)

    def _push_from_checkpoint(self, checkpoint_folder):
        pass
