"""Stage-2 data in Japanese, as the article and MiniGPT-4 made theirs: describe, mend, filter, look at a sample.

from pathlib import Path
from jminigpt4.refine import RefinePlan, refine

refine(RefinePlan("stage1-model", ["pictures/"], Path("refined")))
"""

import importlib

__all__ = ["RefinePlan", "refine"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".running", __name__), name)
