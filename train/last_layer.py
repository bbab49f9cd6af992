"""The last layer of a language model, computed where something looks at it.

Of the last layer's outputs only those at supervised positions are read; of the other positions it is asked for keys
and values alone. What comes behind the attention works on every position by itself, so there it is given the
supervised positions and nothing else: loss and gradient stay what they are, and most of a layer is saved.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

BEHIND_ATTENTION = {"o_proj", "out_proj", "c_proj", "dense", "mlp", "feed_forward", "fc1", "fc2"}
"""What transformers' families call the output of the attention and the feed-forward part. A part of another name is
computed everywhere as before: that is slower and as exact."""


def position_wise_parts(language_model: nn.Module) -> list[nn.Module]:
    """The parts of the last layer that come behind its attention and are made of linear layers alone.

    Args:
        language_model: A decoder of transformers, without its head.

    Returns:
        No part inside another one; none where layers are recomputed in the backward pass, which would find the hooks
        of `only_at` gone.
    """
    layers = [layer for layer in language_model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers or layers[-1].gradient_checkpointing:
        return []
    parts: dict[str, nn.Module] = {}
    for name, part in layers[-1].named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in parts)
        if name.rpartition(".")[2] in BEHIND_ATTENTION and not inside and _is_position_wise(part):
            parts[name] = part
    return list(parts.values())


def _is_position_wise(part: nn.Module) -> bool:
    with_weights = [each for each in part.modules() if next(each.parameters(recurse=False), None) is not None]
    return all(isinstance(each, nn.Linear | Conv1D) for each in with_weights)


@contextmanager
def only_at(parts: list[nn.Module], positions: torch.Tensor, length: int) -> Generator[None]:
    """While it lasts, `parts` are computed at `positions` and give zero elsewhere.

    Args:
        parts: From `position_wise_parts`.
        positions: `(n,)`, int64, without repetitions.
        length: Positions of the sequence, the last dimension but one of what the parts are given.
    """

    def select(part: nn.Module, inputs: tuple) -> tuple:
        return tuple(each.index_select(-2, positions) for each in inputs)

    def put_back(part: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        elsewhere = output.new_zeros(*output.shape[:-2], length, output.shape[-1])
        return elsewhere.index_copy(-2, positions, output)

    with ExitStack() as hooks:
        for part in parts:
            hooks.enter_context(part.register_forward_pre_hook(select))
            hooks.enter_context(part.register_forward_hook(put_back))
        yield
