"""A folder signed, and its signature checked: whose model this is, where `SHA256SUMS` says only that it is whole.

`model.sig` is a signature of `model-signing` (https://github.com/sigstore/model-transparency): a Sigstore bundle
around an in-toto statement that lists the SHA-256 of every file, so its own command `model_signing verify` checks it.
"""

import base64
import getpass
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import HUB_FILES, MANIFEST, RESULTS, SCORES, SIGNATURE, WINDOWS, user_path
from ..extras import require
from .card import CARD

# What changes while the model does not: a card is written anew for each repository and set of scores, and the list of
# all files with it. Everything else is signed.
UNSIGNED = (CARD, SCORES, MANIFEST, SIGNATURE)
UNSIGNED_FOLDERS = (RESULTS, ".cache/huggingface")
SIGSTORE = "sigstore"
PASSWORD = "JMINIGPT4_SIGN_PASSWORD"
CURVES = ("secp256r1", "secp384r1", "secp521r1")
MAKE_KEY = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes-256-cbc -out key.pem"


@dataclass(frozen=True)
class Trust:
    """Whose signature is accepted: that of the holder of a key, or of an identity that Sigstore vouches for.

    Args:
        key: File of a public key, PEM.
        identity: Name in Sigstore's certificate, a mail address or the address of a workflow.
        issuer: Who knows that identity, an OpenID Connect issuer.

    Raises:
        ValueError: Neither or both are given, or one half of an identity.
    """

    key: Path | None = None
    identity: str | None = None
    issuer: str | None = None

    def __post_init__(self):
        if (self.identity is None) != (self.issuer is None):
            raise ValueError("--identity and --issuer belong together: whose signature, and who vouches for the name.")
        if (self.key is None) == (self.identity is None):
            raise ValueError("A signature is checked by --key, or by --identity and --issuer.")

    @property
    def name(self) -> str:
        """In words."""
        return f"the private key of {self.key}" if self.key else f"{self.identity} (by {self.issuer})"


def open_signer(name: str, folder: Path) -> Any:
    """A configuration of `model-signing` that is ready to sign.

    Args:
        name: File of a private key, PEM; or `sigstore`, which asks who you are in a browser, or takes the identity of
            the workflow that runs, and writes it into a public log.
        folder: What is to be signed; the key must not lie in it.

    Raises:
        ImportError: model-signing is not installed.
        ValueError: The key is none of an elliptic curve, its password is missing or wrong, or others may read it.
        OSError: There is no such file, or Sigstore cannot be reached.
    """
    require("sign", "model_signing", "OpenSSL")
    from model_signing import signing

    config = signing.Config()
    if name == SIGSTORE:
        try:
            return config.use_sigstore_signer(use_ambient_credentials=True)
        except Exception as error:  # of its trust root, of OpenID Connect, or of the connection
            raise OSError(f"Sigstore cannot be used: {_first_line(error)}") from error
    path = user_path(name)
    _check_place(path, folder)
    # Declared as text, the password goes to `cryptography` as it is, which takes bytes.
    password: Any = _checked_password(path)
    return config.use_elliptic_key_signer(private_key=path, password=password)


def sign(folder: Path, signer: Any) -> Path:
    """Writes `model.sig` of a folder, over every file that is not in `UNSIGNED`, and returns its path.

    Args:
        signer: Of [`open_signer`].

    Raises:
        ValueError: The folder holds links, as a snapshot in the Hub's cache does.
        OSError: Sigstore refuses or cannot be reached.
    """
    from model_signing import hashing

    if link := next((path for path in sorted(folder.rglob("*")) if path.is_symlink()), None):
        raise ValueError(
            f"{link} is a link, as in the Hub's cache: sign a copy, of `hf download NAME --local-dir DIR`."
        )
    ignored = [*UNSIGNED, *UNSIGNED_FOLDERS, ".gitattributes"]
    signer.set_hashing_config(hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False))
    path = folder / SIGNATURE
    try:
        signer.sign(folder, path)
    except Exception as error:  # of Sigstore's services, or of the connection to them
        path.unlink(missing_ok=True)
        raise OSError(f"{folder} is not signed: {_first_line(error)}") from error
    return path


def signature_problems(folder: Path, listed: dict[str, str], trust: Trust | None = None) -> list[str]:
    """Problems of the signature in a folder, one sentence each.

    Whether it is of these very files is looked at in any case; whose it is, where `trust` is given.

    Args:
        listed: SHA-256 of the folder's files, as its `SHA256SUMS` states them.

    Raises:
        ImportError: `trust` is given, and model-signing is not installed.
        ValueError, OSError: The public key is none.
    """
    path = folder / SIGNATURE
    if trust is not None and trust.key is not None:
        check_public_key(trust.key)
    if not path.is_file():
        return [f"{SIGNATURE} is missing: the folder is not signed."] if trust else []
    try:
        bundle = json.loads(path.read_text(encoding="utf-8"))
        signed = _signed_digests(bundle)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f"{SIGNATURE} is no signature of model-signing."]
    problems = _content_problems(signed, listed)
    return [*problems, *(_authenticity_problems(folder, bundle, trust, known=bool(problems)) if trust else [])]


