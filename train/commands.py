"""The verbs `train`, `features` and `data` of the command line."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..data.first_look import first_shard, look_at_first_rows
from ..data.readers import READERS, as_source
from ..extras import require

LAYOUTS = "; ".join(reader.layout for reader in READERS.values())
Data = Annotated[
    list[str] | None,
    typer.Argument(help=f"Data files or folders; NAME=PATH names one. Default: the recipe's. Read are {LAYOUTS}."),
]
Images = Annotated[
    list[str] | None,
    typer.Option("--images", help="Folder or address (s3://…, https://…) with the pictures; may be repeated."),
]
ReaderName = Annotated[
    str, typer.Option("--reader", help=f"Layout of the data: {', '.join(READERS)}. Default: told from the data.")
]
Recipe = Annotated[
    str,
    typer.Option(
        help="auto (numbers from the size of the data), small, stage1, stage2, article-stair-vg, or a YAML file."
    ),
]
Streamed = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="DATA are shards that are fetched in training, some at a time: hf://…/**.parquet, a{000..099}.tar.",
    ),
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="A value of the recipe, such as --set epochs=1; may be repeated.")
]


class Engine(str, Enum):
    """What computes features. The oldest typer knows enumerations, and no `Literal`."""

    LOCAL = "local"
    RAY = "ray"


def _changes(settings: list[str] | None) -> dict:
    from .recipe import read_yaml

    changes = {}
    for setting in settings or []:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ValueError(f"--set takes KEY=VALUE, got {setting!r}.")
        changes[key] = read_yaml(value, f"--set {key}")
    return changes


def _recipe(name: str, settings: list[str] | None):
    from .recipe import Recipe

    return Recipe.from_values({**Recipe.load(name).values(), **_changes(settings)}, "--set")


def _sources(
    data: list[str] | None, images: list[str] | None, reader: str = "auto", stream: bool = False
) -> list[dict] | None:
    if not data:
        return None
    sources = []
    for each in data:
        name, separator, path = each.partition("=")
        named = separator and "://" not in name  # where it is a part of an address
        given = {"name": name, "path": path} if named else {"path": each}
        sources.append({**given, "images": images or None, "reader": reader, **({"stream": True} if stream else {})})
    return sources


def look_first(
    data: list[str] | None = None,
    images: list[str] | None = None,
    reader: str = "auto",
    stream: bool = False,
    **options: Any,
):
    """What `train` and `features` look at before the libraries are loaded, which takes seconds."""
    for source in map(as_source, _sources(data, images, reader) or []):
        if not stream:
            look_at_first_rows(source)


def train(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a jminigpt4 checkpoint.")],
    data: Data = None,
    output: Annotated[Path, typer.Option(help="Folder of the run; an interrupted run goes on.")] = Path("run"),
    recipe: Recipe = "auto",
    images: Images = None,
    reader: ReaderName = "auto",
    stream: Streamed = False,
    cache: Annotated[str | None, typer.Option(help="Folder or URL of the query-feature cache.")] = None,
    projection: Annotated[Path | None, typer.Option(help="Projection to begin with: a file or another run.")] = None,
    changes: Changes = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many steps.")] = None,
    overfit: Annotated[int | None, typer.Option(help="Learn so many pictures by heart: a test of the data.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Hours, memory and disk it would take here; train nothing.")
    ] = False,
    export: Annotated[Path | None, typer.Option(help="Folder for the whole model with all that was trained.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint in the output folder.")] = True,
    report_to: Annotated[str, typer.Option(help="Where else metrics go: tensorboard, wandb …")] = "none",
    compare: Annotated[Path | None, typer.Option(help="Another run, whose curve is drawn beside this one's.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode and prepare ahead. Default: what can be spared.")
    ] = None,
):
    """Train the projection of a model, or more of it, on pictures and texts."""
    from . import engine
    from .distributed import init_processes
    from .plan import lines

    echo = typer.echo if init_processes().is_main_process else lambda text: None
    chosen = _recipe(recipe, changes)
    given: dict[str, Any] = {"cache": cache, "projection": projection, "max_steps": max_steps, "overfit": overfit}
    if dry_run:
        sources = _sources(data, images, reader, stream)
        plan = engine.dry_run(model, sources, chosen, output=output, export=export, **given)
        echo("\n".join(lines(plan)))
        return
    given |= {"export": export, "resume": resume, "report_to": report_to, "workers": workers, "compare": compare}
    result = engine.train(model, _sources(data, images, reader, stream), output, chosen, **given)
    echo(f"{result.steps} steps, loss {result.loss:.4f}: {result.output / 'projection.safetensors'}")
    if result.eval_loss is not None:
        echo(f"validation loss {result.eval_loss:.4f}")
    if result.bad_pictures:
        echo(f"{len(result.bad_pictures)} bad pictures: {result.output / 'bad_pictures.jsonl'}")
    for expected, answer in result.answers:
        echo(f"expected {expected!r}, answered {answer!r}")
    if export is not None:
        echo(f"model: {export}")


def features(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a jminigpt4 checkpoint.")],
    cache: Annotated[str, typer.Argument(help="Folder or URL (s3://, gs:// …) of the query-feature cache.")],
    data: Data = None,
    images: Images = None,
    reader: ReaderName = "auto",
    recipe: Recipe = "auto",
    changes: Changes = None,
    views: Annotated[
        int | None, typer.Option(help="Cropped views per picture; 0: the plain one. Default: the recipe's.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float16, bfloat16 or float32: how features are stored. Default: the recipe's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures encoded at a time.")] = 16,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode pictures. Default: what can be spared.")
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="local: this program's processes; ray: a Ray cluster.")
    ] = Engine.LOCAL,
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster. Default: RAY_ADDRESS, else Ray on this machine.")
    ] = None,
    encoders: Annotated[
        int | None, typer.Option(min=1, help="Encoders on the cluster. Default: one a GPU; without GPUs one a node.")
    ] = None,
):
    """Compute the query features of pictures once, for any number of trainings by the same recipe."""
    from .distributed import init_processes
    from .parts import check_options
    from .selection import CocoTwins
    from .sources import most_pictures, pictures_of, read_data

    if engine is Engine.LOCAL and (address or encoders):
        raise ValueError("--address and --encoders are of a Ray cluster: add `--engine ray`.")
    if engine is Engine.RAY:
        require("scale", "ray")
        if workers is not None:
            raise ValueError("--workers is of one machine: on a Ray cluster all cores that are free decode.")
    state = init_processes()
    if engine is Engine.RAY and state.num_processes > 1:
        raise ValueError("--engine ray is one program, without a launcher: Ray shares the work among its nodes.")
    chosen = _recipe(recipe, changes)
    if views is not None:
        chosen = chosen.with_(augmentation=views != 0, views=views or 1)
    if dtype is not None:
        chosen = chosen.with_(cache_dtype=dtype)
    check_options(chosen, cache, None)
    sources = read_data(_sources(data, images, reader) or chosen.data, chosen, CocoTwins(chosen.coco_twins))
    pictures, total = pictures_of(sources), most_pictures(sources)
    if engine is Engine.RAY:
        from .ray_features import Job, fill_on_ray

        store, bad = fill_on_ray(Job(model, cache, chosen, batch_size), pictures, address, encoders, total=total)
    else:
        from .features import FeatureCache, PictureEncoder, fill_together
        from .frozen import load_model

        loaded, processor = load_model(model, None, chosen)
        encoder = PictureEncoder(loaded.to(state.device), processor, chosen.cached_views, batch_size)
        store = FeatureCache(cache, encoder, chosen.cache_dtype)
        bad = fill_together(store, pictures, state, workers=workers, total=total)
    if state.is_main_process:
        for each in bad:
            typer.echo(f"left out: {each.reason}", err=True)
        typer.echo(f"{len(store):,} pictures in {cache}; {len(bad):,} bad")


def data(
    data: Annotated[list[str], typer.Argument(help="Data files or folders; NAME=PATH names one.")],
    model: Annotated[str, typer.Option(help="Checkpoint whose tokenizer and pictures count. Default: the demo.")] = "",
    images: Images = None,
    reader: ReaderName = "auto",
    stream: Streamed = False,
    against: Annotated[list[str] | None, typer.Option(help="Image ids of an evaluation set; may be repeated.")] = None,
    coco_twins: Annotated[str | None, typer.Option(help="Visual Genome's image_data.json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per source.")] = False,
):
    """Look through data: counts, bad pictures, token lengths, duplicates, overlap, examples. Of a stream: its first
    shard."""
    import json
    import tempfile
    from dataclasses import asdict, replace

    from .. import DEMO
    from ..data.table import open_table
    from ..inference.loading import load_processor
    from .inspection import inspect

    processor = load_processor(model or DEMO)
    for source in map(as_source, _sources(data, images, reader, stream) or []):
        with tempfile.TemporaryDirectory() as folder:
            tables = Path(folder) if stream else None
            source = first_shard(source, Path(folder)) if stream else source
            table = open_table(source, aloud=not as_json, tables=tables)
            found = inspect(table, processor, against or (), coco_twins, not as_json)
            given = asdict(replace(found, bad_rows=[])) | {"bad_rows": [asdict(bad) for bad in found.bad_rows]}
            typer.echo(json.dumps(given, ensure_ascii=False) if as_json else "\n".join(found.lines()))
