"""Files and folders that are whole or not there at all, and a checkpoint among them: every file listed, the
projection also as a file of its own."""

import hashlib
import importlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

try:
    import fcntl
except ImportError:  # Windows, which locks files and no folders; there a leftover stays until it is removed by hand
    fcntl = None

WINDOWS = os.name == "nt"
BEYOND = 1 << 30  # the byte that is locked on Windows, where nobody else could read a locked one
MANIFEST = "SHA256SUMS"
LOCK = ".lock"
PROJECTION = "projection.safetensors"
SCORES = "scores.json"  # written by `evaluate`, read by the model card
SIGNATURE, AIBOM = "model.sig", "aibom.cdx.json"  # written by `convert` and `publish`
HUB_RESULTS = "eval_results"  # key of it: entries of the Hub's form
RESULTS = ".eval_results/"  # the Hub's own form of scores
# The code that a checkpoint takes along.
CODE_FILES = tuple(
    f"{part}_jminigpt4.py"
    for part in ("configuration", "image_processing", "language", "modeling", "processing", "vision")
)
LFS_POINTER = b"version https://git-lfs"
LARGEST_JSON = 64 * 2**20
# What the Hub's own programs leave beside a checkpoint; the manifest does not list it and nothing reads it.
HUB_FILES = re.compile(
    r"\.gitattributes|\.cache/huggingface/(\.gitignore|CACHEDIR\.TAG|download/([^/]+/)*[^/]+\.(metadata|lock)"
    r"|trees/[0-9a-f]{40}\.json)"
)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def user_path(name: str | os.PathLike) -> Path:
    """The path that a user names, `~` expanded.

    Raises:
        ValueError: `~name` is no user of this machine.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise ValueError(f"{os.fspath(name)} names the home of a user whom this machine does not know.") from None


def is_hub_id(name: str) -> bool:
    """Whether a name can mean a repository on the Hub, `user/name`. A name in a folder that is here is a path, also
    where there is no such file in it."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", name) is not None and not Path(name).parent.is_dir()


@contextmanager
def finished_folder(path: str | os.PathLike, replace: bool = False) -> Generator[Path]:
    """A folder that appears under its name only when it is complete.

    Yields a temporary sibling to write into; on success its files are flushed to the disk and it is renamed to `path`,
    on an error it is removed. Killed at any moment, nothing is left that looks finished.

    Args:
        path: Where the folder is to be.
        replace: Whether an existing folder gives way. It does so only after the new one is complete.

    Raises:
        FileExistsError: `path` exists and is not empty, and `replace` is off; nothing is written.
    """
    path = Path(path)
    if path.exists() and not replace and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already: choose another name or remove it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _begun(path) as temporary, naming_full_disk(path):
        # mkdtemp makes private folders; a checkpoint gets the permissions any new folder would get.
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & ~_umask())
                _flush(file)
        _flush(temporary)
        _rename_over(temporary, path)
        _flush(path.parent)


@contextmanager
def finished_file(path: str | os.PathLike) -> Generator[Path]:
    """A file that appears under its name only when it is complete; what was there before gives way in that moment.

    Yields a path of the same name in a temporary folder beside it, to be written by whatever writes files; on success
    the file is flushed to the disk and moved to `path`, on an error it is removed and `path` stays as it was.

    Raises:
        OSError: The folder is not there or cannot be written.
    """
    path = Path(path)
    # The folder bears the lock: safetensors, for one, puts a new file in the place of the one it is told to write.
    with _begun(path) as folder, naming_full_disk(path):
        temporary = folder / path.name
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)