def check_public_key(path: Path):
    """Raises `ValueError` where a file is no public key that signatures are checked with."""
    require("sign", "model_signing", "OpenSSL")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    content = user_path(path).read_bytes()
    if b"PRIVATE KEY" in content:
        raise ValueError(
            f"{path} is a private key; a signature is checked with its public half: openssl pkey -in {path} -pubout"
        )
    try:
        key: Any = serialization.load_pem_public_key(content)
    except Exception:  # of another form, or of a kind that cryptography does not know
        raise ValueError(f"{path} is no public key in PEM (BEGIN PUBLIC KEY).") from None
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise ValueError(f"{path} is no key of an elliptic curve that signatures are made with: {', '.join(CURVES)}.")


def _check_place(path: Path, folder: Path):
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file: a private key, or `{SIGSTORE}`, is needed to sign.")
    if path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} lies in the folder that is to be signed, and would be published: move it elsewhere.")
    if not WINDOWS and path.stat().st_mode & 0o077:
        raise ValueError(f"{path} is a private key that other users of this machine may read: chmod 600 {path}")


def _checked_password(path: Path) -> bytes | None:
    """The password of a private key, with which it can be opened; `None` where it has none."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    content = path.read_bytes()
    password = _password(path) if b"ENCRYPTED" in content else None
    try:
        key: Any = serialization.load_pem_private_key(content, password)
    except Exception:  # a wrong password and a damaged file look alike
        why = "cannot be opened with that password" if password is not None else "is no private key in PEM"
        raise ValueError(f"{path} {why}. Make one: {MAKE_KEY}") from None
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise ValueError(f"{path} is no key of an elliptic curve that can sign ({', '.join(CURVES)}): {MAKE_KEY}")
    return password


def _password(path: Path) -> bytes:
    """Never from the command line, which other users of the machine see."""
    if given := os.environ.get(PASSWORD):
        return given.encode()
    if not sys.stdin.isatty():
        raise ValueError(f"{path} has a password: put it into the environment variable {PASSWORD}.")
    return getpass.getpass(f"Password of {path}: ").encode()


def _signed_digests(bundle: dict[str, Any]) -> dict[str, str]:
    """SHA-256 by name of what a bundle says that it signs. Whether it does, and whose it is, is not known by this."""
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    resources = statement["predicate"]["resources"]
    found = {each["name"]: each["digest"] for each in resources if each["algorithm"] == "sha256"}
    if len(found) != len(resources) or statement["predicate"]["serialization"]["method"] != "files":
        raise ValueError("Signed by another method.")
    return found


def _content_problems(signed: dict[str, str], listed: dict[str, str]) -> list[str]:
    problems = [f"{SIGNATURE} does not cover {name}." for name in covered(listed) if name not in signed]
    problems += [f"{SIGNATURE} covers {name}, which is not here." for name in sorted(signed.keys() - listed.keys())]
    other = (name for name in sorted(signed.keys() & listed.keys()) if signed[name] != listed[name])
    return problems + [f"{SIGNATURE} is of another {name} than is here." for name in other]


def covered(names: Iterable[str]) -> list[str]:
    """Those of the names that a signature has to cover."""

    def may_change(name: str) -> bool:
        is_result = name.startswith(RESULTS) and name.endswith(".yaml")
        return name in UNSIGNED or is_result or HUB_FILES.fullmatch(name) is not None

    return sorted(name for name in names if not may_change(name))


def _authenticity_problems(folder: Path, bundle: dict[str, Any], trust: Trust, known: bool) -> list[str]:
    """What model-signing says against the signature: `known` if it is known already that the files are others."""
    has_key = "publicKey" in bundle["verificationMaterial"]
    if has_key != (trust.key is not None):
        how, options = ("with a key", "--key") if has_key else ("through Sigstore", "--identity and --issuer")
        return [f"{SIGNATURE} was made {how}: check it with {options}."]
    from model_signing import hashing, verifying

    class Hashing(hashing.Config):
        """Remembers whether it was asked: model-signing looks at files once it knows the signature to be genuine."""

        asked = False

        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> Any:
            self.asked = True
            return super().hash(model_path, files_to_hash=files_to_hash)

    files, config = Hashing(), verifying.Config()
    # A snapshot in the Hub's cache is made of links; what a link may be is looked at with `SHA256SUMS`. And what is
    # not signed is `_content_problems`' affair: model-signing passes over what the signer wanted passed over.
    config.set_hashing_config(files.set_allow_symlinks(True)).set_ignore_unsigned_files(True)
    try:
        if trust.key is not None:
            config.use_elliptic_key_verifier(public_key=user_path(trust.key))
        else:
            config.use_sigstore_verifier(identity=str(trust.identity), oidc_issuer=str(trust.issuer))
        config.verify(folder, folder / SIGNATURE)
    except Exception as error:  # whatever it is, the signature does not hold
        if not files.asked:
            reason = f" ({_first_line(error)})" if trust.identity else ""
            return [f"{SIGNATURE} was not made by {trust.name}{reason}."]
        return [] if known else [f"{SIGNATURE} is of other files than are here."]
    return []


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
