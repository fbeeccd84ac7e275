"""The Trainer of PCCoT: distils the model's own explicit chain of thought into its latent one (arXiv 2506.18582)."""

import logging
from collections.abc import Callable
from random import Random

import torch
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from latent_cot.analysis.comparison import repeats_answer
from latent_cot.answer_modes import EXPLICIT, LATENT
from latent_cot.chunked_cross_entropy import IGNORED
from latent_cot.losses_pccot import LOSSES, window_targets
from latent_cot.training.arguments import DataArguments, whole_numbers
from latent_cot.training.data.collators import PCCoTCollator
from latent_cot.training.errors import InputError
from latent_cot.training.families import PCCOT
from latent_cot.training.method_arguments import PCCoTArguments
from latent_cot.training.step_decoder import StepDecoder, attach_step_decoder, causal_model

from .cot import CoTTrainer

logger = logging.getLogger(__name__)

READ_ROWS = 1000  # of the training data, for what is said of their steps


class PCCoTTrainer(CoTTrainer):
    """Trains `pccot-*` models, from a stock backbone too. Arguments as those of `CoTTrainer`; `method` is `PCCoTArguments`."""

    family = PCCOT.name
    method_class = PCCoTArguments
    data_class = DataArguments
    new_settings = {"scale_latents": True}
    has_latents = True

    def configuration_settings(self) -> dict:
        return self.method.configuration_settings() | {"keep_last_step": self.data.keep_last_step}

    def encoder(self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> Callable[[dict], dict]:
        if isinstance(rows := self.rows.get("train"), Dataset):
            unasked = self.data.keep_last_step is None and not config.keep_last_step
            warn_of_steps(rows, tokenizer, config, unasked, whole_steps=self.method.step_decoder_layers > 0)
        return super().encoder(tokenizer, config)

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        check_output_head(model)
        check_losses(model.config)
        if self.evaluation.num_samples > 1 and model.config.num_iterations == 0:
            raise InputError("--num_samples: at T = 0 there is no thought to sample; leave it out")
        return super().prepare_model(model)

    def make_collator(self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> PCCoTCollator:
        whole_steps = self.method.step_decoder_layers > 0
        return PCCoTCollator(tokenizer, config, self.method.batch_curriculum_prob, self.args.seed, whole_steps)

    def make_step_decoder(self, model: PreTrainedModel) -> StepDecoder | None:
        layers = self.method.step_decoder_layers
        return attach_step_decoder(model, layers) if layers else None

    @property
    def mode_names(self) -> list[str]:
        asked = self.evaluation.eval_iterations
        others = [LATENT.at(number).name for number in whole_numbers("eval_iterations", asked)] if asked else []
        return [LATENT.name, *others, *([EXPLICIT.name] if self.evaluation.explicit_cot else [])]

    def describe_method(self) -> str:
        text = f"`{self.model_type}` with latent chain of thought, trained by distilling its explicit one."
        scales = [entry["latent_scale"] for entry in self.state.log_history if "latent_scale" in entry]
        if scales and self.unwrapped.config.scale_latents:
            text += f" A trained gain (`scale_latents`) brings its latents to {scales[-1]:.2g} times the size of embeddings."
        return text

    def leaves_weights_unused(self, config: PreTrainedConfig) -> bool:
        """What makes latents, and the step decoder, are idle where only the teacher is trained, the first at T = 0 too."""
        warms_up, decodes = self.method.teacher_warmup_steps > 0, self.method.step_decoder_layers > 0
        lowest = min(config.num_iterations_range or [config.num_iterations])
        return (config.has_latent_weights and (warms_up or lowest == 0)) or (decodes and warms_up)

    def model_inputs(self, batch: dict, training: bool) -> dict:
        warming_up = training and self.state.global_step < self.method.teacher_warmup_steps
        iterations = {"num_iterations": self.drawn_iterations()} if training else {}
        reader = {} if self.step_decoder is None else {"read_steps": self.step_decoder}
        compiled = {"defer_gradients": False} if self.args.torch_compile else {}
        return batch | iterations | reader | compiled | {"teacher_only": warming_up, "return_logits": False}

    def drawn_iterations(self) -> int | None:
        """T of this step, from the configuration's range: the same in every process, and again in a resumed run."""
        bounds = self.unwrapped.config.num_iterations_range
        if bounds is None:
            return None
        return Random(f"{self.args.seed} {self.state.global_step}").randint(*bounds)

    def loss_sizes(self, inputs: dict) -> torch.Tensor:
        """Labelled tokens of teacher, student and step supervision, and rows; `(4,)`."""
        steps = (inputs["step_labels"] != IGNORED).sum()
        if "window_labels" in inputs:
            iterations = inputs["num_iterations"]
            iterations = self.unwrapped.config.num_iterations if iterations is None else iterations
            steps = steps + (window_targets(inputs["window_labels"], iterations) != IGNORED).sum()
        teacher, student, rows = (  # known on the host, and written on the device without a wait
            steps.new_full((), len(inputs[name])) for name in ("cot_labelled", "answer_labelled", "input_ids")
        )
        return torch.stack([teacher, student, steps, rows])


def warn_of_steps(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    left_out_unasked: bool,
    whole_steps: bool,
) -> None:
    """Says where the teacher is not shown steps that hold more than the answer, and where of steps only a part is taught.

    Args:
        left_out_unasked: the last steps are left out, and nobody said so.
        whole_steps: a decoder reads all of a step.
    """
    read = rows.select(range(min(READ_ROWS, len(rows))))
    chains = [(row["steps"], row["answer"]) for row in read if row["steps"]]
    if left_out_unasked:
        other = [steps[-1] for steps, answer in chains if not repeats_answer(steps[-1], answer)]
        if len(other) > len(chains) / 2:
            logger.warning(
                "the teacher is not shown the last step, which is more than the answer in %d of %d rows (%r): pass --keep_last_step, "
                "or --keep_last_step false if that is meant",
                *(len(other), len(chains), other[0]),
            )
    if config.loss_delta == 0 or whole_steps or not chains:
        return
    steps = [step for steps, _ in chains for step in (steps if config.keep_last_step else steps[:-1])]
    lengths = [len(ids) for ids in tokenizer(steps, add_special_tokens=False)["input_ids"]] if steps else [0]
    if max(lengths) > config.latents_per_step:
        logger.warning(
            "step supervision teaches the first tokens of a step alone, here %d (--latents_per_step), and steps have up to %d (%r): "
            "steps that are only results, or loss_delta=0, which supervises none, may do better",
            *(config.latents_per_step, max(lengths), steps[lengths.index(max(lengths))]),
        )


def check_losses(config: PreTrainedConfig) -> None:
    """Raises InputError for the weight of a loss that is not there: nothing would come of it."""
    for name, weight in vars(config).items():
        loss = name.removeprefix("loss_")
        if loss != name and loss not in LOSSES and isinstance(weight, int | float) and weight:
            raise InputError(f"{name}={weight}: no loss {loss!r} is registered here, only {', '.join(LOSSES)}")


@torch.no_grad()
def check_output_head(model: PreTrainedModel) -> None:
    """Compare what `forward` gives for one row without a thought with the output head of its states, which the losses
    use. Raises InputError where `forward` does more, such as scaling or capping the logits: the losses would be of
    another model.
    """
    model, states = causal_model(model), []
    head = model.get_output_embeddings()
    if not all(weight.numel() and weight.device.type != "meta" for weight in head.parameters()):
        return  # ZeRO-3 keeps them elsewhere

    def enlarge(module, inputs, output):  # a cap shows only in large logits
        largest = head(output.last_hidden_state).abs().max().clamp(min=1e-3)
        output.last_hidden_state = output.last_hidden_state * (200 / largest)
        states.append(output.last_hidden_state)
        return output

    special = {getattr(model.config, name) for name in model.config.special_tokens}
    ids = [token for token in range(8) if token not in special][:3]
    hook, was_training = model.base_model.register_forward_hook(enlarge), model.training
    try:
        given = model.eval()(input_ids=torch.tensor([ids], device=model.device)).logits
    finally:
        hook.remove()
        model.train(was_training)
    expected = head(states[0])
    if not torch.allclose(given.float(), expected.float(), rtol=0, atol=1e-2 * expected.abs().max().item()):
        raise InputError(
            f"{type(model).__name__} changes the logits after its output head (scaled or capped ones), which the losses of "
            "PCCoT do not: it cannot be trained here"
        )
