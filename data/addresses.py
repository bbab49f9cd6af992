"""Tables of picture addresses: known by their keys, never opened over the network."""

import shlex
from collections.abc import Collection
from pathlib import Path

# What columns of addresses are called; upper case as in LAION's tables counts as lower.
ADDRESSES = ("url", "image_url", "img_url", "image_uri", "image_link", "photo_url", "coco_url", "flickr_url")
CAPTIONS = ("caption", "text")


def address_key(keys: Collection[str]) -> str | None:
    """The column of addresses among the keys of a row; `None` where there is none."""
    return _first(keys, ADDRESSES)


def caption_key(keys: Collection[str]) -> str | None:
    """The column of captions."""
    return _first(keys, CAPTIONS)


def _first(keys: Collection[str], names: tuple[str, ...]) -> str | None:
    lower = {key.lower(): key for key in sorted(keys)}
    return next((lower[name] for name in names if name in lower), None)


def download_advice(path: Path, keys: Collection[str]) -> str:
    """How the pictures of a table are downloaded: a sentence with the command, after which the table can be read."""
    column, caption = address_key(keys), caption_key(keys)
    folder = path.with_name(f"{path.stem}_pictures")
    kind = _input_format(path)
    command = ["img2dataset", "--url_list", str(path), "--input_format", kind, "--url_col", str(column)]
    command += ["--caption_col", caption] if caption else []
    command += ["--output_format", "webdataset", "--output_folder", str(folder)]
    # By default img2dataset pads pictures to squares of 256, and so would change what is seen.
    command += ["--image_size", "448", "--resize_mode", "keep_ratio", "--resize_only_if_bigger", "True"]
    first = "" if kind != "arrow" else "store it as Parquet (`Dataset.to_parquet`), "
    return (
        f"{path} has addresses of pictures (`{column}`), and nothing is fetched from here: {first}download them by "
        f"`{shlex.join(command)}` and read it with `--images {shlex.quote(str(folder))}`."
    )


def _input_format(path: Path) -> str:
    if path.is_dir():
        return "arrow" if any(path.rglob("*.arrow")) else "parquet"
    return {".ndjson": "jsonl"}.get(path.suffix, path.suffix.removeprefix("."))
