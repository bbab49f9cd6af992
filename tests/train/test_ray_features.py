"""The tasks and the actor of the Ray engine, one after the other and without Ray; on a cluster in tests/scale."""

import os
import pickle
import socket

import pytest
import torch
from typer.testing import CliRunner

from jminigpt4 import extras
from jminigpt4.cli import app
from jminigpt4.data.pictures import FilePicture
from jminigpt4.train import ray_features
from jminigpt4.train.features import FeatureCache, PictureEncoder
from jminigpt4.train.ray_features import Job, _decode, _Encoding, _own, _write
from jminigpt4.train.recipe import Recipe


@pytest.fixture
def pictures(tmp_path, draw) -> list[FilePicture]:
    """Thirteen, of which the fourth is cut off and the last has the first one's content."""
    for number in range(12):
        draw(number).save(tmp_path / f"{number}.png")
    os.truncate(tmp_path / "3.png", 60)
    (tmp_path / "12.png").write_bytes((tmp_path / "0.png").read_bytes())
    return [FilePicture(str(tmp_path / f"{number}.png")) for number in range(13)]


@pytest.fixture
def pipeline(checkpoint):
    """`pipeline(folder, pictures, views)`: the store, numbers of pictures that were done, and bad ones."""
    pa = pytest.importorskip("pyarrow")

    def run(folder, pictures, views: int = 0, together: int = 5):
        recipe = Recipe(cache_dtype="float32", augmentation=views > 0, views=views or 1)
        job = Job(str(checkpoint), str(folder), recipe, batch_size=4)
        cache, encoding, done, bad = job.open_cache(), _Encoding(job), [], []
        opened, encoder = pickle.dumps(cache.store), pickle.loads(pickle.dumps(cache.encoder))
        ray_features._here.cache_clear()  # each run is a process of its own
        for start in range(0, len(pictures), together):
            part = [pickle.dumps(picture) for picture in pictures[start : start + together]]
            decoded = _decode(pa.table({"picture": pa.array(part, pa.binary())}), opened, encoder)
            written = _write(encoding(decoded), opened).to_pylist()
            done += [row["done"] for row in written]
            bad += [each for row in written for each in pickle.loads(row["bad"])]
        cache.store.refresh()
        return cache.store, done, bad

    return run


@pytest.mark.parametrize("views", [0, 3])
def test_the_features_are_those_of_one_machine_to_the_bit(pipeline, checkpoint, pictures, tmp_path, views):
    store, done, bad = pipeline(tmp_path / "ray", pictures, views)
    recipe = Recipe(cache_dtype="float32", augmentation=views > 0, views=views or 1)
    one = Job(str(checkpoint), str(tmp_path / "one"), recipe, batch_size=4).open_cache()
    assert one.fill(pictures, progress=False) == bad and [each.name for each in bad] == [pictures[3].name]
    assert done == [5, 5, 3] and len(store) == len(one) == 11
    good = [picture for picture in pictures if picture != pictures[3]]
    for view in range(views or 1):
        assert torch.equal(store.features(good, view), one.features(good, view))
    assert not torch.equal(store.features(good[:1]), store.features(good[1:2]))


