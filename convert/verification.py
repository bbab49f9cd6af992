"""Whether a folder is what was written: every byte by its SHA-256, and that its files belong together."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from ..checkpoint import (
    AIBOM,
    MANIFEST,
    SCORES,
    SIGNATURE,
    finished_file,
    manifest_text,
    read_manifest,
    sha256,
    user_path,
    verify_manifest,
)
from ..inference.folder import processor_problems, read_config, read_processor, readable
from ..inference.stored_weights import (
    finite_problems,
    model_without_memory,
    read_stored,
    stored_tensors,
    weight_problems,
)
from .aibom import aibom_problems
from .answer_end import end_problem, stated_ends
from .signing import Trust, signature_problems

UNLISTED = f"is not listed in {MANIFEST}."
# What a person writes or edits; nothing that a loader reads.
DOCUMENTS = ("*.md", "LICENSE*", "LICENCE*", "NOTICE*", "licenses/*", "*.cff", "*.bib", SCORES, AIBOM, SIGNATURE)
TELLING = ("config.json", "safetensors", "tokenizer.json", MANIFEST)


def verify_folder(folder: Path, trust: Trust | None = None) -> list[str]:
    """Problems of a checkpoint folder, one sentence each; none if it is whole.

    Checks the SHA-256 of every file, that a signature and a bill of materials, where there are such, are of these very
    files, that the weights are exactly the tensors of the configured model and finite, and that tokenizer, image token
    and embedding table fit one another.

    Args:
        trust: Whose signature there has to be. Without it nobody's is asked for, and it is not known whose one is.

    Raises:
        FileNotFoundError: There is no such folder, or it has no `SHA256SUMS`.
        ImportError: `trust` is given, and model-signing is not installed.
        ValueError, OSError: The key of `trust` is none.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    problems = _manifest_problems(folder) + _seal_problems(folder, trust)
    if any(name in problem for problem in problems for name in TELLING if not problem.endswith(UNLISTED)):
        return problems  # what is not the written file has nothing to say about the others
    try:
        return problems + _part_problems(folder)
    except (ValueError, OSError) as error:
        return [*problems, str(error)]


def renew_documents(folder: Path, names: Iterable[str]):
    """Lists documents of a folder in its `SHA256SUMS` as they are today: one that was edited, added or removed.

    Raises:
        FileNotFoundError: The folder has no `SHA256SUMS`.
        ValueError: One is no document, as weights, code and settings never are; nothing is renewed then.
    """
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: it was not written by jminigpt4, or not completely.")
    listed = read_manifest(folder / MANIFEST)
    for name in names:
        if not any(fnmatchcase(name, pattern) for pattern in DOCUMENTS) or name.endswith(".py") or ".." in name:
            raise ValueError(
                f"{name} cannot be renewed: only documents can ({', '.join(DOCUMENTS)}). Weights, code and settings "
                "that changed are restored, or the folder is made anew."
            )
        if (folder / name).is_file():
            listed[name] = sha256(folder / name)
        elif listed.pop(name, None) is None:
            raise ValueError(f"{name} is neither in {folder} nor listed there.")
    with finished_file(folder / MANIFEST) as temporary:
        temporary.write_text(manifest_text(listed), encoding="utf-8", newline="")


def _manifest_problems(folder: Path) -> list[str]:
    try:
        return verify_manifest(folder)
    except ValueError:  # a line of another form, or bytes that are no text
        return [f"{MANIFEST} has changed: it is not a list of sha256sum any more."]


def _seal_problems(folder: Path, trust: Trust | None) -> list[str]:
    try:
        listed = read_manifest(folder / MANIFEST)
    except ValueError:  # a problem already: nothing can be compared with such a list
        return []
    return signature_problems(folder, listed, trust) + aibom_problems(folder, listed)


def _part_problems(folder: Path) -> list[str]:
    config = read_config(folder)
    tensors = stored_tensors(folder)
    with readable(folder / "config.json"):
        model = model_without_memory(config, stored=len(tensors))
    problems = weight_problems(model, tensors) + finite_problems(read_stored(tensors))
    processor = read_processor(folder)
    problems += processor_problems(processor, config)
    if not processor.chat_template:
        return [*problems, "chat_template.jinja is missing or empty."]
    problem = end_problem(processor, stated_ends(folder))
    return [*problems, problem] if problem else problems
