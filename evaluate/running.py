"""From a model and the names of benchmarks to answers, scores and a report."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..checkpoint import finished_file, locked_folder, remove_unfinished
from ..data.ids import read_twins
from ..extras import require
from .benchmarks import Request, parse_request, read_items
from .contamination import Overlap, benchmark_ids, overlap
from .controls import BLIND, SHUFFLED, control_items, score_controls
from .examinee import Examinee, checkpoint_examinee, endpoint_examinee
from .hub_results import day_of, hub_result
from .items import CONTROLS, Item
from .predictions import PREDICTIONS, SETTINGS, Prediction, PredictionFile, in_order, read_predictions, read_settings
from .report import write_report
from .scoring import Result, differences, score
from .sheet import Sheet

if TYPE_CHECKING:
    from .judge import Judge, Votes

IMAGE_IDS = "image_ids.txt"
JUDGE_REQUESTS = "judge_requests.jsonl"
HERON_ANSWERS = "answers.jsonl"
JUDGED = ("judge", "questions", "answers", "boxed")
"""Kinds of scoring beside which a judge can say more."""


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
        endpoint: Address of an OpenAI-compatible server that answers in the place of a checkpoint; `model` is then
            its name for the model.
        controls: Items of each benchmark that are asked again without their picture and with another; 0: none.
        judge: Address of a server that judges Heron-Bench and open answers.
        judge_model: Name of the judge, there and in the requests that are written for one.
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
    endpoint: str | None = None
    controls: int = CONTROLS
    judge: str | None = None
    judge_model: str = "gpt-4o-2024-11-20"
    other: Path | None = None
    training: Sequence[Path] = ()
    twins: Path | None = None
    export: Path | None = None
    device: str | None = None
    dtype: str | None = None
    progress: bool = True


@dataclass
class Answered:
    """What a model answered.

    Args:
        model: Its name.
        predictions: Benchmark -> answers, in the order of its items.
        settings: Benchmark -> what they were made with.
        controls: Benchmark -> control -> answers.
    """

    model: str
    predictions: dict[str, list[Prediction]] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    controls: dict[str, dict[str, list[Prediction]]] = field(default_factory=dict)


def run(plan: EvaluationPlan) -> Sheet:
    """Carries out a plan: writes answers, `scores.json`, `report.html` and what belongs to them; returns the scores.

    Raises:
        ValueError: Something of the plan does not fit together; nothing has been answered then.
        OSError: A file is missing, or another process writes in the output folder.
        ImportError: A library of the extra `evaluate` is missing.
    """
    requests, files, limit = _requests(plan)
    plan = replace(plan, limit=limit)
    if not requests:
        raise ValueError("Name a benchmark: --benchmark NAME[:PROTOCOL][=PATH].")
    if plan.model is None and not files and not plan.training:
        raise ValueError("Name a MODEL to be examined, or give its answers with --score-only.")
    require("evaluate", "jinja2", "matplotlib")  # of the report, which comes last
    titles = [request.title for request in requests]
    if len(set(titles)) < len(titles):
        raise ValueError(f"A benchmark is named twice: {', '.join(titles)}.")
    examined = {request.title: read_items(request, limit) for request in requests}
    overlaps = list(_overlaps(plan, examined))
    if plan.model is None and not files:
        return Sheet("", [], overlaps=overlaps)
    given = _given(requests, examined, files) if files else None
    examinee = None if given else _examinee(plan)
    with locked_folder(plan.output):
        answered = given or _asked(plan, cast(Examinee, examinee), requests, examined)
        return _scored(plan, answered, overlaps, requests, examined)


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


def _given(requests: Sequence[Request], examined: dict[str, list[Item]], files: Sequence[Path]) -> Answered:
    """Answers that lie there, with those to the controls beside them."""
    answered = Answered(str(files[0]))
    for request, path in zip(requests, files, strict=True):
        title, items = request.title, examined[request.title]
        answered.predictions[title] = in_order(items, read_predictions(path), path)
        recorded = path.parent / SETTINGS
        if path.name == PREDICTIONS and recorded.is_file():
            answered.settings[title] = read_settings(recorded)
            answered.controls[title] = dict(_given_controls(path.parent, items))
    names = {each["model"] for each in answered.settings.values()}
    if len(names) == 1:
        answered.model = names.pop()
    return answered


def _given_controls(folder: Path, items: list[Item]) -> Iterator[tuple[str, list[Prediction]]]:
    for control in (BLIND, SHUFFLED):
        path = folder / control / PREDICTIONS
        if path.is_file() and (path.parent / SETTINGS).is_file():
            size = read_settings(path.parent / SETTINGS).get("controls", 0)
            changed = control_items(items, size).get(control, [])
            yield control, in_order(changed, read_predictions(path), path)


def _examinee(plan: EvaluationPlan) -> Examinee:
    if plan.endpoint is None:
        return checkpoint_examinee(str(plan.model), plan.device, plan.dtype)
    if plan.device or plan.dtype:
        raise ValueError("Where and how a server computes is its own: leave --device and --dtype out.")
    return endpoint_examinee(plan.endpoint, str(plan.model))


def _asked(
    plan: EvaluationPlan, examinee: Examinee, requests: Sequence[Request], examined: dict[str, list[Item]]
) -> Answered:
    """Has the model answer what it has not answered yet."""
    answered = Answered(examinee.name)
    for request in requests:
        items, title = examined[request.title], request.title
        predictions, answered.settings[title] = _ask(plan, examinee, request, items, title)
        answered.predictions[title] = predictions
        for control, changed in control_items(items, _controls_of(plan, request)).items():
            said, _ = _ask(plan, examinee, request, changed, f"{title}/{control}", control=control)
            answered.controls.setdefault(title, {})[control] = said
    return answered


def _controls_of(plan: EvaluationPlan, request: Request) -> int:
    return 0 if request.benchmark.scoring == "judge" else plan.controls


def _ask(
    plan: EvaluationPlan, examinee: Examinee, request: Request, items: list[Item], name: str, **changed: str
) -> tuple[list[Prediction], dict[str, Any]]:
    """The answers to `items`, kept in the folder `name`, and what they were made with."""
    from tqdm import tqdm

    from .generation import Generation

    chosen: dict[str, Any] = {"max_new_tokens": request.benchmark.max_new_tokens, **plan.generation}
    generation = Generation(**chosen)
    settings = {
        "model": examinee.name,
        **_account(request, plan.limit),
        **generation.as_dict(),
        **examinee.settings,
        **changed,
    }
    answerer = examinee.answerer(generation, items)
    settings["unanswerable"] = len(answerer.unanswerable)
    if changed:
        settings["controls"] = plan.controls
    remove_unfinished(plan.output / name)
    file = PredictionFile(plan.output / name, settings)
    done = set(file.done)
    with tqdm(
        total=len(items), initial=len(done), desc=name, unit="item", disable=None if plan.progress else True
    ) as bar:
        for batch in answerer.answers(done):
            file.add(batch)
            bar.update(len(batch))
    return in_order(items, file.done, file.path), settings


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


def _scored(
    plan: EvaluationPlan,
    answered: Answered,
    overlaps: list[Overlap],
    requests: Sequence[Request],
    examined: dict[str, list[Item]],
) -> Sheet:
    from .metrics.judging import read_verdicts

    sheet = Sheet(answered.model, [], answered.settings, overlaps)
    verdicts = read_verdicts(plan.verdicts) if plan.verdicts else None
    judge = _judge(plan)
    for request in requests:
        title, items, answers = request.title, examined[request.title], answered.predictions[request.title]
        votes = _votes(judge, request, items, answers, plan) if judge else None
        result = score(request, items, answers, **_verdicts(request, votes, verdicts))
        result.notes += _notes(sheet.settings.get(title, {}), answers, votes, plan)
        if controls := score_controls(request, items, answers, answered.controls.get(title, {})):
            sheet.controls[title] = controls
        if plan.other is not None:
            sheet.other = _compare(plan.other, result, verdicts)
        sheet.results.append(result)
        sheet.hub_results += _hub_results(result, sheet.settings.get(title, {}), plan, len(sheet.results) - 1)
        _write_beside(plan, request, items, answers, sheet.model)
    remove_unfinished(plan.output)
    sheet.write(plan.output)
    write_report(sheet, plan.output)
    return sheet


def _hub_results(result: Result, settings: dict[str, Any], plan: EvaluationPlan, number: int) -> list[dict[str, Any]]:
    """The result for the Hub, if it has a place for it; a part of the items is no result of the benchmark."""
    if plan.limit is not None:
        return []
    answers = plan.answered[number] if plan.answered else plan.output / result.request.title / PREDICTIONS
    entry = hub_result(result, day_of(answers), settings)
    return [entry] if entry is not None else []


def _judge(plan: EvaluationPlan) -> "Judge | None":
    if plan.judge is None:
        return None
    from ..inference.endpoint import Endpoint
    from .judge import Judge

    endpoint = Endpoint(plan.judge, plan.judge_model)
    endpoint.check()
    return Judge(endpoint)


def _votes(
    judge: "Judge", request: Request, items: list[Item], answers: list[Prediction], plan: EvaluationPlan
) -> "dict[str, Votes] | None":
    """The judge's votes by item id, on answers to open questions."""
    from tqdm import tqdm

    if request.benchmark.scoring not in JUDGED:
        return None
    coming = judge.judged(items, answers, plan.output / request.title)
    quiet = None if plan.progress else True
    bar = tqdm(coming, desc=f"{request.title}, judged", total=len(items), unit="item", disable=quiet)
    return {each.id: each for each in bar}


