"""Every fast path against its plain twin: outputs and gradients."""

import gc
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import CONFIGS, chain_model, make_model, question_batch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch.nn import functional as F
from transformers.activations import ACT2FN

from latent_cot import chunked_cross_entropy, distillation_pccot, passes_pccot
from latent_cot.chunked_cross_entropy import IGNORED, cross_entropy, mean_cross_entropies, select_labelled
from latent_cot.positions import positions_from_mask
from latent_cot.prefix_cache import PrefixCache
from latent_cot.training.arguments import LoraArguments
from latent_cot.training.checkpoints.lora import add_adapters
from latent_cot.training.checkpoints.lora_fast import FastTrainableTokens, FusedLoraLinear
from latent_cot.training.data.collators import PCCoTCollator

slow = pytest.mark.slow
TOKENIZER = SimpleNamespace(eos_token_id=1, pad_token_id=0)
FEATURES = [
    {"question": [8, 9, 10], "steps": [[12, 13], [14]], "answer": [15]},
    {"question": [8], "steps": [[12]], "answer": [16, 17]},
]


def random_case(count=13, hidden=8, vocabulary=50, dtype=torch.float64):
    source = torch.Generator().manual_seed(0)
    states = torch.randn(count, hidden, generator=source, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, vocabulary, (count,), generator=source)
    labels[[2, 7]] = IGNORED
    weights = torch.rand(count, generator=source)
    head = torch.nn.Linear(hidden, vocabulary, bias=False, dtype=dtype)
    return head, states, labels, weights


def plain_losses(logits, labels):
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")


