"""The query-feature cache: the frozen half of the model is run once per picture, not once per row and epoch.

A cache is a folder:

    fingerprint.json                    what the features were computed with; anything else is refused
    features-<name>.safetensors         `features` (pictures, views, num_query_tokens, size), `digests` (pictures, 32),
                                        `checksums` (pictures, views): CRC-32 of the features, compared at every read
    stamps-<name>.json                  picture -> [bytes, time of change, digest]: unchanged files are not read

Every file appears complete under its name and is never written again, so several processes can fill one cache, and a
killed run loses at most the pictures of one file. Pictures are known by the SHA-256 of their content.
"""

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from accelerate import PartialState
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from ..checkpoint import DTYPES, dtype_named, finished_file, remove_unfinished
from ..data.pictures import Picture, TablePicture
from ..schema import explain
from .augmentation import random_resized_crop
from .distributed import from_all

FINGERPRINT = "fingerprint.json"
_FINGERPRINT = TypeAdapter(dict[str, Any])
_STAMPS = TypeAdapter(dict[str, tuple[int, int, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]])


@dataclass(frozen=True, slots=True)
class BadPicture:
    """A picture that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a cache, memory-mapped.

    Args:
        path: The file.
        features: `(pictures, views, num_query_tokens, size)`.
        digests: SHA-256 of each picture, `(pictures, 32)`, uint8.
        checksums: CRC-32 of each view's features, `(pictures, views)`, int64; `None` in files of older versions.
    """

    path: Path
    features: torch.Tensor
    digests: torch.Tensor
    checksums: torch.Tensor | None

    def __reduce__(self):
        """For another process by its path, to be mapped there: tensors would travel whole."""
        return Shard.open, (self.path, self.features.shape[1], list(self.features.shape[2:]))

    @classmethod
    def open(cls, path: Path, views: int, shape: list[int]) -> "Shard":
        """Opens a file; the features in it are looked at when they are read.

        Raises:
            ValueError: It is cut off, or its tensors are not of the cache's shape.
        """
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                tensors = [file.get_tensor(name) for name in ("features", "digests")]
                checksums = file.get_tensor("checksums") if "checksums" in names else None
        except SafetensorError as error:
            raise _damaged(path, f"cannot be read ({error})") from None
        features, digests = tensors
        pictures = len(digests)
        fits = tuple(features.shape) == (pictures, views, *shape) and digests.shape[1:] == (32,)
        if not fits or (checksums is not None and checksums.shape != (pictures, views)):
            raise _damaged(path, f"holds features of shape {tuple(features.shape)}")
        return cls(path, *tensors, checksums)

    def view(self, row: int, view: int) -> torch.Tensor:
        """Features of a view of a picture, `(num_query_tokens, size)`.

        Raises:
            ValueError: They are not what was written.
        """
        features = self.features[row, view]
        if self.checksums is not None and checksum(features) != int(self.checksums[row, view]):
            raise _damaged(self.path, f"has changed on the disk: checksum of picture {row}, view {view}")
        return features


def checksum(features: torch.Tensor) -> int:
    """CRC-32 of a contiguous tensor's bytes: finds what disks do to them, not what a forger does."""
    return zlib.crc32(features.view(torch.uint8).numpy())


