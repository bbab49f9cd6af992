"""Under which licences the parts of a checkpoint are, and what may be said of the whole."""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

# A folder of several parts may do what the least permissive of them allows.
STRICTNESS = ["apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"]
# Files of the originals carry no card: layout and part, to licence, whose it is, and its text.
ORIGINALS = {
    ("EVA", "vision"): ("mit", "EVA", "https://github.com/baaivision/EVA/blob/master/LICENSE"),
    ("LAVIS", "vision"): ("mit", "EVA", "https://github.com/baaivision/EVA/blob/master/LICENSE"),
    ("LAVIS", "qformer"): ("bsd-3-clause", "LAVIS", "https://github.com/salesforce/LAVIS/blob/main/LICENSE.txt"),
}
OWN_LICENCE = "the publisher's own work"
TEXTS_FOLDER = "licenses"
LICENCE_TEXTS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class Licence:
    """Licence of one part.

    Attributes:
        name: Identifier of the Hub, or the name that the source's card gives to one of its own; `None` if not stated.
        link: Address of its text, where one is stated.
        holder: Whose work it is, where the source itself does not say it.
    """

    name: str | None
    link: str | None = None
    holder: str | None = None

    @classmethod
    def of_part(cls, part: str, source: dict[str, Any]) -> "Licence":
        """Licence of a part, as the account of a checkpoint states its source."""
        stated = source.get("license")
        if stated is None and source.get("trained"):
            return cls(OWN_LICENCE)
        if stated is None and (source.get("layout"), part) in ORIGINALS:
            name, holder, link = ORIGINALS[source["layout"], part]
            return cls(name, link, holder)
        named = source.get("license_name") if stated == "other" else stated
        link = source.get("license_link")
        if link and not link.startswith(("https://", "http://")):  # a file of the source's repository
            link = f"https://huggingface.co/{source['repo']}/blob/main/{link}" if source.get("repo") else None
        return cls(named or stated, link)

    @property
    def ordinary(self) -> bool:
        """Whether its place among the others is known."""
        return self.name in STRICTNESS

    @property
    def markdown(self) -> str:
        """For a table: name, link and whose it is."""
        text = self.name or "not stated"
        text = f"[{text}]({self.link})" if self.link else text
        return f"{text} ({self.holder})" if self.holder else text


def stated_licence(readme: Path | None) -> dict[str, str | None]:
    """What the card of a source says of its licence: `license`, an identifier of the Hub in lower case, and for one of
    its own `license_name` and `license_link`."""
    data = stated_metadata(readme)
    licence = data.get("license")
    if isinstance(licence, list) and len(licence) == 1:
        licence = licence[0]
    found: dict[str, str | None] = {"license": licence.lower() if isinstance(licence, str) else None}
    for key in ("license_name", "license_link"):
        if isinstance(data.get(key), str):
            found[key] = data[key]
    return found


def stated_list(readme: Path | None, key: str) -> list[str]:
    """A list of the card of a source, for instance its `datasets` or `language`; one name alone counts as a list."""
    stated = stated_metadata(readme).get(key) or []
    stated = [stated] if isinstance(stated, str) else stated
    return [name for name in stated if isinstance(name, str)] if isinstance(stated, list) else []


def stated_metadata(readme: Path | None) -> dict[str, Any]:
    """The metadata of a card; nothing where there is no card, or no YAML in it."""
    if readme is None or not readme.is_file():
        return {}
    try:
        return ModelCard.load(readme).data.to_dict()
    except (ValueError, yaml.YAMLError):
        return {}


def licence_metadata(licences: Iterable[Licence], repo: str | None) -> dict[str, Any]:
    """Licence of the whole, for a card: the least permissive of the parts; `other`, with the names of all, where a
    part's is not stated or is one whose place among the others is not known."""
    licences = [licence for licence in licences if licence.name != OWN_LICENCE]
    if licences and all(licence.ordinary for licence in licences):
        return {"license": max((str(licence.name) for licence in licences), key=STRICTNESS.index)}
    special = [licence for licence in licences if not licence.ordinary]
    names = dict.fromkeys(_slug(licence.name or "not-stated") for licence in [*special, *licences])
    found = {"license": "other", "license_name": "-and-".join(names) or "not-stated"}
    link = special[0].link if len(set(special)) == 1 else None
    link = link or (f"https://huggingface.co/{repo}#parts" if repo else None)
    return found | ({"license_link": link} if link else {})


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def copy_licence_texts(sources: dict[str, Path | None], folder: Path):
    """Copies licences and notices that lie in the folders of the sources to `licenses/PART/`, where every part has
    its own; a part of a checkpoint of this package brings along what it has there.

    Args:
        sources: Part, to the folder of its source.
        folder: The checkpoint.
    """
    for part, source in sources.items():
        if source is None:
            continue
        own = source / TEXTS_FOLDER / part
        place = own if own.is_dir() else source
        texts = {file for pattern in LICENCE_TEXTS for file in place.glob(pattern) if file.is_file()}
        if texts:
            (folder / TEXTS_FOLDER / part).mkdir(parents=True)
        for file in sorted(texts):
            shutil.copyfile(file, folder / TEXTS_FOLDER / part / file.name)
