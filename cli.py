"""`jminigpt4 VERB`: the command line. What a verb needs, torch and transformers above all, comes as it begins."""

import codecs
import functools
import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Annotated, cast

import typer

from . import __version__, register
from .chat import commands as chat
from .convert import commands as convert
from .evaluate import commands as evaluate
from .extras import install_command
from .refine import commands as refine
from .train import commands as train

app = typer.Typer(
    name="jminigpt4",
    help="Japanese MiniGPT-4: show a picture, talk about it in Japanese.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool):
    if wanted:
        typer.echo(f"jminigpt4 {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
): ...


def env(as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False):
    """Print the versions a bug report needs."""
    import torch

    packages = ("torch", "torchvision", "transformers", "accelerate", "timm", "safetensors", "huggingface-hub")
    packages += ("tokenizers", "pillow", "bitsandbytes", "peft", "datasets", "gradio", "llama-cpp-python")
    facts = {"jminigpt4": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in packages:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
    else:
        typer.echo("\n".join(f"{name}: {value}" for name, value in facts.items()))


VERBS = (
    *(chat.chat, chat.serve, chat.serve_command),
    *(convert.convert, convert.verify, convert.publish),
    *(train.train, train.features, train.data),
    refine.refine,
    evaluate.evaluate,
    env,
)


# The extra of each room.
EXTRAS = {"train": "train", "chat": "chat", "evaluate": "evaluate"}
# What a verb looks at before the libraries are loaded.
LOOK_FIRST = {train.train: train.look_first, train.features: train.look_first}


def _beginning(verb: Callable) -> Callable:
    """The verb with the model's classes registered, and nothing on the screen but its own output and errors."""

    @functools.wraps(verb)
    def begin(*args, **kwargs):
        LOOK_FIRST.get(verb, lambda **given: None)(**kwargs)
        from .inference.loading import be_quiet

        register()
        be_quiet()
        try:
            return verb(*args, **kwargs)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(verb.__module__.split(".")[-2])
            if extra is None or not error.name or error.name.partition(".")[0] == "jminigpt4":
                raise
            raise ImportError(f"The package {error.name} is needed: {install_command(extra)}.") from None

    return begin


for verb in VERBS:
    app.command()(_beginning(verb))


# click's UsageError; newer versions of typer bring click along under a name of their own.
UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """`\\uff1c` for what an encoding lacks, as JSON writes it: readable in a line, and the same value in JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    content = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    units = (content[start : start + 2].hex() for start in range(0, len(content), 2))
    return "".join(f"\\u{unit}" for unit in units), error.end


def _prepare_streams():
    """Consoles of Windows may know Japanese (cp932) and no ticks, or no Japanese at all: nothing ends in an error."""
    codecs.register_error("escaped", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="escaped")


def main():
    """Runs the command line. What the user can mend is said in one line, with exit status 2."""
    _prepare_streams()
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False) or 0)
    except typer.Abort:
        sys.exit(130)
    except (ValueError, OSError, ImportError, UsageError) as error:
        message = getattr(error, "format_message", error.__str__)()
        typer.echo("jminigpt4: " + " ".join(message.split()), err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
