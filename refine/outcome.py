"""What became of the texts: data for stage 2, the history of each text, a report, and a page for a person."""

import difflib
import functools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from ..checkpoint import finished_file, finished_folder
from ..data.pictures import Picture
from ..inference.data_address import thumbnail
from ..japanese_text import Health, health
from ..schema import explain
from .describing import BadPicture
from .examining import counted
from .texts import Described, Edited

FILTER_CAP, ROWS, HISTORY, REPORT, REVIEW = (
    "filter_cap.json",
    "rows.jsonl",
    "history.jsonl",
    "report.json",
    "review.html",
)
STEPS = ("described", "edited", "duplicates", "person")
THUMBNAIL = 320  # pixels
# What the page, which is read by a person in Japan, calls steps and reasons.
JAPANESE = {
    "described": "説明",
    "edited": "校正",
    "duplicates": "重複",
    "person": "目視",
    "empty": "空",
    "not Japanese": "日本語でない",
    "loop": "ループ",
    "repeated": "繰り返し",
    "unfinished": "途中で終わる",
    "short": "短い",
    "grew": "長くなりすぎた",
    "new number or name": "元にない数や名前",
    "given up by the editor": "校正で断念",
    "refused by the server": "サーバーが拒否",
    "says the same": "ほかと同じ内容",
    "dropped by a person": "人が除いた",
}


@dataclass
class Text:
    """A text and what happened to it.

    Args:
        described: As the model said it.
        faults: What was wrong with it then.
        edited: As the editor gave it back.
        fallen: At which step it fell, or `None`.
        reasons: Why.
    """

    described: Described
    faults: list[str]
    edited: Edited | None = None
    fallen: str | None = None
    reasons: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        return self.fallen is None

    @property
    def text(self) -> str:
        """The text as it stands now."""
        return self.edited.text if self.edited is not None else self.described.text

    def fall(self, step: str, reasons: Sequence[str]):
        """Takes the text out at a step, if there is any reason."""
        if reasons:
            self.fallen, self.reasons = step, list(reasons)


@dataclass(frozen=True)
class Outcome:
    """All texts of a run.

    Args:
        texts: In the order of their pictures.
        bad: Pictures that could not be read.
        editor: Name of the editing model.
        price: Of a million tokens to it and from it.
    """

    texts: list[Text]
    bad: list[BadPicture]
    editor: str | None
    price: tuple[float, float] | None

    @property
    def kept(self) -> list[Text]:
        return [text for text in self.texts if text.kept]

    @functools.cached_property
    def report(self) -> dict[str, Any]:
        """Counts of each step, health before and after, tokens and their price."""
        edited = [text.edited for text in self.texts if text.edited is not None]
        tokens = (sum(each.prompt_tokens for each in edited), sum(each.completion_tokens for each in edited))
        report: dict[str, Any] = {
            "texts": len(self.texts),
            "pictures": len({text.described.picture for text in self.texts}),
            "bad_pictures": [{"picture": each.name, "reason": each.reason} for each in self.bad],
            "continued": sum(text.described.continued for text in self.texts),
            "faults_as_described": counted(text.faults for text in self.texts),
            "fallen": {
                step: counted(_kinds(text.reasons) for text in self.texts if text.fallen == step) for step in STEPS
            },
            "kept": len(self.kept),
            "health_before": _health([(text.described.text, text.described.cut_off) for text in self.texts]),
            "health_after": _health([(text.text, False) for text in self.kept]),
            "editor": self.editor,
            "tokens": {"to_editor": tokens[0], "from_editor": tokens[1]},
        }
        if self.price is not None:
            report["cost"] = (tokens[0] * self.price[0] + tokens[1] * self.price[1]) / 1e6
        return report

    def lines(self) -> Iterator[str]:
        """The report as lines for a terminal."""
        report = self.report
        yield f"{report['texts']:,} texts about {report['pictures']:,} pictures; {len(self.bad):,} cannot be read."
        for each in self.bad[:3]:
            yield f"left out: {each.reason}"
        for step in STEPS:
            fallen = [text for text in self.texts if text.fallen == step]
            reasons = ", ".join(f"{name} {count}" for name, count in report["fallen"][step].items())
            yield f"fell at {step}: {len(fallen):,}" + (f" ({reasons})" if reasons else "")
        yield f"kept: {report['kept']:,}"
        for name in ("health_before", "health_after"):
            if report[name]:
                shown = {key: report[name][key] for key in ("repeated_ngrams", "loops", "unfinished", "not_japanese")}
                yield f"{name.replace('_', ' ')}: " + ", ".join(f"{key} {value:.1f} %" for key, value in shown.items())
        if self.editor is not None:
            cost = f", {report['cost']:.2f}" if "cost" in report else ""
            there, back = report["tokens"].values()
            yield f"tokens: {there:,} to {self.editor}, {back:,} back{cost}"


