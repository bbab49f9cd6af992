"""What breaks while a folder is published: nothing half-made is left, the user is told in one line, and the next try
completes it."""

import os
import shutil
from pathlib import Path

import pytest

from jminigpt4.convert import publish_folder, verify_folder

REPO = "tester/published"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Faults are many, and the folder is whole: it is not verified each time."""
    monkeypatch.setattr("jminigpt4.convert.publishing.verify_folder", lambda folder: [])


@pytest.fixture
def old(tiny_folder):
    return tiny_folder(0)


@pytest.fixture
def new(tiny_folder):
    """Another checkpoint."""
    return tiny_folder(1)


def requests_of(hub, folder):
    """What publishing asks for, in order, with the Hub as it is."""
    before = {repo: dict(files) for repo, files in hub.repos.items()}, dict(hub.private), dict(hub.objects)
    hub.received.clear()
    publish_folder(folder, REPO)
    asked = list(hub.received)
    hub.repos, hub.private, hub.objects = before
    hub.received.clear()
    return asked


def befall(hub, number, fate, once=False):
    """From request `number` on the network is gone, or, for once, only in this one."""

    def fault(count, method, path):
        if count == number:
            return fate
        return "cut" if count > number and not once else None

    hub.received.clear()
    hub.fault = fault


def die_while_publishing(hub, folder, number, fate):
    """Publishes in a process that is killed at a request."""
    befall(hub, number, fate, once=True)
    ready, go = os.pipe()
    if (pid := os.fork()) == 0:
        os.read(ready, 1)  # until the Hub knows whom to kill
        try:
            publish_folder(folder, REPO)
        finally:
            os._exit(0)
    hub.victim = pid
    os.write(go, b"1")
    _, status = os.waitpid(pid, 0)
    os.close(ready), os.close(go)
    hub.fault = None
    assert os.WIFSIGNALED(status), "it was published before it could be killed"


def points(asked, *fates):
    """Every request, and what befalls it; whether one that changes nothing was heard makes no difference."""
    numbered = [(number, fate) for number in range(1, len(asked) + 1) for fate in fates]
    return [
        (number, fate)
        for number, fate in numbered
        if not fate.endswith("after") or not asked[number - 1].startswith(("GET", "HEAD"))
    ]


def check_whole(hub, folder, download):
    """The next try publishes all of the folder."""
    hub.fault = None
    publish_folder(folder, REPO)
    assert hub.repos[REPO].keys() == hub_files(folder)
    assert verify_folder(download(REPO)) == []


def hub_files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} | {".gitattributes"}


def test_a_new_repository_and_killed_processes(new, hub, download, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    asked = requests_of(hub, new)
    assert REPO not in hub.repos and len(asked) > 10
    assert len(points(asked, "kill", "kill after")) >= 20
    for number, fate in points(asked, "kill", "kill after"):
        hub.repos.pop(REPO, None), hub.objects.clear()
        die_while_publishing(hub, new, number, fate)
        found = hub.repos.get(REPO, {})
        assert not found or hub.private[REPO] or found.keys() == hub_files(new), (asked[number - 1], fate)
        assert set(found) in ({".gitattributes"}, set(), hub_files(new)), (asked[number - 1], fate)
    check_whole(hub, new, download)


def test_a_new_repository_and_cut_connections(new, hub, download):
    asked = requests_of(hub, new)
    assert len(points(asked, "cut", "cut after")) >= 20
    for number, fate in points(asked, "cut", "cut after"):
        hub.repos.pop(REPO, None), hub.objects.clear()
        befall(hub, number, fate)
        with pytest.raises(OSError, match=rf"^{REPO} is not published: .* Publish again when it is back") as caught:
            publish_folder(new, REPO)
        assert "\n" not in str(caught.value)
        found = hub.repos.get(REPO, {})
        assert not found or hub.private[REPO] or found.keys() == hub_files(new), (asked[number - 1], fate)
    check_whole(hub, new, download)


def test_an_old_repository_is_as_it_was_or_all_new(old, new, hub, download):
    publish_folder(old, REPO)
    before = dict(hub.repos[REPO])
    asked = requests_of(hub, new)
    publish_folder(new, REPO)
    after = dict(hub.repos[REPO])
    assert before != after
    for number, fate in points(asked, "cut", "cut after", "kill after"):
        hub.repos[REPO] = dict(before)
        hub.objects.clear()
        if fate.startswith("kill"):
            die_while_publishing(hub, new, number, fate)
        else:
            befall(hub, number, fate)
            with pytest.raises(OSError, match="is not published: "):
                publish_folder(new, REPO)
        assert hub.repos[REPO] in (before, after), (asked[number - 1], fate)
        hub.fault = None
    check_whole(hub, new, download)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "does not accept your token: run `hf auth login`"),
        (403, "your token may not write there: run `hf auth login`"),
        (409, "it is being changed by someone else: publish again"),
        (429, "asks you to wait"),
        (500, "the Hub answers 500: publish again later"),
    ],
)
@pytest.mark.parametrize("where", ["whoami", "create", "preupload", "batch", "objects/", "commit/main"])
def test_refusals_are_said_in_one_line(status, said, where, new, hub):
    hub.fault = lambda number, method, path: status if where in path else None
    with pytest.raises(OSError, match=rf"^{REPO} is not published: .*{said}") as caught:
        publish_folder(new, REPO)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    assert REPO not in hub.repos


def test_a_changed_repository_is_not_overwritten(old, new, hub):
    """Someone commits while large files go up."""
    publish_folder(old, REPO)

    def meanwhile(number, method, path):
        if path.startswith("objects/"):
            hub.repos[REPO]["theirs.txt"] = b"new"

    hub.fault = meanwhile
    with pytest.raises(OSError, match="it was changed meanwhile: look at the change"):
        publish_folder(new, REPO)
    assert hub.repos[REPO]["theirs.txt"] == b"new"


def test_large_files_are_not_uploaded_twice(new, hub):
    hub.fault = lambda number, method, path: "cut" if "commit/main" in path else None
    with pytest.raises(OSError, match="the connection to the Hub broke"):
        publish_folder(new, REPO)
    hub.fault = None
    hub.received.clear()
    publish_folder(new, REPO)
    assert not any(each.startswith("PUT objects/") for each in hub.received)


@pytest.mark.parametrize(
    ("repo", "said"),
    [
        ("name", "'name' is not a Hub id"),
        ("a/b/c", "'a/b/c' is not a Hub id"),
        ("tester/na me", "is not a Hub id"),
        ("somebody/name", "somebody/name is not yours: your token publishes under tester or maker"),
    ],
)
def test_names_are_checked_before_anything_is_read(repo, said, new, hub, monkeypatch):
    monkeypatch.setattr("jminigpt4.convert.publishing.verify_folder", lambda folder: pytest.fail("hashed"))
    with pytest.raises(ValueError, match=said):
        publish_folder(new, repo)


def test_tokens_are_checked_before_anything_is_read(new, hub, monkeypatch):
    monkeypatch.setattr("jminigpt4.convert.publishing.verify_folder", lambda folder: pytest.fail("hashed"))
    hub.role = "read"
    with pytest.raises(OSError, match="your token may not write there: run `hf auth login`"):
        publish_folder(new, REPO)
    monkeypatch.setattr("jminigpt4.convert.repository.get_token", lambda: None)
    with pytest.raises(OSError, match="you are not logged in to the Hub: run `hf auth login`"):
        publish_folder(new, REPO)


def test_offline_is_said(new, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        publish_folder(new, REPO)


def test_a_removal_that_fails_is_said(new, hub):
    hub.fault = lambda number, method, path: "cut" if "commit/main" in path or method == "DELETE" else None
    with pytest.raises(OSError, match="an empty private repository of that name stays: publish again, or delete it"):
        publish_folder(new, REPO)
    assert hub.private[REPO]


def test_the_folder_stays_as_it_is(new, hub, tmp_path):
    folder = Path(shutil.copytree(new, tmp_path / "checkpoint"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    publish_folder(folder, REPO)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
