"""What a benchmark is. A file of this folder that registers one is all it takes to add it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.pictures import PictureFolders
from ..items import Item


@dataclass(frozen=True)
class Request:
    """What a user asked for with `--benchmark NAME[:PROTOCOL][=PATH]`.

    Args:
        name: A key of `BENCHMARKS`.
        protocol: One of the benchmark's protocols; the first by default.
        path: File or folder; `None` for the benchmark's data set on the Hub.
        images: Folders with pictures; that of `path` comes last.
        prompt: What captions are asked with.
        only: File with the image ids to keep.
    """

    name: str
    protocol: str
    path: Path | None
    images: tuple[str, ...] = ()
    prompt: str = ""
    only: Path | None = None

    @property
    def benchmark(self) -> Benchmark:
        return BENCHMARKS[self.name]

    @property
    def title(self) -> str:
        """Name of the benchmark's folder and of its scores: that of the file for one's own."""
        name = self.path.stem if self.benchmark.dataset is None and self.path else self.name
        return f"{name}-{self.protocol}" if self.protocol else name

    @property
    def dataset(self) -> str:
        """The owners' name of the data set; one's own has that of its file."""
        return self.benchmark.dataset or (self.path.name if self.path else self.name)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark as such.

    Args:
        dataset: The owners' name of the data set; `None` where the user's file names it.
        read: Items of a local path and its picture folders, as a request wants them. Pictures that are not there may
            be left to the caller.
        scoring: `captions`, `questions`, `judge`, or a key of `SCORINGS`.
        max_new_tokens: Longest answer, where the user says nothing.
        protocols: Ways of scoring that the field knows for it.
        hub: Its repository on the Hub, where the files that are read here are published there.
        task: Its name in llm-jp-eval-mm.
        hub_tasks: Protocol -> task of the data set on the Hub whose result the benchmark's own score is: `default`,
            or a configuration. Empty where only a part of the data set is asked, or another judge judges.
    """

    dataset: str | None
    read: Callable[[Path, PictureFolders, Request], Iterator[Item]]
    scoring: str
    max_new_tokens: int
    protocols: tuple[str, ...] = ("",)
    hub: str | None = None
    task: str | None = None
    hub_tasks: Mapping[str, str] = field(default_factory=dict)


BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(name: str, **facts: Any) -> Callable:
    """Registers the function below it as what reads the benchmark `name`; `facts` as of [`Benchmark`], where `dataset`
    is by default the repository on the Hub."""

    def register(read: Callable) -> Callable:
        facts.setdefault("dataset", facts.get("hub"))
        BENCHMARKS[name] = Benchmark(read=read, **facts)
        return read

    return register
