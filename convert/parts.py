"""A part of the model as its source gives it: image encoder, Q-Former or language model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedConfig

from .sources import Source

Read = Callable[[], torch.Tensor]


@dataclass
class Part:
    """One part of the model: its configuration, and where every one of its tensors is read from.

    Attributes:
        tensors: Name in the checkpoint to be written, to what reads the tensor.
        notes: What the user should know, one sentence each.
        places: Of a Q-Former: what the configuration of the model says of the places that it looks at.
    """

    config: PreTrainedConfig
    tensors: dict[str, Read]
    notes: list[str] = field(default_factory=list)
    places: dict[str, Any] = field(default_factory=dict)


def attention_heads(given: int | None, known: dict[int, int], width: int, argument: str, source: Source) -> int:
    """Attention heads of a layer `width` channels wide: those given, or else those known for that width.

    Raises:
        ValueError: Neither is there, or the channels do not divide into them.
    """
    heads = given or known.get(width)
    if heads is None:
        raise ValueError(
            f"{source.name} is {width} wide, and how many attention heads that makes cannot be read off the weights: "
            f"give `{argument}`."
        )
    if width % heads:
        raise ValueError(f"{width} channels do not divide into {heads} attention heads: check `{argument}`.")
    return heads
