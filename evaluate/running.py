"""From a model and the names of benchmarks to answers, scores and a report."""

import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint import finished_file, locked_folder, remove_unfinished
from ..data.ids import read_twins
from ..extras import require
from .benchmarks import Request, parse_request, read_items
from .contamination import Overlap, benchmark_ids, overlap
from .items import Item
from .predictions import PREDICTIONS, SETTINGS, Prediction, PredictionFile, in_order, read_predictions, read_settings
from .report import write_report
from .scoring import Result, differences, score
from .sheet import Sheet

IMAGE_IDS = "image_ids.txt"
JUDGE_REQUESTS = "judge_requests.jsonl"
HERON_ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation is to do.

    Args:
        requests: Benchmarks; empty with `answered`, whose files name theirs.
        output: Folder of everything that is written.
        model: Checkpoint folder or Hub id; `None` where nothing is to be answered.
        generation: Arguments of [`Generation`] that the user gave; each benchmark has its own `max_new_tokens`.
        limit: Only the first of each benchmark, this many.
        answered: Files of answers to be scored in the place of a model's.
        verdicts: File of a judge's verdicts.
        judge: Name of the judge that requests are written for.
        other: Output folder of another model's evaluation, to be compared with.
        training: Training files that are looked through for pictures of the benchmarks.
        twins: Visual Genome's `image_data.json`.
        export: Folder for the answers in the layout of llm-jp-eval-mm.
        device, dtype: Where and how to compute; what suits by default.
        progress: Whether to show a bar.
    """

    requests: Sequence[Request]
    output: Path
    model: str | None = None
    generation: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    answered: Sequence[Path] = ()
    verdicts: Path | None = None
    judge: str = "gpt-4o-2024-11-20"
    other: Path | None = None
    training: Sequence[Path] = ()
    twins: Path | None = None
    export: Path | None = None
    device: str | None = None
    dtype: str | None = None
    progress: bool = True


def run(plan: EvaluationPlan) -> Sheet:
    """Carries out a plan: writes answers, `scores.json`, `report.html` and what belongs to them; returns the scores.

    Raises:
        ValueError: Something of the plan does not fit together; nothing has been answered then.
        OSError: A file is missing, or another process writes in the output folder.
        ImportError: A library of the extra `evaluate` is missing.
    """
    requests, answered, limit = _requests(plan)
    if not requests:
        raise ValueError("Name a benchmark: --benchmark NAME[:PROTOCOL][=PATH].")
    if plan.model is None and not answered and not plan.training:
        raise ValueError("Name a MODEL to be examined, or give its answers with --score-only.")
    require("evaluate", "jinja2", "matplotlib")  # of the report, which comes last
    titles = [request.title for request in requests]
    if len(set(titles)) < len(titles):
        raise ValueError(f"A benchmark is named twice: {', '.join(titles)}.")
    examined = {request.title: read_items(request, limit) for request in requests}
    overlaps = list(_overlaps(plan, examined))
    if plan.model is None and not answered:
        return Sheet("", [], overlaps=overlaps)
    given = _given(requests, examined, answered) if answered else None
    loaded = None if answered else _load(plan)
    with locked_folder(plan.output):
        predictions, settings, model = given or _asked(plan, loaded, requests, examined)
        return _scored(plan, Sheet(model, [], settings, overlaps), requests, examined, predictions)


def _requests(plan: EvaluationPlan) -> tuple[list[Request], list[Path], int | None]:
    """The benchmarks, the files of answers to them, and how many items count; where the plan names no benchmark, from
    the settings that lie beside the answers."""
    requests, answered = list(plan.requests), list(plan.answered)
    if not answered or requests:
        if answered and len(answered) != len(requests):
            raise ValueError(f"{len(answered)} files of answers but {len(requests)} benchmarks: name one for each.")
        return requests, answered, plan.limit
    limits = [plan.limit] if plan.limit else []
    for path in answered:
        recorded = path.parent / SETTINGS
        if not recorded.is_file():
            raise ValueError(f"{path} does not say what it answers: name the benchmark with --benchmark.")
        known = read_settings(recorded)
        name = f"{known['benchmark']}:{known['protocol']}" if known["protocol"] else known["benchmark"]
        text = f"{name}={known['path']}" if known["path"] else name
        only = Path(known["only"]) if known["only"] else None
        requests.append(parse_request(text, known["images"], known["prompt"], only))
        limits += [known["limit"]] if known["limit"] else []
    return requests, answered, min(limits, default=None)


def _overlaps(plan: EvaluationPlan, examined: dict[str, list[Item]]) -> Iterator[Overlap]:
    twins = read_twins(plan.twins) if plan.twins else None
    for file in plan.training:
        for title, items in examined.items():
            yield overlap(file, title, items, twins)


def _given(
    requests: Sequence[Request], examined: dict[str, list[Item]], answered: Sequence[Path]
) -> tuple[dict[str, list[Prediction]], dict[str, dict[str, Any]], str]:
    predictions, settings = {}, {}
    for request, path in zip(requests, answered, strict=True):
        predictions[request.title] = in_order(examined[request.title], read_predictions(path), path)
        recorded = path.parent / SETTINGS
        if path.name == PREDICTIONS and recorded.is_file():
            settings[request.title] = read_settings(recorded)
    names = {each["model"] for each in settings.values()}
    return predictions, settings, names.pop() if len(names) == 1 else str(answered[0])


def _load(plan: EvaluationPlan) -> tuple[Any, Any]:
    from ..inference.loading import load_checkpoint

    return load_checkpoint(str(plan.model), plan.device, plan.dtype)


def _asked(
    plan: EvaluationPlan, loaded: Any, requests: Sequence[Request], examined: dict[str, list[Item]]
) -> tuple[dict[str, list[Prediction]], dict[str, dict[str, Any]], str]:
    """Has the model answer what it has not answered yet."""
    from tqdm import tqdm

    from ..inference.loading import fingerprint
    from .generation import Answerer, Generation

    model, processor = loaded
    predictions, settings = {}, {}
    for request in requests:
        items = examined[request.title]
        chosen: dict[str, Any] = {"max_new_tokens": request.benchmark.max_new_tokens, **plan.generation}
        generation = Generation(**chosen)
        settings[request.title] = {
            "model": str(plan.model),
            "checkpoint": fingerprint(str(plan.model)),
            **_account(request, plan.limit),
            **generation.as_dict(),
            "device": model.device.type,
            "dtype": str(model.dtype).removeprefix("torch."),
            **_versions(),
        }
        answerer = Answerer(model, processor, generation, items)
        settings[request.title]["unanswerable"] = len(answerer.unanswerable)
        file = PredictionFile(plan.output / request.title, settings[request.title])
        done = set(file.done)
        with tqdm(
            total=len(items),
            initial=len(done),
            desc=request.title,
            unit="item",
            disable=None if plan.progress else True,
        ) as bar:
            for batch in answerer.answers(done):
                file.add(batch)
                bar.update(len(batch))
        predictions[request.title] = in_order(items, file.done, file.path)
    return predictions, settings, str(plan.model)


def _account(request: Request, limit: int | None) -> dict[str, Any]:
    return {
        "benchmark": request.name,
        "protocol": request.protocol,
        "path": str(request.path) if request.path else None,
        "images": list(request.images),
        "prompt": request.prompt,
        "only": str(request.only) if request.only else None,
        "limit": limit,
    }


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jminigpt4", "torch", "transformers")}


def _scored(
    plan: EvaluationPlan,
    sheet: Sheet,
    requests: Sequence[Request],
    examined: dict[str, list[Item]],
    predictions: dict[str, list[Prediction]],
) -> Sheet:
    from .metrics.judging import read_verdicts

    verdicts = read_verdicts(plan.verdicts) if plan.verdicts else None
    for request in requests:
        items, answers = examined[request.title], predictions[request.title]
        result = score(request, items, answers, verdicts)
        if silent := sheet.settings.get(request.title, {}).get("unanswerable"):
            result.notes.append(f"{silent} prompts fill the context window by themselves and count as unanswered.")
        if plan.other is not None:
            sheet.other = _compare(plan.other, result, verdicts)
        sheet.results.append(result)
        folder = plan.output / request.title
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        with finished_file(folder / IMAGE_IDS) as file:
            file.write_text("\n".join(benchmark_ids(items)) + "\n", encoding="utf-8")
        if request.benchmark.scoring == "judge":
            _write_for_judge(folder, items, [each.answer for each in answers], sheet.model, plan.judge)
        if plan.export is not None:
            from .bridges.llm_jp import export_predictions

            export_predictions(plan.export, request, items, answers, sheet.model)
    remove_unfinished(plan.output)
    sheet.write(plan.output)
    write_report(sheet, plan.output)
    return sheet


def _compare(folder: Path, result: Result, verdicts: dict | None) -> str:
    """Adds the differences to another model's answers in `folder` to `result`, and returns that model's name."""
    path = folder / result.request.title / PREDICTIONS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no answers to {result.request.title}: expected {path}.")
    recorded = path.parent / SETTINGS
    name = read_settings(recorded)["model"] if recorded.is_file() else str(folder)
    if result.request.benchmark.scoring == "judge":
        result.notes.append(f"Not compared with {name}: verdicts are of one model's answers.")
        return name
    answers = in_order(result.items, read_predictions(path), path)
    result.differences = differences(result, score(result.request, result.items, answers, verdicts))
    return name


def _write_for_judge(folder: Path, items: Sequence[Item], answers: list[str], model: str, judge: str):
    from .metrics.judging import heron_answers, judge_requests

    for name, lines in (
        (JUDGE_REQUESTS, judge_requests(items, answers, judge)),
        (HERON_ANSWERS, heron_answers(items, answers, model)),
    ):
        with finished_file(folder / name) as file:
            file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
