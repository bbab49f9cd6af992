"""A model made as a recipe asks for it, before anything learns: its kind of projection, its precision."""

from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..checkpoint import DTYPES
from ..modeling_jminigpt4 import JMiniGPT4MultiModalProjector
from .parts import PARTS, learning_counts

ACTIVATION = "gelu"  # of LLaVA-1.5's projector, `mlp2x_gelu`
COMPUTED_IN = "_computed_in"
# Parts that are as large as a model, whose precision the recipe chooses; all else is in float32 in any case.
LARGE = {"vision": ("model.vision_model",), "language": ("model.language_model", "lm_head")}


def remake_projection(model: Any, recipe: Any, aloud: bool):
    """The projection that the recipe asks for, where the model has another kind: new, `nn.Linear`'s initialisation
    drawn from the recipe's seed."""
    before, config = model.model.language_projection, model.config
    wanted = None if recipe.projection == "linear" else ACTIVATION
    if recipe.projection is None or (wanted is None) == (config.projector_hidden_act is None):
        return
    sizes = (before.in_features, before.out_features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        layer = nn.Linear(*sizes) if wanted is None else JMiniGPT4MultiModalProjector(*sizes, wanted)
    model.model.language_projection = layer.to(next(before.parameters()).device)
    config.projector_hidden_act = wanted
    if aloud:
        count = sum(parameter.numel() for parameter in layer.parameters())
        tqdm.write(
            f"The model's own projection is left out: `projection: {recipe.projection}` is another kind, of {count:,} "
            "parameters, which begins at random where no earlier run is gone on from."
        )


def learn_in_float32(model: Any, recipe: Any, device: torch.device):
    """Holds an image encoder or language model that learns in float32, and computes both in the dtype that is asked
    for all the same: updates of 1e-4 of a weight are below the resolution of half precision.

    Args:
        model: A model with its weights as they are stored.
        recipe: Its `dtype`; `auto` is the stored one, but bfloat16 in the place of float16, and float32 on CPUs.
        device: Where the model will be.
    """
    computed = _computed_dtype(recipe.dtype, model.dtype, device)
    for part, names in LARGE.items():
        learns = recipe.learns_whole_language if part == "language" else part in recipe.learn
        for module in map(model.get_submodule, names):
            module.to(torch.float32 if learns else computed)
            if learns and computed != torch.float32:
                module.forward = torch.autocast(device.type, computed)(module.forward)
        if learns and part == "language":
            setattr(model, COMPUTED_IN, computed)


def _computed_dtype(asked: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    if asked != "auto":
        return DTYPES[asked]
    return torch.float32 if stored == torch.float32 or device.type == "cpu" else torch.bfloat16


def computed_dtype(model: Any) -> torch.dtype:
    """What the language model is computed in, which is not the dtype of its weights where all of it learns."""
    return getattr(model, COMPUTED_IN, model.dtype)


def learning_line(model: nn.Module) -> str:
    """How many parameters of each part learn, in a line."""
    counts = learning_counts(model)
    return "Parameters that learn: " + ", ".join(f"{part} {counts[part]:,}" for part in PARTS if part in counts) + "."