@contextmanager
def naming_full_disk(path: Path) -> Generator[None]:
    """Around the writing of `path`: a full disk is told as an `OSError` that names it, whichever library met it."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from None
    except OSError as error:
        if error.filename is not None or isinstance(error, FileExistsError | FileNotFoundError):
            raise
        if error.errno is None:  # numpy's: how much was asked for, and how much there was room for
            raise OSError(f"{path} cannot be written: {error}") from None
        raise OSError(error.errno, error.strerror, str(path)) from None


def remove_unfinished(folder: str | os.PathLike, name: str = "*"):
    """Removes from `folder` what killed processes left unfinished of files and folders called `name`, a pattern of
    `fnmatch`, and puts back what was moved aside for it; touches nothing that a living process is writing."""
    folder = Path(folder)
    for leftover in folder.glob(f".{name}.unfinished-*"):
        with suppress(BlockingIOError, FileNotFoundError), _claim(leftover, wait=False):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    for aside in folder.glob(f".{name}.replaced-*"):
        original = aside.name[1:].rpartition(".replaced-")[0]
        if any(folder.glob(f".{original}.unfinished-*")):
            continue  # its successor is on its way
        if not (folder / original).exists() and (aside / original).exists():
            os.replace(aside / original, folder / original)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def locked_folder(folder: str | os.PathLike) -> Generator[Path]:
    """A folder, made if it is not there, that no other process gets until this one leaves it or ends, however it ends.

    The lock is on `.lock` in it, which says who holds it and is gone afterwards; one that a killed process has left
    behind is taken over.

    Raises:
        BlockingIOError: Another process holds it; the message says which.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    descriptor = _lock(path)
    try:
        yield folder
    finally:
        if WINDOWS:  # which removes no open file
            os.close(descriptor)
            with suppress(OSError):  # another process may have opened it by now
                path.unlink()
        else:
            path.unlink(missing_ok=True)
            os.close(descriptor)
        _held.discard(descriptor)


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock_open_file(descriptor)
            # Who held it may have removed the file between our opening and locking it: then this lock guards nothing.
            if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
                os.close(descriptor)
                continue
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode("utf-8", "replace") or "another process"
            os.close(descriptor)
            raise BlockingIOError(
                f"{path.parent} is in use by {holder}: wait until it ends, or choose another output folder."
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        _held.add(descriptor)
        return descriptor


def lock_open_file(descriptor: int):
    """Locks a file until it is closed, however the process ends.

    Raises:
        BlockingIOError: It is locked.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    windows: Any = importlib.import_module("msvcrt")
    os.lseek(descriptor, BEYOND, os.SEEK_SET)
    try:
        windows.locking(descriptor, windows.LK_NBLCK, 1)
    except OSError:
        raise BlockingIOError("The file is locked.") from None
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)


_held: set[int] = set()


def _let_go():
    """In a forked process, such as a worker of a data loader: it must not hold the locks of a parent that is dead."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _unfinished(path: Path) -> str:
    return f".{path.name}.unfinished-"


@contextmanager
def _begun(path: Path) -> Generator[Path]:
    """A new folder beside `path`, claimed while it is written into; nothing of it is left afterwards."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_unfinished(path), dir=path.parent))
        try:
            with ExitStack() as held:
                # Another process may have taken it for a leftover between its making and its claiming.
                with suppress(FileNotFoundError):
                    held.enter_context(_claim(folder))
                if folder.is_dir():
                    yield folder
                    return
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _claim(path: Path, wait: bool = True) -> Generator[None]:
    """Holds a lock on `path`, which ends with the process, however that ends: what is locked is being written."""
    if fcntl is None:
        if not wait:
            raise BlockingIOError(f"{path} may be in use.")
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _umask() -> int:
    os.umask(umask := os.umask(0))
    return umask


def _flush(path: Path):
    if WINDOWS and path.is_dir():
        return  # Windows opens no folders, and writes a renamed entry through by itself
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_over(new: Path, path: Path):
    if path.is_dir() and any(path.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.replaced-", dir=path.parent))
        os.replace(path, old / path.name)
        os.replace(new, path)
        shutil.rmtree(old)
    else:
        if WINDOWS and path.is_dir():
            path.rmdir()  # Windows puts no folder in the place of another, even of an empty one
        os.replace(new, path)


def dtype_named(name: str) -> torch.dtype:
    """The dtype of weights, features and computation that a user names.

    Raises:
        ValueError: It is not one of the three.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, hexadecimal; reads it in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _entries(folder: Path, inside: str = "") -> Iterator[tuple[str, os.DirEntry]]:
    """Name and entry of everything below a folder but its subfolders, which are entered. Links are not followed, nor
    is a `.git` looked into."""
    for entry in sorted(os.scandir(folder / inside), key=lambda entry: entry.name):
        name = f"{inside}{entry.name}"
        if entry.is_dir(follow_symlinks=False) and name != ".git":
            yield from _entries(folder, f"{name}/")
        elif name != MANIFEST:
            yield name, entry


def write_manifest(folder: str | os.PathLike) -> Path:
    """Writes `SHA256SUMS` over every file of `folder`, in the format of `sha256sum`, and returns its path. Left out
    are `.git` and `.cache`, which belong to the tools that fetched the folder."""
    folder = Path(folder)
    names = [name for name, entry in _entries(folder) if entry.is_file()]
    names = [name for name in names if name.partition("/")[0] not in {".git", ".cache"}]
    manifest = folder / MANIFEST
    manifest.write_text(manifest_text({name: sha256(folder / name) for name in names}), encoding="utf-8")
    return manifest


def manifest_text(digests: dict[str, str]) -> str:
    """Text of a `SHA256SUMS`: file names to SHA-256, in the format and order of `write_manifest`."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def read_manifest(path: str | os.PathLike) -> dict[str, str]:
    """SHA-256 of every file that a `SHA256SUMS` lists.

    Raises:
        ValueError: It is not a list of `sha256sum`, or lists a name twice or one that leads elsewhere.
    """
    listed, problems = _parse_manifest(Path(path))
    if problems:
        raise ValueError(f"{os.fspath(path)}: {problems[0]}")
    return listed


def verify_manifest(folder: str | os.PathLike) -> list[str]:
    """Problems of `folder` against its `SHA256SUMS`, one sentence each: missing, changed and unlisted files; links,
    pipes and devices, which are not opened; names that are listed twice or lead elsewhere.

    What the Hub's programs write beside a download (`HUB_FILES`) need not be listed, and the files of a snapshot in
    their cache may be the links into its `blobs` that they are there.

    Raises:
        FileNotFoundError: The folder has no `SHA256SUMS`.
        ValueError: It is not a list of `sha256sum`.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    if not manifest.is_file() or not _is_file_of(folder, manifest):
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: it was not written by jminigpt4, or not completely.")
    expected, problems = _parse_manifest(manifest)
    present = {}
    for name, entry in _entries(folder):
        if _is_file_of(folder, entry):
            present[name] = entry
        elif name in expected or entry.name != ".git":
            problems.append(f"{name} is no regular file but a link, a pipe or a device: it is not opened.")
            expected.pop(name, None)
        else:
            problems.append(f"{name} is not listed in {MANIFEST}.")
    problems += [f"{name} is missing." for name in expected if name not in present]
    unlisted = (name for name in present if name not in expected and not HUB_FILES.fullmatch(name))
    problems += [f"{name} is not listed in {MANIFEST}." for name in unlisted]
    problems += [
        f"{name} has changed: its SHA-256 is not the listed one."
        for name in present
        if name in expected and sha256(folder / name) != expected[name]
    ]
    return problems


def of_one_state(name: str) -> bool:
    """Whether a file says something of one state of a checkpoint, and nothing of a folder that is made from it: a
    signature, a bill of materials, scores."""
    return name in (SIGNATURE, AIBOM, SCORES) or name.startswith(RESULTS)


def drop_seals(folder: str | os.PathLike) -> list[str]:
    """Removes signature and bill of materials from a folder whose files were written anew, and returns their names."""
    dropped = [name for name in (SIGNATURE, AIBOM) if (Path(folder) / name).is_file()]
    for name in dropped:
        (Path(folder) / name).unlink(missing_ok=True)  # another process may save there too
    return dropped


def _parse_manifest(manifest: Path) -> tuple[dict[str, str], list[str]]:
    """SHA-256 by name, and problems of the list itself."""
    *lines, end = manifest.read_bytes().decode("utf-8").split("\n")
    expected, problems = {}, []
    for number, line in enumerate([*lines, end] if end else lines, 1):
        if not (found := re.fullmatch(r"([0-9a-f]{64})  ([^\r]+)", line)) or number > len(lines):
            raise ValueError(f"{manifest}, line {number}, is not a line of sha256sum.")
        digest, name = found.groups()
        if name in expected:
            problems.append(f"{name} is listed twice in {MANIFEST}.")
        elif name.startswith("/") or ".." in name.split("/") or "\\" in name:
            problems.append(f"{name} leads out of the folder: {MANIFEST} may list its own files only.")
        else:
            expected[name] = digest
    return expected, problems


def _is_file_of(folder: Path, entry: os.DirEntry | Path) -> bool:
    """Whether an entry is a regular file, or the link to one that it is in a snapshot of the Hub's cache."""
    if not os.path.islink(entry):
        return os.path.isfile(entry)
    snapshot = folder.resolve()
    is_blob = snapshot.parent.name == "snapshots" and Path(entry).resolve().parent == snapshot.parents[1] / "blobs"
    return is_blob and os.path.isfile(entry)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds no JSON object, is larger than any such file, or a pointer of git-lfs.
    """
    check_not_pointer(path)
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path} has more than {LARGEST_JSON:,} bytes: it is no file of a checkpoint.")
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): get it anew.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__} where an object belongs: get it anew.")
    return value


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor names to file names, from the index of a sharded checkpoint.

    Raises:
        ValueError: The index has no such map, or it names files outside its folder.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no `weight_map`: it is no index of shards. Get it anew.")
    for name, file in weight_map.items():
        if not (isinstance(file, str) and re.fullmatch(r"[\w-][\w.-]*\.(safetensors|bin)", file)):
            raise ValueError(f"{index} places {name} in {file!r}, which is no weight file of its own folder.")
    return weight_map


def open_weights(path: Path) -> Any:
    """A safetensors file, opened; see `safetensors.safe_open`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is cut off, empty, a pointer of git-lfs or another kind of file.
    """
    check_not_pointer(path)
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}): get it anew.") from None


def check_not_pointer(path: Path):
    """Raises `ValueError` if a regular file is a pointer of git-lfs; `FileNotFoundError` if there is no such file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no regular file.")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(
                f"{path} is a pointer of git-lfs, not the file itself: run `git lfs pull`, or download it with `hf`."
            )


