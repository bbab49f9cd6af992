"""The functions that `jmmmu_jminigpt4.yaml` names; lmms-eval loads this file from beside it."""

import re
from typing import Any

from lmms_eval.tasks.jmmmu import utils

pictures = utils.jmmmu_doc_to_visual
results = utils.jmmmu_process_results
aggregate = utils.jmmmu_aggregate_results


def question(doc: dict[str, Any]) -> str:
    """Question, options and instruction, without the marks of the pictures."""
    return re.sub(r"<image \d>", "", utils.construct_prompt(doc))