def _refusal(folder: Path, different: list[str], stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What a cache was computed with that is now asked for otherwise, and what takes the cache as it is."""
    if "precision" in different:  # of the weights, whose digest it changes as well
        different = [key for key in different if key != "encoder"]
    views = stored.get("views")
    changes = {
        "views": f"--set augmentation=true --set views={views}" if views else "--set augmentation=false",
        "dtype": f"--set cache_dtype={stored.get('dtype')}",
        "precision": f"--set dtype={stored.get('precision')}",
    }
    what = [
        f"{key} {stored.get(key)} instead of {wanted[key]}" if key in changes else f"another {key}"
        for key in different
    ]
    begun = f"{folder} holds features computed with {', '.join(what)}"
    if all(key in changes for key in different):
        return f"{begun}: {' '.join(changes[key] for key in different)} takes them, or name another folder."
    return f"{begun}: they are of no use to this model. Name another folder as the cache."


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} {what}: delete this file, its pictures will be encoded anew.")


class PictureEncoder:
    """Pictures to query features with the frozen half of a model.

    Args:
        model: A [`JMiniGPT4ForConditionalGeneration`].
        processor: Its [`JMiniGPT4Processor`].
        views: Number of augmented views per picture; 0: the plain picture, one view.
        batch_size: Pictures encoded at a time.
    """

    def __init__(self, model: Any, processor: Any, views: int = 0, batch_size: int = 16):
        self.model, self.image_processor = model, processor.image_processor
        self.views, self.batch_size = views, batch_size

    def __getstate__(self) -> dict[str, Any]:
        """Without the model: a process that prepares steps decodes pictures and encodes none."""
        return vars(self) | {"model": None}

    def pixel_values(self, content: bytes, name: str, seeds: Iterable[int | None]) -> torch.Tensor:
        """One view of a picture per seed (`None`: the plain picture), `(views, 3, height, width)`.

        Raises:
            ValueError: The picture cannot be decoded; the message names it.
        """
        image = self.image_processor.to_rgb(content, name)
        size = self.image_processor.size
        views = [
            image if seed is None else random_resized_crop(image, (size["height"], size["width"]), seed)
            for seed in seeds
        ]
        return self.image_processor(images=views, do_convert_rgb=False, return_tensors="pt")["pixel_values"]

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(n, 3, height, width)` to query features `(n, num_query_tokens, size)`, on the model's device."""
        encoder = self.model.model.vision_model
        with torch.no_grad():
            parts = [
                self.model.get_query_features(part.to(self.model.device, encoder.dtype))
                for part in pixel_values.split(self.batch_size)
            ]
        return torch.cat(parts)

    def features(self, query_features: torch.Tensor | None, pixel_values: torch.Tensor | None) -> torch.Tensor | None:
        """Query features of a step's pictures on the model's device: taken from a cache, or encoded now."""
        if pixel_values is not None:
            return self.encode(pixel_values)
        return query_features.to(self.model.device) if query_features is not None else None

    def view_seeds(self, digest: bytes) -> list[int | None]:
        """Seeds of the views of a picture: a function of its content, so that every process draws the same."""
        if not self.views:
            return [None]
        start = int.from_bytes(digest[:6], "big")
        return [start + view for view in range(self.views)]

    def fingerprint(self, dtype: str) -> dict[str, Any]:
        """What features depend on: frozen weights, preprocessing, views and the type they are stored in."""
        core, digest = self.model.model, hashlib.sha256()
        parts = {"vision_model": core.vision_model, "vision_layernorm": core.vision_layernorm, "qformer": core.qformer}
        tensors = {"query_tokens": core.query_tokens}
        for name, part in parts.items():
            tensors |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        config = self.model.config
        epsilons = [config.vision_layernorm_eps, config.qformer_config.layer_norm_eps]
        epsilons.append(getattr(config.vision_config, "layer_norm_eps", None))
        settings = {key: value for key, value in self.image_processor.to_dict().items() if not key.startswith("_")}
        settings = json.loads(json.dumps(settings, default=str))
        return {
            "encoder": digest.hexdigest(),
            "precision": str(core.vision_model.dtype).removeprefix("torch."),
            "layer_norm_eps": epsilons,
            "preprocessing": settings,
            "views": self.views,
            "dtype": dtype,
            "shape": list(core.query_tokens.shape[1:]),
        }


class FeatureCache:
    """A folder of query features; see the module.

    Args:
        folder: The cache's folder; made when it is not there.
        encoder: What computes features that are missing.
        dtype: `"float16"`, `"bfloat16"` or `"float32"`: how features are stored.

    Raises:
        ValueError: The folder holds features of another encoder, preprocessing, number of views or dtype.
    """

    def __init__(self, folder: str | os.PathLike, encoder: PictureEncoder, dtype: str = "float16"):
        dtype_named(dtype)
        self.folder, self.encoder, self.dtype = Path(folder), encoder, dtype
        self._shape = list(encoder.model.model.query_tokens.shape[1:])
        self._check_fingerprint()
        self._shards: list[Shard] = []
        self._loaded: set[str] = set()
        self._places: dict[bytes, tuple[int, int]] = {}
        self._stamps: dict[str, tuple[int, int, bytes]] = {}
        self.load()

    def _check_fingerprint(self):
        fingerprint = self.encoder.fingerprint(self.dtype)
        path = self.folder / FINGERPRINT
        if path.is_file():
            stored = _checked(_FINGERPRINT, path)
            # Older versions did not write down the precision, which the encoder's digest holds as well.
            stated = [key for key in fingerprint if key in stored or key != "precision"]
            different = [key for key in stated if stored.get(key) != fingerprint[key]]
            if different:
                raise ValueError(_refusal(self.folder, different, stored, fingerprint))
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            with finished_file(path) as temporary:
                temporary.write_text(json.dumps(fingerprint, indent=2, ensure_ascii=False), encoding="utf-8")

    def load(self):
        """Takes up files that other processes have finished."""
        for path in sorted(self.folder.glob("features-*.safetensors")):
            if path.name not in self._loaded:
                self._loaded.add(path.name)
                shard = Shard.open(path, max(1, self.encoder.views), self._shape)
                for row, digest in enumerate(shard.digests.numpy()):
                    self._places[digest.tobytes()] = (len(self._shards), row)
                self._shards.append(shard)
        for path in sorted(self.folder.glob("stamps-*.json")):
            if path.name not in self._loaded:
                self._loaded.add(path.name)
                stamps = _checked(_STAMPS, path)
                self._stamps |= {
                    name: (size, time, bytes.fromhex(hex_)) for name, (size, time, hex_) in stamps.items()
                }

    def __contains__(self, picture: Picture | TablePicture) -> bool:
        digest = self._known_digest(picture)
        return digest is not None and digest in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def unchecked(self) -> int:
        """Number of files that older versions wrote without checksums."""
        return sum(shard.checksums is None for shard in self._shards)

    def features(self, pictures: list[Picture | TablePicture], view: int | list[int] = 0) -> torch.Tensor:
        """Features of pictures, `(n, num_query_tokens, size)`, in the cache's dtype.

        Args:
            pictures: Pictures that are in the cache.
            view: Which augmented view, one for all or one for each.

        Raises:
            KeyError: A picture is not in the cache, or has changed since.
            ValueError: Features have changed on the disk since they were written.
        """
        views = [view] * len(pictures) if isinstance(view, int) else view
        rows = []
        for picture, chosen in zip(pictures, views, strict=True):
            digest = self._known_digest(picture)
            if digest is None or digest not in self._places:
                raise KeyError(f"{picture.name} is not in the feature cache {self.folder}, or has changed since.")
            shard, row = self._places[digest]
            rows.append(self._shards[shard].view(row, chosen))
        return torch.stack(rows) if rows else torch.empty((0, *self._shape), dtype=DTYPES[self.dtype])

    def fill(
        self,
        pictures: Iterable[Picture | TablePicture],
        rank: int = 0,
        world: int = 1,
        pictures_per_file: int = 1000,
        progress: bool = True,
        watch: Callable[[BadPicture], None] | None = None,
    ) -> list[BadPicture]:
        """Computes what is missing, and returns the pictures that cannot be read.

        Args:
            pictures: All pictures of the data; each is taken once.
            rank, world: This process encodes every `world`-th picture from `rank` on.
            pictures_per_file: How many pictures go into one file, which is what a killed run can lose.
            progress: Whether to show a progress bar.
            watch: Called with each bad picture as it is met; may raise to stop.
        """
        distinct = list({picture.name: picture for picture in pictures}.values())[rank::world]
        missing = [picture for picture in distinct if picture not in self]
        bad: list[BadPicture] = []

        def note(picture: Picture | TablePicture, error: Exception):
            bad.append(BadPicture(picture.name, str(error)))
            if watch:
                watch(bad[-1])

        bar = tqdm(missing, desc="query features", unit="picture", disable=not progress or not missing)
        for start in range(0, len(missing), pictures_per_file):
            self._fill_file(missing[start : start + pictures_per_file], bar, note)
        bar.close()
        self.load()
        return bad

    def _fill_file(self, pictures: list[Picture | TablePicture], bar: tqdm, note: Callable):
        stamps: dict[str, tuple[int, int, str]] = {}
        digests: list[bytes] = []
        encoded: list[torch.Tensor] = []
        for batch in _batches(self._readable(pictures, digests, stamps, bar, note), self.encoder.batch_size):
            encoded.append(self.encoder.encode(batch).to("cpu", DTYPES[self.dtype]))
        name = uuid.uuid4().hex
        if digests:
            views = max(1, self.encoder.views)
            features = torch.cat(encoded).unflatten(0, (len(digests), views)).contiguous()
            table = torch.from_numpy(np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32).copy())
            with finished_file(self.folder / f"features-{name}.safetensors") as temporary:
                sums = torch.tensor([[checksum(view) for view in picture] for picture in features])
                save_file({"features": features, "digests": table, "checksums": sums}, temporary)
        if stamps:
            with finished_file(self.folder / f"stamps-{name}.json") as temporary:
                temporary.write_text(json.dumps(stamps), encoding="utf-8")
        self.load()

    def _readable(
        self, pictures, digests: list[bytes], stamps: dict, bar: tqdm, note: Callable
    ) -> Iterator[torch.Tensor]:
        """Views of the pictures that are new, one by one; their digests are appended to `digests`."""
        new = set()
        for picture in pictures:
            bar.update()
            try:
                size, time = picture.stamp()
                content = picture.read()
                digest = hashlib.sha256(content).digest()
                if digest not in self._places and digest not in new:
                    views = self.encoder.pixel_values(content, picture.name, self.encoder.view_seeds(digest))
                    new.add(digest)
                    digests.append(digest)
                    yield from views
            except (OSError, ValueError) as error:
                note(picture, error)
                continue
            stamps[picture.name] = (size, time, digest.hex())

    def _known_digest(self, picture: Picture | TablePicture) -> bytes | None:
        known = self._stamps.get(picture.name)
        try:
            return known[2] if known is not None and known[:2] == tuple(picture.stamp()) else None
        except OSError:
            return None


