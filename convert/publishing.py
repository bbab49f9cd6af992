"""A folder to the Hub: checked first, then in one commit that makes the repository equal to the folder."""

import fnmatch
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..checkpoint import MANIFEST, SCORES, manifest_text, read_manifest, sha256, user_path
from .account import CONVERSION
from .card import CARD, is_generated, render_card
from .eval_results import EVAL_RESULTS, render_eval_results
from .repository import Repository, check_access, complete_or_removed, one_line_errors
from .verification import UNLISTED, verify_folder

# What loaders of transformers look for in a folder: a file of another version among these is loaded, or stops loading.
LOADED = ("*.py", "*.jinja", "*config.json", "*tokenizer*", "*index.json", "adapter_*", "model*", "pytorch_model*")
LOADED += ("vocab*", "merges.txt", "*tokens*.json", "spiece.model", "tf_model*", "flax_model*", CONVERSION, MANIFEST)


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
) -> Publication:
    """Makes a Hub repository equal to a checkpoint folder, in one commit.

    What the folder does not have is deleted, but for files whose names begin with a dot (`.gitattributes`) and those
    to `keep`; they are listed in the published `SHA256SUMS` with the others. A card that the package wrote is written
    anew, for the repository's name and with the scores, if `scores.json` was laid into the folder; one that a person
    edited goes up as it is. Scores that the Hub has a place for go into `.eval_results/jminigpt4.yaml`, which is
    deleted where there are none. The folder itself stays as it is. A new repository is private until it is complete,
    and removed again where that fails.

    Args:
        repo: Hub id, `USER/NAME`. It is made if there is none.
        private: Whether the repository is to be private. One that is private stays so in either case.
        datasets: What the projection was trained on, as Hub ids, for the card.
        keep: Patterns of `fnmatch`: files of the repository that stay. `README.md` keeps the card of the Hub.
        replace_card: Whether a card that was edited on the Hub may be overwritten.

    Raises:
        ValueError: The name is no Hub id or not the user's, the repository is public though `private` was asked for,
            its card was edited on the Hub, `keep` would keep what loaders load, or the folder is not whole.
        OSError: The Hub refuses or cannot be reached. In every case the repository is as it was.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    with one_line_errors(repo), tempfile.TemporaryDirectory() as beside:
        api = HfApi()
        check_access(api, repo)
        there = Repository.find(api, repo, Path(beside) / "repository")
        if there is not None and private and not there.private:
            raise ValueError(
                f"{repo} is public: change that in its settings on the Hub first, or publish without --private."
            )
        files, digests = _verified(folder)
        if (card := _card(folder, repo, datasets)) is not None:
            files[CARD] = Path(beside) / CARD
            files[CARD].write_text(card, encoding="utf-8", newline="")
            digests[CARD] = sha256(files[CARD])
        if (results := render_eval_results(folder, repo)) is not None:
            files[EVAL_RESULTS] = Path(beside) / "eval_results.yaml"
            files[EVAL_RESULTS].write_text(results, encoding="utf-8", newline="")
            digests[EVAL_RESULTS] = sha256(files[EVAL_RESULTS])
        if there is not None and not replace_card:
            _check_card(there, digests.get(CARD), keep)
        with complete_or_removed(api, repo, private) if there is None else nullcontext():
            now = there or Repository.read(api, repo, Path(beside) / "repository")
            deleted = _reconcile(now, files, digests, keep)
            url = _commit(api, now, files, digests, deleted)
    return Publication(url, there.private if there else private, deleted)


def _verified(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Path and SHA-256 of every file of the folder, each read once."""
    # Scores are laid into a finished folder for its card.
    problems = [problem for problem in verify_folder(folder) if problem != f"{SCORES} {UNLISTED}"]
    if problems:
        raise ValueError(f"{folder} is not published: {' '.join(problems)}")
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


def _check_card(there: Repository, new: str | None, keep: Sequence[str]):
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
            there.repo, operations, commit_message="Upload with jminigpt4", parent_commit=there.commit
        )
    except RuntimeError as error:  # of hf_xet
        raise ConnectionError(str(error)) from error
    return commit.commit_url


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