@pytest.mark.parametrize("chunk", [1, 4, 13, 1000])
def test_cross_entropy_in_chunks(chunk, monkeypatch):
    head, states, labels, weights = random_case()
    monkeypatch.setitem(chunked_cross_entropy.CHUNK_ELEMENTS, "cpu", chunk * 50)
    total, losses = cross_entropy(head, states, labels, weights)
    wanted = plain_losses(head(states), labels)
    assert torch.allclose(losses.double(), wanted, atol=1e-6) and not losses.requires_grad
    assert torch.allclose(total.double(), (wanted * weights).sum(), atol=1e-6)
    got = torch.autograd.grad(total * 3, [states, head.weight])
    for ours, theirs in zip(got, torch.autograd.grad((wanted * weights).sum() * 3, [states, head.weight]), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("frozen", ["nothing", "head", "states"])
def test_only_what_is_trained_gets_a_gradient(frozen):
    head, states, labels, weights = random_case()
    head.weight.requires_grad_(frozen != "head")
    states.requires_grad_(frozen != "states")
    total, _ = cross_entropy(head, states, labels, weights)
    total.backward()
    assert (states.grad is None) == (frozen == "states") and (head.weight.grad is None) == (frozen == "head")


def test_a_head_of_another_kind_is_called():
    head, states, labels, weights = random_case()
    biased = torch.nn.Linear(8, 50, dtype=torch.float64)
    for other in (biased, torch.nn.Sequential(head)):
        total, losses = cross_entropy(other, states, labels, weights)
        assert torch.allclose(losses, plain_losses(other(states).float(), labels))
        assert total.requires_grad


def test_cross_entropy_under_autocast():
    """Half-precision products, losses and sums in float32, gradients in the parameters' own type."""
    head, states, labels, weights = random_case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total, losses = cross_entropy(head, states, labels, weights)
        wanted = plain_losses(head(states).float(), labels)
    assert losses.dtype == total.dtype == torch.float32
    assert torch.allclose(losses, wanted, atol=1e-2)
    got = torch.autograd.grad(total, [states, head.weight])
    for ours, theirs in zip(got, torch.autograd.grad((wanted * weights).sum(), [states, head.weight]), strict=True):
        assert ours.dtype == torch.float32 and torch.allclose(ours, theirs, atol=2e-2)


def test_gradients_in_float16_survive_until_the_loss_is_scaled():
    """Each is far below the smallest number of float16."""
    head, states, labels, _ = random_case(dtype=torch.float32)
    with torch.autocast("cpu", torch.float16):
        total, _ = cross_entropy(head, states, labels, torch.full((13,), 1e-8))
    got = torch.autograd.grad(total * 2.0**24, [states, head.weight])
    wanted = torch.autograd.grad(plain_losses(head(states), labels).sum() * 1e-8 * 2.0**24, [states, head.weight])
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


def test_no_logits_of_a_whole_batch(monkeypatch):
    """Nothing as large as (tokens, vocabulary) is ever allocated, forward or backward."""
    head, states, labels, weights = random_case(count=64, vocabulary=400, dtype=torch.float32)
    monkeypatch.setitem(chunked_cross_entropy.CHUNK_ELEMENTS, "cpu", 8 * 400)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(
                [largest, *(t.numel() for t in (out if isinstance(out, tuple) else [out]) if torch.is_tensor(t))]
            )
            return out

    with Watch():
        cross_entropy(head, states, labels, weights)[0].backward()
    assert largest <= 8 * 400


def test_parts_and_their_means():
    head, states, labels, _ = random_case()
    parts = [(0.5, states[:5], labels[:5]), (2.0, states[5:], labels[5:])]
    total, means = mean_cross_entropies(head, parts)
    wanted = [F.cross_entropy(head(part), targets, ignore_index=IGNORED) for _, part, targets in parts]
    assert all(torch.allclose(mean.double(), other) for mean, other in zip(means, wanted, strict=True))
    assert torch.allclose(total.double(), 0.5 * wanted[0] + 2 * wanted[1])
    nothing = torch.full((5,), IGNORED)
    total, (mean,) = mean_cross_entropies(head, [(1.0, states[:5], nothing)])
    assert total == 0 and mean == 0


def test_labelled_states():
    """Found by looking, or known beforehand: the same states and labels, those before a label."""
    states = torch.arange(2 * 4, dtype=torch.float).reshape(2, 4, 1)  # of columns 2 to 5
    labels = torch.tensor([[IGNORED, IGNORED, IGNORED, 7, 8, IGNORED], [IGNORED, IGNORED, IGNORED, IGNORED, 9, 6]])
    known = (labels.flatten() != IGNORED).nonzero()[:, 0]
    for positions in (None, known):
        picked, targets = select_labelled(states, labels, 3, positions)
        assert targets.tolist() == [7, 8, 9, 6]
        assert picked[:, 0].tolist() == [0, 1, 5, 6]


def both_adapted(make, args):
    """A model with our adapter layers and one with PEFT's own, of the same weights; those that are trained are random."""
    twins = []
    for fast in (True, False):
        wrapped = add_adapters(make(), args, fast=fast)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        twins.append(wrapped)
    return twins


def test_trained_rows_are_pefts():
    """Lookup, product and gradients of PEFT's own layer, which copies the whole matrix; tied and untied."""
    for backbone, tied in (("gpt2", True), ("llama", False)):
        args = LoraArguments(use_peft=True, lora_r=2, lora_dropout=0.0)
        ids = torch.tensor([[7, 36, 38, 38, 37, 9], [36, 8, 37, 38, 10, 11]])
        results = []
        twins = both_adapted(lambda: make_model(backbone, tie_word_embeddings=tied), args)  # noqa: B023
        for wrapped, kind in zip(twins, (FastTrainableTokens, TrainableTokensLayer), strict=True):
            assert sum(type(module) is kind for module in wrapped.modules()) == 2
            model = wrapped.base_model.model
            with torch.inference_mode():  # of which nothing may be kept for training
                model.get_input_embeddings()(ids)
            states = model.get_input_embeddings()(ids)
            logits = model.lm_head(states)
            (logits**2).sum().backward()
            rows = [parameter.grad for name, parameter in wrapped.named_parameters() if "tokens_delta" in name]
            assert len(rows) == (1 if tied else 2)
            results.append([states, logits, *rows])
        for ours, theirs in zip(*results, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dropout, checkpointing", [(0.0, False), (0.3, False), (0.0, True)])
def test_a_step_with_pefts_own_layers(characters, dropout, checkpointing):
    """A training step with LoRA: losses and gradients as with PEFT's layers and whole logits, in double precision."""
    args = LoraArguments(use_peft=True, lora_r=2, lora_dropout=dropout)
    results = []
    for wrapped, fast in zip(
        both_adapted(lambda: chain_model(characters, num_latent_tokens=3), args), (True, False), strict=True
    ):
        model = wrapped.double().base_model.model
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        batch = PCCoTCollator(characters, model.config)(FEATURES)
        assert ({FastTrainableTokens, FusedLoraLinear} <= {type(module) for module in wrapped.modules()}) == fast
        torch.manual_seed(0)  # the same elements drop out
        output = wrapped.train()(**batch)
        output.loss.backward()
        kinds = {type(node).__name__ for node in nodes_of(output.loss)}
        assert checkpointing or ("LoraProductBackward" in kinds) == fast
        grads = [parameter.grad for parameter in wrapped.parameters() if parameter.requires_grad]
        results.append([output.loss, output.cot_loss, output.ccot_loss, output.kd_loss, *grads])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_second_way_back_is_refused(characters):
    """What the gradients were made of is freed as they are made, so autograd's `retain_graph` has nothing to retain."""
    model = chain_model(characters, num_latent_tokens=3).train()
    loss = model(**PCCoTCollator(characters, model.config)(FEATURES)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="goes backward once"):
        loss.backward()


@pytest.mark.parametrize("lora", [False, True])
def test_a_step_leaves_nothing_behind(characters, lora):
    """What a step kept for its gradients is gone with the loss: no cycle waits for the garbage collector, as a cycle
    through a graph would, with all of the step's memory."""
    model = chain_model(characters, num_latent_tokens=3)
    batch = PCCoTCollator(characters, model.config)(FEATURES)
    wrapped = (add_adapters(model, LoraArguments(lora_r=2)) if lora else model).train()
    gc.collect()
    gc.disable()
    try:
        counts = []
        for _ in range(4):
            wrapped(**batch).loss.backward()
            counts.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))
        assert counts[1] == counts[2] == counts[3], counts
    finally:
        gc.enable()


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
@pytest.mark.parametrize("autocast", [True, False])
def test_an_adapter_in_another_number_format(backbone, autocast):
    """Outputs and gradients of PEFT's layer under autocast, and where weights are bf16 and adapters float32."""
    args = LoraArguments(
        use_peft=True, lora_r=4, lora_dropout=0.0, lora_target_modules="c_attn" if backbone == "gpt2" else "q_proj"
    )
    dtype, results = torch.float32 if autocast else torch.bfloat16, []
    twins = both_adapted(lambda: make_model(backbone).to(dtype), args)
    for wrapped, kind in zip(twins, (FusedLoraLinear, LoraLinear), strict=True):
        layer = next(module for module in wrapped.train().modules() if type(module) is kind)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, 32, generator=generator).to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(x)
        (y.float() ** 2).sum().backward()
        weights = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        results.append([y, x.grad, *(weight.grad for weight in weights)])
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).float().norm() < 0.02 * theirs.float().norm()


