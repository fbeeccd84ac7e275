"""`--use_liger_kernel`. The kernels need a GPU; which of them are put where does not, so a stand-in notes that."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from conftest import make_model

from latent_cot.training.checkpoints.liger import register_with_liger
from latent_cot.training.errors import InputError


@pytest.fixture
def applied(monkeypatch):
    """What the stand-in for liger-kernel was asked to apply."""
    calls = []

    def apply_liger_kernel_to_llama(
        rope=True, cross_entropy=False, fused_linear_cross_entropy=True, rms_norm=True, swiglu=True, model=None
    ):
        calls.append((model, {name for name, on in locals().items() if on is True}))

    table = ModuleType("liger_kernel.transformers.monkey_patch")
    table.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply_liger_kernel_to_llama}
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, table.__name__, table)
    return SimpleNamespace(calls=calls, table=table.MODEL_TYPE_TO_APPLY_LIGER_FN)


def test_layers_and_no_losses(applied):
    model = make_model("llama")
    for _ in range(2):  # a second run in the same process changes nothing
        register_with_liger(model.config)
    applied.table["pccot-llama"](model=model)
    applied.table["pccot-llama"](model=model, rope=False)
    assert applied.calls == [(model, {"rope", "rms_norm", "swiglu"}), (model, {"rms_norm", "swiglu"})]


def test_a_backbone_without_kernels(applied):
    with pytest.raises(InputError, match="no kernels for pccot-gpt2"):
        register_with_liger(make_model("gpt2").config)
    assert set(applied.table) == {"llama"}
