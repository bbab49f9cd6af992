"""A finished folder gets a bill of materials and a signature: the bill first, as it is signed with the rest, then the
signature, then the list of all files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..checkpoint import AIBOM, MANIFEST, SIGNATURE, finished_file, manifest_text, read_manifest, sha256
from ..extras import require
from .aibom import render_aibom
from .signing import covered, open_signer, sign, signature_problems


def open_seal(sign: str | None, aibom: bool, folder: Path) -> Any:
    """What [`seal`] needs, looked at before anything that takes long; returns its `signer`, if there is to be one.

    Args:
        sign: See [`jminigpt4.convert.signing.open_signer`], whose errors are raised.
        aibom: Whether there is to be a bill of materials.
    """
    if aibom:
        require("sign", "cyclonedx")
    return open_signer(sign, folder) if sign else None


def seal(folder: Path, signer: Any = None, aibom: str | None = None, datasets: Iterable[str] = ()):
    """Writes bill of materials and signature into a folder, each where it is asked for, and lists them in its
    `SHA256SUMS`. The folder has to be whole.

    Args:
        signer: Of [`jminigpt4.convert.signing.open_signer`].
        aibom: What the bill of materials calls the checkpoint.
        datasets: For the bill, as in [`jminigpt4.convert.aibom.render_aibom`].

    Raises:
        ImportError: A package is not installed.
        ValueError: The folder is signed, and its bill of materials would change without its signature; or it changed
            while it was signed.
        OSError: It cannot be signed.
    """
    if signer is None and aibom is None:
        return
    listed = read_manifest(folder / MANIFEST)
    if aibom is not None:
        others = {name: digest for name, digest in listed.items() if name != AIBOM}
        bill = render_aibom(folder, aibom, {name: others[name] for name in covered(others)}, datasets)
        _write(folder / AIBOM, bill, signed=SIGNATURE in listed and signer is None)
        listed[AIBOM] = sha256(folder / AIBOM)
    if signer is not None:
        listed.pop(SIGNATURE, None)
        sign(folder, signer)
        if problems := signature_problems(folder, listed):
            (folder / SIGNATURE).unlink()
            raise ValueError(f"{folder} is not signed, as it changed meanwhile: {' '.join(problems)}")
        listed[SIGNATURE] = sha256(folder / SIGNATURE)
    with finished_file(folder / MANIFEST) as temporary:
        temporary.write_text(manifest_text(listed), encoding="utf-8", newline="")


def _write(path: Path, text: str, signed: bool):
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    if signed:
        raise ValueError(f"{path.parent} is signed, and {AIBOM} is to change: sign it anew with --sign.")
    with finished_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
