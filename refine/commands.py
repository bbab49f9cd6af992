"""The verb `refine`."""

from pathlib import Path
from typing import Annotated

import typer


def refine(
    model: Annotated[str, typer.Argument(help="A checkpoint of stage 1: folder, or user/name on the Hub.")],
    pictures: Annotated[
        list[str], typer.Argument(help="Picture files, folders of pictures, or data that training reads.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; a stopped run goes on.")] = Path("refined"),
    images: Annotated[list[str] | None, typer.Option(help="Folder with the pictures of data; repeatable.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What pictures are described by, in turn; four Japanese ones by default.")
    ] = None,
    texts: Annotated[int, typer.Option(min=1, help="Texts of a picture.")] = 1,
    enough_tokens: Annotated[int, typer.Option(min=0, help="A shorter text is asked to go on.")] = 80,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 160,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of sampling.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="Nucleus of sampling.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Of sampling, and of the sample that is looked at.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures described at a time.")] = 8,
    editor: Annotated[
        str | None, typer.Option(metavar="URL", help="OpenAI-compatible server that mends texts; none: only filters.")
    ] = None,
    editor_model: Annotated[str | None, typer.Option(metavar="NAME", help="Name of its model.")] = None,
    show_picture: Annotated[
        bool, typer.Option("--show-picture", help="Send the editor the picture with its text.")
    ] = False,
    price: Annotated[
        str | None, typer.Option(metavar="IN,OUT", help="Price of a million tokens to and from the editor.")
    ] = None,
    min_characters: Annotated[int, typer.Option(min=0, help="A text of fewer characters falls.")] = 20,
    sample: Annotated[int, typer.Option(min=0, help="Texts on the page that a person reads.")] = 50,
    decisions: Annotated[
        Path | None, typer.Option(help="What the person decided: the file that the page saves.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count and price; write and send nothing.")] = False,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; the best there is by default.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; what suits by default.")] = None,
):
    """Make stage-2 data: describe pictures, have an editor mend the texts, filter them, look at a sample."""
    from .describing import PROMPTS, Describing
    from .examining import Limits
    from .running import RefinePlan, dry_run_lines, parse_price
    from .running import refine as run

    describing = Describing(
        tuple(prompt or PROMPTS), texts, enough_tokens, max_new_tokens, temperature, top_p, seed, batch_size
    )
    plan = RefinePlan(
        model=model,
        pictures=pictures,
        output=output,
        images=images or (),
        describing=describing,
        limits=Limits(characters=min_characters),
        editor=editor,
        editor_model=editor_model,
        show_picture=show_picture,
        price=parse_price(price) if price else None,
        sample=sample,
        decisions=decisions,
        device=device,
        dtype=dtype,
    )
    for line in dry_run_lines(plan) if dry_run else run(plan).lines():
        typer.echo(line)
