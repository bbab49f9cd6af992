"""A checkpoint behind an OpenAI-compatible interface: transformers' own server with a guard before it, and the command
that starts vLLM. No server of our own."""

import asyncio
import base64
import binascii
import json
import shlex
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import DEMO, JMiniGPT4Processor
from ..checkpoint import dtype_named
from ..configuration_jminigpt4 import AUTO_MAP
from ..inference.loading import checkpoint_config, usable_device
from .pictures import PictureLimits, open_bytes

if TYPE_CHECKING:
    import uvicorn

ARCHITECTURE = "JMiniGPT4ForConditionalGeneration"

# What else the server of transformers offers loads other models by name, or unloads this one.
ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/health"})

# vLLM puts its own head onto the base model, and finds that one under `AutoModel`.
VLLM_AUTO_MAP = {**AUTO_MAP, "AutoModel": "modeling_jminigpt4.JMiniGPT4Model"}
# A name that no host can have (RFC 6761, section 6.4): with it on vLLM's list of media hosts nothing is fetched.
NO_HOST = "none.invalid"

# Asynchronous Server Gateway Interface, version 3.
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def serve_checkpoint(model: str | None, host: str, port: int, device: str, dtype: str):
    """Runs the server of `transformers serve` until Ctrl-C, with this package's classes (no code of the checkpoint is
    run) and with [`PictureGuard`] before it.

    Args:
        model: A folder, or `user/name` on the Hub; the embedded demo by default.
        host, port: Where to listen.
        device: `auto`, or a torch device.
        dtype: `auto` for the stored one, or `float32`, `bfloat16` or `float16`.

    Raises:
        ValueError, OSError: The model is none of Japanese MiniGPT-4, or cannot be read; there is no such device or
            dtype.
        ImportError: The packages that serve are not installed.
    """
    guarded_server(model, host, port, device, dtype).run()


def guarded_server(model: str | None, host: str, port: int, device: str, dtype: str) -> "uvicorn.Server":
    """The server of [`serve_checkpoint`], not yet running, its model loaded."""
    from transformers.cli.serve import Serve
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise ImportError("Serving needs some packages more: pip install 'transformers[serving]'")
    name = str(model or DEMO)
    if device != "auto":
        usable_device(device)
    if dtype != "auto":
        dtype_named(dtype)
    checkpoint_config(name)
    # The server knows the classes of transformers only; with an entry here it asks the Auto classes for ours.
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["jminigpt4"] = ARCHITECTURE

    class GuardedServe(Serve):
        def start_server(self):
            self.server.config.app = PictureGuard(self.server.config.app, PictureLimits())

    # `non_blocking` hands the finished server to `start_server`, where it would be run unguarded otherwise.
    served = GuardedServe(name, device=device, dtype=dtype, host=host, port=port, log_level="error", non_blocking=True)
    return served.server


class PictureGuard:
    """Application before an application: what strangers send is refused here, before the server opens anything.

    The server of transformers opens whatever string a request names as a picture: an address, with all redirections,
    or a file of this machine. Here only `data:` pictures pass, within the limits, and only the `ROUTES` that answer.

    Args:
        app: The application behind.
        limits: What pictures are refused.
    """

    def __init__(self, app: Any, limits: PictureLimits):
        self._app = app
        self._limits = limits
        # Base64 makes four bytes of three; text and history travel along.
        self._max_body = limits.max_pictures * limits.max_bytes * 4 // 3 + 1_000_000

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] not in ROUTES:
            await _refuse(send, 404, "There is no such route here.")
            return
        try:
            body = await self._read(receive)
            if scope["method"] == "POST":
                # Headers of pictures are read in a thread: other requests go on meanwhile.
                await asyncio.get_running_loop().run_in_executor(None, self._check, body)
        except ValueError as error:
            await _refuse(send, 400, str(error))
            return
        passed = False

        async def replay() -> dict[str, Any]:
            nonlocal passed
            if passed:
                return await receive()
            passed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_body:
                raise ValueError(f"The request has more than {self._max_body:,} bytes.")
        return bytes(body)

    def _check(self, body: bytes):
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            raise ValueError("The request is not valid JSON.") from None
        sources = list(_picture_sources(request))
        if len(sources) > self._limits.max_pictures:
            raise ValueError(f"{len(sources)} pictures in one request; at most {self._limits.max_pictures} are taken.")
        for number, source in enumerate(sources, 1):
            open_data_url(source, f"picture {number}", self._limits)


