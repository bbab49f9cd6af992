"""Where Q-Former or image encoder learn: from the gradient of a step's query features to that of what made them.

Pictures are encoded once a step, as everywhere. The packs are given the features as a leaf, on which the gradients of
all rows about a picture add up; the encoder is gone through backwards once, behind the last pack. That is the gradient
of separate rows, each with its pictures: features are inputs of a pack, shared or not.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .features import PictureEncoder
from .steps import Step


class StepPictures:
    """Query features of a step's pictures, and the way back to what made them.

    Args:
        encoder: Encodes them.
        recipe: Whether the encoder learns, and whether its activations are recomputed.
        step: A process's share of a step.

    Attributes:
        features: `(pictures, num_query_tokens, size)` on the model's device, or `None` without pictures. Where the
            encoder learns, a leaf that collects the packs' gradients.
    """

    def __init__(self, encoder: PictureEncoder, recipe: Any, step: Step):
        self._made: torch.Tensor | None = None
        if recipe.encoder_learns and step.pixel_values is not None:
            # What an image encoder keeps for its backward pass fits for a few pictures, not for those of a whole step.
            recompute = "vision" in recipe.learn or recipe.gradient_checkpointing
            self._made = encode_with_gradient(encoder, step.pixel_values, recompute)
            self.features = self._made.detach().requires_grad_()
        else:
            self.features = encoder.features(step.query_features, step.pixel_values)

    def backward(self, loss: nn.Module):
        """Behind the backward passes of all packs: adds the encoder's gradient, and exchanges it where there are
        several processes.

        Args:
            loss: The [`PackLoss`], or what data parallelism made of it.
        """
        gradient = None
        if self._made is not None:
            assert self.features is not None
            gradient = torch.zeros_like(self.features) if self.features.grad is None else self.features.grad
        torch.autograd.backward(loss(None, self._made, gradient).sum())


def encode_with_gradient(encoder: PictureEncoder, pixel_values: torch.Tensor, recompute: bool) -> torch.Tensor:
    """`(n, 3, height, width)` to query features `(n, num_query_tokens, size)` with their graph.

    Args:
        encoder: Its `batch_size` pictures are encoded at a time.
        recompute: Whether only one such batch's activations are kept at a time: the others are computed again in the
            backward pass, with the same dropout.
    """
    model, batches = encoder.model, pixel_values.split(encoder.batch_size)
    batches = [batch.to(model.device, model.model.vision_model.dtype) for batch in batches]
    if recompute and len(batches) > 1:
        return torch.cat([checkpoint(model.get_query_features, batch, use_reentrant=False) for batch in batches])
    return torch.cat([model.get_query_features(batch) for batch in batches])
