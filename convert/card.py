"""The model card of a folder: metadata for the Hub, usage that works, where the parts come from, what was proved."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..checkpoint import SCORES
from .account import Account

# A folder of several parts may do what the least permissive of them allows.
STRICTNESS = ["apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"]
CODE_LICENCES = {"EVA": "mit", "LAVIS": "bsd-3-clause"}  # LAVIS's own .pth files carry no card

TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

Japanese MiniGPT-4: a frozen image encoder and Q-Former, a frozen language model, and one Linear layer between them.
Show it a picture and talk about it.

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

name = "{{ repo }}"
model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)

picture = Image.new("RGB", (224, 224), "red")  # or Image.open("picture.png")
content = [{"type": "image", "image": picture}, {"type": "text", "text": "何が写っていますか?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=64)[:, inputs["input_ids"].shape[1] :]
print(processor.post_process_image_text_to_text(answer)[0])
```

The three Python files of this repository are the model's code. Pin what you have read: add
`revision="COMMIT", code_revision="COMMIT"` to both calls. Where memory is short, give the model's call
`quantization_config=BitsAndBytesConfig(load_in_8bit=True)`: only the language model is quantised.

## Parts

| part | from | licence |
|---|---|---|
{% for part, source in sources.items() -%}
| {{ part }} | {{ source.name }}{{ " @ " ~ source.commit[:7] if source.commit }} | {{ source.license or "?" }} |
{% endfor %}
{% for note in notes -%}
- {{ note }}
{% endfor %}
{% if scores -%}
## Scores

| benchmark | metric | value | 95 % interval | examples |
|---|---|---|---|---|
{% for row in scores -%}
| {{ row.name }} | {{ row.metric }} | {{ "%.4g"|format(row.value) }} | {{ row.interval }} | {{ row.n }} |
{% endfor %}
{% endif -%}
{% if proof -%}
## Compared with the originals

Each stage of this folder against the sources' own modules on the same pictures.

| stage | max abs difference | tolerance |
|---|---|---|
{% for row in proof -%}
| {{ row.stage }} | {{ "%.2e"|format(row.max_abs_difference) }} | {{ "%.2e"|format(row.tolerance) }} |
{% endfor %}
{% endif -%}
`SHA256SUMS` lists every file; `jminigpt4 verify` checks them all.
"""


def licence_of(readme: Path | None) -> str | None:
    """Licence that the card of a source states in its metadata; `None` where there is none."""
    licence = _stated(readme).get("license")
    return licence if isinstance(licence, str) else None


def datasets_of(readme: Path | None) -> list[str]:
    """Datasets that the card of a source names in its metadata."""
    datasets = _stated(readme).get("datasets") or []
    return [name for name in datasets if isinstance(name, str)] if isinstance(datasets, list) else []


def _stated(readme: Path | None) -> dict[str, Any]:
    if readme is None or not readme.is_file():
        return {}
    try:
        return ModelCard.load(readme).data.to_dict()
    except ValueError:  # metadata that is no YAML states nothing
        return {}


def licence_of_parts(sources: dict[str, dict[str, Any]]) -> str:
    """The least permissive licence of all parts; `other` where one is not known."""
    stated = {
        source.get("license") or (CODE_LICENCES.get(source["layout"]) if part in ("vision", "qformer") else None)
        for part, source in sources.items()
    }
    if not stated or not stated <= set(STRICTNESS):
        return "other"
    return max((licence for licence in stated if licence), key=STRICTNESS.index)


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """Rows of `scores.json`: `{"benchmarks": [{"name", "dataset", "metric", "value", "low", "high", "n"}, …]}`.

    A row needs a name, a metric and a number as value. What else there is is used, what is missing is left open; a
    row, or a file, that is of another form gives nothing.
    """
    try:
        rows = json.loads((folder / SCORES).read_text(encoding="utf-8"))["benchmarks"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [
        {**row, "interval": _interval(row), "n": row.get("n") or ""}
        for row in rows
        if row.get("name") and row.get("metric") and _is_number(row.get("value"))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _interval(row: dict[str, Any]) -> str:
    bounds = [row.get("low"), row.get("high")]
    return " – ".join(f"{bound:.4g}" for bound in bounds) if all(map(_is_number, bounds)) else ""


def _results(scores: list[dict[str, Any]]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=str(row.get("dataset") or row["name"]),
            dataset_name=str(row["name"]),
            metric_type=str(row["metric"]),
            metric_value=row["value"],
        )
        for row in scores
    ]


def write_card(folder: Path, repo: str | None = None, datasets: Iterable[str] = ()) -> Path:
    """Writes `README.md` for a checkpoint folder, from its `conversion.json` and `scores.json`, and returns its path.

    Args:
        repo: Hub id for the usage code; by default the folder's own files are meant (`"."`).
        datasets: What the projection was trained on, as Hub ids, next to those the sources name.
    """
    account = Account.read(folder)
    sources = dict(account.sources)
    if account.trained_since(folder):  # where an earlier one came from says nothing of it
        sources.pop("projection", None)
    title = repo.split("/")[-1] if repo else "Japanese MiniGPT-4"
    scores = read_scores(folder)
    data = ModelCardData(
        language="ja",
        license=licence_of_parts(sources),
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=list(dict.fromkeys(source["repo"] for source in sources.values() if source.get("repo"))) or None,
        datasets=list(dict.fromkeys([*account.datasets, *datasets])) or None,
        tags=["custom_code", "minigpt4", "blip-2", "jminigpt4"],
        model_name=title if scores else None,
        eval_results=_results(scores) or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        title=title,
        repo=repo or ".",
        sources=sources,
        notes=account.all_notes(folder),
        scores=scores,
        proof=account.proof,
    )
    path = folder / "README.md"
    card.save(path)
    return path
