"""The bill of materials of a checkpoint, `aibom.cdx.json`: CycloneDX 1.6 with model cards (https://cyclonedx.org/docs/1.6/).

It says again, for programs that collect such lists, what `conversion.json` says: parts, their sources and licences,
data, and the proof. It holds no time and no random number: the same folder always gives the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import torch

from .. import __version__
from ..checkpoint import AIBOM, open_weights
from ..extras import require
from ..inference.folder import read_config
from ..inference.stored_weights import stored_tensors
from .account import Account
from .licences import Licence

TOKENIZER = "tokenizer.json"
# Names of tensors, without `model.` before them, by the part that they belong to.
PARTS = {
    "vision": ("vision_model.",),
    "qformer": ("qformer.", "query_tokens", "vision_layernorm."),
    "projection": ("language_projection.",),
    "language": ("language_model.", "lm_head."),
}
TITLES = {
    "vision": "image encoder",
    "qformer": "Q-Former",
    "projection": "projection",
    "language": "language model",
    "tokenizer": "tokenizer",
}
# The order in which a person reads them.
KINDS = ("machine-learning-model", "data", "file")
KEYS = ("$schema", "bomFormat", "specVersion", "serialNumber", "version", "metadata", "components", "dependencies")
HASH_OF = r"per tensor, in the order of their names: 'NAME DTYPE SHAPE\n' and its bytes, as they lie in safetensors"


def render_aibom(folder: Path, name: str, files: dict[str, str], datasets: Iterable[str] = ()) -> str:
    """Text of the bill of materials of a checkpoint folder.

    Args:
        name: What the checkpoint is called.
        files: SHA-256 of the files that it shall list.
        datasets: What the projection was trained on, as Hub ids, next to those the account names.

    Raises:
        ImportError: cyclonedx-python-lib is not installed.
    """
    require("sign", "cyclonedx")
    boms, components = _library("model.bom"), _library("model.component")
    account = Account.read(folder)
    trained_on = account.all_sources(folder).get("projection", {}).get("trained_on", [])
    data = list(dict.fromkeys([*account.datasets, *datasets, *trained_on]))
    whole = components.Component(
        name=name,
        type=components.ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="model",
        properties=_properties(_facts(account, folder)),
    )
    kinds = components.ComponentType
    tool = components.Component(name="jminigpt4", version=__version__, type=kinds.APPLICATION, bom_ref="tool")
    tools = _library("model.tool").ToolRepository(components=[tool])
    parts = _parts(account, folder, files)
    sets = [components.Component(name=each, type=kinds.DATA, bom_ref=f"dataset:{each}") for each in data]
    listed = [_file(each, digest) for each, digest in sorted(files.items())]
    bom = boms.Bom(
        components=[*parts, *sets, *listed],
        metadata=boms.BomMetaData(component=whole, tools=tools),
        serial_number=UUID(int=0),
    )
    bom.register_dependency(whole, [*parts, *listed])
    bom.register_dependency(next(part for part in parts if part.bom_ref.value == "part:projection"), sets)
    return _completed(
        json.loads(_library("output.json").JsonV1Dot6(bom).output_as_string()), read_config(folder), data
    )


def aibom_problems(folder: Path, listed: dict[str, str]) -> list[str]:
    """Where the bill of materials in a folder is of other files, one sentence each.

    Args:
        listed: SHA-256 of the folder's files, as its `SHA256SUMS` states them.
    """
    if not (folder / AIBOM).is_file():
        return []
    try:
        bom = json.loads((folder / AIBOM).read_text(encoding="utf-8"))
        files = {each["name"]: each["hashes"][0]["content"] for each in bom["components"] if each["type"] == "file"}
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return [f"{AIBOM} is no bill of materials of this package."]
    other = (name for name, digest in sorted(files.items()) if listed.get(name) != digest)
    return [f"{AIBOM} lists another {name} than is here." for name in other]


def part_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each part's tensors, see `HASH_OF`: equal where two checkpoints share a part, whatever files it lies
    in."""
    tensors = stored_tensors(folder)
    digests = {part: hashlib.sha256() for part in PARTS}
    with ExitStack() as stack:
        opened = {file: stack.enter_context(open_weights(file)) for file in {each.file for each in tensors.values()}}
        for name in sorted(tensors):
            weights, own = opened[tensors[name].file], name.removeprefix("model.")
            digest = next((digests[part] for part, starts in PARTS.items() if own.startswith(starts)), None)
            if digest is not None:
                entry = weights.get_slice(name)
                digest.update(f"{name} {entry.get_dtype()} {entry.get_shape()}\n".encode())
                digest.update(memoryview(weights.get_tensor(name).reshape(-1).view(torch.uint8).numpy()))
    return {part: digest.hexdigest() for part, digest in digests.items()}


def _library(module: str) -> Any:
    """A module of cyclonedx-python-lib, whose decorators hide the arguments of its classes from type checkers."""
    return import_module(f"cyclonedx.{module}")


