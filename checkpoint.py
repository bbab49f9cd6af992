"""Files and folders that are whole or not there at all, and a checkpoint among them: every file listed, the
projection also as a file of its own."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

try:
    import fcntl
except ImportError:  # Windows: no such locks; there a leftover stays until it is removed by hand
    fcntl = None

MANIFEST = "SHA256SUMS"
PROJECTION = "projection.safetensors"
SCORES = "scores.json"  # written by `evaluate`, read by the model card
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
    temporary = Path(tempfile.mkdtemp(prefix=_unfinished(path), dir=path.parent))
    try:
        with _claim(temporary):
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
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def finished_file(path: str | os.PathLike) -> Generator[Path]:
    """A file that appears under its name only when it is complete; what was there before gives way in that moment.

    Yields a path of the same name in a temporary folder beside it, to be written by whatever writes files; on success
    the file is flushed to the disk and moved to `path`, on an error it is removed and `path` stays as it was.

    Raises:
        OSError: The folder is not there or cannot be written.
    """
    path = Path(path)
    folder = Path(tempfile.mkdtemp(prefix=_unfinished(path), dir=path.parent))
    temporary = folder / path.name
    try:
        # The folder bears the lock: safetensors, for one, puts a new file in the place of the one it is told to write.
        with _claim(folder):
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def _unfinished(path: Path) -> str:
    return f".{path.name}.unfinished-"


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
    if os.name == "nt" and path.is_dir():
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


def _listed_files(folder: Path) -> list[str]:
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return sorted(
        file.as_posix() for file in files if file.name != MANIFEST and file.parts[0] not in {".git", ".cache"}
    )


def write_manifest(folder: str | os.PathLike) -> Path:
    """Writes `SHA256SUMS` over every file of `folder`, in the format of `sha256sum`, and returns its path."""
    folder = Path(folder)
    manifest = folder / MANIFEST
    text = manifest_text({name: sha256(folder / name) for name in _listed_files(folder)})
    manifest.write_text(text, encoding="utf-8")
    return manifest


def manifest_text(digests: dict[str, str]) -> str:
    """Text of a `SHA256SUMS`: file names to SHA-256, in the format and order of `write_manifest`."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def read_manifest(path: str | os.PathLike) -> dict[str, str]:
    """SHA-256 of every file that a `SHA256SUMS` lists.

    Raises:
        ValueError: A line of it is not of the format of `sha256sum`.
    """
    listed = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise ValueError(f"{path}, line {number}, is not a line of sha256sum.")
        listed[name] = digest
    return listed


def verify_manifest(folder: str | os.PathLike) -> list[str]:
    """Problems of `folder` against its `SHA256SUMS`, one sentence each: missing, changed and unlisted files.

    Raises:
        FileNotFoundError: The folder has no `SHA256SUMS`.
        ValueError: A line of it is not of the format of `sha256sum`.
    """
    folder = Path(folder)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: it was not written by jminigpt4, or not completely.")
    expected = read_manifest(manifest)
    present = _listed_files(folder)
    problems = [f"{name} is missing." for name in expected if name not in present]
    problems += [f"{name} is not listed in {MANIFEST}." for name in present if name not in expected]
    problems += [
        f"{name} has changed: its SHA-256 is not the listed one."
        for name in present
        if name in expected and sha256(folder / name) != expected[name]
    ]
    return problems


def save_projection(model: torch.nn.Module, folder: str | os.PathLike, metadata: dict[str, str] | None = None) -> Path:
    """Writes the trained Linear layer alone, `projection.safetensors`, and returns its path.

    Args:
        model: A [`JMiniGPT4ForConditionalGeneration`].
        folder: An existing folder.
        metadata: What the file shall say of itself, for instance which language model it was trained for.
    """
    layer = model.model.language_projection
    path = Path(folder) / PROJECTION
    tensors = {"weight": layer.weight.detach().contiguous(), "bias": layer.bias.detach().contiguous()}
    with finished_file(path) as temporary:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, temporary, metadata=metadata)
    return path


def read_projection(path: str | os.PathLike) -> tuple[torch.Tensor, torch.Tensor, dict[str, str]]:
    """Weight `(text_hidden_size, qformer_hidden_size)`, bias `(text_hidden_size,)` and metadata of a projection file,
    or of the one in a folder.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no projection file.
    """
    path = Path(path)
    path = path / PROJECTION if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("weight"), file.get_tensor("bias"), file.metadata() or {}
    except SafetensorError:
        raise ValueError(f"{path} is not a projection file: it needs the tensors `weight` and `bias`.") from None
