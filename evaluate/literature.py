"""Published scores to stand beside one's own, each with its source and with what makes it comparable or not."""

import json
from dataclasses import dataclass
from pathlib import Path

from .benchmarks import Request


@dataclass(frozen=True)
class Anchor:
    """A published score of `model` in this package's units; `caveat` says what its protocol does besides."""

    benchmark: str
    protocol: str
    metric: str
    model: str
    value: float
    source: str
    address: str
    caveat: str


def anchors(request: Request) -> list[Anchor]:
    """Published scores on the same benchmark by the same protocol, lowest first."""
    rows = json.loads((Path(__file__).parent / "anchors.json").read_text(encoding="utf-8"))
    own = (Anchor(**row) for row in rows if (row["benchmark"], row["protocol"]) == (request.name, request.protocol))
    return sorted(own, key=lambda anchor: anchor.value)
