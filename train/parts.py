"""The parts of a model that can learn, and what a recipe says of them: names, rates, contradictions."""

import os
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args

from torch import nn

from .optimizers import OWN_RATE

Part = Literal["projection", "qformer", "vision", "language"]
PARTS: tuple[Part, ...] = get_args(Part)
MODULES: dict[Part, tuple[str, ...]] = {
    "projection": ("model.language_projection",),
    "qformer": ("model.qformer", "model.query_tokens"),
    # MiniGPT-4 freezes the norm behind its image encoder (`ln_vision`) together with it; so do we.
    "vision": ("model.vision_model", "model.vision_layernorm"),
    "language": ("model.language_model", "lm_head"),
}
"""Names of the modules and parameters that a part consists of."""
ENCODER = {"qformer", "vision"}  # what lies before the query features
# Parameters that stand for themselves, such as position embeddings, class tokens and query tokens.
EMBEDDING = re.compile(r"embed|token|position")


def part_of(name: str) -> Part:
    """The part that a parameter of a model belongs to."""
    return next(part for part in PARTS if name.startswith(MODULES[part]))


def own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by the names that they have without adapters; those of adapters are left out."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), parameter


def check_parts(recipe: Any):
    """What a recipe says of its parts, against the rest of it.

    Raises:
        ValueError: It contradicts itself.
    """
    learn, others = recipe.learn, [part for part in recipe.learn if part != "projection"]
    if len(set(learn)) < len(learn):
        raise ValueError(f"learn names a part twice: {', '.join(learn)}")
    for part in recipe.learning_rates:
        if part not in learn and not (part == "language" and recipe.lora):
            raise ValueError(f"learning_rates has {part}, which does not learn: name it in learn or leave it out")
    if "vision" in learn and (recipe.load_in_8bit or recipe.shard_language):
        option = "load_in_8bit" if recipe.load_in_8bit else "shard_language"
        raise ValueError(f"learn: vision needs the image encoder's weights as they are stored, not {option}")
    if recipe.projection is not None and "projection" not in learn:
        raise ValueError("projection says how it is made anew, so it has to learn: name projection in learn as well")
    whole = recipe.learns_whole_language
    if whole and recipe.load_in_8bit:
        raise ValueError("learn: language needs its weights as they are, not load_in_8bit; adapters (lora) learn on 8")
    if "language" in learn and recipe.shard_language:
        raise ValueError("shard_language spreads a frozen language model: not with language in learn")
    if recipe.dtype == "float16" and (whole or "vision" in learn):
        raise ValueError("dtype float16 overflows where image encoder or language model learn: bfloat16 or float32")
    _check_muon(recipe, others)


def _check_muon(recipe: Any, others: list[Part]):
    if recipe.optimizer != "muon":
        return
    if "projection" not in recipe.learn:
        raise ValueError("optimizer: muon is for the projection, which is not in learn; adamw is for the other parts")
    if without := [part for part in others if part not in recipe.learning_rates]:
        raise ValueError(
            f"optimizer: muon's learning rate is none for {' and '.join(without)}, which AdamW updates: give "
            f"learning_rates a rate of its own for it, such as {{{without[0]}: 1e-5}}, or take optimizer: adamw"
        )


def check_options(recipe: Any, cache: Any, projection: Any):
    """What is given beside a recipe, against what it trains.

    Raises:
        ValueError: A feature cache where features do not stay what they are, or a kind of projection where one to
            begin with is named.
    """
    if projection in ("linear", "mlp") and not os.path.exists(projection):
        raise ValueError(
            f"projection names a file or run to begin with, and {projection} is a kind of projection: set it in the "
            f"recipe, --set projection={projection} or Recipe.load(NAME, projection={projection!r})."
        )
    if cache is not None and recipe.encoder_learns:
        parts = " and ".join(part for part in recipe.learn if part in ENCODER)
        raise ValueError(
            f"A feature cache holds what a frozen encoder gives, and here {parts} learns: leave the cache out, or "
            f"leave {parts} out of learn."
        )


def set_learning(model: nn.Module, recipe: Any):
    """The recipe's parts learn, and adapters; everything else is frozen."""
    for name, parameter in model.named_parameters():
        adapted = recipe.lora and part_of(name) == "language"
        parameter.requires_grad_(".lora_" in name if adapted else part_of(name) in recipe.learn)


def parameter_groups(model: nn.Module, recipe: Any) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser, two for each part that learns, the projection's first: what weight decay
    is for, and biases, norms and embeddings, which have none.

    A part with a rate of its own has it as a `share` of the recipe's `learning_rate`, which the schedule moves; the
    groups of other parts than the projection are marked with `OWN_RATE` then.
    """
    groups = []
    for part in PARTS:
        learning = [each for each in _learning(model) if part_of(each[0]) == part]
        for decayed in (True, False):
            chosen = [parameter for name, parameter, decays in learning if decays == decayed]
            group: dict[str, Any] = {"params": chosen, "weight_decay": recipe.weight_decay if decayed else 0.0}
            if part in recipe.learning_rates:
                group["share"] = recipe.learning_rates[part] / recipe.learning_rate
                group |= {} if part == "projection" else {OWN_RATE: True}
            groups += [group] if chosen else []
    return groups


def _learning(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Name of every parameter that learns, itself, and whether it decays."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner, _, own = name.rpartition(".")
            table = isinstance(model.get_submodule(owner), nn.Embedding) or EMBEDDING.search(own)
            yield name, parameter, parameter.ndim >= 2 and not table


def learning_counts(model: nn.Module) -> dict[str, int]:
    """Number of parameters that learn, by part."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter, _ in _learning(model):
        counts[part_of(name)] += parameter.numel()
    return {part: count for part, count in counts.items() if count}
