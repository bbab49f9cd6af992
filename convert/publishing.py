"""A folder to the Hub: checked first, then in one commit that makes the repository equal to the folder."""

import fnmatch
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..checkpoint import (
    AIBOM,
    MANIFEST,
    SCORES,
    SIGNATURE,
    manifest_text,
    read_manifest,
    sha256,
    user_path,
)
from .account import CONVERSION
from .card import CARD, is_generated, render_card
from .eval_results import EVAL_RESULTS, render_eval_results
from .repository import Repository, check_access, complete_or_removed, one_line_errors
from .sealing import open_seal, seal
from .signing import covered
from .verification import UNLISTED, verify_folder

# What loaders of transformers look for in a folder: a file of another version among these is loaded, or stops loading.
LOADED = ("*.py", "*.jinja", "*config.json", "*tokenizer*", "*index.json", "adapter_*", "model*", "pytorch_model*")
LOADED += ("vocab*", "merges.txt", "*tokens*.json", "spiece.model", "tf_model*", "flax_model*", CONVERSION, MANIFEST)
LOADED += (SIGNATURE, AIBOM)


@dataclass
class Publication:
    """What was published.

    Attributes:
        url: Address of the commit.
        private: Whether the repository is private.
        deleted: Files of the repository that the commit deleted, as the folder does not have them.
    """

    url: str
    private: bool
    deleted: list[str] = field(default_factory=list)


def publish_folder(
    folder: Path,
    repo: str,
    private: bool = False,
    datasets: Iterable[str] = (),
    keep: Sequence[str] = (),
    replace_card: bool = False,
    sign: str | None = None,
    aibom: bool = False,
) -> Publication:
    """Makes a Hub repository equal to a checkpoint folder, in one commit.

    What the folder does not have is deleted, but for files whose names begin with a dot (`.gitattributes`) and those
    to `keep`; they are listed in the published `SHA256SUMS` with the others. A card that the package wrote is written
    anew, for the repository's name and with the scores, if `scores.json` was laid into the folder; one that a person
    edited goes up as it is. Scores that the Hub has a place for go into `.eval_results/jminigpt4.yaml`, which is
    deleted where there are none. The folder itself stays as it is, but for signature and bill of materials, which are
    written into it. A new repository is private until it is complete, and removed again where that fails.

    Args:
        repo: Hub id, `USER/NAME`. It is made if there is none.
        private: Whether the repository is to be private. One that is private stays so in either case.
        datasets: What the projection was trained on, as Hub ids, for the card.
        keep: Patterns of `fnmatch`: files of the repository that stay. `README.md` keeps the card of the Hub.
        replace_card: Whether a card that was edited on the Hub may be overwritten.
        sign: File of a private key, or `sigstore`; see [`jminigpt4.convert.signing.open_signer`].
        aibom: Whether to write a bill of materials.

    Raises:
        ImportError: To sign, or for a bill of materials, a package is needed that is not installed.
        ValueError: The name is no Hub id or not the user's, the repository is public though `private` was asked for,
            its card was edited on the Hub, `keep` would keep what loaders load or no signature covers, the folder is
            not whole, or the key is none.
        OSError: The Hub refuses or cannot be reached. In every case the repository is as it was.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    signer = open_seal(sign, aibom, folder)
    with one_line_errors(repo), tempfile.TemporaryDirectory() as beside:
        api = HfApi()
        check_access(api, repo)
        there = find_repository(api, repo, private, Path(beside) / "repository")
        _check_and_seal(folder, signer, repo if aibom else None, datasets)
        files, digests = _listed(folder)
        if (card := _card(folder, repo, datasets)) is not None:
            files[CARD] = Path(beside) / CARD
            files[CARD].write_text(card, encoding="utf-8", newline="")
            digests[CARD] = sha256(files[CARD])
        if (results := render_eval_results(folder, repo)) is not None:
            files[EVAL_RESULTS] = Path(beside) / "eval_results.yaml"
            files[EVAL_RESULTS].write_text(results, encoding="utf-8", newline="")
            digests[EVAL_RESULTS] = sha256(files[EVAL_RESULTS])
        if there is not None and not replace_card:
            check_card(there, digests.get(CARD), keep)
        return make_equal(there or repo, files, digests, api, Path(beside) / "repository", private, keep)


def seal_folder(folder: Path, sign: str | None = None, aibom: bool = False, datasets: Iterable[str] = ()):
    """Signature and bill of materials for a checkpoint folder, which stays on this machine.

    Args:
        sign, aibom, datasets: As in [`publish_folder`], whose errors these are as well.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    _check_and_seal(folder, open_seal(sign, aibom, folder), folder.resolve().name if aibom else None, datasets)


def find_repository(api: HfApi, repo: str, private: bool, folder: Path, kind: str = "model") -> Repository | None:
    """The repository as it is, `None` where there is none; its small files are fetched to `folder`.

    Raises:
        ValueError: It is public, and is to be private.
    """
    there = Repository.find(api, repo, folder, kind)
    if there is not None and private and not there.private:
        raise ValueError(
            f"{repo} is public: change that in its settings on the Hub first, or publish without --private."
        )
    return there