def fill_together(
    cache: FeatureCache,
    pictures: Iterable[Picture | TablePicture],
    state: PartialState,
    progress: bool = True,
    watch: Callable[[BadPicture], None] | None = None,
) -> list[BadPicture]:
    """Computes what a cache misses, every process of the group its share, and returns the bad pictures of all.

    Args:
        cache: The cache, the same folder in all processes.
        pictures, watch: As of [`FeatureCache.fill`]; all processes name the same pictures.
        state: From `init_processes`.
        progress: Whether the first process shows a progress bar.
    """
    first = state.is_main_process
    if first:
        remove_unfinished(cache.folder)
    state.wait_for_everyone()  # what another process has just begun is not to be taken for a leftover
    bad = cache.fill(pictures, state.process_index, state.num_processes, progress=progress and first, watch=watch)
    bad = from_all(bad)  # every process has written its files by then
    cache.load()
    if first and (unchecked := cache.unchecked):
        tqdm.write(
            f"{unchecked} files of {cache.folder} are of a version without checksums: damage in them goes unnoticed. "
            "Delete the folder to have its pictures encoded anew."
        )
    return bad


def _checked(schema: TypeAdapter, path: Path) -> Any:
    """What a JSON file of a cache holds.

    Raises:
        ValueError: It is damaged.
    """
    try:
        return schema.validate_json(path.read_bytes())
    except ValidationError as error:
        raise _damaged(path, f"is damaged ({explain(error, path.name)})") from None


def _batches(pictures: Iterator[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    batch = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == size:
            yield torch.stack(batch)
            batch = []
    if batch:
        yield torch.stack(batch)