def _facts(account: Account, folder: Path) -> dict[str, str]:
    """What is said of the whole: prompt format, notes, and how it was proved."""
    facts = {"prompt-format": account.prompt_format or "", "converted-with": f"jminigpt4 {account.jminigpt4}"}
    facts |= {f"note:{number}": note for number, note in enumerate(account.all_notes(folder), 1)}
    facts["proof"] = "not asked for" if account.proof is None else "each stage beside its source's own module"
    if account.proof and account.trained_since(folder):
        facts["proof"] += f", before {' and '.join(account.trained_parts(folder))} was trained"
    for row in account.proof or []:
        figures = f"max abs difference {row['max_abs_difference']:.2e}, tolerance {row['tolerance']:.2e}"
        facts[f"proof:{row['stage']}"] = figures
    return facts


def _parts(account: Account, folder: Path, files: dict[str, str]) -> list[Any]:
    components = _library("model.component")
    sources, digests = account.all_sources(folder), part_digests(folder)
    parts = []
    for part, title in TITLES.items():
        source = sources.get("language" if part == "tokenizer" else part, {})
        about = {"from": source.get("name") or "freshly initialised", "layout": source.get("layout") or ""}
        about["through"] = source.get("through") or ""
        about["hash-of"] = TOKENIZER if part == "tokenizer" else HASH_OF
        repo = source.get("repo")
        parts.append(
            components.Component(
                name=title,
                type=components.ComponentType.MACHINE_LEARNING_MODEL,
                bom_ref=f"part:{part}",
                version=source.get("commit"),
                hashes=_hashes(files.get(TOKENIZER) if part == "tokenizer" else digests[part]),
                licenses=_licences(Licence.of_part(part, source)) if source else [],
                purl=_address(repo, source.get("commit")) if repo else None,
                external_references=_references(repo, source.get("commit")) if repo else [],
                properties=_properties(about),
            )
        )
    return parts


def _file(name: str, digest: str) -> Any:
    components = _library("model.component")
    return components.Component(
        name=name, type=components.ComponentType.FILE, bom_ref=f"file:{name}", hashes=_hashes(digest)
    )


def _hashes(digest: str | None) -> list[Any]:
    model = _library("model")
    return [model.HashType(alg=model.HashAlgorithm.SHA_256, content=digest)] if digest else []


def _licences(licence: Licence) -> list[Any]:
    """By its SPDX identifier where it has one; none where none is stated."""
    if licence.name is None:
        return []
    url = _library("model").XsUri(licence.link) if licence.link else None
    known = _library("spdx").fixup_id(licence.name)
    name = {"id": known} if known else {"name": licence.name}
    return [_library("model.license").DisjunctiveLicense(**name, url=url)]


def _address(repo: str, commit: str | None) -> Any:
    from packageurl import PackageURL

    owner, _, name = repo.rpartition("/")
    return PackageURL("huggingface", owner or None, name, commit)


def _references(repo: str, commit: str | None) -> list[Any]:
    model = _library("model")
    url = f"https://huggingface.co/{repo}" + (f"/tree/{commit}" if commit else "")
    return [model.ExternalReference(type=model.ExternalReferenceType.DISTRIBUTION, url=model.XsUri(url))]


def _properties(values: dict[str, str]) -> list[Any]:
    model = _library("model")
    return [model.Property(name=f"jminigpt4:{name}", value=value) for name, value in values.items() if value]


def _completed(bom: dict[str, Any], config: Any, datasets: list[str]) -> str:
    """With what cyclonedx-python-lib does not write, model cards and data, without the time that it writes, and with a
    serial number that follows from the content."""
    del bom["metadata"]["timestamp"], bom["serialNumber"]
    by_ref = {each["bom-ref"]: each for each in bom["components"]}
    for name in datasets:
        content = {"contents": {"url": f"https://huggingface.co/datasets/{name}"}} if name.count("/") == 1 else {}
        by_ref[f"dataset:{name}"]["data"] = [{"type": "dataset", "name": name, **content}]
    architectures = {
        "vision": config.vision_config.model_type,
        "qformer": config.qformer_config.model_type,
        "projection": "linear" if config.projector_hidden_act is None else "mlp",
        "language": config.text_config.model_type,
    }
    for part, architecture in architectures.items():
        by_ref[f"part:{part}"]["modelCard"] = {"modelParameters": {"modelArchitecture": architecture}}
    learnt = [{"ref": f"dataset:{name}"} for name in datasets]
    by_ref["part:projection"]["modelCard"]["modelParameters"] |= {"datasets": learnt} if learnt else {}
    about = {"task": "image-text-to-text", "modelArchitecture": config.model_type}
    bom["metadata"]["component"]["modelCard"] = {"modelParameters": about}
    bom["components"].sort(key=lambda each: KINDS.index(each["type"]))
    content = hashlib.sha256(json.dumps(bom, sort_keys=True).encode()).hexdigest()
    bom["serialNumber"] = f"urn:uuid:{uuid5(NAMESPACE_URL, content)}"
    return json.dumps({key: bom[key] for key in KEYS if key in bom}, indent=2, ensure_ascii=False) + "\n"
