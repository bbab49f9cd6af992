"""The loss of one pack: projection and language model over the packed sequence, logits only where one is learnt."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from ..modeling_jminigpt4 import CACHE_NAME
from .last_layer import only_at, position_wise_parts
from .packing import Pack, attention_mask


class PackLoss(nn.Module):
    """A model and the loss of packs on it; what the trainer trains, and what data parallelism wraps.

    Args:
        model: A [`JMiniGPT4ForConditionalGeneration`].

    Attributes:
        packed: Off, every pack is one whole row, and goes through the language model as rows do everywhere.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model: Any = model
        self.packed = True
        self._prefixes: dict[tuple[int, ...], list[tuple[Any, Any]]] = {}

    def forward(self, pack: Pack | None, query_features: torch.Tensor | None) -> torch.Tensor:
        """Loss of every target of the pack.

        Args:
            pack: The pack; `None` gives a loss of zero that still depends on all that learns, for a process without
                data in a step that others wait for.
            query_features: `(pictures, num_query_tokens, size)` of the step's pictures; `pack.pictures` picks from
                them.

        Returns:
            `(n,)` float32, not weighted.
        """
        if pack is None:
            return self._nothing()[None].float()
        pictures = {}
        if query_features is not None and len(pack.pictures):
            pictures["query_features"] = query_features[pack.pictures]
        loss = cross_entropy(self._logits(pack, pictures).float(), pack.targets, reduction="none")
        return loss if pictures else loss + self._nothing()

    def _nothing(self) -> torch.Tensor:
        """Zero, with a gradient of zero for all that learns."""
        learning = [parameter.sum() for parameter in self.model.parameters() if parameter.requires_grad]
        return torch.stack(learning).sum() * 0.0 if learning else torch.zeros(())

    def _logits(self, pack: Pack, pictures: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the model says at the supervised positions, `(n, vocabulary)`."""
        if not self.packed:
            return self.model(
                input_ids=pack.input_ids[None], use_cache=False, logits_to_keep=pack.supervised, **pictures
            ).logits[0]
        cache = self._prefix_cache(pack.prefix) if pack.prefix else None
        parts = position_wise_parts(self.model.model.language_model)
        with only_at(parts, pack.supervised.unique(), len(pack.input_ids)):
            return self.model(
                input_ids=pack.input_ids[None],
                attention_mask=self._mask(pack),
                position_ids=pack.position_ids[None],
                use_cache=bool(pack.prefix),
                logits_to_keep=pack.supervised,
                **{CACHE_NAME: cache, **pictures},
            ).logits[0]

    def _mask(self, pack: Pack):
        implementation = self.model.config.text_config._attn_implementation
        if implementation == "flex_attention":
            return block_mask(pack)
        if implementation not in {"sdpa", "eager"}:
            raise ValueError(
                f"Packed training needs a mask of its own, which attention {implementation!r} does not take: load the "
                "model with attn_implementation='sdpa', 'eager' or 'flex_attention'."
            )
        mask, config = attention_mask(pack), self.model.config.text_config
        window = getattr(config, "sliding_window", None)
        if not window or int(pack.position_ids.max()) < window:
            return self._to_add(mask)
        windowed = self._to_add(mask & _within(pack, window))
        if not getattr(config, "layer_types", None):
            return windowed
        return {"full_attention": self._to_add(mask), "sliding_attention": windowed}

    def _to_add(self, mask: torch.Tensor) -> torch.Tensor:
        """As numbers to add: every layer of sdpa would make, and keep for its backward, its own of a mask of bits."""
        forbidden = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device)
        return forbidden.masked_fill_(~mask, torch.finfo(self.model.dtype).min)

    @torch.no_grad()
    def _prefix_cache(self, prefix: tuple[int, ...]) -> DynamicCache:
        """Keys and values of the tokens before the first picture. Nothing that learns stands before them, so they
        are the same in every row and every step; computed once."""
        if prefix not in self._prefixes:
            ids = torch.tensor([prefix], device=self.model.get_input_embeddings().weight.device)
            cache = DynamicCache()
            self.model.model(input_ids=ids, use_cache=True, **{CACHE_NAME: cache})
            self._prefixes[prefix] = [(layer.keys, layer.values) for layer in cache.layers]
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self._prefixes[prefix]):
            cache.update(keys, values, index)
        return cache


def _within(pack: Pack, window: int) -> torch.Tensor:
    """Which keys are less than `window` positions before a query, `(length, prefix + length)`, bool. A language model
    given a mask of its own leaves its windows to it."""
    prefix = torch.arange(len(pack.prefix), device=pack.position_ids.device)
    return pack.position_ids[:, None] - torch.cat([prefix, pack.position_ids]) < window


def block_mask(pack: Pack):
    """The mask of `packing.attention_mask` for flex attention: blocks of zeros are never computed."""
    from torch.nn.attention.flex_attention import create_block_mask

    prefix, length, group, segment = len(pack.prefix), len(pack.input_ids), pack.group, pack.segment

    def seen(batch, head, query, key):
        inside = (key - prefix).clamp(min=0)
        same = (group[query] == group[inside]) & ((segment[inside] == 0) | (segment[query] == segment[inside]))
        return (key < prefix) | (same & (query >= inside))

    return create_block_mask(seen, None, None, length, prefix + length, device=pack.input_ids.device)
