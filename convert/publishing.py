"""A folder to the Hub: verified first, with its card and its code, in one commit."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi

from ..checkpoint import MANIFEST, SCORES, write_manifest
from .account import CONVERSION
from .card import write_card
from .verification import UNLISTED, verify_folder


def publish_folder(folder: Path, repo: str, private: bool = False, datasets: Iterable[str] = ()) -> str:
    """Uploads a checkpoint folder and returns the address of its commit.

    The card is written anew for the repository's name and with the scores, if `scores.json` was laid into the folder;
    the folder itself stays as it is.

    Args:
        repo: Hub id, `USER/NAME`. It is made if there is none.
        private: Whether a new repository is private.
        datasets: What the projection was trained on, as Hub ids, for the card.

    Raises:
        ValueError: The folder is not whole; nothing is uploaded.
    """
    # Scores are laid into a finished folder for its card.
    problems = [problem for problem in verify_folder(folder) if problem != f"{SCORES} {UNLISTED}"]
    if problems:
        raise ValueError(f"{folder} is not published: {' '.join(problems)}")
    if repo.count("/") != 1:
        raise ValueError(f"{repo!r} is not a Hub id: write USER/NAME.")
    api = HfApi()
    created = api.create_repo(repo, private=private, exist_ok=True).repo_id
    # Card and manifest of the published folder name the repository; they go up from beside the weights.
    with tempfile.TemporaryDirectory() as beside:
        staged = Path(beside) / "folder"
        shutil.copytree(folder, staged, copy_function=_link)
        (staged / "README.md").unlink(missing_ok=True)
        (staged / MANIFEST).unlink()
        if (folder / CONVERSION).is_file():
            write_card(staged, created, datasets)
        elif (folder / "README.md").is_file():
            shutil.copyfile(folder / "README.md", staged / "README.md")
        write_manifest(staged)
        commit = api.upload_folder(repo_id=created, folder_path=staged, commit_message="Upload with jminigpt4")
    return commit.commit_url


def _link(source: str, target: str):
    Path(target).symlink_to(Path(source).resolve())