def test_what_the_store_holds_is_not_read_again(pipeline, pictures, tmp_path, monkeypatch):
    pipeline(tmp_path / "ray", pictures[4:8])
    blocks = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ray").glob("block-*")}
    read, reads = FilePicture.read, []
    monkeypatch.setattr(FilePicture, "read", lambda self: reads.append(self) or read(self))
    store, done, bad = pipeline(tmp_path / "ray", pictures, together=13)
    assert reads == [*pictures[:4], *pictures[8:]] and done == [9] and len(bad) == 1 and len(store) == 11
    assert blocks.items() < {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ray").glob("block-*")}.items()


def test_a_moved_picture_is_read_and_not_encoded_again(pipeline, pictures, tmp_path, monkeypatch):
    pipeline(tmp_path / "ray", pictures[:2])
    moved = FilePicture(str(tmp_path / "moved.png"))
    os.rename(pictures[1].path, moved.path)
    monkeypatch.setattr("jminigpt4.train.features.PictureEncoder.encode", lambda *_: pytest.fail("encoded again"))
    store, done, _ = pipeline(tmp_path / "ray", [moved])
    assert done == [1] and moved in store and len(store) == 2


def test_the_same_block_written_twice_is_one(pipeline, pictures, tmp_path):
    """Ray does a task again whose node has died; another process, which knows nothing of the first."""
    first = pipeline(tmp_path / "ray", pictures[:3])[0]
    names = sorted(path.name for path in (tmp_path / "ray").glob("block-*"))
    assert len(names) == 1
    content = (tmp_path / "ray" / names[0]).read_bytes()
    (tmp_path / "ray" / names[0]).unlink()
    again = pipeline(tmp_path / "ray", pictures[:3])[0]
    assert sorted(path.name for path in (tmp_path / "ray").glob("block-*")) == names
    assert (tmp_path / "ray" / names[0]).read_bytes() == content and len(first) == len(again) == 3


def test_all_batches_are_of_one_size(pipeline, checkpoint, pictures, tmp_path, monkeypatch):
    """Whichever engine fills the store: on many processors the last bits of a matrix product depend on its height."""
    encode, sizes = PictureEncoder.encode, []
    monkeypatch.setattr(
        PictureEncoder, "encode", lambda self, pixels: sizes.append(len(pixels)) or encode(self, pixels)
    )
    pipeline(tmp_path / "ray", pictures)
    Job(str(checkpoint), str(tmp_path / "one"), Recipe(), batch_size=4).open_cache().fill(pictures, progress=False)
    assert len(sizes) >= 6 and all(size % 4 == 0 for size in sizes)


def test_a_picture_has_the_same_bits_whatever_is_encoded_with_it(checkpoint, tmp_path):
    encoder = Job(str(checkpoint), str(tmp_path), Recipe(), batch_size=4).open_cache().encoder
    pixels = torch.rand(11, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    whole = encoder.encode_alike(pixels)
    for size in (1, 2, 3, 5):
        assert torch.equal(torch.cat([encoder.encode_alike(part) for part in pixels.split(size)]), whole)
    assert torch.allclose(encoder.encode(pixels), whole, atol=1e-5)


def test_a_node_with_another_checkpoint_is_refused(checkpoint, make_model, processor, tmp_path):
    model = make_model(seed=7)
    FeatureCache(tmp_path / "cache", PictureEncoder(model, processor), "float32")
    with pytest.raises(ValueError, match="another encoder"):
        _Encoding(Job(str(checkpoint), str(tmp_path / "cache"), Recipe(cache_dtype="float32")))


def test_errors_of_our_own_come_out_of_rays_as_they_were():
    class Wrapped(Exception):
        cause = ValueError("views 0 instead of 2")

    class Both(Wrapped, ValueError):  # what Ray makes of an error, of both kinds
        pass

    outer = RuntimeError("an actor died")
    outer.__cause__ = Both("a traceback")
    assert _own(outer) is Wrapped.cause and _own(Wrapped()) is Wrapped.cause
    lost = _own(RuntimeError("Traceback\n  File\n\nObjectLostError: gone\n"))
    assert isinstance(lost, RuntimeError) and str(lost) == "Ray has given up: ObjectLostError: gone"


def test_a_cluster_that_is_not_there_is_noticed_at_once():
    with pytest.raises(OSError, match="refused"):
        ray_features._reach("127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        ray_features._reach(f"127.0.0.1:{server.getsockname()[1]}")
    for elsewhere in ("auto", "ray://127.0.0.1:1", ""):  # Ray's own to find
        ray_features._reach(elsewhere)


def test_the_command_says_what_it_needs(monkeypatch, captions, tmp_path):
    def run(*options: str) -> Exception:
        result = CliRunner().invoke(app, ["features", "nowhere", str(tmp_path / "cache"), str(captions), *options])
        return result.exception

    assert "add `--engine ray`" in str(run("--address", "auto")) and "add `--engine ray`" in str(
        run("--encoders", "2")
    )
    found = extras.importlib.util.find_spec
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    missing = run("--engine", "ray")
    assert isinstance(missing, ImportError) and "The package ray is needed: pip install" in str(missing)
    assert "[scale]" in str(missing) and not (tmp_path / "cache").exists()