def save_projection(model: torch.nn.Module, folder: str | os.PathLike, metadata: dict[str, str] | None = None) -> Path:
    """Writes the trained projection alone, `projection.safetensors`, and returns its path.

    Args:
        model: A [`JMiniGPT4ForConditionalGeneration`].
        folder: An existing folder.
        metadata: What the file shall say of itself, for instance which language model it was trained for.
    """
    path = Path(folder) / PROJECTION
    tensors = {name: each.detach().contiguous() for name, each in model.model.language_projection.named_parameters()}
    with finished_file(path) as temporary:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, temporary, metadata=metadata)
    return path


def read_projection(path: str | os.PathLike) -> tuple[torch.Tensor, torch.Tensor, dict[str, str]]:
    """Weight `(text_hidden_size, qformer_hidden_size)`, bias `(text_hidden_size,)` and metadata of a projection file,
    or of the one in a folder.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no projection file, or its projection is of two layers.
    """
    tensors, metadata = read_projection_tensors(path)
    if len(tensors) != 2:
        raise ValueError(f"{path} is a projection of two layers (`projection: mlp`) where one Linear layer is taken.")
    return tensors["weight"], tensors["bias"], metadata


def read_projection_tensors(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors, by their names in the projection, and metadata of a projection file or of the one in a folder: `weight`
    and `bias` of the article's, `linear_1.weight` … `linear_2.bias` of one of two layers.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no projection file.
    """
    path = Path(path)
    path = path / PROJECTION if path.is_dir() else path
    with open_weights(path) as file:
        names = set(file.keys())
        layers = ("linear_1.", "linear_2.") if "linear_1.weight" in names else ("",)
        expected = [f"{layer}{kind}" for layer in layers for kind in ("weight", "bias")]
        tensors = {name: file.get_tensor(name) for name in expected if name in names}
        metadata = file.metadata() or {}
    if len(tensors) != len(expected):
        named = " and ".join(f"`{name}`" for name in expected) if len(layers) == 1 else "both layers' weight and bias"
        raise ValueError(f"{path} is not a projection file: it needs the tensors {named}.")
    for layer in layers:
        weight, bias = tensors[f"{layer}weight"], tensors[f"{layer}bias"]
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or not all(map(torch.is_floating_point, (weight, bias))):
            raise ValueError(
                f"{path} is not a projection file: weight {tuple(weight.shape)} {weight.dtype} and bias "
                f"{tuple(bias.shape)} {bias.dtype} are no Linear layer."
            )
    return tensors, metadata