def _kinds(reasons: Sequence[str]) -> list[str]:
    return ["says the same" if reason.startswith("says the same") else reason for reason in reasons]


def _health(texts: list[tuple[str, bool]]) -> dict[str, Any] | None:
    if not texts:
        return None
    measured: Health = health([text for text, _ in texts], [cut_off for _, cut_off in texts])
    return measured.as_dict()


def write_outcome(
    folder: Path,
    outcome: Outcome,
    pictures: Sequence[tuple[Picture, str]],
    sample: int,
    seed: int,
    decided: Mapping[str, str],
):
    """Writes the data in MiniGPT-4's layout and as rows, the history, the report, and the page with a sample, which is
    the same before and after a person's decisions; the page holds those that were `decided` and saves them again.

    Raises:
        OSError: The folder cannot be written.
    """
    by_name = {picture.name: picture for picture, _ in pictures}
    numbers = {picture.name: str(number) for number, (picture, _) in enumerate(pictures)}
    with finished_folder(folder / "image", replace=True) as images:
        for name in dict.fromkeys(text.described.picture for text in outcome.kept):
            (images / f"{numbers[name]}.jpg").write_bytes(by_name[name].read())
    captions = [{"image_id": numbers[text.described.picture], "caption": text.text} for text in outcome.kept]
    _write(folder / FILTER_CAP, json.dumps({"annotations": captions}, ensure_ascii=False, indent=1) + "\n")
    rows = [_row(text, numbers[text.described.picture]) for text in outcome.kept]
    _write(folder / ROWS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    _write(folder / HISTORY, "".join(json.dumps(_history(text), ensure_ascii=False) + "\n" for text in outcome.texts))
    _write(folder / REPORT, json.dumps(outcome.report, ensure_ascii=False, indent=1) + "\n")
    shown = [text for text in outcome.texts if text.kept or text.fallen == "person"]
    drawn = random.Random(seed).sample(shown, min(sample, len(shown)))
    _write(folder / REVIEW, _page(outcome, drawn, by_name, decided))


def _write(path: Path, content: str):
    with finished_file(path) as file:
        file.write_text(content, encoding="utf-8")


def _row(text: Text, number: str) -> dict[str, Any]:
    asked = [{"type": "image"}, {"type": "text", "text": text.described.prompt}]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": text.text}]
    return {"images": [f"image/{number}.jpg"], "image_ids": [text.described.image_id], "messages": messages}


def _history(text: Text) -> dict[str, Any]:
    edited = text.edited.model_dump(exclude={"id", "before"}) if text.edited is not None else None
    return {
        **text.described.model_dump(),
        "faults": text.faults,
        "edited": edited,
        "kept": text.kept,
        "fallen": text.fallen,
        "reasons": text.reasons,
    }


def _page(outcome: Outcome, drawn: Sequence[Text], pictures: dict[str, Picture], decided: Mapping[str, str]) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"japanese": JAPANESE.__getitem__, "grouped": "{:,}".format, "changes": _changes}
    drawn_pictures = [pictures[text.described.picture] for text in drawn]
    thumbnails = [thumbnail(each.read(), f"The picture {each.name}", THUMBNAIL) for each in drawn_pictures]
    shown = list(zip(drawn, thumbnails, strict=True))
    return environment.get_template("review.html.jinja").render(
        report=outcome.report, steps=STEPS, texts=outcome.texts, shown=shown, decided=dict(decided)
    )


def _changes(text: Text) -> Iterator[tuple[bool, str]]:
    """The text as it was described, in pieces, each with whether the editor left it as it was."""
    before = text.described.text
    for kind, start, end, _, _ in difflib.SequenceMatcher(None, before, text.text, autojunk=False).get_opcodes():
        if start < end:
            yield kind == "equal", before[start:end]


class _Decisions(BaseModel):
    decisions: dict[str, Literal["keep", "drop"]]


def read_decisions(path: Path, needed: bool) -> dict[str, str]:
    """What a person decided about texts, by id: the file that the page saves.

    Raises:
        FileNotFoundError: It is not there and `needed`.
        ValueError: It is another file.
    """
    if not path.is_file():
        if needed:
            raise FileNotFoundError(f"{path} does not exist: save the decisions on the page {REVIEW}.")
        return {}
    try:
        return dict(_Decisions.model_validate_json(path.read_bytes()).decisions)
    except ValidationError as error:
        raise explain(error, path) from None
