"""A repository on the Hub as it stands, and what the Hub's refusals mean, each in one line with its remedy."""

from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of httpx, whichever version of it huggingface_hub uses: broken connections
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from ..checkpoint import MANIFEST, read_manifest, sha256

LOGIN = "run `hf auth login`"
REMEDIES = {
    401: f"the Hub does not accept your token: {LOGIN}",
    403: f"your token may not write there: {LOGIN} with one that may, or take a name of your own",
    404: "the repository is gone, or your token may not see it",
    409: "it is being changed by someone else: publish again in a moment",
    412: "it was changed meanwhile: look at the change, then publish again",
    413: "the Hub takes no more at once: see its limits on storage",
    429: "the Hub asks you to wait: publish again later",
}


@dataclass
class Repository:
    """A repository at its newest commit.

    Attributes:
        repo: Hub id.
        commit: Its newest commit.
        private: Whether it is private.
        names: Its files.
        listed: What its `SHA256SUMS` says of them, nothing where it has none.
        stored: SHA-256 of its large files, as the Hub states it.
        kind: `model` or `space`.
    """

    repo: str
    commit: str
    private: bool
    api: HfApi
    folder: Path
    names: set[str] = field(default_factory=set)
    listed: dict[str, str] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    kind: str = "model"

    @classmethod
    def find(cls, api: HfApi, repo: str, folder: Path, kind: str = "model") -> "Repository | None":
        """The repository as it is; `None` where there is none that this user may see. See `read`."""
        try:
            return cls.read(api, repo, folder, kind=kind)
        except RepositoryNotFoundError as error:
            if error.response.status_code == 404:
                return None
            raise

    @classmethod
    def read(
        cls, api: HfApi, repo: str, folder: Path, revision: str | None = None, kind: str = "model"
    ) -> "Repository":
        """The repository as it is.

        Args:
            folder: Where its small files are fetched to.
            revision: Branch; by default the main one.
            kind: `model` or `space`.
        """
        info = api.repo_info(repo, revision=revision, repo_type=kind)
        listed = api.list_repo_tree(repo, recursive=True, revision=info.sha, repo_type=kind)
        files = {file.path: file for file in listed if isinstance(file, RepoFile)}
        stored = {name: file.lfs.sha256 for name, file in files.items() if file.lfs is not None}
        found = cls(repo, str(info.sha), bool(info.private), api, folder, set(files), stored=stored, kind=kind)
        if MANIFEST in found.names:
            with suppress(ValueError):  # edited by hand, it tells nothing of the other files
                found.listed = read_manifest(found.fetch(MANIFEST))
        return found

    def fetch(self, name: str) -> Path:
        """One of its files, on this machine."""
        return Path(
            self.api.hf_hub_download(self.repo, name, revision=self.commit, local_dir=self.folder, repo_type=self.kind)
        )

    def digest(self, name: str) -> str:
        """SHA-256 of one of its files; a large one is not downloaded for it."""
        return self.stored.get(name) or sha256(self.fetch(name))


def check_access(api: HfApi, repo: str):
    """Whether this user may make or change `repo`, as far as the Hub tells before anything is read or uploaded.

    Raises:
        ValueError: The name is no Hub id, or another user's.
        OSError: There is no token, or it may only read.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is not a Hub id, USER/NAME: {str(error).splitlines()[0]}") from None
    if repo.count("/") != 1:
        raise ValueError(f"{repo!r} is not a Hub id: write USER/NAME.")
    if get_token() is None:
        raise OSError(f"{repo} is not published: you are not logged in to the Hub: {LOGIN}.")
    user = api.whoami()
    names = [user["name"], *(each["name"] for each in user.get("orgs", []))]
    if repo.split("/")[0] not in names:
        raise ValueError(f"{repo} is not yours: your token publishes under {' or '.join(names)}.")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise OSError(f"{repo} is not published: {REMEDIES[403]}.")


@contextmanager
def complete_or_removed(api: HfApi, repo: str, private: bool, kind: str = "model") -> Generator[None]:
    """A new repository, private until it is complete: whatever happens meanwhile, nobody is shown an empty one."""
    api.create_repo(repo, private=True, repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    try:
        yield
    except BaseException as error:
        try:
            api.delete_repo(repo, missing_ok=True, repo_type=kind)
        except (HTTPError, OSError):
            error.add_note("And an empty private repository of that name stays: publish again, or delete it.")
        raise
    try:
        if not private:
            api.update_repo_settings(repo, private=False, repo_type=kind)
    except (HTTPError, OSError) as error:
        error.add_note("All was uploaded, but the repository is still private: change that in its settings.")
        raise


@contextmanager
def one_line_errors(repo: str) -> Generator[None]:
    """Turns what the Hub and the network raise into one `OSError` of one line that names the remedy."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise OSError(f"{repo} is not published: HF_HUB_OFFLINE is set; publish without it.") from error
    except (HTTPError, ConnectionError, LocalEntryNotFoundError) as error:
        sentences = [f"{repo} is not published: {_reason(error)}.", *getattr(error, "__notes__", [])]
        raise OSError(" ".join(sentences)) from error


def _reason(error: Exception) -> str:
    if not isinstance(error, HfHubHTTPError):
        return (
            f"the connection to the Hub broke ({type(error).__name__}). Publish again when it is back: what is there "
            "already is not uploaded twice"
        )
    status = error.response.status_code
    return REMEDIES.get(status, f"the Hub answers {status}: publish again later")