def test_a_layer_that_something_looks_into_is_pefts():
    """Hooks run (offloading fetches weights with them), and a second derivative is refused, not wrong."""
    wrapped = add_adapters(make_model("llama"), LoraArguments(use_peft=True, lora_r=4, lora_dropout=0.0)).train()
    layer = next(module for module in wrapped.modules() if isinstance(module, FusedLoraLinear))
    x = torch.randn(2, 3, 32, requires_grad=True)
    (grad,) = torch.autograd.grad((layer(x) ** 3).sum(), layer.lora_B["default"].weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (grad**2).sum().backward()
    for module in (layer.base_layer, layer.lora_A["default"]):
        seen = []
        handle = module.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        layer(x)
        handle.remove()
        assert seen == [1]


def test_the_fused_activation():
    """One kernel instead of gelu_new's formula; tests/models/test_models.py asks which models have it."""
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64, requires_grad=True)
    ours, theirs = (ACT2FN[name](x) for name in ("gelu_pytorch_tanh", "gelu_new"))
    assert torch.allclose(ours, theirs, atol=1e-12)
    grads = [torch.autograd.grad(y.sum(), x)[0] for y in (ours, theirs)]
    assert torch.allclose(*grads, atol=1e-12)


@pytest.mark.parametrize("iterations", [0, 2, 6])
def test_known_positions_and_no_logits_change_nothing(backbone, iterations):
    """A training step with everything spared, and one with nothing spared: losses and gradients."""
    model = make_model(backbone, num_iterations=iterations, loss_delta=0.5)
    batch = PCCoTCollator(TOKENIZER, model.config)(FEATURES)
    results = []
    for spared in (True, False):
        model.zero_grad()
        given = batch if spared else {name: value for name, value in batch.items() if not name.endswith("labelled")}
        output = model.train()(**given, return_logits=not spared)
        assert (output.logits is None) == spared
        output.loss.backward()
        results.append([output.loss, *(parameter.grad.clone() for parameter in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "backbone", ["gpt2", "mistral", pytest.param("llama", marks=slow), pytest.param("qwen3", marks=slow)]
)
def test_a_step_never_waits_for_the_device(backbone, monkeypatch):
    """On the meta device nothing can be read: a step that reads a number, or looks for one, fails there. (tests/gpu asks the
    same of other T.)"""
    model = make_model(backbone, num_iterations=2, loss_delta=0.5).train()
    batch = PCCoTCollator(TOKENIZER, model.config)([FEATURES[0] | {"windows": [[[12], [14]]]}, FEATURES[1]])
    batch = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # not to be asked about this device
    model.to("meta")
    model(**batch).loss.backward()
    assert model.lm_head.weight.grad.shape == model.lm_head.weight.shape
    if backbone == "gpt2":  # with transformers' own masks it does
        monkeypatch.setattr(passes_pccot, "masks_without_sync", lambda config, inputs, cache, mask, positions: mask)
        with pytest.raises((RuntimeError, NotImplementedError)):
            model(**batch)


@pytest.mark.parametrize("lengths", [[7, 3], [7, 7]])
def test_masks_made_without_a_look_hide_the_same(backbone, lengths):
    """One pass with transformers' own masks and one with ours, with and without padding, after 3 columns and none."""
    base = make_model(backbone).base_model.eval()
    ids, mask = question_batch(lengths)
    embeds, positions = base.get_input_embeddings()(ids), positions_from_mask(mask)

    def one_pass(start, cache, mask):
        return base.plain_forward(
            inputs_embeds=embeds[:, start:], past_key_values=cache, attention_mask=mask,
            position_ids=positions[:, start:], use_cache=True,
        ).last_hidden_state  # fmt: skip

    with torch.no_grad():
        cache = PrefixCache()
        base.plain_forward(
            inputs_embeds=embeds[:, :3], past_key_values=cache, attention_mask=mask[:, :3],
            position_ids=positions[:, :3], use_cache=True,
        )  # fmt: skip
        for start, prefix in ((0, PrefixCache), (3, lambda: cache.fork(3))):
            wanted = one_pass(start, prefix(), mask)
            masks = passes_pccot.masks_without_sync(
                base.config, embeds[:, start:], prefix(), mask, positions[:, start:]
            )
            given = one_pass(start, prefix(), masks)
            seen = mask[:, start:].bool()
            torch.testing.assert_close(given[seen], wanted[seen])


@pytest.mark.parametrize(
    ("backbone", "iterations", "projection"),
    [
        pytest.param(backbone, *case, marks=[] if backbone == "gpt2" or case == (2, True) else slow)
        for backbone in CONFIGS
        for case in ((0, True), (2, True), (6, False))
    ],
)
def test_one_weight_gradient_for_all_passes(backbone, iterations, projection, monkeypatch):
    """Every parameter's gradient as autograd adds it up pass by pass; also in a second step, and accumulated."""
    model = make_model(backbone, num_iterations=iterations, use_projection=projection).double().train()
    batch = PCCoTCollator(TOKENIZER, model.config)(FEATURES)
    results = []
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr(distillation_pccot, "shared_gradients", lambda backbone: nullcontext())
        model.zero_grad()
        for _ in range(2):
            output = model(**batch)
            kinds = {type(node).__name__ for node in nodes_of(output.loss)}
            assert ("WeightGradientBackward" in kinds) == shared
            output.loss.backward()
        assert all(type(weights) is torch.nn.Parameter for weights in model.parameters())
        grads = [parameter.grad for parameter in model.parameters()]  # None: a projection that T = 0 does not use
        results.append([torch.zeros(()) if grad is None else grad.clone() for grad in grads])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7, rtol=1e-6)


def nodes_of(tensor) -> set:
    """Every node of a tensor's graph."""
    found, waiting = set(), [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [next_node for next_node, _ in node.next_functions]
    return found
