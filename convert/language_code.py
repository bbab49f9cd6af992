"""Code of a language model's own repository: run only for a model that the user names, and carried along then.

A type of model that transformers does not know comes with `auto_map` in its config.json and Python files beside it.
Once its classes are registered it is a language model like any other. A folder made of one holds those files, and its
own `configuration_` and `modeling_jminigpt4.py` register them, for whoever loads it with `trust_remote_code=True`.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module, get_relative_import_files
from transformers.models.auto import CONFIG_MAPPING

from .account import Account
from .sources import Source


def register_language_code(source: Source, trusted: str | None) -> dict[str, str]:
    """Runs the code of a language model's repository and registers its classes with transformers' Auto classes.

    Args:
        source: The language model; its type is none that transformers knows.
        trusted: The model whose code the user allows, spelt as the source is.

    Returns:
        `auto_map` of the model: Auto class to `file.Class`.

    Raises:
        ValueError: The model was not named, or its code is incomplete or lies in another repository.
    """
    model_type = source.config["model_type"]
    if trusted is None or trusted not in (source.name, source.public_name):
        named = f", not {trusted!r}" if trusted else ""
        raise ValueError(
            f"{source.name} is of type {model_type!r}, which transformers does not know: it needs code of its own "
            f"repository, and that is run only for a model you name{named}. Read its .py files, then give "
            f"`--trust-language-code {source.public_name}`; or take another model."
        )
    auto_map = source.config.get("auto_map") or {}
    needed = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
    missing = [name for name in needed if name not in auto_map]
    if missing:
        raise ValueError(
            f"The auto_map of {source.name} lacks {', '.join(missing)}: without them its code cannot be used as a "
            "language model."
        )
    references = {name: auto_map[name] for name in needed}
    elsewhere = [reference for reference in references.values() if "--" in reference]
    if elsewhere:
        raise ValueError(
            f"{source.name} runs code of another repository ({elsewhere[0]}), which you did not name: download it, "
            "put the files beside the model and correct its config.json."
        )
    _register(model_type, references, source.repo or source.need_folder(), source.commit)
    return references


def _register(model_type: str, references: dict[str, str], place: str | Path, commit: str | None):
    place = os.fspath(place)
    config, headless, model = (
        get_class_from_dynamic_module(references[name], place, revision=commit, code_revision=commit)
        for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
    )
    AutoConfig.register(model_type, config, exist_ok=True)
    AutoModel.register(config, headless, exist_ok=True)
    AutoModelForCausalLM.register(config, model, exist_ok=True)


def trust_language_code(folder: str | os.PathLike):
    """Registers the language model classes that a checkpoint carries, so that the installed package loads it.

    Raises:
        ValueError: The folder carries none.
    """
    references = Account.read(folder).language_code
    if not references:
        raise ValueError(f"{folder} carries no code of a language model.")
    model_type = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["text_config"]["model_type"]
    _register(model_type, references, Path(folder), None)


def copy_language_code(folder: Path, model_type: str, references: dict[str, str]):
    """Copies the files of a registered type into `folder` and has the folder's own code register them."""
    config_class = CONFIG_MAPPING[model_type]
    doors = {"AutoModel": AutoModel, "AutoModelForCausalLM": AutoModelForCausalLM}
    classes: list[Any] = [config_class, *(door._model_mapping[config_class] for door in doors.values())]
    for each in classes:
        # A dynamic module lies in transformers' cache, under the name of the file it was copied from.
        module = Path(str(sys.modules[each.__module__].__file__))
        for file in (module, *map(Path, get_relative_import_files(module))):
            shutil.copyfile(file, folder / file.name)
    config_module, config_name = references["AutoConfig"].split(".")
    _append(
        folder / "configuration_jminigpt4.py",
        f"from .{config_module} import {config_name}  # noqa: E402\n\n"
        f'if "{model_type}" not in CONFIG_MAPPING:\n'
        f'    AutoConfig.register("{model_type}", {config_name})\n',
    )
    # The configuration may have been loaded as another copy of its module; the class that counts is registered.
    code = f"from transformers import {', '.join(doors)}  # noqa: E402\n"
    code += "from transformers.models.auto import CONFIG_MAPPING  # noqa: E402\n"
    for door in doors:
        module, name = references[door].split(".")
        code += f"\nfrom .{module} import {name}  # noqa: E402\n\n"
        code += f'{door}.register(CONFIG_MAPPING["{model_type}"], {name}, exist_ok=True)\n'
    _append(folder / "modeling_jminigpt4.py", code)


def _append(file: Path, text: str):
    file.write_text(file.read_text(encoding="utf-8") + "\n\n" + text, encoding="utf-8")
