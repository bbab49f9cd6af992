"""A Space of the Hub, where visitors talk with a published model on the package's own page.

A Space installs `requirements.txt` before its other files are there, and this package is on no index: so its source
lies in the Space as a folder, and what it needs is installed. Nothing of the model's repository is run.
"""

import importlib.metadata
import shutil
import sys
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from packaging.requirements import Requirement

from .. import DEMO
from ..checkpoint import MANIFEST, finished_folder, is_hub_id, read_manifest, user_path, write_manifest
from ..extras import require
from .card import CARD, with_mark
from .licences import stated_licence
from .publishing import Publication, check_card, find_repository, make_equal
from .repository import check_access, one_line_errors

PACKAGE = Path(__file__).parent.parent
# What the page needs of the package: the hall, and these.
ROOMS = ("chat", "data", "inference")
NOT_NEEDED = ("cli.py", "conftest.py", "setup.py")
APP = '''"""Pictures and questions for {name}, on the page of the package in the folder beside this file."""

import os

from jminigpt4.chat.settings import Settings
from jminigpt4.chat.web import serve_page

in_space = "SPACE_ID" in os.environ
host, port = ("0.0.0.0" if in_space else "127.0.0.1"), int(os.environ.get("GRADIO_SERVER_PORT", 7860))
serve_page(Settings(model={model!r}), host, port, frame="https://huggingface.co" if in_space else None)
'''
README = """---
title: {title}
emoji: 🖼️
colorFrom: indigo
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
license: {licence}
{models}---

# {title}

Show {name} a picture and talk about it.

`python app.py` starts the same page on your own machine.

`app.py` is the whole program; `jminigpt4/` is the package that it runs, with its licence beside it.
"""


def write_space(model: str, out: Path) -> Path:
    """Makes the folder of a Space, and returns its path.

    Args:
        model: Hub id of a published model, which the Space downloads; or `demo`, the embedded miniature, which it has.
        out: The folder to be made.

    Raises:
        FileExistsError: `out` exists and is not empty.
        ImportError: gradio is not installed.
        ValueError: `model` is a folder, or no Hub id.
    """
    require("chat", "gradio")
    repo = _hub_id(model)
    with finished_folder(out) as folder:
        _copy_package(folder / "jminigpt4", demo=repo is None)
        for name in ("LICENSE", "NOTICE"):
            (folder / name).write_text(_licence_text(name), encoding="utf-8")
        (folder / "app.py").write_text(APP.format(name=repo or "the demo", model=repo), encoding="utf-8")
        (folder / "requirements.txt").write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
        (folder / CARD).write_text(_card(repo), encoding="utf-8", newline="")
        write_manifest(folder)
    return Path(out)


def push_space(folder: Path, repo: str, private: bool = False, replace_card: bool = False) -> Publication:
    """Makes a Space of the Hub equal to a folder of [`write_space`], in one commit.

    Args:
        repo: Hub id of the Space. It is made if there is none.
        private, replace_card: As in [`jminigpt4.convert.publish_folder`].

    Raises:
        ValueError: The name is no Hub id or not the user's, the Space is public though `private` was asked for, or its
            card was edited on the Hub.
        OSError: The Hub refuses or cannot be reached. In every case the Space is as it was.
    """
    digests = read_manifest(folder / MANIFEST)
    files = {name: folder / name for name in digests}
    with one_line_errors(repo), tempfile.TemporaryDirectory() as beside:
        api = HfApi()
        check_access(api, repo)
        there = find_repository(api, repo, private, Path(beside), "space")
        if there is not None and not replace_card:
            check_card(there, digests[CARD])
        return make_equal(there or repo, files, digests, api, Path(beside), private, kind="space")


def _hub_id(model: str) -> str | None:
    """`None` for the demo."""
    folder = user_path(model)
    if model == DEMO.name or (folder.is_dir() and folder.samefile(DEMO)):
        return None
    if folder.is_dir():
        raise ValueError(f"{model} is a folder, and a Space loads its model from the Hub: publish it, then name it.")
    if not is_hub_id(model):
        raise ValueError(f"{model!r} is neither a model on the Hub, USER/NAME, nor `demo`.")
    return model


def _copy_package(target: Path, demo: bool):
    files = [path for path in PACKAGE.glob("*.py") if path.name not in NOT_NEEDED]
    files += [path for room in ROOMS for path in (PACKAGE / room).rglob("*.py")]
    files += [path for path in DEMO.rglob("*") if path.is_file() and "__pycache__" not in path.parts] if demo else []
    for path in files:
        copy = target / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _licence_text(name: str) -> str:
    """From the folder that was cloned, or from what was installed of it."""
    if (PACKAGE / "setup.py").is_file():
        return (PACKAGE / name).read_text(encoding="utf-8")
    distribution = importlib.metadata.distribution("jminigpt4")
    text = distribution.read_text(f"licenses/{name}") or distribution.read_text(name)
    if text is None:
        raise FileNotFoundError(f"The installed jminigpt4 has no {name}: install it anew.")
    return text


def _requirements() -> list[str]:
    """What the package needs for the page, as it is stated by itself."""
    found = []
    for line in importlib.metadata.requires("jminigpt4") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and "extra ==" in str(requirement.marker):
            if not requirement.marker.evaluate({"extra": "chat"}):
                continue
            requirement.marker = None
        found.append(str(requirement))
    return sorted(found)


def _card(repo: str | None) -> str:
    return with_mark(
        README.format(
            title=repo.split("/")[1] if repo else "Japanese MiniGPT-4",
            name=f"[{repo}](https://huggingface.co/{repo})" if repo else "the package's embedded miniature",
            gradio=importlib.metadata.version("gradio"),
            python=".".join(map(str, sys.version_info[:2])),
            licence="mit" if repo else stated_licence(DEMO / CARD)["license"],
            models=f"models:\n- {repo}\n" if repo else "",
        )
    )
