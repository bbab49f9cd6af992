"""A checkpoint folder to a score sheet: the Japanese benchmarks, the field's metrics, and what the model says.

from pathlib import Path
from jminigpt4.evaluate import EvaluationPlan, parse_request, run

run(EvaluationPlan([parse_request("ja-vg-vqa-500:sakana=JA-VG-VQA-500")], Path("evaluation"), model="model"))
"""

import importlib

# Where each name lives; imported when first asked for, so that `jminigpt4 --help` does not wait for torch.
_HOMES = {"EvaluationPlan": "running", "run": "running", "parse_request": "benchmarks", "read_items": "benchmarks"}
_HOMES |= {"score": "scoring", "differences": "scoring", "Answerer": "generation", "Generation": "generation"}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
