"""The model card of a folder: metadata for the Hub, usage that works, where the parts come from, what was proved."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..checkpoint import SCORES, SIGNATURE
from .account import Account
from .citations import citation
from .formats import PROMPT_FORMATS
from .licences import TEXTS_FOLDER, Licence, licence_metadata

CARD = "README.md"
# The last line of a card that was written here; its digest is that of the lines before.
GENERATED_MARK = "<!-- Written by jminigpt4, and anew at every publication, as long as nobody edits it: {} -->\n"

TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

{{ kind }}: a frozen image encoder and Q-Former, a frozen language model, and one Linear layer between them.
Show it a picture and talk about it.

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

name = "{{ repo }}"
model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)

picture = Image.new("RGB", (224, 224), "red")  # or Image.open("picture.png")
content = [{"type": "image", "image": picture}, {"type": "text", "text": "{{ question }}"}]
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

The Python files of this repository are the model's code. Pin what you have read: add
`revision="COMMIT", code_revision="COMMIT"` to both calls. Where memory is short, give the model's call
`quantization_config=BitsAndBytesConfig(load_in_8bit=True)`: only the language model is quantised.

## Parts

| part | from | licence |
|---|---|---|
{% for part, source in sources.items() -%}
| {{ part }} | {{ source.name }}{{ " @ " ~ source.commit[:7] if source.commit }} | {{ licences[part].markdown }} |
{% endfor %}
{% if texts -%}
Their own texts: {{ texts }}.

{% endif -%}
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

Each stage of this folder against the sources' own modules on the same pictures
{{- ", before " ~ account.trained_parts(folder)|join(", ") ~ " was trained" if account.trained_since(folder) }}.

| stage | max abs difference | tolerance |
|---|---|---|
{% for row in proof -%}
| {{ row.stage }} | {{ "%.2e"|format(row.max_abs_difference) }} | {{ "%.2e"|format(row.tolerance) }} |
{% endfor %}
{% endif -%}
## Citation

{{ citation }}

`SHA256SUMS` lists every file; `jminigpt4 verify` checks them all.
{% if signed -%}
`model.sig` signs all but this card and its scores; `jminigpt4 verify --key PUBLIC.pem` checks it with the publisher's
public key, which you have from elsewhere.
{% endif -%}
"""


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


def _languages(account: Account) -> list[str]:
    """Codes of the languages that the prompt format is written in and that the language model's card names."""
    chosen = PROMPT_FORMATS.get(account.prompt_format or "")
    stated = account.sources.get("language", {}).get("languages") or []
    return list(dict.fromkeys([*([chosen.language] if chosen and chosen.language else []), *stated]))


def write_card(folder: Path, repo: str | None = None, datasets: Iterable[str] = ()) -> Path:
    """Writes `README.md` into a checkpoint folder and returns its path; see [`render_card`]."""
    path = folder / CARD
    path.write_text(render_card(folder, repo, datasets), encoding="utf-8", newline="")
    return path


def is_generated(card: bytes) -> bool:
    """Whether a card was written here and not edited since."""
    body, _, last = card.decode(errors="replace").removesuffix("\n").rpartition("\n")
    return last + "\n" == _mark(body + "\n")


def with_mark(body: str) -> str:
    """A card with the line behind it by which it is known that nobody edited it."""
    return body + _mark(body)


def _mark(body: str) -> str:
    return GENERATED_MARK.format(hashlib.sha256(body.encode()).hexdigest())


def render_card(folder: Path, repo: str | None = None, datasets: Iterable[str] = ()) -> str:
    """The card of a checkpoint folder, from its `conversion.json` and `scores.json`.

    Args:
        repo: Hub id for the usage code; by default the folder's own files are meant (`"."`).
        datasets: What the projection was trained on, as Hub ids, next to those the sources name.
    """
    account = Account.read(folder)
    sources = account.all_sources(folder)
    licences = {part: Licence.of_part(part, source) for part, source in sources.items()}
    languages = _languages(account)
    japanese = not account.sources or "ja" in languages
    kind = "Japanese MiniGPT-4" if japanese else "MiniGPT-4"
    title = repo.split("/")[-1] if repo else kind
    scores = read_scores(folder)
    data = ModelCardData(
        language=languages or None,
        **licence_metadata(licences.values(), repo),
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=list(dict.fromkeys(source["repo"] for source in sources.values() if source.get("repo"))) or None,
        datasets=list(dict.fromkeys([*account.datasets, *datasets])) or None,
        tags=["custom_code", "minigpt4", "blip-2", "jminigpt4"],
        model_name=title if scores else None,
        eval_results=_results(scores) or None,
    )
    texts = sorted({file.parent.relative_to(folder).as_posix() for file in folder.glob(f"{TEXTS_FOLDER}/*/*")})
    card = ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        title=title,
        kind=kind,
        question="何が写っていますか?" if japanese else "What is in this picture?",
        repo=repo or ".",
        sources=sources,
        licences=licences,
        texts=", ".join(f"`{name}/`" for name in texts),
        account=account,
        folder=folder,
        notes=account.all_notes(folder),
        scores=scores,
        proof=account.proof,
        citation=citation(account, japanese),
        signed=(folder / SIGNATURE).is_file(),
    )
    return with_mark(str(card).rstrip("\n") + "\n")
