"""Models whose weights are spread over processes (FSDP2, ZeRO-3): checked, put together for saving, and sharded themselves
where accelerate cannot.

`fully_shard` makes weights DTensors, of which each process holds a part, and exchanges a module's class for one made on the
fly; neither may get into a checkpoint.
"""

import copy

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from latent_cot.training.arguments import LoraArguments
from latent_cot.training.errors import InputError

from .lora import add_adapters


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds only a part of some weights."""
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def names_of_broken_weights(model: nn.Module, accelerator: Accelerator) -> list[str]:
    """Names of the weights that are not finite, the same in every process. All take part where weights are sharded."""
    names, finite = [], []
    for name, weight in model.named_parameters():
        local = weight.to_local() if isinstance(weight, DTensor) else weight
        names.append(name)
        finite.append(torch.isfinite(local.detach()).all().to(accelerator.device))
    broken = (~torch.stack(finite)).long()
    if is_sharded(model):
        broken = accelerator.reduce(broken, reduction="sum")
    return [name for name, count in zip(names, broken.tolist(), strict=True) if count]


def gather_model(model: nn.Module, wrapped: nn.Module, accelerator: Accelerator, lora: LoraArguments):
    """A whole copy of a sharded model, on the CPU of the main process; None in the others. All take part."""
    if any(isinstance(weight, DTensor) for weight in model.parameters()):
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    else:
        state = accelerator.get_state_dict(wrapped)
    if not accelerator.is_main_process:
        return None
    source = model.get_base_model() if lora.use_peft else model
    with torch.device("meta"):  # a shape to fill: nothing is initialised
        whole = own_class(source)(copy.deepcopy(source.config))
        whole.generation_config = source.generation_config
        if lora.use_peft:
            whole = add_adapters(whole, lora)
    fill(whole, state)
    return whole


def own_class(module: nn.Module) -> type[nn.Module]:
    """A module's class, without what `fully_shard` makes of it."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def fill(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Give a model on the meta device its weights; those that it shares stay shared."""
    shared: dict[int, nn.Parameter] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if id(weight) not in shared:
            shared[id(weight)] = nn.Parameter(state[name], requires_grad=weight.requires_grad)
        state[name] = shared[id(weight)]
    model.load_state_dict(state, assign=True)


def options_in_step(options: dict, accelerator: Accelerator) -> dict:
    """Arguments of `generate()` for processes that collect weights from each other in every pass, so that all run as many.

    transformers goes on until all are done; here no process runs beyond the positions of another one's longer questions.

    Raises InputError for an iteration that ends when it has settled, at another pass in each process.
    """
    if options.get("latent_tolerance") is not None:
        raise InputError("--latent_tolerance: sharded processes cannot end an iteration on their own; leave it out")
    room = torch.tensor([options["max_new_tokens"]], device=accelerator.device)
    return options | {"max_new_tokens": int(accelerator.gather(room).min())}


def prepare_sharding(model: nn.Module, accelerator: Accelerator) -> None:
    """Before accelerate shards a model: refuse what would not end well, and shard what it cannot. Raises InputError for
    FSDP1, and for LoRA with tied embeddings together with `cpu_ram_efficient_loading`, with which accelerate reads the
    weights only later.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise InputError("FSDP1 is not supported: set fsdp_version: 2 in the configuration of accelerate")
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    inputs, outputs = ({id(weight) for weight in module.parameters()} for module in modules)
    if not hasattr(modules[0], "token_adapter") or not inputs & outputs:
        return
    if plugin.cpu_ram_efficient_loading:
        raise InputError("LoRA with tied embeddings: set accelerate's fsdp_cpu_ram_efficient_loading to false")
    shard_tied_adapters(modules, accelerator)


def shard_tied_adapters(modules: list[nn.Module], accelerator: Accelerator) -> None:
    """Shard an input and an output matrix that are one, with the rows that are trained beside the adapters.

    Those rows hide from accelerate that the two are one: it would shard the same weight twice.
    """
    plugin, mesh = accelerator.state.fsdp_plugin, getattr(accelerator, "torch_device_mesh", None)
    for weight in modules[0].parameters():
        if weight.requires_grad and accelerator.mixed_precision != "no":
            weight.data = weight.data.float()  # as accelerate does with what is trained
    fully_shard(
        modules,
        mesh=None if mesh is None else mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)],
        reshard_after_forward=False,  # the first and the last to be used
        mp_policy=plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        offload_policy=plugin.cpu_offload,
    )
