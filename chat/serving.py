"""A checkpoint behind OpenAI's chat completions interface: our own small server, and the command that starts vLLM."""

import json
import shlex
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

from .. import DEMO, JMiniGPT4Processor
from ..configuration_jminigpt4 import AUTO_MAP
from ..extras import install_command
from ..inference.loading import checkpoint_config, load_checkpoint
from .completions import ChatCompletions
from .settings import served_name

if TYPE_CHECKING:
    import uvicorn

# vLLM puts its own head onto the base model, and finds that one under `AutoModel`.
VLLM_AUTO_MAP = {**AUTO_MAP, "AutoModel": "modeling_jminigpt4.JMiniGPT4Model"}
# A name that no host can have (RFC 6761, section 6.4): with it on vLLM's list of media hosts nothing is fetched.
NO_HOST = "none.invalid"


def serve_checkpoint(
    model: str | None, host: str, port: int, device: str, dtype: str, api_key: str | None, timeout: float
):
    """Serves until Ctrl-C or SIGTERM; what is being answered then may be finished within seconds.

    Args:
        model: A folder, or `user/name` on the Hub; the embedded demo by default.
        host, port: Where to listen.
        device: `auto`, or a torch device.
        dtype: `auto` for the stored one, or `float32`, `bfloat16` or `float16`.
        api_key: What clients have to send as bearer token; `None` for no such key.
        timeout: Seconds that a request may take, waiting included.

    Raises:
        ValueError, OSError: As `load_checkpoint`; the key is empty; nobody can listen there.
        ImportError: The packages that serve are not installed.
    """
    with _bound_socket(host, port) as listening:
        server = build_server(model, device, dtype, api_key, timeout, host)
        address = f"[{host}]" if ":" in host else host
        print(
            f"http://{address}:{listening.getsockname()[1]}/v1 serves {served_name(model)}  (Ctrl-C ends)",
            file=sys.stderr,
            flush=True,
        )
        server.run(sockets=[listening])


def build_server(
    model: str | None,
    device: str,
    dtype: str,
    api_key: str | None = None,
    timeout: float = 300.0,
    host: str = "127.0.0.1",
) -> "uvicorn.Server":
    """The server of [`serve_checkpoint`], not yet running, its model loaded."""
    try:
        from .server import ChatServer, ServingLimits
    except ImportError:
        raise ImportError(f"Serving needs some packages more: {install_command('serve')}.") from None
    if api_key == "":
        raise ValueError("The API key is empty: leave it out, or choose one.")
    loaded = load_checkpoint(model or DEMO, None if device == "auto" else device, None if dtype == "auto" else dtype)
    served = ChatServer(ChatCompletions(*loaded), served_name(model), api_key, ServingLimits(timeout=timeout), host)
    return served.server(access_log=False, log_level="error", server_header=False)


def _bound_socket(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not listening yet: nobody waits while the model is loaded.

    Raises:
        OSError: It cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise OSError(f"Nobody can listen on {host}, port {port}: {error.strerror}.") from None
    return bound


def vllm_command(model: str | None, host: str, port: int) -> str:
    """The shell command that serves a checkpoint with vLLM where this package is installed beside it (see `serving`),
    and in comments the one for an environment without it.

    Raises:
        ValueError, OSError: The model is none of Japanese MiniGPT-4, or cannot be read.
    """
    name = str(model or DEMO)
    config = checkpoint_config(name)
    folder = Path(name).resolve()
    served = [str(folder), "--served-model-name", folder.name] if folder.is_dir() else [name]
    command = ["vllm", "serve", *served, "--host", host, "--port", str(port), "--allowed-media-domains", NO_HOST]
    alone = ["--trust-remote-code", "--model-impl", "transformers"]
    alone += ["--hf-overrides", json.dumps({"auto_map": VLLM_AUTO_MAP})]
    options = json.dumps(_request_options(name, config.image_token_id), ensure_ascii=False)
    return "\n".join(
        (
            shlex.join(command),
            f"# where jminigpt4 is not installed: {shlex.join([*command, *alone])}",
            f"# and with each request: {options}",
        )
    )


def _request_options(model: str, image_token_id: int) -> dict[str, Any]:
    """What each request must say where vLLM knows nothing of this package: it computes the head itself, where the
    image token is not masked, samples although a checkpoint says `do_sample: false`, and takes no stop strings from
    one."""
    options: dict[str, Any] = {"logit_bias": {str(image_token_id): -100}}
    try:
        samples = GenerationConfig.from_pretrained(model).do_sample
    except OSError:  # a checkpoint without that file
        samples = False
    options |= {} if samples else {"temperature": 0}
    stop_strings = JMiniGPT4Processor.get_processor_dict(model)[0].get("stop_strings")
    return {**options, "stop": list(stop_strings)} if stop_strings else options
