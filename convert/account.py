"""`conversion.json`, the account of a checkpoint: where its parts came from, what was left out, and the proof."""

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .. import __version__

CONVERSION = "conversion.json"
# `jminigpt4 train` gives a trained projection a file of its own.
TRAINED_PROJECTION = "model-projection.safetensors"
FRESH = "The projection is freshly initialised: it has to be trained before the model says anything of use."
TRAINED = "The projection was trained with `jminigpt4 train`."
# What `jminigpt4 train` calls the parts that may learn with it.
LEARNT = {"language": "the language model", "qformer": "the Q-Former", "vision": "the image encoder"}


@dataclass
class Account:
    """What a conversion says of the checkpoint that it made.

    Attributes:
        jminigpt4: Version of the package that wrote it.
        prompt_format: Name of the prompt format.
        sources: For each part (`vision`, `qformer`, `language`, `projection`) its `name`, Hub `repo` and `commit`,
            `layout`, `license` (with `license_name` and `license_link` where its card states them), `languages` that
            its card names, and the tensors `left_out`, counted by reason. A projection that was trained with this
            package is `trained`, and says what it was `trained_on`, and which `trained_parts` learnt with it.
        fresh_projection: Whether the conversion initialised the projection, so that it was of no use that day.
        datasets: Hub ids of what the projection was trained on.
        notes: What the user should know, one sentence each.
        proof: Rows of [`jminigpt4.convert.proof.Proof`]; `None` where none was asked for.
        language_code: Classes of the language model's own code, Auto class to `file.Class`.
    """

    jminigpt4: str = __version__
    prompt_format: str | None = None
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    fresh_projection: bool = False
    datasets: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    proof: list[dict[str, Any]] | None = None
    language_code: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "Account":
        """The account of a folder, an empty one where it has none; keys of later versions are passed over.

        Raises:
            ValueError: The file is no account.
        """
        path = Path(folder) / CONVERSION
        if not path.is_file():
            return cls()
        try:
            stated = json.loads(path.read_text(encoding="utf-8"))
            account = cls(**{each.name: stated[each.name] for each in fields(cls) if each.name in dict(stated)})
            kinds = [type(each) for each in (stated, account.sources, account.notes, account.language_code)]
        except (ValueError, TypeError):
            kinds = []
        if kinds != [dict, dict, list, dict]:
            raise ValueError(f"{path} is not the account of a conversion: restore it, or convert again.")
        if "fresh_projection" not in stated:  # 0.1.0 had the sentence among its notes, and no other mark
            account.fresh_projection = bool(account.sources) and "projection" not in account.sources
            account.notes = [note for note in account.notes if note != FRESH]
        return account

    def write(self, folder: str | os.PathLike) -> Path:
        """Writes the account into a folder and returns its path."""
        path = Path(folder) / CONVERSION
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    def trained_since(self, folder: str | os.PathLike) -> bool:
        """Whether the projection in the folder is one that was trained after the account was written."""
        return (Path(folder) / TRAINED_PROJECTION).is_file()

    def all_sources(self, folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
        """The sources, with the projection that lies in the folder today, which may be one trained since, and with it
        other parts."""
        if not self.trained_since(folder):
            return self.sources
        projection = trained_projection(Path(folder) / TRAINED_PROJECTION)
        trained = {
            part: {**source, "name": f"{source['name']}, {projection['name']}"}
            for part, source in self.sources.items()
            if part in projection.get("trained_parts", ()) and "name" in source
        }
        return self.sources | trained | {"projection": projection}

    def trained_parts(self, folder: str | os.PathLike) -> list[str]:
        """What was trained with this package, in words: the projection, and other parts with it."""
        parts = self.all_sources(folder).get("projection", {}).get("trained_parts", [])
        return ["the projection", *(LEARNT.get(part, part) for part in parts)]

    def all_notes(self, folder: str | os.PathLike) -> list[str]:
        """The notes, and what is true of the folder's projection today."""
        trained = self.all_sources(folder).get("projection", {}).get("trained")
        *parts, last = self.trained_parts(folder)
        several = f"T{', '.join(parts)[1:]} and {last} were trained with `jminigpt4 train`."
        return self.notes + ([several if parts else TRAINED] if trained else [FRESH] if self.fresh_projection else [])


def trained_projection(path: Path) -> dict[str, Any]:
    """Account of a projection that `jminigpt4 train` wrote, from what its file says of itself."""
    try:
        with safe_open(path, framework="pt") as file:
            stated = file.metadata() or {}
    except SafetensorError:  # that it is damaged is said by `verify`
        stated = {}
    data, parts = (
        [name for name in stated.get(key, "").split(", ") if name] for key in ("trained_on", "trained_parts")
    )
    name = f"trained with jminigpt4{' on ' + ', '.join(data) if data else ''}"
    source = {"name": name, "layout": "projection", "license": None, "trained": True, "trained_on": data}
    return {**source, "trained_parts": parts} if parts else source
