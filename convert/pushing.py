"""`push_to_hub` of model and processor: what transformers uploads, completed by card, account and manifest.

The model's own files, which travel with every checkpoint, cannot do it: they import nothing of this package. So it is
the installed package's classes that do.
"""

import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError

from ..checkpoint import AIBOM, MANIFEST, SIGNATURE, manifest_text, sha256
from ..inference.loading import note
from .account import CONVERSION, Account
from .card import CARD, is_generated, write_card
from .repository import Repository, one_line_errors

UNWRITTEN = b"[More Information Needed]"  # the card that transformers puts into a new repository


def complete_repository(repo: str, source: str, token: str | bool | None = None, revision: str | None = None) -> str:
    """Gives a repository the card (unless a person wrote it one), the account of `source` and a `SHA256SUMS` of all
    that is in it, and returns the address of the commit. A signature and a bill of materials of what was there before
    are deleted.

    Args:
        source: Folder or Hub id that the model was loaded from.
        token, revision: As `push_to_hub` was given them.

    Raises:
        OSError: The Hub refuses or cannot be reached.
    """
    api = HfApi(token=token)
    with one_line_errors(f"The card of {repo}"), tempfile.TemporaryDirectory() as beside:
        there = Repository.read(api, repo, Path(beside) / "repository", revision)
        written = Path(beside) / "written"
        written.mkdir()
        _account_of(source).write(written)
        card = there.fetch(CARD).read_bytes() if CARD in there.names else UNWRITTEN
        if UNWRITTEN in card or is_generated(card):
            write_card(written, repo)
        files = {path.name: path for path in written.iterdir()}
        stale = sorted(there.names & {SIGNATURE, AIBOM})
        digests = {name: there.digest(name) for name in there.names - files.keys() - {MANIFEST, *stale}}
        digests |= {name: sha256(path) for name, path in files.items()}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(name) for name in stale]
        operations += [CommitOperationAdd(name, path) for name, path in files.items()]
        operations.append(CommitOperationAdd(MANIFEST, manifest_text(digests).encode()))
        message = "Card, account and manifest"
        commit = api.create_commit(
            repo, operations, commit_message=message, parent_commit=there.commit, revision=revision
        )
    if stale:
        note(f"{' and '.join(stale)} of {repo} were of what was there before and are deleted: publish with --sign.")
    return commit.commit_url


def _account_of(source: str) -> Account:
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(hf_hub_download(source, CONVERSION)).parent
        except (EntryNotFoundError, HFValidationError, OSError):
            return Account()
    account = Account.read(folder)
    account.sources = account.all_sources(folder)
    return account