def make_equal(
    there: Repository | str,
    files: dict[str, Path],
    digests: dict[str, str],
    api: HfApi,
    folder: Path,
    private: bool,
    keep: Sequence[str] = (),
    kind: str = "model",
) -> Publication:
    """Makes a repository equal to `files`, in one commit; see [`publish_folder`].

    Args:
        there: The repository, or the name of one that is to be made.
        digests: SHA-256 of the files.
        folder: Where small files of the repository are fetched to.
    """
    new = isinstance(there, str)
    with complete_or_removed(api, there, private, kind) if isinstance(there, str) else nullcontext():
        now = Repository.read(api, there, folder, kind=kind) if isinstance(there, str) else there
        deleted = _reconcile(now, files, digests, keep)
        url = _commit(api, now, files, digests, deleted)
    return Publication(url, private if new else now.private, deleted)


def _check_and_seal(folder: Path, signer: Any, aibom: str | None, datasets: Iterable[str]):
    """Raises `ValueError` where the folder is not whole, but for what is written anew; see [`seal`]."""
    renewed = [name for name, anew in ((SIGNATURE, signer), (AIBOM, aibom)) if anew]
    problems = [problem for problem in verify_folder(folder) if problem.split(" ")[0] not in renewed]
    problems = [problem for problem in problems if problem != f"{SCORES} {UNLISTED}"]  # laid in for the card
    if problems:
        raise ValueError(f"{folder} is not published: {' '.join(problems)}")
    seal(folder, signer, aibom, datasets)


def _listed(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Path and SHA-256 of every file of the folder."""
    digests = read_manifest(folder / MANIFEST)
    if (folder / SCORES).is_file():
        digests[SCORES] = sha256(folder / SCORES)
    return {name: folder / name for name in digests}, digests


def _card(folder: Path, repo: str, datasets: Iterable[str]) -> str | None:
    """The card written anew; `None` where the folder's own is to go up as it is."""
    own = folder / CARD
    if not (folder / CONVERSION).is_file() or (own.is_file() and not is_generated(own.read_bytes())):
        return None
    return render_card(folder, repo, datasets)


def check_card(there: Repository, new: str | None, keep: Sequence[str] = ()):
    """Raises `ValueError` where the card on the Hub is one that a person edited, and is not to be kept."""
    if CARD not in there.names or _matches(CARD, keep) or there.digest(CARD) in (new, there.listed.get(CARD)):
        return
    if not is_generated(there.fetch(CARD).read_bytes()):
        raise ValueError(
            f"{CARD} of {there.repo} was edited on the Hub: keep that one with --keep {CARD}, or overwrite it with "
            "--replace-card."
        )


def _reconcile(there: Repository, files: dict[str, Path], digests: dict[str, str], keep: Sequence[str]) -> list[str]:
    """What the commit deletes; `files` loses the card that is kept, and `digests` gains what stays."""
    if CARD in there.names and _matches(CARD, keep):
        files.pop(CARD, None)
    surplus = sorted(there.names - files.keys() - {MANIFEST})
    kept = [name for name in surplus if (name.startswith(".") and name != EVAL_RESULTS) or _matches(name, keep)]
    loaded = [name for name in kept if "/" not in name and _matches(name, LOADED)]
    if loaded:
        raise ValueError(
            f"{', '.join(loaded)} of {there.repo} cannot be kept: it would be loaded with the folder's files, or in "
            "their place."
        )
    if SIGNATURE in files and (outside := covered(kept)):
        raise ValueError(
            f"{', '.join(outside)} of {there.repo} cannot be kept beside {SIGNATURE}, which covers every file: lay it "
            "into the folder before that is signed."
        )
    digests.update({name: there.digest(name) for name in kept})
    return [name for name in surplus if name not in kept]


def _commit(api: HfApi, there: Repository, files: dict[str, Path], digests: dict[str, str], deleted: list[str]) -> str:
    operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(name) for name in deleted]
    for name, path in files.items():
        addition = CommitOperationAdd(name, path)
        addition.upload_info.sha256 = bytes.fromhex(digests[name])  # gigabytes are not read once more for it
        operations.append(addition)
    operations.append(CommitOperationAdd(MANIFEST, manifest_text(digests).encode()))
    # Not `upload_folder`, nor `upload_large_folder`: they split a large folder into several commits, and between two
    # of them a stranger would load half of each. Large files go up before the commit, and not again if that fails.
    try:
        commit = api.create_commit(
            there.repo,
            operations,
            commit_message="Upload with jminigpt4",
            parent_commit=there.commit,
            repo_type=there.kind,
        )
    except RuntimeError as error:  # of hf_xet
        raise ConnectionError(str(error)) from error
    return commit.commit_url


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
