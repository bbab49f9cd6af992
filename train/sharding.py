"""A frozen language model spread over processes: each holds a part of every layer and borrows the rest."""

from typing import Any

import torch
import torch.distributed
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .packing import Pack


def shard_language(model: nn.Module, state: Any) -> list[str]:
    """Spreads the layers of the language model over all processes (FSDP2, `fully_shard`); nothing else.

    Args:
        model: A [`JMiniGPT4ForConditionalGeneration`] that still lies on the CPU; layer by layer goes to the devices.
        state: accelerate's `PartialState`.

    Returns:
        Names of the parameters that are spread now. Data parallelism must leave them alone.

    Raises:
        ValueError: There is one process only, or the language model's layers cannot be told.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if state.num_processes < 2:
        raise ValueError("shard_language needs several processes: start with torchrun or accelerate launch.")
    layers = [each for each in model.model.language_model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers:
        name = type(model.model.language_model).__name__
        raise ValueError(f"The layers of {name} cannot be told apart, so shard_language cannot spread them.")
    mesh = init_device_mesh(state.device.type, (state.num_processes,))
    for layer in layers:
        # Every layer is a root of its own, which by default would keep what it borrowed.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    spread = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) in spread]


def passes(
    packs: list[Pack], features: torch.Tensor | None, config: Any, device: torch.device, spread: bool
) -> list[tuple[Pack, torch.Tensor | None]]:
    """Packs on the device with their features; with spread layers, as many in every process.

    Args:
        packs: This process's packs of a step.
        features: Query features of its pictures.
        config: The model's.
        device: Where the model is.
        spread: Whether its language model is spread over the processes.
    """
    own = [(pack.to(device), features) for pack in packs]
    if not spread:
        return own
    most = torch.tensor(len(own), device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return own + [_idle_pack(config, device)] * (int(most) - len(own))


def _idle_pack(config: Any, device: torch.device) -> tuple[Pack, torch.Tensor]:
    """A pack that weighs nothing, and its features: one empty picture. With spread layers every process must take part
    in every pass, whether it has data of its own or not."""
    length = config.num_query_tokens
    numbers = torch.arange(length)
    zeros = torch.zeros(length, dtype=torch.long)
    pack = Pack(
        input_ids=torch.full((length,), config.image_token_id),
        position_ids=numbers,
        group=zeros,
        segment=zeros,
        supervised=numbers[-1:],
        targets=zeros[:1],
        weights=torch.zeros(1),
        sources=zeros[:1],
        pictures=zeros[:1],
    )
    features = torch.zeros(1, length, config.qformer_config.hidden_size, device=device)
    return pack.to(device), features
