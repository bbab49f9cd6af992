"""A whole model folder with a trained projection, made without writing the frozen weights again."""

import json
import os
import shutil
from pathlib import Path

from safetensors.torch import save_file

from ..checkpoint import (
    MANIFEST,
    finished_folder,
    open_weights,
    read_projection,
    read_weight_map,
    write_manifest,
)

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
# Loaders take `model.safetensors` without looking for an index, and read the files of an index in the order of names.
FROZEN, SHARD = "model-frozen.safetensors", "model-projection.safetensors"
NAMES = {"weight": "model.language_projection.weight", "bias": "model.language_projection.bias"}


def export(base: str | os.PathLike, projection: str | os.PathLike, output: str | os.PathLike) -> Path:
    """A model folder `output` that is `base` with another projection.

    Weight files of `base` are taken over by hard link (copied where the file system has none); the projection gets a
    file of its own, to which the index points. A file of `base` that holds nothing but the old projection is left out;
    where the old one lies among other weights it stays there unread: the index names, and loaders read last, the new.

    Args:
        base: Folder or Hub name of the model that was trained.
        projection: A projection file, or the output folder of a run.
        output: The folder to make.

    Returns:
        The path of `output`.

    Raises:
        FileExistsError: `output` is there already.
        FileNotFoundError: `base` has no safetensors weights, or there is no projection.
        ValueError: The projection is of another size than the base's, or was trained with adapters.
    """
    base, projection = _folder(base), Path(projection)
    if (projection / "adapter").is_dir():
        raise ValueError(
            f"{projection} was trained with LoRA adapters, which the base's weights do not contain: publish its "
            "`adapter` folder beside the projection, and load it with `model.load_adapter`."
        )
    weight, bias, metadata = read_projection(projection)
    files = _weight_map(base)
    _check_size(base, files, weight.shape)
    tensors = {NAMES["weight"]: weight.contiguous(), NAMES["bias"]: bias.contiguous()}
    replaced = {files[name] for name in tensors if name in files}
    only_old = {file for file in replaced if {name for name, at in files.items() if at == file} <= set(tensors)}
    files = {name: FROZEN if file == WEIGHTS else file for name, file in files.items()}
    files |= dict.fromkeys(tensors, SHARD)
    with finished_folder(output) as folder:
        for path in sorted(base.rglob("*")):
            name = path.relative_to(base).as_posix()
            if (
                path.is_file()
                and name not in {MANIFEST, INDEX, *only_old}
                and not name.startswith((".git/", ".cache/"))
            ):
                _take(path, folder / (FROZEN if name == WEIGHTS else name))
        save_file(tensors, folder / SHARD, metadata={"format": "pt", **_provenance(projection), **metadata})
        sizes = sum((folder / file).stat().st_size for file in set(files.values()))
        index = {"metadata": {"total_size": sizes}, "weight_map": dict(sorted(files.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        write_manifest(folder)
    return Path(output)


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


def _check_size(base: Path, files: dict[str, str], shape: tuple[int, ...]):
    name = NAMES["weight"]
    if name not in files:
        raise ValueError(f"{base} has no {name}: it is no jminigpt4 model.")
    with open_weights(base / files[name]) as file:
        expected = file.get_slice(name).get_shape()
    if list(expected) != list(shape):
        raise ValueError(
            f"The projection is of size {list(shape)}, the one of {base} of size {expected}: it was trained for "
            "another language model."
        )


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
