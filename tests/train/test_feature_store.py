"""The feature store by itself: blocks, index, several writers, kills, damage, object storage; no model."""

import gc
import hashlib
import multiprocessing
import os
import pickle
import re
import signal
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from safetensors import safe_open

from jminigpt4.data.pictures import MemoryPicture
from jminigpt4.train import feature_index
from jminigpt4.train.feature_index import KeyTable, MappedIndex
from jminigpt4.train.feature_store import SCATTERED, Entry, FeatureStore, picture_key
from jminigpt4.train.store_files import MOST_OPEN

SHAPE = (2, 8)
FINGERPRINT = {"weights": "a", "weights_of": "checkpoint", "precision": "float32", "views": 0, "dtype": "float16"}


def open_store(folder, **changes) -> FeatureStore:
    return FeatureStore(folder, FINGERPRINT | changes, SHAPE)


def picture(number: int) -> MemoryPicture:
    return MemoryPicture(f"picture {number}", b"%d" % number)


def entry(number: int) -> Entry:
    each = picture(number)
    return Entry(each.name, *each.stamp(), hashlib.sha256(each.content).digest())


def features(numbers) -> torch.Tensor:
    """Features that say whose they are, `(n, 1, 2, 8)`."""
    start = torch.tensor(list(numbers), dtype=torch.float16).reshape(-1, 1, 1, 1)
    return (start + torch.arange(16).reshape(2, 8) / 16).half()


def write(store: FeatureStore, numbers) -> str | None:
    return store.write_block([entry(number) for number in numbers], features(numbers))


def check(store: FeatureStore, numbers):
    numbers = list(numbers)
    assert list(store.missing(map(picture, numbers))) == []
    assert torch.equal(store.features([picture(number) for number in numbers]), features(numbers)[:, 0])


def test_what_was_written_is_read_by_all(tmp_path):
    store, other = open_store(tmp_path), open_store(tmp_path)
    write(store, range(5))
    write(store, range(5, 7))
    check(store, [6, 0, 3, 3, 5])
    assert len(other) == 0 and picture(0) not in other
    other.refresh()
    for each in (store, other, open_store(tmp_path), pickle.loads(pickle.dumps(store))):
        check(each, range(7))
        assert len(each) == 7 and picture(7) not in each
        assert [missing.name for missing in each.missing(map(picture, (2, 9, 4, 8)))] == ["picture 9", "picture 8"]
    assert store.features([]).shape == (0, *SHAPE)
    with pytest.raises(KeyError, match="picture 9 is not in the feature cache .*`jminigpt4 features`"):
        store.features([picture(0), picture(9)])


def test_a_block_is_written_once_and_holds_what_is_new(tmp_path):
    store, late = open_store(tmp_path), open_store(tmp_path)
    first = write(store, range(4))
    assert first is not None and write(store, range(4)) is None and write(store, [3, 1]) is None
    assert write(late, range(4)) == first  # which has not looked since: the same file again
    second = write(store, [2, 4, 4])
    with safe_open(tmp_path / second, "pt") as file:
        assert file.get_slice("rows").get_shape() == [1, 1, 36] and file.metadata()["fingerprint"]
    assert len(store) == 5 and len(list(tmp_path.glob("block-*"))) == 2
    check(open_store(tmp_path), range(5))
    with pytest.raises(ValueError, match="Features of 2 pictures are"):
        store.write_block([entry(0), entry(1)], features([0]))


def test_a_content_of_several_names_is_stored_once(tmp_path):
    store = open_store(tmp_path)
    copies = [MemoryPicture(f"copy {number}", b"1") for number in range(3)]
    entries = [Entry(copy.name, *copy.stamp(), entry(1).digest) for copy in copies]
    store.write_block([entry(1), entries[0]], features([1, 1]), known=[entries[1]])
    assert open_store(tmp_path).features([copies[0]]).equal(features([1])[:, 0])
    name = store.write_block([], features([]), known=[entries[2]])
    for each in (store, open_store(tmp_path)):
        assert len(each) == 1 and each.features(copies).equal(features([1, 1, 1])[:, 0])
    with safe_open(tmp_path / name, "pt") as file:
        assert file.get_slice("rows").get_shape() == [0, 1, 36]


