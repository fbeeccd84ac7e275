"""A family that the tools here do not know is refused in a sentence by each of them."""

import pytest
from conftest import make_model

from latent_cot.analysis.faithfulness import check_thinks
from latent_cot.analysis.inspection import check_inspectable, read_data
from latent_cot.engines.gguf.export import check_model
from latent_cot.training.checkpoints.loading import family_config
from latent_cot.training.errors import InputError
from latent_cot.training.families import FAMILIES, PCCOT, check_family, family_in, has_family, stock_config

DOORS = {
    "trainer": lambda model: check_family(model.config, PCCOT.name, "PCCoTTrainer"),
    "baseline": lambda model: check_family(model.config, None, "CoTTrainer"),
    "command": lambda model: family_config(model.config, PCCOT.name),
    "faithfulness": check_thinks,
    "inspection": check_inspectable,
    "reading": lambda model: read_data(model, None, [], data=""),
    "GGUF": lambda model: check_model(model, "other"),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_family_from_elsewhere(door, monkeypatch):
    model = make_model("gpt2")
    if door not in ("command", "GGUF"):
        DOORS[door](model) if door != "reading" else None  # one of ours passes
    for name, value in {"family": "other", "model_type": "other-gpt2", "between": ""}.items():
        monkeypatch.setattr(type(model.config), name, value)
    with pytest.raises(InputError, match="other"):
        DOORS[door](model)


def test_what_is_asked_of_a_configuration():
    for backbone, kind in (("gpt2", "gpt2"), ("mistral", "mistral")):
        config = make_model(backbone).config
        stock = stock_config(config)
        assert stock.model_type == kind and stock_config(stock()) is stock and has_family(stock())
    assert family_in("icot-gpt2") is FAMILIES["icot"] and family_in("gpt2") is None and family_in(["x"]) is None
