"""Floating point operations: how many a step asks of its model, and how many a second the device can do.

torch counts them on a copy of the model without memory. They are the model's: what gradient checkpointing computes
twice counts once, a masked pair of positions counts as any other, adapters and the optimiser do not count.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..inference.stored_weights import model_without_memory
from .last_layer import only_at, position_wise_parts
from .packing import Pack

SHORT, LONG, SOME = 32, 64, 17  # positions at which they are counted; all other lengths follow
Size = tuple[int, int]  # height and width of pictures
SECONDS = 0.05  # that measuring the device may take, besides warming up


@dataclass(frozen=True)
class Operations:
    """Operations of a model, forward and, behind the image encoder, backward with the projection learning.

    Args:
        picture: Image encoder and Q-Former, forward only, for a picture.
        projected: The projection for a picture: forward, and the gradient of its weight.
        position: The language model without its attention's products and its last layer's end, for a position.
        pair: Those products, for a query and a key.
        end: The end of the last layer, for a position.
        logits: The head, for a position.
    """

    picture: float
    projected: float
    position: float
    pair: float
    end: float
    logits: float

    def language_model(self, pack: Pack, packed: bool = True) -> float:
        """Of a pack; `packed` as of [`PackLoss`]: off, the last layer is computed everywhere."""
        length, ends = len(pack.input_ids), len(pack.supervised.unique()) if packed else len(pack.input_ids)
        pairs = length * (len(pack.prefix) + length)
        language = self.position * length + self.pair * pairs + self.end * ends + self.logits * len(pack.supervised)
        return language + self.projected * len(pack.pictures)

    def step(self, packs: Sequence[Pack], encoded: int, packed: bool = True) -> int:
        """Of a step: its packs, and `encoded` pictures that come without features."""
        return round(sum(self.language_model(pack, packed) for pack in packs) + self.picture * encoded)


def count_operations(config: Any, size: Size) -> Operations:
    """Operations of the model of a configuration, for pictures of `size`; counted once for each.

    Raises:
        Exception: Whatever its language model raises on tensors without content.
    """
    return _counted(type(config), config.to_json_string(use_diff=False), size)


@lru_cache(maxsize=8)
def _counted(kind: Any, text: str, size: Size) -> Operations:
    model: Any = model_without_memory(kind.from_dict(json.loads(text)))
    model.set_attn_implementation({"text_config": "eager"})  # two products forward and four backward, for all families
    model.freeze()
    one, two = language_operations(model, 1, SHORT, [0]), language_operations(model, 1, LONG, [0])
    twice = language_operations(model, 1, SHORT, [0] * SOME)
    many = language_operations(model, 1, SHORT, list(range(SOME)))
    logits, end = (twice - one) / (SOME - 1), (many - twice) / (SOME - 1)
    first, second = one - logits - end, two - logits - end
    pair = (second / LONG - first / SHORT) / (LONG - SHORT)
    layer, queries = model.model.language_projection, model.config.num_query_tokens
    projected = 4 * layer.in_features * layer.out_features * queries
    return Operations(encoder_operations(model, 1, size), projected, first / SHORT - pair * SHORT, pair, end, logits)


def encoder_operations(model: Any, pictures: int, size: Size) -> int:
    """Image encoder and Q-Former of a model on the meta device, forward."""
    with torch.no_grad(), FlopCounterMode(display=False) as operations:
        model.get_query_features(torch.empty(pictures, 3, *size, device="meta"))
    return operations.get_total_flops()


def language_operations(model: Any, rows: int, length: int, supervised: list[int] | None = None) -> int:
    """Language model and head of a frozen model on the meta device, forward and backward to its embeddings.

    Args:
        rows, length: Shape of the batch.
        supervised: Positions of the logits, and of the end of the last layer; `None`: all.
    """
    parts = position_wise_parts(model.model.language_model) if supervised else []
    positions = torch.tensor(supervised if supervised else range(length))
    size = model.config.get_text_config().hidden_size
    embeddings = torch.empty(rows, length, size, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as operations:
        with only_at(parts, positions.unique().to("meta"), length):
            output = model(
                inputs_embeds=embeddings,
                attention_mask=torch.empty(rows, 1, length, length, device="meta"),
                position_ids=torch.arange(length, device="meta")[None],
                use_cache=False,
                logits_to_keep=positions.to("meta"),
            )
        output.logits.sum().backward()
    return operations.get_total_flops()


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of this device: the best of a few products of square matrices.

    On a GPU `torch.backends` decides, as it does for the model, whether float32 may be computed as TF32. Written for
    CUDA; run on CPUs only.
    """
    return _peak(device, dtype)


@lru_cache(maxsize=8)
def _peak(device: torch.device, dtype: torch.dtype) -> float:
    size = 512 if device.type == "cpu" else 8192 if dtype.itemsize < 4 else 4096
    left = torch.ones(size, size, device=device, dtype=dtype)
    right, result = left.clone(), torch.empty_like(left)
    best, begun = float("inf"), None
    while begun is None or time.perf_counter() - begun < SECONDS:
        start = time.perf_counter()
        torch.mm(left, right, out=result)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        if begun is not None:  # the first one warms up
            best = min(best, time.perf_counter() - start)
        begun = begun or time.perf_counter()
    return 2 * size**3 / best