def test_many_blocks_get_one_index_which_is_mapped_and_not_read(tmp_path):
    store = open_store(tmp_path)
    for block in range(SCATTERED):
        write(store, range(4 * block, 4 * block + 4))
    store.consolidate()
    assert not list(tmp_path.glob("index-*"))
    write(store, [2, 1000])
    store.consolidate()
    (index,) = tmp_path.glob("index-*")
    numbers = [*range(4 * SCATTERED), 1000]
    for each in (store, open_store(tmp_path)):
        check(each, numbers)
        assert len(each) == len(numbers) and each._index.added == [] and picture(999) not in each
        assert isinstance(each._index.pieces[0].contents.high.base, memoryview | np.ndarray)
        assert not each._index.pieces[0].contents.high.flags.owndata
    with safe_open(index, "pt") as file:
        high = file.get_tensor("contents.high").numpy()
    assert len(high) == len(numbers) and (np.diff(high.astype(object)) > 0).all()

    late = open_store(tmp_path)
    for block in range(SCATTERED + 1):
        write(store, range(2000 + 2 * block, 2000 + 2 * block + 2))
    store.consolidate()
    (newer,) = tmp_path.glob("index-*")
    assert newer != index
    check(late, numbers)  # what it has mapped stays, though the file is gone
    late.refresh()
    more = range(2000, 2000 + 2 * SCATTERED + 2)
    for each in (late, open_store(tmp_path)):
        check(each, [*numbers, *more])
        assert len(each) == len(numbers) + len(more)


def test_an_index_is_sorted_a_range_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_index, "ROWS_OF_A_RANGE", 7)
    store = open_store(tmp_path)
    for block in range(SCATTERED + 2):
        write(store, range(5 * block, 5 * block + 5))
    gone = next(iter(sorted(tmp_path.glob("block-*"))))
    held = {number for number in range(90) if store._rows([picture(number)])[0].file == gone.name}
    gone.unlink()
    store.refresh()
    assert len(store) == 85 and len(held) == 5
    store.consolidate()
    again = open_store(tmp_path)
    assert again._index.mapped is not None and len(again) == 85
    check(again, sorted(set(range(90)) - held))
    assert {int(each.content) for each in again.missing(map(picture, range(90)))} == held


def test_keys_that_share_a_half_and_files_that_are_gone(tmp_path):
    high = np.array([7, 7, 7, 9, 9], np.uint64)
    low = np.array([1, 2, 2, 5, 6], np.uint64)
    place = np.array([0, 1, 2, 3, 99], np.uint64) << np.uint64(32)
    table = KeyTable(high, low, place, np.zeros(5, np.uint32))
    none = np.zeros(4, bool)
    asked = [np.array(each, np.uint64) for each in ([7, 7, 9, 8, 9, 99], [2, 3, 5, 1, 6, 0])]
    assert table.find(*asked, none).tolist() == [1, -1, 3, -1, -1, -1]
    assert table.find(*asked, np.array([False, True, False, True])).tolist() == [2, -1, -1, -1, -1, -1]


def _write_many(folder: str, start: int):
    store = open_store(folder)
    for block in range(6):
        write(store, range(start + 10 * block, start + 10 * block + 10))
    store.consolidate()


