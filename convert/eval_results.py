"""The scores of a folder as the Hub's model pages and leaderboards read them: `.eval_results/*.yaml`.

The format is https://github.com/huggingface/hub-docs/blob/main/eval_results.yaml.
"""

import json
from dataclasses import replace
from pathlib import Path

import yaml
from huggingface_hub import eval_result_entries_to_yaml, parse_eval_result_entries

from ..checkpoint import HUB_RESULTS, RESULTS, SCORES

EVAL_RESULTS = f"{RESULTS}jminigpt4.yaml"


def render_eval_results(folder: Path, repo: str) -> str | None:
    """`.eval_results/jminigpt4.yaml` of a repository; `None` where `scores.json` of the folder has nothing for it.

    Args:
        repo: Hub id; each result names the `scores.json` there as its source.

    Raises:
        ValueError: What `scores.json` holds for the Hub is not of the Hub's form.
    """
    try:
        entries = json.loads((folder / SCORES).read_text(encoding="utf-8"))[HUB_RESULTS]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # no scores, or those of another program: they are for the card
    if not entries:
        return None
    address = f"https://huggingface.co/{repo}/blob/main/{SCORES}"
    try:
        parsed = parse_eval_result_entries(entries)
        if not all(isinstance(each.value, int | float) for each in parsed):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{folder / SCORES}: {HUB_RESULTS} is not of the Hub's form, a list of "
            '{"dataset": {"id", "task_id"}, "value"}: evaluate again, or remove it.'
        ) from None
    named = [replace(each, source_url=address, source_name="jminigpt4 evaluate") for each in parsed]
    return yaml.safe_dump(eval_result_entries_to_yaml(named), allow_unicode=True, sort_keys=False, width=10**6)
