"""Who is examined: a checkpoint that is loaded here, or a model behind a server."""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .items import Item

if TYPE_CHECKING:
    from .endpoint_answers import EndpointAnswerer
    from .generation import Answerer, Generation


@dataclass(frozen=True)
class Examinee:
    """A model that answers.

    Args:
        name: As its scores call it.
        settings: What its answers depend on besides the questions and how answers are generated.
        answerer: Makes what answers items.
    """

    name: str
    settings: dict[str, Any]
    answerer: "Callable[[Generation, Sequence[Item]], Answerer | EndpointAnswerer]"


def checkpoint_examinee(model: str, device: str | None, dtype: str | None) -> Examinee:
    """A checkpoint, loaded.

    Args:
        model: Folder or Hub id.
        device, dtype: What suits by default.
    """
    from ..inference.loading import fingerprint, load_checkpoint
    from .generation import Answerer

    loaded, processor = load_checkpoint(model, device, dtype)
    settings = {
        "checkpoint": fingerprint(model),
        "device": loaded.device.type,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        **_versions("jminigpt4", "torch", "transformers"),
    }
    return Examinee(model, settings, lambda generation, items: Answerer(loaded, processor, generation, items))


def endpoint_examinee(url: str, model: str) -> Examinee:
    """A model behind an OpenAI-compatible server.

    Raises:
        ConnectionError: No server is there.
        ValueError: The address is none, or the server refuses the key.
    """
    from ..inference.endpoint import Endpoint
    from .endpoint_answers import EndpointAnswerer

    endpoint = Endpoint(url, model)
    endpoint.check()
    settings = {"endpoint": endpoint.url, **_versions("jminigpt4")}
    return Examinee(model, settings, lambda generation, items: EndpointAnswerer(endpoint, generation, items))


def _versions(*packages: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}