def test_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    # The first and the second write the same, the third others, and a fourth what the others have together.
    writers = [context.Process(target=_write_many, args=(str(tmp_path), start)) for start in (0, 0, 60, 30)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    store = open_store(tmp_path)
    check(store, range(120))
    assert len(store) == 120


def test_a_killed_writer_loses_its_unfinished_block_alone(tmp_path, killed_at):
    def fill(folder: Path):
        store = open_store(folder)
        for start in range(0, 30, 10):
            write(store, range(start, start + 10))

    status, operations = killed_at(lambda: fill(tmp_path / "whole"), tmp_path / "whole")
    assert status == 0
    kept = set()
    for number in range(1, 10):
        folder = tmp_path / f"killed-{number}"
        status, _ = killed_at(lambda folder=folder: fill(folder), folder, number * operations // 10)
        assert status == -signal.SIGKILL
        store = open_store(folder)
        kept.add(len(store))
        check(store, range(len(store)))
        store.files.remove_unfinished()
        fill(folder)
        check(open_store(folder), range(30))
        assert not list(folder.glob(".*")) and len(list(folder.glob("block-*"))) == 3
    assert {0, 10, 20} <= kept


def test_killed_while_an_index_is_written(tmp_path, killed_at):
    store = open_store(tmp_path / "whole")
    for block in range(SCATTERED + 1):
        write(store, range(3 * block, 3 * block + 3))
    _, operations = killed_at(lambda: open_store(tmp_path / "whole").consolidate(), tmp_path / "whole", None)
    (index,) = (tmp_path / "whole").glob("index-*")
    opening = killed_at(lambda: open_store(tmp_path / "whole"), tmp_path / "whole", None)[1]
    index.unlink()
    for last in range(opening, operations + 1, 2):
        killed_at(lambda: open_store(tmp_path / "whole").consolidate(), tmp_path / "whole", last)
        check(open_store(tmp_path / "whole"), range(3 * SCATTERED + 3))
        for each in (tmp_path / "whole").glob("index-*"):
            each.unlink()
    open_store(tmp_path / "whole").files.remove_unfinished()
    assert not list((tmp_path / "whole").glob(".*"))


def test_no_byte_of_block_or_index_can_be_damaged_and_go_unnoticed(tmp_path, capsys):
    """Every byte in turn: either features are right, or their picture is missing, or the damage is named."""
    store = open_store(tmp_path)
    write(store, range(3))
    (block,) = tmp_path.glob("block-*")
    content = block.read_bytes()
    named = 0
    header = len(content[:4096].rstrip())
    for at in [*range(0, header, 7), *range(4096, len(content))]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        block.write_bytes(damaged)
        named += _right_or_said(tmp_path, range(3))
        block.write_bytes(content)
        for each in tmp_path.glob("damaged-*"):
            each.unlink()
    assert named >= 3 * 36  # every byte of a row


def test_no_byte_of_an_index_can_be_damaged_and_go_unnoticed(tmp_path, capsys):
    store = open_store(tmp_path)
    for block in range(SCATTERED + 1):
        write(store, [block])
    store.consolidate()
    (index,) = tmp_path.glob("index-*")
    content = index.read_bytes()
    header = len(content[:4096].rstrip())
    named = 0
    for at in [*range(0, header, 61), *range(4096, len(content), 17)]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        index.write_bytes(damaged)
        before = {path.name for path in tmp_path.iterdir()}
        named += _right_or_said(tmp_path, range(SCATTERED + 1))
        for path in tmp_path.glob("damaged-*"):
            assert path.name == f"damaged-{index.name}"  # and no block for it
            path.rename(tmp_path / path.name.removeprefix("damaged-"))
        assert {path.name for path in tmp_path.iterdir()} == before
        index.write_bytes(content)
    assert named > 0


def _right_or_said(folder: Path, numbers) -> int:
    """How many pictures' damage was named; wrong features are an error."""
    named = 0
    store = open_store(folder)
    for number in numbers:
        if picture(number) in store:
            try:
                found = store.features([picture(number)])
            except ValueError as error:
                assert re.search("kept as damaged-|another process|has gone", str(error))
                named += 1
            else:
                assert torch.equal(found, features([number])[:, 0])
    return named


def test_blocks_of_other_settings_are_left_alone(tmp_path, capsys):
    for name, changes in (("a", {}), ("b", {"weights": "b"})):
        write(open_store(tmp_path / name, **changes), range(3) if name == "a" else range(3, 6))
    (block,) = (tmp_path / "b").glob("block-*")
    (tmp_path / "a" / block.name).write_bytes(block.read_bytes())
    store = open_store(tmp_path / "a")
    assert "1 files of" in (said := capsys.readouterr().out) and "other settings" in said
    assert len(store) == 3 and picture(4) not in store and (tmp_path / "a" / block.name).exists()


def test_what_differs_is_named_with_the_settings_that_take_it(tmp_path):
    open_store(tmp_path)
    with pytest.raises(ValueError, match="another encoder: they are of no use to this model. Name another folder"):
        open_store(tmp_path, weights="b")
    # The weights are the files', whatever they are computed in: precision alone differs, or both do.
    with pytest.raises(ValueError, match="precision float32 instead of bfloat16: --set dtype=float32 takes them"):
        open_store(tmp_path, precision="bfloat16")
    with pytest.raises(ValueError, match="another encoder, precision .*of no use"):
        open_store(tmp_path, weights="b", precision="bfloat16")


def test_a_folder_that_cannot_be_written_says_so_when_a_block_is_damaged(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    name = write(store, range(3))
    content = bytearray((tmp_path / name).read_bytes())
    content[4100] ^= 1
    (tmp_path / name).write_bytes(content)

    def read_only(*arguments):
        raise PermissionError(13, "Read-only file system")

    monkeypatch.setattr(os, "rename", read_only)
    with pytest.raises(ValueError, match=f"{name} .*cannot be set aside .*name a folder that can be written"):
        store.features([picture(0)])


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    yield f"memory://{tmp_path.name}/store" if request.param == "memory" else f"file://{tmp_path}/store"
    fsspec.filesystem("memory").store.clear()


def test_a_store_at_a_url(url, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    store = open_store(url)
    for block in range(SCATTERED + 1):
        write(store, range(3 * block, 3 * block + 3))
    store.consolidate()
    numbers = [50, 0, 7, 3]
    for each in (store, open_store(url), pickle.loads(pickle.dumps(store))):
        check(each, numbers)
        assert len(each) == 3 * SCATTERED + 3 and each._index.mapped is not None
    if url.startswith("memory"):
        # By ranges: no whole block is fetched.
        system, asked = fsspec.filesystem("memory"), []
        cat = type(system).cat_file
        monkeypatch.setattr(
            type(system),
            "cat_file",
            lambda self, path, start=None, end=None, **rest: asked.append((start, end)) or cat(self, path, start, end),
        )
        check(store, numbers)
        assert sorted(end - start for start, end in asked) == [36] * 4


def test_a_damaged_block_at_a_url_is_set_aside(tmp_path):
    url = f"memory://{tmp_path.name}/store"
    store = open_store(url)
    name = write(store, range(3))
    system = fsspec.filesystem("memory")
    path = f"/{tmp_path.name}/store/{name}"
    content = bytearray(system.cat_file(path))
    content[4100] ^= 1
    system.pipe_file(path, bytes(content))
    with pytest.raises(ValueError, match=f"{name} .*kept as damaged-{name}"):
        store.features([picture(0)])
    again = open_store(url)
    assert len(again) == 0
    write(again, range(3))
    check(open_store(url), range(3))
    system.store.clear()


def test_neither_maps_nor_open_files_nor_objects_grow_with_the_store(tmp_path):
    blocks, each = MOST_OPEN + 40, 12
    store = open_store(tmp_path)
    for block in range(blocks):
        write(store, range(each * block, each * (block + 1)))
    store.consolidate()
    del store
    wanted = [picture(number) for number in range(blocks * each)]
    gc.collect()
    objects, maps = len(gc.get_objects()), _count("/proc/self/maps")
    store = open_store(tmp_path)
    store.features(wanted)
    gc.collect()
    assert len(store.files._open) == MOST_OPEN
    assert len(gc.get_objects()) - objects < 120  # not one for each of the 2,016 pictures, nor for each block
    if maps:
        assert _count("/proc/self/maps") - maps < 20
        assert sum("index-" in line for line in Path("/proc/self/maps").read_text().splitlines()) == 1
        assert sum("block-" in line for line in Path("/proc/self/maps").read_text().splitlines()) == 0


def _count(path: str) -> int:
    return len(Path(path).read_text().splitlines()) if os.path.exists(path) else 0


def test_pages_of_the_index_are_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_index, "LOOKUPS_BEFORE_RELEASE", 30)
    released = []
    release = MappedIndex.release
    monkeypatch.setattr(MappedIndex, "release", lambda self: released.append(1) or release(self))
    store = open_store(tmp_path)
    for block in range(SCATTERED + 1):
        write(store, range(2 * block, 2 * block + 2))
    store.consolidate()
    check(store, range(20))
    assert released
    check(store, range(34))


def test_the_key_of_a_picture_is_its_name_size_and_time():
    keys = {picture_key(*each) for each in (("a", 1, 2), ("a", 1, 3), ("a", 2, 2), ("b", 1, 2), ("a\0001", 1, 2))}
    assert len(keys) == 5 and all(len(key) == 16 for key in keys)
    assert picture_key("half \ud800", 1, 2) != picture_key("half ?", 1, 2)
