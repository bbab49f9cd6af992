"""The verb `evaluate`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from .benchmarks import BENCHMARKS, parse_request
from .items import CONTROLS


def named_benchmarks() -> Iterator[str]:
    for name, benchmark in BENCHMARKS.items():
        if benchmark.dataset is not None:
            yield f"{name} ({' or '.join(benchmark.protocols)})" if any(benchmark.protocols) else name


def evaluate(
    model: Annotated[str | None, typer.Argument(help="A checkpoint folder, or user/name on the Hub.")] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(
            "--benchmark",
            "-b",
            metavar="NAME[:PROTOCOL][=PATH]",
            help=f"{', '.join(named_benchmarks())}, or a .jsonl file of one's own; repeatable. "
            "Without =PATH from the Hub.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of answers, scores and report; a stopped run goes on.")
    ] = Path("evaluation"),
    images: Annotated[list[str] | None, typer.Option(help="Folder with the pictures; repeatable.")] = None,
    prompt: Annotated[str, typer.Option(help="What captions are asked with; by default the picture alone.")] = "",
    only: Annotated[Path | None, typer.Option(help="File with the image ids that are kept.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N items of each benchmark.")] = None,
    score_only: Annotated[
        list[Path] | None, typer.Option(help="Score these answers; nothing is generated. Repeatable.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Output folder of another model: which differences are real?")
    ] = None,
    judge_scores: Annotated[Path | None, typer.Option(help="A judge's verdicts on Heron-Bench, JSON lines.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="URL", help="OpenAI-compatible server that judges Heron-Bench and open answers."),
    ] = None,
    judge_model: Annotated[str, typer.Option(help="Name of the judging model.")] = "gpt-4o-2024-11-20",
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="OpenAI-compatible server to be examined, with --model.")
    ] = None,
    model_name: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="What the --endpoint calls its model.")
    ] = None,
    controls: Annotated[
        int, typer.Option(min=0, help="Items of a benchmark also asked without and with another picture; 0: none.")
    ] = CONTROLS,
    train_data: Annotated[
        list[Path] | None,
        typer.Option(help="Training file: how many pictures of the benchmark are in it? Repeatable."),
    ] = None,
    coco_twins: Annotated[Path | None, typer.Option(help="Visual Genome's image_data.json, for --train-data.")] = None,
    export: Annotated[Path | None, typer.Option(help="Folder for the answers as llm-jp-eval-mm reads them.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Questions answered at a time [32].")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer [by benchmark].")] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beams of beam search [1].")] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Sample, in the place of the likeliest token.")] = False,
    temperature: Annotated[float | None, typer.Option(min=0.01, help="Temperature of sampling.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1.0, help="Nucleus of sampling.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling [0].")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; the best there is by default.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; what suits by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print scores.json in the place of a table.")] = False,
):
    """Ask the Japanese benchmarks' questions, score the answers by the field's protocols, and report on them."""
    import json

    from .running import EvaluationPlan, run

    if (endpoint is None) != (model_name is None) or (endpoint and model):
        raise ValueError(
            "A server is examined by --endpoint URL and --model NAME, a checkpoint by its folder or Hub name."
        )
    chosen = {
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "num_beams": num_beams,
        "do_sample": True if sample or temperature or top_p else None,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    plan = EvaluationPlan(
        requests=[parse_request(each, images or (), prompt, only) for each in benchmark or []],
        output=output,
        model=model_name or model,
        endpoint=endpoint,
        controls=controls,
        generation={name: value for name, value in chosen.items() if value is not None},
        limit=limit,
        answered=score_only or [],
        verdicts=judge_scores,
        judge=judge,
        judge_model=judge_model,
        other=compare,
        training=train_data or [],
        twins=coco_twins,
        export=export,
        device=device,
        dtype=dtype,
        progress=not as_json,
    )
    sheet = run(plan)
    if as_json:
        typer.echo(json.dumps(sheet.as_dict(), ensure_ascii=False))
        return
    for each in sheet.overlaps:
        typer.echo(
            f"{each.file}: {each.shared:,} of {each.pictures:,} pictures of {each.benchmark} ({each.share:.1f} %), "
            f"{each.by_twin:,} of them only by the join of Visual Genome with COCO."
        )
    if sheet.results:
        typer.echo(sheet.table())
        for result in sheet.results:
            for note in result.notes:
                typer.echo(f"note: {result.request.title}: {note}")
        typer.echo(f"{output / 'report.html'} shows what it says.")
