"""What query features depend on, written beside them; and the settings that take features which are there already."""

import hashlib
import json
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from ..checkpoint import user_path
from ..inference.folder import checkpoint_folder
from ..inference.stored_weights import StoredNames, read_stored, stored_tensors
from ..schema import explain

FINGERPRINT = "fingerprint.json"
_FINGERPRINT = TypeAdapter(dict[str, Any])
# What is said of where another entry comes from, and does not make features differ.
SAID_ONLY = {"weights_of", "encoder"}


def encoder_fingerprint(model: Any, image_processor: Any, views: int, dtype: str) -> dict[str, Any]:
    """What features depend on: frozen weights, preprocessing, views and the type they are stored in.

    The weights are those of the checkpoint's files, whatever precision they are computed in, which has a name of its
    own; those in memory where no files hold them.

    Args:
        model: A [`JMiniGPT4ForConditionalGeneration`].
        image_processor: Its image processor.
        views: Number of augmented views; 0: the plain picture.
        dtype: How features are stored.
    """
    core, config = model.model, model.config
    memory = _encoder_tensors(model)
    stored = _stored(model, memory)
    epsilons = [config.vision_layernorm_eps, config.qformer_config.layer_norm_eps]
    epsilons.append(getattr(config.vision_config, "layer_norm_eps", None))
    settings = {key: value for key, value in image_processor.to_dict().items() if not key.startswith("_")}
    return {
        "weights": _digest(memory if stored is None else stored),
        "weights_of": "memory" if stored is None else "checkpoint",
        "precision": str(core.vision_model.dtype).removeprefix("torch."),
        "layer_norm_eps": epsilons,
        "preprocessing": json.loads(json.dumps(settings, default=str)),
        "views": views,
        "dtype": dtype,
        "shape": list(core.query_tokens.shape[1:]),
    }


def identity(fingerprint: dict[str, Any]) -> str:
    """A digest of a fingerprint, which every block bears: blocks of different ones are never mixed up."""
    said = {key: value for key, value in fingerprint.items() if key not in SAID_ONLY}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def _encoder_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Tensors of image encoder and Q-Former by their names below `model.model`."""
    core = model.model
    parts = {"vision_model": core.vision_model, "vision_layernorm": core.vision_layernorm, "qformer": core.qformer}
    tensors = {"query_tokens": core.query_tokens}
    for name, part in parts.items():
        tensors |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
    return tensors


def _stored(model: Any, memory: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """The same tensors as the checkpoint's files hold them; `None` if there are no such files, or what is in memory is
    not what they hold: another run has trained it."""
    name = getattr(model, "name_or_path", "")
    if not name or not user_path(name).is_dir():
        return None
    try:
        files = stored_tensors(checkpoint_folder(name))
        names = StoredNames(model)
    except (OSError, ValueError):
        return None
    places = {disk: names.in_memory(disk).removeprefix("model.") for disk in files}
    wanted = {disk: files[disk] for disk, place in places.items() if place in memory}
    if {places[disk] for disk in wanted} != memory.keys():
        return None
    tensors = {places[disk]: tensor for disk, tensor in read_stored(wanted)}
    equal = all(
        tensors[name].shape == held.shape and torch.equal(tensors[name].to(held.device, held.dtype), held.detach())
        for name, held in memory.items()
    )
    return tensors if equal else None


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def older_digest(model: Any) -> str:
    """The digest by which versions before the store knew an encoder: of the weights in memory, in their precision."""
    return _digest(_encoder_tensors(model))


def is_older(fingerprint: dict[str, Any] | None) -> bool:
    """Whether a fingerprint was written by a version before the store."""
    return fingerprint is not None and "weights" not in fingerprint


def read_fingerprint(files: Any, folder: str) -> dict[str, Any] | None:
    """The fingerprint of a store; `None` where there is none, or a damaged one that could be set aside.

    Raises:
        ValueError: It is damaged, and files of an older version, which do not say what they are of, need it.
    """
    try:
        return _FINGERPRINT.validate_json(files.read(FINGERPRINT))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        said = f"{FINGERPRINT} of the feature cache {folder} is damaged ({explain(error, FINGERPRINT)})"
    if any(name.startswith("features-") for name in files.names()):
        raise ValueError(f"{said}, and its older files do not say what they are of: name another folder as the cache.")
    if aside := files.set_aside(FINGERPRINT):
        tqdm.write(f"{said}: it is kept as {aside}. Every block says itself what it is of.")
    return None


def settle(files: Any, folder: str, wanted: dict[str, Any]) -> bool:
    """Compares a store's fingerprint with the one that is wanted, and writes it where there is none.

    Returns whether it is an older version's, which lacks what this one compares by; see [`write_fingerprint`].

    Args:
        files: The store's files.
        folder: Its name, for the error.
        wanted: From [`encoder_fingerprint`]; with `encoder`, from [`older_digest`], where the store may be older.

    Raises:
        ValueError: They differ in what features depend on; the message names the settings that take the features.
    """
    stored = read_fingerprint(files, folder)
    if stored is not None and (different := _different(stored, wanted)):
        raise ValueError(_refusal(folder, different, stored, wanted))
    if stored is None:
        write_fingerprint(files, wanted)
    return is_older(stored)


def write_fingerprint(files: Any, fingerprint: dict[str, Any]):
    """Puts down what the features of a store were computed with."""
    files.write(FINGERPRINT, [json.dumps(fingerprint, indent=2, ensure_ascii=False).encode()])


def _different(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What features depend on and is stored otherwise."""
    older = is_older(stored)
    left = {"weights_of", "weights" if older else "encoder"}
    if older and "precision" not in stored:  # the oldest had it in the encoder's digest alone
        left.add("precision")
    different = [key for key in wanted if key not in left and stored.get(key) != wanted[key]]
    in_memory = older or "memory" in (stored.get("weights_of"), wanted["weights_of"])
    if "precision" in different and in_memory:  # of the weights that the digest is of
        different = [key for key in different if key not in ("encoder", "weights")]
    return different


def _refusal(folder: str, different: list[str], stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What a cache was computed with that is now asked for otherwise, and what takes the cache as it is."""
    views = stored.get("views")
    changes = {
        "views": f"--set augmentation=true --set views={views}" if views else "--set augmentation=false",
        "dtype": f"--set cache_dtype={stored.get('dtype')}",
        "precision": f"--set dtype={stored.get('precision')}",
    }
    names = {"weights": "encoder"}
    what = [
        f"{key} {stored.get(key)} instead of {wanted[key]}" if key in changes else f"another {names.get(key, key)}"
        for key in different
    ]
    begun = f"{folder} holds features computed with {', '.join(what)}"
    if all(key in changes for key in different):
        return f"{begun}: {' '.join(changes[key] for key in different)} takes them, or name another folder."
    return f"{begun}: they are of no use to this model. Name another folder as the cache."
