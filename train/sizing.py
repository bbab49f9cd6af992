"""Numbers of a recipe that are left to the data, `auto`: they follow from how many pictures there are and whether the
projection has learnt before, so a run that is resumed takes the same.

Tried on drawings with the projection of `demo/` made random, `python benchmarks/train_small.py`; docs/training.md has
the table.
"""

import math
from typing import Any

from torch import nn

from .recipe import Recipe

OPTIMIZER = "muon"
# Learning rate and weight decay of a projection that begins at random, and of one that has learnt: at the rate of the
# first it would forget all that the new pictures do not show.
FRESH = {"muon": (0.04, 1.0), "adamw": (1e-3, 0.05)}
TRAINED = {"muon": (0.004, 0.0), "adamw": (1e-4, 0.0)}
FLOOR = 1 / 50  # of the learning rate, where it starts and ends


def validation_share(pictures: int) -> float:
    """A tenth of the pictures, eight at least and a thousand at most; none of fewer than 50, which all learn."""
    return 0.0 if pictures < 50 else max(8 / pictures, min(0.1, 1000 / pictures))


def pictures_per_step(pictures: int) -> int:
    """About the root of their number as a power of two, from 16 to 256; all of them where they are fewer."""
    return min(pictures, max(16, min(256, 2 ** math.ceil(math.log2(max(1, pictures)) / 2))))


def epochs(pictures: int) -> int:
    """How often each picture is seen: 52 times of 12, 26 of 100, 12 of 1,000, 6 of 10,000, once of a million."""
    return max(1, round(120 / max(1, pictures) ** (1 / 3)))


def is_fresh(projection: nn.Module) -> bool:
    """Whether a projection has learnt nothing: it is as `nn.Linear` initialises it, uniform up to 1 / sqrt(inputs)."""
    for layer in projection.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            spread = layer.weight.float().std().item() * 3**0.5 / bound
            if layer.weight.abs().max() > 1.001 * bound or abs(spread - 1) > 0.05:
                return False
    return True


def sized(
    recipe: Recipe, training: int, held: int, fresh: bool = True, max_steps: int | None = None
) -> tuple[Recipe, str]:
    """The recipe with numbers in the place of every `auto`, and one sentence that says which.

    Args:
        recipe: The recipe.
        training, held: Number of pictures to learn from, and of those kept for validation.
        fresh: Whether the projection has learnt nothing yet.
        max_steps: Where the run stops, however long the recipe is.
    """
    recipe = _given(recipe, validation=validation_share(training + held), **_optimizer(recipe, fresh))
    recipe = _given(recipe, pictures_per_step=pictures_per_step(training), epochs=epochs(training))
    per_epoch = recipe.steps_per_epoch or -(-training // recipe.pictures_per_step)
    steps = recipe.epochs * per_epoch
    lowest = FLOOR * recipe.learning_rate
    recipe = _given(recipe, min_learning_rate=lowest, warmup_learning_rate=lowest, warmup_steps=_points(steps, 20))
    recipe = _given(recipe, save_steps=_points(steps, 5), eval_steps=_points(steps, 10))
    recipe = _given(recipe, sample_steps=_points(steps, 5))
    taken = min(steps, max_steps or steps)
    return recipe, (
        f"{training:,} pictures{f' and {held:,} for validation' if held else ''}: {taken:,} steps of "
        f"{recipe.pictures_per_step:,}, each picture {max(1, round(taken / per_epoch)):,} x; "
        f"{recipe.optimizer} at {recipe.learning_rate:g}, as the projection {'is new' if fresh else 'has learnt'}, "
        f"after {recipe.warmup_steps:,} steps of warm-up; saved every {recipe.save_steps or per_epoch:,} steps. "
        "`--set` changes any of these numbers."
    )


def by_heart(recipe: Recipe, pictures: int) -> Recipe:
    """The recipe for learning a few pictures by heart: all of them in every step, fast, and never cropped."""
    return recipe.with_(
        pictures_per_step=pictures,
        steps_per_epoch=None,
        epochs=200,
        warmup_steps=10,
        optimizer="adamw",
        learning_rate=1e-3,
        min_learning_rate=1e-4,
        augmentation=False,
        validation=0.0,
        save_steps=200,
    )


def _given(recipe: Recipe, **numbers: Any) -> Recipe:
    return recipe.with_(**{name: number for name, number in numbers.items() if name in recipe.auto})


def _optimizer(recipe: Recipe, fresh: bool) -> dict[str, Any]:
    optimizer, alone = recipe.optimizer, recipe.learns_projection_alone
    if "optimizer" in recipe.auto:
        optimizer = OPTIMIZER if alone else "adamw"  # other parts would need a rate of their own beside Muon's
    settings = FRESH if fresh and alone else TRAINED
    rate, decay = settings.get(optimizer, settings["adamw"])
    return {"optimizer": optimizer, "learning_rate": rate, "weight_decay": decay}


def _points(steps: int, count: int) -> int:
    """Every how many steps something is done `count` times in a run, and at least every thousandth."""
    return max(1, min(1000, -(-steps // count)))