def _verdicts(request: Request, votes: "dict[str, Votes] | None", given: dict | None) -> dict[str, Any]:
    """Arguments of `score`: the verdicts that a file gives, or the judge's."""
    if request.benchmark.scoring != "judge":
        return {"right": {name: each.right for name, each in votes.items()} if votes else None}
    return {"verdicts": given or ({name: each.scores for name, each in votes.items()} if votes else None)}


def _notes(
    settings: dict[str, Any], answers: list[Prediction], votes: "dict[str, Votes] | None", plan: EvaluationPlan
) -> Iterator[str]:
    """What a reader of the scores must know of how they came about."""
    if silent := settings.get("unanswerable"):
        yield f"{silent} prompts fill the context window by themselves and count as unanswered."
    if refused := [each for each in answers if each.refused]:
        yield (
            f"{len(refused)} questions were refused by the server and count as unanswered, the first is "
            f"{refused[0].id}: {refused[0].refused}"
        )
    if votes:
        from .judge import VOTES, agreement

        share = agreement(list(votes.values()))
        yield f"Judged by {plan.judge_model}, {VOTES} votes an answer, which agree on {share:.0f} % of the answers."


def _write_beside(plan: EvaluationPlan, request: Request, items: list[Item], answers: list[Prediction], model: str):
    """What belongs to the answers of a benchmark: ids of its pictures, requests for a judge, the export."""
    folder = plan.output / request.title
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    with finished_file(folder / IMAGE_IDS) as file:
        file.write_text("\n".join(benchmark_ids(items)) + "\n", encoding="utf-8")
    if request.benchmark.scoring == "judge":
        _write_for_judge(folder, items, [each.answer for each in answers], model, plan.judge_model)
    if plan.export is not None:
        from .bridges.llm_jp import export_predictions

        export_predictions(plan.export, request, items, answers, model)


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