def open_data_url(source: Any, name: str, limits: PictureLimits):
    """The picture of a `data:image/...;base64,` address, not decoded yet; see `open_bytes`.

    Raises:
        ValueError: It is another kind of address or a path, is no base64, or breaks the limits. The source is not
            repeated.
    """
    header, comma, data = source.partition(",") if isinstance(source, str) else ("", "", "")
    if not (comma and header.lower().startswith("data:image/") and header.lower().endswith(";base64")):
        raise ValueError(f"{name} is no data:image/...;base64 address: nothing else is opened here.")
    if len(data) > limits.max_bytes * 4 // 3 + 4:
        raise ValueError(f"{name} has more than {limits.max_bytes:,} bytes.")
    try:
        return open_bytes(base64.b64decode(data, validate=True), name, limits)
    except binascii.Error:
        raise ValueError(f"{name} is not valid base64.") from None


def _picture_sources(request: Any) -> Iterator[Any]:
    """Whatever parts of messages name as something to be opened, of whichever dialect."""
    pending = [request]
    while pending:
        each = pending.pop()
        if isinstance(each, list):
            pending += reversed(each)
        elif isinstance(each, dict):
            kind = each.get("type")
            if isinstance(kind, str) and kind not in ("text", "input_text", "output_text", "message", "function"):
                for key in ("image_url", "url", "image", "path", "base64", "video_url", "audio_url", "input_audio"):
                    if key in each:
                        value = each[key]
                        yield value.get("url") if isinstance(value, dict) else value
            pending += reversed([value for value in each.values() if isinstance(value, dict | list)])


async def _refuse(send: Send, status: int, message: str):
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error"}}, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def request_options(model: str | None) -> dict[str, Any]:
    """What a client of vLLM adds to each request: the engine computes the head itself, where the image token is not
    masked, and takes neither `suppress_tokens` nor stop strings from a checkpoint.

    Returns:
        `logit_bias` against the image token, and `stop` where the prompt format has stop strings.

    Raises:
        ValueError, OSError: The model is none of Japanese MiniGPT-4, or cannot be read.
    """
    name = str(model or DEMO)
    options: dict[str, Any] = {"logit_bias": {str(checkpoint_config(name).image_token_id): -100}}
    stop_strings = JMiniGPT4Processor.get_processor_dict(name)[0].get("stop_strings")
    return {**options, "stop": list(stop_strings)} if stop_strings else options


def vllm_command(model: str | None, host: str, port: int) -> str:
    """The shell command that serves a checkpoint with vLLM's Transformers modelling backend, and in a comment the
    [`request_options`].

    Raises:
        ValueError, OSError: The model is none of Japanese MiniGPT-4, or cannot be read.
    """
    name = str(model or DEMO)
    config = checkpoint_config(name)
    is_folder = Path(name).is_dir()
    served = Path(name).resolve().name if is_folder else name
    words = ["vllm", "serve", str(Path(name).resolve()) if is_folder else name, "--served-model-name", served]
    words += ["--trust-remote-code", "--model-impl", "transformers"]
    words += ["--hf-overrides", json.dumps({"auto_map": {**VLLM_AUTO_MAP}})]
    window = getattr(config.get_text_config(), "max_position_embeddings", None)
    words += ["--max-model-len", str(window)] if window else []
    words += ["--limit-mm-per-prompt", json.dumps({"image": PictureLimits().max_pictures})]
    words += ["--allowed-media-domains", NO_HOST, "--host", host, "--port", str(port)]
    options = json.dumps(request_options(name), ensure_ascii=False)
    return f"VLLM_MEDIA_URL_ALLOW_REDIRECTS=0 {shlex.join(words)}\n# with each request: {options}"
