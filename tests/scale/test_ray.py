"""Features on a Ray cluster are those of one machine, to the bit, and survive the death of nodes and of the driver."""

import os
import signal
import time
from contextlib import suppress

import psutil
import pytest
import torch
from safetensors import safe_open

from jminigpt4.data.pictures import FilePicture
from jminigpt4.train.recipe import Recipe

pytestmark = [pytest.mark.scale, pytest.mark.timeout(900)]
TOGETHER = 16


@pytest.fixture
def one_machine(checkpoint, tmp_path):
    """`one_machine(paths)`: the store that the ordinary engine fills, and its bad pictures."""
    from jminigpt4.train.ray_features import Job

    def fill(paths: list[str]):
        cache = Job(str(checkpoint), str(tmp_path / "one"), Recipe(cache_dtype="float32")).open_cache()
        return cache.store, cache.fill(map(FilePicture, paths), progress=False)

    return fill


@pytest.fixture
def opened(one_machine):
    """`opened(folder)`: a store as another process finds it, without a model."""
    from jminigpt4.train.feature_store import FeatureStore

    def open_(folder, like) -> FeatureStore:
        return FeatureStore(str(folder), like.fingerprint, like.shape, like.dtype, like.views)

    return open_


def rows(folder) -> int:
    """Pictures that lie in all blocks of a store, one as often as it does."""
    count = 0
    for path in folder.glob("block-*"):
        with safe_open(path, framework="np") as file:
            count += len(file.get_tensor("digests"))
    return count


def test_a_node_killed_in_the_middle(cluster, node, driver, drawings, checkpoint, one_machine, opened, tmp_path):
    """Every picture once, bit-equal to one machine's; the bad ones listed with the same sentences."""
    paths = drawings(600)
    os.truncate(paths[3], 60)
    paths.insert(300, str(tmp_path / "absent.png"))
    second = cluster.add_node(**node)
    given = {"model": str(checkpoint), "cache": str(tmp_path / "ray"), "pictures": paths, "together": TOGETHER}
    running = driver(address=cluster.address, **given)
    running.wait_for_blocks(3)
    cluster.remove_node(second, allow_graceful=False)
    before = len(list((tmp_path / "ray").glob("block-*")))
    bad = running.end()
    assert before < 600 // TOGETHER  # there was something left to do
    expected, expected_bad = one_machine(paths)
    assert sorted(bad) == sorted([each.name, each.reason] for each in expected_bad) and len(bad) == 2
    store = opened(tmp_path / "ray", expected)
    good = [FilePicture(path) for path in paths if path not in {name for name, _ in bad}]
    assert len(store) == len(expected) == 599 and rows(tmp_path / "ray") == 599
    assert list(store.missing(good)) == []
    assert torch.equal(store.features(good), expected.features(good))


def test_the_driver_killed_and_started_again(cluster, driver, drawings, checkpoint, one_machine, opened, tmp_path):
    """What was written stays as it is and is not done again: such pictures are spoilt here, and nobody notices."""
    paths = drawings(400)
    expected, _ = one_machine(paths)
    pictures = list(map(FilePicture, paths))
    features = expected.features(pictures)
    given = {"model": str(checkpoint), "cache": str(tmp_path / "ray"), "pictures": paths, "together": TOGETHER}
    first = driver(address=cluster.address, **given)
    first.wait_for_blocks(3)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    wait_for_nobody()
    written, store = first.blocks(), opened(tmp_path / "ray", expected)
    missing = {picture.path for picture in store.missing(pictures)}
    assert len(written) >= 3 and len(missing) == 400 - rows(tmp_path / "ray") > 0
    for path in set(paths) - missing:
        size, time = FilePicture(path).stamp()
        with open(path, "wb") as file:
            file.write(bytes(size))
        os.utime(path, ns=(time, time))
    second = driver(address=cluster.address, **given)
    assert second.end() == []
    assert written.items() < second.blocks().items()
    store.refresh()
    assert len(store) == rows(tmp_path / "ray") == 400 and torch.equal(store.features(pictures), features)


def wait_for_nobody():
    """Returns when Ray has ended the tasks and actors of the killed driver."""
    end = time.monotonic() + 120
    while busy():
        assert time.monotonic() < end
        time.sleep(0.1)


def busy() -> bool:
    """Whether a process of this one's cluster has a task or an actor: Ray names it by that."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(part.startswith("ray::Map") for part in process.cmdline()):
                return True
    return False


def test_a_store_of_another_encoder_is_refused(cluster, drawings, checkpoint, tmp_path):
    """By the node that encodes, in the sentence of the ordinary engine."""
    from jminigpt4.train.ray_features import Job, fill_on_ray

    Job(str(checkpoint), str(tmp_path / "cache"), Recipe()).open_cache()
    pictures = map(FilePicture, drawings(1))
    job = Job(str(checkpoint), str(tmp_path / "cache"), Recipe(cache_dtype="float32"))
    with pytest.raises(ValueError, match="dtype float16 instead of float32: .*--set cache_dtype=float16"):
        fill_on_ray(job, pictures, cluster.address, progress=False)
    with pytest.raises(ConnectionError, match="There is no Ray cluster at 127.0.0.1:1: "):
        fill_on_ray(job, pictures, "127.0.0.1:1", progress=False)
