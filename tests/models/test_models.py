"""Every registered model type: one base model of ours inside, and otherwise its backbone."""

import itertools

import pytest
import torch
from conftest import make_any, question_batch
from transformers import AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.activations import ACT2FN
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from latent_cot.configuration_prompt import PromptConfigMixin
from latent_cot.training.checkpoints.loading import registered_types

TYPES = registered_types()
GPT2 = [name for name in TYPES if name.endswith("-gpt2")]
PROJECTED = [(name, projection) for name in TYPES for projection in (False, True)[: 1 + name.startswith("pccot")]]


def stock_of(config):
    """The backbone's own configuration, base model class and causal language model class."""
    fields = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures")}
    stock_class = CONFIG_MAPPING[config.model_type.partition("-")[2]]
    return (
        stock_class.from_dict(fields),
        AutoModel._model_mapping[stock_class],
        AutoModelForCausalLM._model_mapping[stock_class],
    )


@pytest.fixture(params=TYPES)
def kind(request) -> str:
    return request.param


def test_each_family_is_there():
    assert {name.partition("-")[0] for name in TYPES} == {"pccot", "icot"} and len(TYPES) >= 7 and len(GPT2) == 2


def test_one_base_model_is_built(kind, monkeypatch):
    """... of the registered class, and the causal language model holds that very one."""
    config = make_any(kind).config
    _, stock_base, stock_model = stock_of(config)
    built, build = [], stock_base.__init__

    def counted(self, config, *args, **kwargs):
        built.append(type(self))
        build(self, config, *args, **kwargs)

    monkeypatch.setattr(stock_base, "__init__", counted)
    model = AutoModelForCausalLM.from_config(config)
    assert built == [type(model).base_model_class]
    assert isinstance(model, stock_model) and isinstance(model.base_model, stock_base)
    assert type(model.base_model) is type(model).base_model_class is AutoModel._model_mapping[type(config)]


@pytest.mark.parametrize("kind", GPT2)
def test_the_fused_activation_reaches_the_blocks(kind):
    model = make_any(kind)
    assert model.config.activation_function == "gelu_new"
    assert {type(block.mlp.act) for block in model.transformer.h} == {type(ACT2FN["gelu_pytorch_tanh"])}
    assert {type(block.mlp.act) for block in make_any(kind, activation_function="relu").transformer.h} == {
        type(ACT2FN["relu"])
    }


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("kind", "projection"), PROJECTED)
def test_the_weights_are_the_backbones(kind, tied, projection):
    """Names and shapes, nothing more but the projection; and with the same weights the same logits without a thought."""
    model = make_any(kind, tie_word_embeddings=tied, **({"use_projection": True} if projection else {}))
    config, _, stock_model = stock_of(model.config)
    stock = stock_model(config).eval()

    for ours, theirs in (
        (dict(model.named_parameters()), dict(stock.named_parameters())),
        (model.state_dict(), stock.state_dict()),
    ):
        more = {name for name in ours if ".prj." in name or ".latent_gain." in name}
        assert bool(more) == projection
        shapes = {name: tuple(tensor.shape) for name, tensor in ours.items() if name not in more}
        assert shapes == {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied

    stock.load_state_dict(
        {
            name: tensor
            for name, tensor in model.state_dict().items()
            if ".prj." not in name and ".latent_gain." not in name
        }
    )
    ids, mask = question_batch([7, 4, 6])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        ours = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
        theirs = stock(input_ids=ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    assert (ours - theirs).abs().max() <= 1e-5


def test_random_weights_are_the_backbones(kind):
    """The same draws from the same seed; among them GPT-2's residual projections, which have a smaller spread."""
    ours = make_any(kind, initializer_range=0.1)
    config, _, stock_model = stock_of(ours.config)
    torch.manual_seed(0)
    theirs = stock_model(config).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())


def test_an_answer_begins_with_one_column_of_logits(kind):
    """... as the backbone's: all columns of a long prompt by the whole vocabulary are much time and memory."""
    model, seen = make_any(kind), []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    model.generate(question_batch([7, 4])[0], max_new_tokens=2, do_sample=False, eos_token_id=None)
    assert seen == [1, 1]


@pytest.mark.parametrize(("kind", "smoothing"), zip(TYPES, itertools.cycle((0.0, 0.3))))
def test_a_plain_trainer_trains_it_as_its_backbone(kind, smoothing, tmp_path):
    """Loss and evaluation by transformers' own Trainer; a PCCoT model's `labels` have to be named."""
    rows = [{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in question_batch([7, 7])[0]]
    ours = make_any(kind)
    config, _, stock_model = stock_of(ours.config)
    stock = stock_model(config)
    stock.load_state_dict(ours.state_dict())
    stock.accepts_loss_kwargs = False  # as ours: the mean of a batch (transformers counts one token too many for GPT-2)
    found = []
    for model in (ours, stock):
        args = TrainingArguments(
            str(tmp_path), max_steps=1, label_smoothing_factor=smoothing, label_names=["labels"], report_to=[], use_cpu=True,
            disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows)
        found.append((trainer.evaluate()["eval_loss"], trainer.train().training_loss))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_a_configuration_describes_itself(kind):
    config = make_any(kind).config
    said = config.describe()
    assert said.endswith(".") and "arXiv" in said and "\n" not in said
    assert config.family == kind.partition("-")[0] and config.model_type == kind
    tokens = config.special_tokens
    assert len(set(tokens.values())) == len(tokens) == 3
    for name, token in tokens.items():
        assert name.endswith("_token_id") and isinstance(getattr(config, name), int)
        assert token.startswith("<") and token.endswith(">")
    assert {mode.name for mode in make_any(kind).answer_modes} >= {"cot"}


def test_a_family_that_does_not_describe_itself_is_an_error():
    with pytest.raises(NotImplementedError, match="PromptConfigMixin does not describe itself"):
        object.__new__(PromptConfigMixin).describe()  # a mixin: it is never built alone
