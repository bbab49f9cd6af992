"""Data to a trained projection: readers, feature cache, shared-prefix packing, trainer, recipes.

from jminigpt4.train import train

train("model", "captions.jsonl", output="run", cache="features")
"""

from typing import Any

__all__ = ["Recipe", "dry_run", "train"]


def __getattr__(name: str) -> Any:
    # The room is imported by the command line before it knows its verb: the engine is loaded on first use.
    if name in __all__:
        from . import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
