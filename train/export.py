"""A whole model folder with what was trained, made without writing again what was not."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..checkpoint import (
    CODE_FILES,
    MANIFEST,
    finished_folder,
    of_one_state,
    open_weights,
    read_json_object,
    read_weight_map,
    write_manifest,
)
from ..inference.loading import checkpoint_config, note
from .merging import PROJECTION_PREFIX, TrainedWeights, trained_before, unmergeable
from .recipe import Recipe

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
# Loaders take `model.safetensors` without looking for an index, and read the files of an index in the order of names.
FROZEN, SHARD = "model-frozen.safetensors", "model-projection.safetensors"


def check_exportable(base: str | os.PathLike, recipe: Recipe):
    """Whether what a recipe trains can be exported upon a base: found out before it is trained.

    Raises:
        FileNotFoundError: There is no `base`, or it has no safetensors weights.
        ValueError: They cannot take what is trained.
    """
    config = checkpoint_config(os.fspath(base))
    stored = set(_weight_map(_folder(base)))
    if recipe.lora and recipe.load_in_8bit:
        raise ValueError(
            "--export merges adapters into the weights that they were trained on, and with load_in_8bit these are "
            "rounded ones that no file holds: train without load_in_8bit, or without --export, and publish `adapter`."
        )
    if recipe.language_learns and (name := unmergeable(config, stored)):
        raise ValueError(
            f"--export cannot put a trained language model into {base}, which stores {name} otherwise than the model "
            "holds it (experts are merged while they are loaded): train without --export, or without the language "
            "model."
        )


def export(base: str | os.PathLike, projection: str | os.PathLike, output: str | os.PathLike) -> Path:
    """A model folder `output` that is `base` with what a run trained: the projection, and where they learnt Q-Former,
    image encoder and language model, with adapters merged into it.

    Weight files of `base` without a trained tensor are taken over by hard link (copied where the file system has
    none); the others are written anew, tensors in the dtype that they had. The projection gets a file of its own, to
    which the index points. A file of `base` that holds nothing but the old projection is left out; where the old one
    lies among other weights that are taken over it stays there unread: the index names, and loaders read last, the
    new. What speaks of `base` alone, a signature, a bill of materials or scores, is left out, and named on stderr.

    Args:
        base: Folder or Hub name of the model that was trained.
        projection: A projection file, or the output folder of a run.
        output: The folder to make.

    Returns:
        The path of `output`.

    Raises:
        FileExistsError: `output` is there already.
        FileNotFoundError: `base` has no safetensors weights, or there is no projection.
        ValueError: What was trained is of another size than the base's, or has no place in it.
    """
    base, projection = _folder(base), Path(projection)
    files = _weight_map(base)
    if not any(name.startswith(PROJECTION_PREFIX) for name in files):
        raise ValueError(f"{base} has no {PROJECTION_PREFIX}weight: it is no jminigpt4 model.")
    trained = TrainedWeights(projection, checkpoint_config(base))
    if missing := trained.missing(set(files)):
        raise ValueError(f"{base} stores no {missing[0]}, which was trained: it is not the model that was trained.")
    old = {name for name in files if name.startswith(PROJECTION_PREFIX)}
    renewed = {file for name, file in files.items() if trained.replaces(name)}
    if old - set(trained.projection):  # of another kind: loaders would take them for weights without a place
        renewed |= {files[name] for name in old}
    only_old = {files[name] for name in old} - {file for name, file in files.items() if name not in old}
    names = {file: FROZEN if file == WEIGHTS else file for file in {*files.values()} - only_old}
    placed = {name: names[file] for name, file in files.items() if name not in old}
    placed |= dict.fromkeys(trained.projection, SHARD)
    with finished_folder(output) as folder:
        left_out = _take_over(base, folder, {file: names[file] for file in names if file not in renewed})
        for file in sorted(renewed - only_old):
            _renew(base / file, folder / names[file], trained)
        parts = sorted({*trained.parts, *trained_before(base / SHARD)})
        said = {"trained_parts": ", ".join(parts)} if parts else {}
        metadata = {"format": "pt", **_provenance(projection), **trained.metadata, **said}
        save_file(trained.projection, folder / SHARD, metadata=metadata)
        if trained.config.projector_hidden_act is not None or old - set(trained.projection):
            _write_architecture(folder, trained.config.projector_hidden_act)
        sizes = sum((folder / file).stat().st_size for file in set(placed.values()))
        index = {"metadata": {"total_size": sizes}, "weight_map": dict(sorted(placed.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        write_manifest(folder)
    if left_out:
        note(f"{', '.join(left_out)} of {base} speak of that folder alone and are not in {output}.")
    return Path(output)


def _take_over(base: Path, folder: Path, weights: dict[str, str]) -> list[str]:
    """All files of a base but its lists, what speaks of it alone, and those weights that `weights` does not name.
    Returns the names of what speaks of it alone."""
    stored, of_base = {*_weight_map(base).values()}, []
    for path in sorted(base.rglob("*")):
        name = path.relative_to(base).as_posix()
        left_out = name in {MANIFEST, INDEX} or (name in stored and name not in weights)
        if not path.is_file() or left_out or name.startswith((".git/", ".cache/")):
            continue
        if of_one_state(name):
            of_base.append(name)
        else:
            _take(path, folder / weights.get(name, name))
    return of_base


def _renew(source: Path, target: Path, trained: TrainedWeights):
    """A weight file with the trained tensors in the places of the old, without the projection."""
    tensors = {}
    with open_weights(source) as file:
        metadata = file.metadata() or {"format": "pt"}
        for name in file.keys():  # noqa: SIM118
            if not name.startswith(PROJECTION_PREFIX):
                stored = file.get_tensor(name)
                tensors[name] = trained.tensor(name, stored) if trained.replaces(name) else stored
    save_file(tensors, target, metadata=metadata)


def _write_architecture(folder: Path, projector_hidden_act: str | None):
    """Says in `config.json` which kind of projection there is, and brings the code that knows both; what registers a
    language model with code of its own stands behind it, and stays."""
    path = folder / "config.json"
    values: dict[str, Any] = read_json_object(path)
    values.pop("projector_hidden_act", None)
    if projector_hidden_act is not None:
        values["projector_hidden_act"] = projector_hidden_act
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in CODE_FILES:
        if (folder / name).is_file():
            code = (Path(__file__).parents[1] / name).read_text(encoding="utf-8")
            own = (folder / name).read_text(encoding="utf-8").partition("\n__all__ = [")[2].partition("]\n")[2]
            (folder / name).write_text(code + own, encoding="utf-8")


def _provenance(projection: Path) -> dict[str, str]:
    """What a projection was trained on, by the names of its data, where its run still lies around it: the model card
    says it. Paths stay on this machine."""
    recipe = (projection if projection.is_dir() else projection.parent) / "recipe.yaml"
    if not recipe.is_file():
        return {}
    import yaml

    sources = (yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}).get("data") or []
    paths = [each["path"] if isinstance(each["path"], str) else each["path"][0] for each in sources]
    names = [each.get("name") or Path(path).stem for each, path in zip(sources, paths, strict=True)]
    return {"trained_on": ", ".join(dict.fromkeys(names))}


def _folder(base: str | os.PathLike) -> Path:
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(os.fspath(base)))


def _weight_map(base: Path) -> dict[str, str]:
    if (base / INDEX).is_file():
        return read_weight_map(base / INDEX)
    if not (base / WEIGHTS).is_file():
        raise FileNotFoundError(f"{base} has no {WEIGHTS}: only a whole model in safetensors can be exported upon.")
    with open_weights(base / WEIGHTS) as file:
        return dict.fromkeys(file.keys(), WEIGHTS)


def _take(source: Path, target: Path):
    """Weights by hard link; everything else is copied, as a person may edit it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".safetensors":
        try:
            os.link(source.resolve(), target)
            return
        except OSError:
            pass  # another file system: the copy below
    shutil.copyfile(source, target)
