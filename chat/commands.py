"""The verbs `chat`, `serve` and `serve-command` of the command line."""

import contextlib
import math
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

import typer

from .texts import Language, explained, terminal_language


def chat(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [QUESTION]",
            help="MODEL: a checkpoint folder, or user/name on the Hub; the embedded demo by default. One word alone "
            "is the MODEL when it is an existing folder or looks like a path or like user/name, else the QUESTION.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", "-i", help="Picture file to show with the question; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each answer.")] = False,
    web: Annotated[bool, typer.Option("--web", help="Open a web page instead of a terminal conversation.")] = False,
    persona: Annotated[str | None, typer.Option(help="System text: who the model is to be.")] = None,
    examples: Annotated[Path | None, typer.Option(help="Few-shot examples: a transcript of /save.")] = None,
    load: Annotated[Path | None, typer.Option(help="Transcript to go on with.")] = None,
    sample: Annotated[
        bool | None, typer.Option("--sample/--greedy", help="Sampling or always the likeliest token.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.01, help="Temperature of sampling.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1.0, help="Nucleus of sampling.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling.")] = None,
    allow_addresses: Annotated[
        bool, typer.Option("--allow-addresses", help="Fetch pictures that are named by http or https addresses.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best there is by default.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; what suits by default.")] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="int8|8bit|nf4",
            help="The language model in fewer bits: int8 by torch, fast on a CPU; 8bit and nf4 by "
            "bitsandbytes, to save memory.",
        ),
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The language model by llama.cpp, from this file of convert --to gguf."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="With --web: address to listen on; this machine alone by default.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="With --web: port to listen on; 7860 by default.")] = None,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD",
            help="With --web: what visitors have to log in with; or the environment variable JMINIGPT4_AUTH, which "
            "other users of the machine do not see.",
        ),
    ] = None,
):
    """Show pictures and talk about them in Japanese: one question, a conversation, a pipe of lines, or a web page."""
    with _errors_in(terminal_language()):
        model, question = model_and_question(words or [])
        _check_port(port or 0)
        if temperature is not None and not math.isfinite(temperature):
            raise ValueError(f"--temperature must be a finite number, got {temperature}.")
        if web:
            not_there = {"a QUESTION": question, "--image": image, "--load": load, "--json": as_json}
            _refuse({**not_there, "--allow-addresses": allow_addresses}, "--web takes no")
        else:
            _refuse({"--host": host, "--port": port, "--auth": auth}, "Only --web takes")
        if sample is False:
            _refuse({"--temperature": temperature, "--top-p": top_p, "--seed": seed}, "--greedy takes no")
        from .settings import Settings

        settings = Settings(
            model=model,
            question=question,
            images=image or [],
            as_json=as_json,
            persona=persona,
            examples=examples,
            transcript=load,
            options=_generation_options(sample, temperature, top_p, max_new_tokens),
            seed=seed,
            allow_addresses=allow_addresses,
            device=device,
            dtype=dtype,
            quantize=quantize,
            gguf=gguf,
        )
        if web:
            from .web import serve_page

            login = user_and_password(auth or os.environ.get("JMINIGPT4_AUTH") or None)
            serve_page(settings, host or "127.0.0.1", 7860 if port is None else port, login)
        else:
            from .terminal import converse

            converse(settings)


def _generation_options(
    sample: bool | None, temperature: float | None, top_p: float | None, max_new_tokens: int | None
) -> dict[str, Any]:
    options = {
        "do_sample": True if sample is None and (temperature or top_p) else sample,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
    }
    return {name: value for name, value in options.items() if value is not None}


def _refuse(options: dict[str, Any], why: str):
    """Options that would not be obeyed are an error, not ignored."""
    given = [option for option, value in options.items() if not (value is None or value is False or value == [])]
    if given:
        raise ValueError(f"{why} {given[0]}.")


@contextlib.contextmanager
def _errors_in(language: Language) -> Generator[None]:
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise ValueError(explained(error, language)) from error


def user_and_password(auth: str | None) -> tuple[str, str] | None:
    """`USER:PASSWORD` taken apart at its first colon; `None` where there is none.

    Raises:
        ValueError: One of them is missing. The value, which may hold the password, is not repeated.
    """
    if auth is None:
        return None
    user, _, password = auth.partition(":")
    if not user.strip() or not password:
        raise ValueError("--auth is USER:PASSWORD, and one of them is missing.")
    return user.strip(), password


def model_and_question(words: list[str]) -> tuple[str | None, str | None]:
    """What the words on the command line mean: `(model, question)`, `None` for what was not given.

    Two words are both. One word is the model when it is an existing folder or looks like a path (`./name`, `/name`,
    `~/name`) or like a Hub repository (`user/name` in ASCII); otherwise it is the question.

    Raises:
        ValueError: More than two words.
    """
    if len(words) > 2:
        raise ValueError(f"Expected a MODEL and a QUESTION, got {len(words)} words: put the question in quotes.")
    if len(words) == 2:
        return words[0], words[1]
    if not words:
        return None, None
    word = words[0]
    looks_like_path = word.startswith(("./", "../", "/", "~/")) or word in (".", "..")
    looks_like_repository = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", word, re.ASCII) is not None
    # Not `Path.is_dir`, which raises for a long question: no file has a name of 256 bytes.
    if looks_like_path or looks_like_repository or os.path.isdir(word):
        return word, None
    return None, word


def _check_port(port: int):
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be from 0 to 65535, got {port}.")


def serve(
    model: Annotated[
        str | None, typer.Argument(help="A checkpoint folder, or user/name on the Hub; the demo by default.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="JMINIGPT4_API_KEY", help="What clients have to send as bearer token.", show_default=False
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Longest request, waiting included, in seconds.")] = 300,
):
    """Serve OpenAI's chat completions: one model, one answer at a time (see docs/serving.md)."""
    from .serving import serve_checkpoint

    _check_port(port)
    if not math.isfinite(timeout):
        raise ValueError(f"--timeout must be a finite number of seconds, got {timeout}.")
    serve_checkpoint(model, host, port, device, dtype, api_key, timeout)


def serve_command(
    model: Annotated[
        str | None, typer.Argument(help="A checkpoint folder, or user/name on the Hub; the demo by default.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
):
    """Print the command that serves MODEL with vLLM."""
    from .serving import vllm_command

    _check_port(port)
    typer.echo(vllm_command(model, host=host, port=port))
