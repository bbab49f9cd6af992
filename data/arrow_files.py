"""Tables of `datasets` on disk, Parquet and Arrow: rows as dictionaries, whose pictures stay where they are."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ids import known_id
from .pictures import TablePicture
from .table_cells import arrow_file, parquet_file

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1024  # rows, of texts
HEAVY_BATCH = 32  # rows, where pictures have to be read to know which cells are empty
# What columns of pictures are called where their type does not tell it: bytes alone, as img2dataset and others write.
PICTURE_COLUMNS = {"image", "images", "jpg", "jpeg", "png", "webp"}


def table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and row of a Parquet or Arrow file, one after the other; bytes of pictures are not read.

    Under the name of a column of pictures stands a [`TablePicture`], a list of them, or `None` for an empty cell. A
    column of pictures is one of `{"bytes", "path"}` or a list of such, as `datasets.Image` is stored, or of bytes
    under one of the names `PICTURE_COLUMNS`. Where such paths tell ids (`COCO_val2014_000000000009.jpg`) and the row
    states none, the ids stand under `image_ids`.

    Raises:
        ValueError: The file is damaged.
    """
    first = 0
    for kinds, batch in _naming(path):
        texts = batch.select([name for name in batch.schema.names if name not in kinds]).to_pylist()
        cells = {name: _cells(batch.column(name), kind) for name, kind in kinds.items()}
        for number, entry in enumerate(texts or [{} for _ in range(batch.num_rows)]):
            found = {name: column[number] for name, column in cells.items()}
            yield first + number, _with_pictures(entry, found, path, first + number)
        first += batch.num_rows


def table_keys(path: Path) -> frozenset[str]:
    """Names of the columns; none where the file is damaged."""
    import pyarrow as pa

    try:
        if path.suffix != ".arrow":
            return frozenset(parquet_file(path).schema_arrow.names)
        with pa.memory_map(str(path)) as file:
            return frozenset(arrow_file(file).schema.names)
    except (OSError, pa.ArrowException):
        return frozenset()


def _naming(path: Path) -> Iterator[tuple[dict[str, str], "pa.RecordBatch"]]:
    import pyarrow as pa

    try:
        yield from (_arrow_batches if path.suffix == ".arrow" else _parquet_batches)(path)
    except (OSError, pa.ArrowException) as error:  # whose words name no file
        kind = "Arrow" if path.suffix == ".arrow" else "Parquet"
        raise ValueError(f"{path} cannot be read as {kind} ({type(error).__name__}): is it whole?") from None


def _parquet_batches(path: Path) -> Iterator[tuple[dict[str, str], "pa.RecordBatch"]]:
    """All columns but the bytes of pictures, which in Parquet are columns of their own."""
    with parquet_file(path) as file:
        kinds = _kinds(file.schema_arrow)
        leaves = [file.schema.column(number).path for number in range(len(file.schema))]
        named = tuple(f"{name}." for name, kind in kinds.items() if kind in ("cell", "list"))
        light = [leaf for leaf in leaves if not (leaf.startswith(named) and leaf.endswith(".bytes"))]
        rows = BATCH if kinds.keys() == {name.removesuffix(".") for name in named} else HEAVY_BATCH
        for batch in file.iter_batches(rows, columns=light):
            yield kinds, batch


def _arrow_batches(path: Path) -> Iterator[tuple[dict[str, str], "pa.RecordBatch"]]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        opened = arrow_file(file)
        kinds = _kinds(opened.schema)
        many = getattr(opened, "num_record_batches", None)
        for batch in opened if many is None else map(opened.get_batch, range(many)):
            for start in range(0, batch.num_rows, BATCH):
                yield kinds, batch.slice(start, BATCH)


def _kinds(schema: "pa.Schema") -> dict[str, str]:
    """Columns of pictures: of a `cell` of bytes and path, a `list` of such, `bytes`, or `several` of these."""
    return {field.name: kind for field in schema if (kind := _kind(field))}


def _kind(field: "pa.Field") -> str:
    import pyarrow.types as types

    kind = field.type
    of_list = types.is_list(kind) or types.is_large_list(kind)
    inner = kind.value_type if of_list else kind
    fields = {inner.field(number).name for number in range(inner.num_fields)} if types.is_struct(inner) else set()
    if fields == {"bytes", "path"}:
        return "list" if of_list else "cell"
    binary = types.is_binary(inner) or types.is_large_binary(inner)
    return ("several" if of_list else "bytes") if binary and field.name in PICTURE_COLUMNS else ""


def _cells(column: "pa.Array", kind: str) -> list[Any]:
    """Of each row: the paths of its pictures as a list, or as they are where the column is of single pictures; `None`
    for an empty cell, and an empty text for a picture without a path."""
    import pyarrow.compute as pc

    if kind == "bytes":
        return ["" if there else None for there in column.is_valid().to_pylist()]
    if kind == "cell":
        paths = pc.call_function("struct_field", [column], pc.StructFieldOptions("path"))
        valid = column.is_valid().to_pylist()
        return [(path or "") if there else None for path, there in zip(paths.to_pylist(), valid, strict=True)]
    counts = [count or 0 for count in pc.call_function("list_value_length", [column]).to_pylist()]
    flat: list[Any] = [""] * sum(counts)
    if kind == "list":
        inner = pc.call_function("list_flatten", [column])
        flat = pc.call_function("struct_field", [inner], pc.StructFieldOptions("path")).to_pylist()
    ends = accumulate(counts)
    return [[path or "" for path in flat[end - count : end]] for count, end in zip(counts, ends, strict=True)]


def _with_pictures(entry: dict[str, Any], cells: dict[str, Any], path: Path, row: int) -> dict[str, Any]:
    for column, paths in cells.items():
        if paths is None:
            entry[column] = None
        elif isinstance(paths, list):
            entry[column] = [TablePicture(str(path), row, column, position) for position in range(len(paths))]
        else:
            entry[column] = TablePicture(str(path), row, column, None)
    given = cells.get("images") or cells.get("image") or []
    names = given if isinstance(given, list) else [given]
    if entry.get("image_ids") is None and entry.get("image_id") is None and any(map(known_id, names)):
        stem = path.stem
        entry["image_ids"] = [known_id(name) or f"{stem}/{row}.{position}" for position, name in enumerate(names)]
    return entry
