"""The query-feature cache: one computation per picture, known by content, refused when anything changed."""

import hashlib
import io
import json
import os
import shutil
import signal
import weakref
import zlib
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from PIL import Image
from safetensors.torch import save_file

from jminigpt4 import JMiniGPT4ForConditionalGeneration
from jminigpt4.checkpoint import remove_unfinished
from jminigpt4.data.pictures import FilePicture
from jminigpt4.train import feature_store
from jminigpt4.train.features import FeatureCache, PictureEncoder, fill_together
from jminigpt4.train.fingerprint import older_digest


@pytest.fixture(scope="module")
def frozen(make_model):
    model = make_model()
    model.freeze()
    return model


@pytest.fixture
def pictures(tmp_path, draw) -> list[FilePicture]:
    for number in range(6):
        draw(number).save(tmp_path / f"{number}.png")
    return [FilePicture(str(tmp_path / f"{number}.png")) for number in range(6)]


def counting(encoder: PictureEncoder, monkeypatch) -> list[int]:
    """Numbers of pictures of every call of the encoder from now on."""
    calls = []
    encode = encoder.encode_alike
    monkeypatch.setattr(encoder, "encode_alike", lambda pixels: calls.append(len(pixels)) or encode(pixels))
    return calls


def test_features_are_the_models_and_are_computed_once(frozen, processor, pictures, tmp_path, monkeypatch):
    encoder = PictureEncoder(frozen, processor, batch_size=4)
    calls = counting(encoder, monkeypatch)
    cache = FeatureCache(tmp_path / "cache", encoder, "float32")
    assert cache.fill([*pictures, *pictures], progress=False) == []
    assert calls == [4, 2] and len(cache) == 6
    images = [Image.open(picture.path) for picture in pictures]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    expected = frozen.get_query_features(pixels)
    assert torch.allclose(cache.features(pictures), expected, atol=1e-6)
    assert torch.equal(cache.features([pictures[4], pictures[1]]), cache.features(pictures)[[4, 1]])

    again = FeatureCache(tmp_path / "cache", encoder, "float32")
    assert again.fill(pictures, progress=False) == [] and calls == [4, 2]


def test_half_precision_is_stored_by_default(frozen, processor, pictures, tmp_path):
    cache = FeatureCache(tmp_path / "cache", PictureEncoder(frozen, processor))
    cache.fill(pictures, progress=False)
    assert cache.features(pictures).dtype == torch.float16


def test_another_encoder_or_preprocessing_is_refused(frozen, make_model, processor, tmp_path):
    FeatureCache(tmp_path / "cache", PictureEncoder(frozen, processor))
    other = make_model(seed=0)
    with torch.no_grad():
        other.model.qformer.layernorm.bias[0] += 1e-3
    with pytest.raises(ValueError, match="another encoder"):
        FeatureCache(tmp_path / "cache", PictureEncoder(other, processor))
    other = make_model()
    other.freeze()
    other.bfloat16()
    mended = {
        "views 0 instead of 2: --set augmentation=false takes": (
            PictureEncoder(frozen, processor, views=2),
            "float16",
        ),
        "dtype float16 instead of bfloat16: --set cache_dtype=float16 takes": (
            PictureEncoder(frozen, processor),
            "bfloat16",
        ),
        "precision float32 instead of bfloat16: --set dtype=float32 takes": (
            PictureEncoder(other, processor),
            "float16",
        ),
    }
    for sentence, (encoder, dtype) in mended.items():
        with pytest.raises(ValueError, match=f"{sentence} them, or name another folder") as refused:
            FeatureCache(tmp_path / "cache", encoder, dtype)
        assert "delete" not in str(refused.value) and "\n" not in str(refused.value)
    FeatureCache(tmp_path / "crops", PictureEncoder(frozen, processor, views=2))
    with pytest.raises(ValueError, match="views 2 instead of 0: --set augmentation=true --set views=2 takes"):
        FeatureCache(tmp_path / "crops", PictureEncoder(frozen, processor))


def write_older(folder: Path, cache: FeatureCache, pictures: list[FilePicture], name: str, checksums: bool = True):
    """The features of a cache as versions before the store wrote them."""
    folder.mkdir(exist_ok=True)
    fingerprint = cache.encoder.fingerprint(cache.dtype)
    fingerprint |= {"encoder": older_digest(cache.encoder.model)}
    older = {key: value for key, value in fingerprint.items() if not key.startswith("weights")}
    (folder / "fingerprint.json").write_text(json.dumps(older))
    views = max(1, cache.encoder.views)
    features = torch.stack([cache.features(pictures, view) for view in range(views)], dim=1).contiguous()
    digests = [hashlib.sha256(picture.read()).digest() for picture in pictures]
    tensors = {"features": features, "digests": torch.tensor([list(each) for each in digests], dtype=torch.uint8)}
    sums = [[zlib.crc32(view.view(torch.uint8).numpy().tobytes()) for view in picture] for picture in features]
    tensors |= {"checksums": torch.tensor(sums)} if checksums else {}
    save_file(tensors, folder / f"features-{name}.safetensors")
    stamps = {each.name: [*each.stamp(), digest.hex()] for each, digest in zip(pictures, digests, strict=True)}
    (folder / f"stamps-{name}.json").write_text(json.dumps(stamps))


@pytest.mark.parametrize("views", [0, 2])
def test_a_cache_of_an_older_version_is_read_and_added_to(frozen, processor, pictures, tmp_path, monkeypatch, views):
    encoder = PictureEncoder(frozen, processor, views)
    new = FeatureCache(tmp_path / "new", encoder)
    new.fill(pictures, progress=False)
    write_older(tmp_path / "old", new, pictures[:2], "a")
    write_older(tmp_path / "old", new, pictures[2:4], "b")
    calls = counting(encoder, monkeypatch)
    for _ in range(2):
        old = FeatureCache(tmp_path / "old", encoder)
        old.fill(pictures, progress=False)
        assert calls == [2 * max(1, views)] and len(old) == 6
        for view in range(max(1, views)):
            assert torch.equal(old.features(pictures, view), new.features(pictures, view))


def test_an_older_cache_of_another_encoder_or_precision_is_refused(frozen, make_model, processor, pictures, tmp_path):
    new = FeatureCache(tmp_path / "new", PictureEncoder(frozen, processor))
    new.fill(pictures, progress=False)
    write_older(tmp_path / "old", new, pictures, "a")
    other = make_model(seed=0)
    with torch.no_grad():
        other.model.qformer.layernorm.bias[0] += 1e-3
    with pytest.raises(ValueError, match="another encoder"):
        FeatureCache(tmp_path / "old", PictureEncoder(other, processor))
    other = make_model().bfloat16()
    with pytest.raises(ValueError, match="precision float32 instead of bfloat16: --set dtype=float32 takes"):
        FeatureCache(tmp_path / "old", PictureEncoder(other, processor))
    # The oldest did not write the precision down.
    path = tmp_path / "old" / "fingerprint.json"
    stored = json.loads(path.read_text())
    del stored["precision"]
    path.write_text(json.dumps(stored))
    FeatureCache(tmp_path / "old", PictureEncoder(frozen, processor))


def test_another_projection_or_language_model_is_welcome(frozen, make_model, processor, tmp_path):
    FeatureCache(tmp_path / "cache", PictureEncoder(frozen, processor))
    other = make_model(seed=0)
    with torch.no_grad():
        other.model.language_projection.weight += 1
        other.lm_head.weight += 1
    FeatureCache(tmp_path / "cache", PictureEncoder(other, processor))


def test_content_counts_and_not_the_name(frozen, processor, pictures, tmp_path, monkeypatch, draw):
    encoder = PictureEncoder(frozen, processor)
    cache = FeatureCache(tmp_path / "cache", encoder)
    cache.fill(pictures, progress=False)
    calls = counting(encoder, monkeypatch)
    moved = tmp_path / "moved.png"
    shutil.copy(pictures[2].path, moved)
    cache.fill([FilePicture(str(moved))], progress=False)
    assert calls == [] and torch.equal(cache.features([FilePicture(str(moved))]), cache.features([pictures[2]]))

    old = cache.features([pictures[0]])
    draw(77).resize((90, 90)).save(pictures[0].path)
    with pytest.raises(KeyError, match="changed"):
        cache.features([pictures[0]])
    cache.fill(pictures, progress=False)
    assert calls == [1] and not torch.equal(cache.features([pictures[0]]), old)


def test_several_processes_fill_one_cache(frozen, processor, pictures, tmp_path):
    encoder = PictureEncoder(frozen, processor)
    caches = [FeatureCache(tmp_path / "cache", encoder) for _ in range(2)]
    for rank, cache in enumerate(caches):
        cache.fill(pictures, rank=rank, world=2, pictures_per_file=2, progress=False)
    for cache in caches:
        cache.store.refresh()
        assert all(picture in cache for picture in pictures)
    assert torch.equal(caches[0].features(pictures), caches[1].features(pictures))


def test_a_killed_run_keeps_its_finished_files(frozen, processor, pictures, tmp_path, monkeypatch):
    encoder = PictureEncoder(frozen, processor)
    encode = encoder.encode

    def dying(pixels, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(pixels)

    monkeypatch.setattr(encoder, "encode", dying)
    cache = FeatureCache(tmp_path / "cache", encoder)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(pictures, pictures_per_file=2, progress=False)
    monkeypatch.setattr(encoder, "encode", encode)
    calls = counting(encoder, monkeypatch)
    again = FeatureCache(tmp_path / "cache", encoder)
    assert len(again) == 4
    again.fill(pictures, pictures_per_file=2, progress=False)
    assert calls == [2] and len(again) == 6


def test_bad_pictures_are_listed_and_nothing_takes_their_place(frozen, processor, pictures, tmp_path):
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    bad = [FilePicture(str(tmp_path / name)) for name in ("cut.png", "page.jpg", "empty.jpg", "absent.png")]
    cache = FeatureCache(tmp_path / "cache", PictureEncoder(frozen, processor))
    found = cache.fill([bad[0], pictures[0], *bad[1:], pictures[1]], progress=False)
    assert [each.name for each in found] == [picture.name for picture in bad]
    assert not any(picture in cache for picture in bad) and len(cache) == 2
    expected = frozen.get_query_features(
        processor.image_processor(Image.open(pictures[1].path), return_tensors="pt")["pixel_values"]
    )
    assert torch.allclose(cache.features([pictures[1]]).float(), expected, atol=2e-3)


def test_views_are_the_same_crops_in_every_process(frozen, processor, pictures, tmp_path):
    caches = [FeatureCache(tmp_path / name, PictureEncoder(frozen, processor, views=3)) for name in ("a", "b")]
    for cache in caches:
        torch.manual_seed(id(cache) % 1000)  # crops must not depend on the process's own random state
        cache.fill(pictures, progress=False)
    first, second = (torch.stack([cache.features(pictures, view) for view in range(3)]) for cache in caches)
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    mixed = caches[0].features(pictures[:2], [2, 0])
    assert torch.equal(mixed, torch.stack([first[2, 0], first[0, 1]]))


def test_archive_members_are_read_where_they_lie(frozen, processor, pictures, tmp_path):
    content = [picture.read() for picture in pictures[:2]]
    archive = tmp_path / "two"
    archive.write_bytes(b"head" + content[0] + content[1])
    member = FilePicture(str(archive), 4 + len(content[0]), len(content[1]))
    cache = FeatureCache(tmp_path / "cache", PictureEncoder(frozen, processor))
    cache.fill([member, pictures[1]], progress=False)
    assert len(cache) == 1 and torch.equal(cache.features([member]), cache.features([pictures[1]]))


def test_the_fingerprint_can_be_read(frozen, processor, tmp_path):
    FeatureCache(tmp_path / "cache", PictureEncoder(frozen, processor))
    stored = json.loads((tmp_path / "cache" / "fingerprint.json").read_text())
    assert stored["shape"] == [4, 32] and stored["layer_norm_eps"][0] == 1e-5


def test_a_flipped_byte_is_noticed_when_it_is_read_and_mended_by_the_next_start(
    frozen, processor, pictures, tmp_path, monkeypatch
):
    encoder = PictureEncoder(frozen, processor)
    cache = FeatureCache(tmp_path / "cache", encoder)
    cache.fill(pictures, progress=False)
    expected = cache.features(pictures)
    (path,) = (tmp_path / "cache").glob("block-*")
    content = bytearray(path.read_bytes())
    target = cache.features(pictures[3:4])[0].view(torch.uint8).numpy().tobytes()
    content[content.index(target) + 17] ^= 4
    path.write_bytes(content)
    again = FeatureCache(tmp_path / "cache", encoder)
    assert torch.equal(again.features(pictures[:3]), expected[:3])
    with pytest.raises(ValueError, match=f"{path.name} .*has changed on the disk .*kept as damaged-.*Started again"):
        again.features(pictures)
    assert (tmp_path / "cache" / f"damaged-{path.name}").read_bytes() == content
    calls = counting(encoder, monkeypatch)
    for each in (again, FeatureCache(tmp_path / "cache", encoder)):
        each.fill(pictures, progress=False)
        assert calls == [6] and torch.equal(each.features(pictures), expected)


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("block-*", lambda content: content[:-9], "is cut off"),
        ("block-*", lambda content: b"", "is cut off"),
        ("block-*", lambda content: b"[" * len(content), "is cut off, or no safetensors file"),
        ("block-*", lambda content: content.replace(b"digests", b"digestz", 1), "has a damaged header"),
        ("block-*", lambda content: content.replace(b'"shape": [6', b'"shape": [7', 1), "has a damaged header"),
        ("fingerprint*", lambda content: b"[" * 9999, "is damaged"),
        ("fingerprint*", lambda content: b"", "is damaged"),
    ],
)
def test_damaged_files_of_a_cache_are_set_aside_and_mended(
    frozen, processor, pictures, tmp_path, capsys, file, spoil, said
):
    encoder = PictureEncoder(frozen, processor)
    cache = FeatureCache(tmp_path / "cache", encoder)
    cache.fill(pictures, progress=False)
    expected = cache.features(pictures)
    (path,) = (tmp_path / "cache").glob(file)
    path.write_bytes(spoil(path.read_bytes()))
    again = FeatureCache(tmp_path / "cache", encoder)
    told = capsys.readouterr().out
    assert f"{path.name} of the feature cache" in told and said in told and f"kept as damaged-{path.name}" in told
    again.fill(pictures, progress=False)
    assert torch.equal(again.features(pictures), expected) and capsys.readouterr().out == ""
    FeatureCache(tmp_path / "cache", encoder)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("features-*", lambda content: content[:-9], "is cut off"),
        ("stamps-*", lambda content: content[:-9], "is damaged"),
        ("stamps-*", lambda content: content.replace(b"[", b"[null,", 1), "is damaged"),
    ],
)
def test_damaged_files_of_an_older_cache_are_set_aside_and_mended(
    frozen, processor, pictures, tmp_path, capsys, file, spoil, said
):
    encoder = PictureEncoder(frozen, processor)
    new = FeatureCache(tmp_path / "new", encoder)
    new.fill(pictures, progress=False)
    write_older(tmp_path / "old", new, pictures, "a")
    (path,) = (tmp_path / "old").glob(file)
    path.write_bytes(spoil(path.read_bytes()))
    old = FeatureCache(tmp_path / "old", encoder)
    told = capsys.readouterr().out
    assert f"{path.name} of the feature cache" in told and said in told and f"kept as damaged-{path.name}" in told
    old.fill(pictures, progress=False)
    assert torch.equal(old.features(pictures), new.features(pictures))


def test_a_flipped_byte_in_an_older_file_is_noticed(frozen, processor, pictures, tmp_path):
    new = FeatureCache(tmp_path / "new", PictureEncoder(frozen, processor))
    new.fill(pictures, progress=False)
    write_older(tmp_path / "old", new, pictures, "a")
    (path,) = (tmp_path / "old").glob("features-*")
    content = bytearray(path.read_bytes())
    target = new.features(pictures[3:4])[0].view(torch.uint8).numpy().tobytes()
    content[content.index(target) + 17] ^= 4
    path.write_bytes(content)
    old = FeatureCache(tmp_path / "old", PictureEncoder(frozen, processor))
    assert torch.equal(old.features(pictures[:3]), new.features(pictures[:3]))
    with pytest.raises(ValueError, match=f"{path.name} .*has changed on the disk .*kept as damaged-"):
        old.features(pictures)


def test_a_damaged_fingerprint_of_older_files_is_refused_with_the_remedy(frozen, processor, pictures, tmp_path):
    new = FeatureCache(tmp_path / "new", PictureEncoder(frozen, processor))
    new.fill(pictures, progress=False)
    write_older(tmp_path / "old", new, pictures, "a")
    (tmp_path / "old" / "fingerprint.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged.*name another folder as the cache"):
        FeatureCache(tmp_path / "old", PictureEncoder(frozen, processor))


def test_older_files_without_checksums_are_read_and_counted(frozen, processor, pictures, tmp_path, capsys):
    new = FeatureCache(tmp_path / "new", PictureEncoder(frozen, processor))
    new.fill(pictures, progress=False)
    write_older(tmp_path / "old", new, pictures, "a", checksums=False)
    old = FeatureCache(tmp_path / "old", PictureEncoder(frozen, processor))
    assert fill_together(old, pictures, PartialState(), progress=False) == []
    assert torch.equal(old.features(pictures), new.features(pictures))
    assert "1 files of" in (said := capsys.readouterr().out) and "without checksums" in said


def test_a_full_disk_leaves_nothing_that_looks_finished(frozen, processor, pictures, tmp_path, full_disk):
    encoder = PictureEncoder(frozen, processor)
    cache = FeatureCache(tmp_path / "cache", encoder)
    with full_disk(1000), pytest.raises(OSError, match=r"block-\w+.safetensors") as raised:
        cache.fill(pictures, progress=False)
    assert "\n" not in str(raised.value)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["fingerprint.json"]
    assert cache.fill(pictures, progress=False) == [] and len(cache) == 6


def test_killed_six_times_ends_with_the_same_features(frozen, processor, pictures, tmp_path, killed_at):
    encoder = PictureEncoder(frozen, processor)

    def fill(folder):
        cache = FeatureCache(folder, encoder)
        remove_unfinished(folder)
        cache.fill(pictures, pictures_per_file=2, progress=False)

    status, operations = killed_at(lambda: fill(tmp_path / "whole"), tmp_path / "whole")
    assert status == 0
    for number in range(1, 7):
        folder = tmp_path / f"killed-{number}"
        status, _ = killed_at(lambda folder=folder: fill(folder), folder, number * operations // 7)
        assert status == -signal.SIGKILL
        fill(folder)
        whole, killed = (FeatureCache(each, encoder) for each in (tmp_path / "whole", folder))
        assert torch.equal(killed.features(pictures), whole.features(pictures))
        assert not list(folder.glob(".*"))


@pytest.mark.parametrize("views", [0, 2])
def test_features_are_the_same_to_the_bit_for_any_number_of_workers(
    frozen, processor, tmp_path, draw, views, monkeypatch
):
    """Forty pictures, one of them twice and one no picture, in five tasks: workers read and decode all of them."""
    pictures, parent = [], os.getpid()
    for number in range(40):
        draw(number % 39).save(tmp_path / f"{number}.png")
        pictures.append(FilePicture(str(tmp_path / f"{number}.png")))
    (tmp_path / "7.png").write_bytes(b"none")
    read = FilePicture.read

    def noted(self):
        if os.getpid() != parent:
            (tmp_path / f"read-{Path(self.path).name}-{os.getpid()}").touch()
        return read(self)

    monkeypatch.setattr(FilePicture, "read", noted)
    good = pictures[:7] + pictures[8:]
    found = []
    for workers in (0, 1, 2):
        cache = FeatureCache(tmp_path / f"cache-{workers}", PictureEncoder(frozen, processor, views, batch_size=3))
        state = torch.random.get_rng_state()
        bad = cache.fill(pictures, pictures_per_file=16, progress=False, workers=workers)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert [each.name for each in bad] == [pictures[7].name] and len(cache) == 38
        found.append(torch.stack([cache.features(good, view) for view in range(max(1, views))]))
        readers = {path.name.rpartition("-")[2] for path in tmp_path.glob("read-*")}
        assert len(list(tmp_path.glob("read-*"))) == (40 if workers else 0) and len(readers) == workers
        for path in tmp_path.glob("read-*"):
            path.unlink()
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_any_number_of_pictures_is_taken_as_they_come(frozen, processor, tmp_path, draw, monkeypatch):
    """From a generator: no more of them are asked for than are worked on, and none is kept."""
    monkeypatch.setattr(feature_store, "ASKED_AT_ONCE", 4)
    monkeypatch.setattr(feature_store, "GROWN", 3)
    monkeypatch.setattr(feature_store, "SCATTERED", 1)
    encoder = PictureEncoder(frozen, processor, batch_size=2)
    cache = FeatureCache(tmp_path / "cache", encoder)
    given, encoded, ahead = [], [], []
    alive = weakref.WeakSet()

    def some():
        for number in range(60):
            content = io.BytesIO()
            draw(number).save(content, "PNG")
            picture = Weak(f"{number}", content.getvalue())
            alive.add(picture)
            given.append(number)
            ahead.append(len(given) - len(encoded))
            yield picture

    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda pixels: encoded.extend(pixels) or encode(pixels))
    assert cache.fill(some(), pictures_per_file=4, progress=False) == []
    assert len(given) == len(cache) == 60 and max(ahead) < 30
    assert len(alive) < 30
    # An index was written on the way, so that keys are not kept in memory.
    assert len(list((tmp_path / "cache").glob("index-*"))) == 1 and len(cache.store._taken) < 10


class Weak:
    """A picture in memory that can be waited for to be let go."""

    def __init__(self, name: str, content: bytes):
        self.name, self.content = name, content

    def stamp(self) -> tuple[int, int]:
        return len(self.content), 0

    def read(self) -> bytes:
        return self.content


def test_the_weights_are_those_of_the_files_whatever_they_are_computed_in(make_model, processor, pictures, tmp_path):
    """A cache made in one precision is told apart by the precision, not by its encoder; another encoder is another."""
    make_model().save_pretrained(tmp_path / "model")
    full, half = (load_tiny(tmp_path / "model", dtype) for dtype in (torch.float32, torch.bfloat16))
    in_memory = make_model()
    prints = [PictureEncoder(each, processor).fingerprint("float16") for each in (full, half, in_memory)]
    assert [each["weights_of"] for each in prints] == ["checkpoint", "checkpoint", "memory"]
    assert len({each["weights"] for each in prints}) == 1
    assert [each["precision"] for each in prints] == ["float32", "bfloat16", "float32"]
    FeatureCache(tmp_path / "cache", PictureEncoder(full, processor)).fill(pictures, progress=False)
    assert pictures[0] in FeatureCache(tmp_path / "cache", PictureEncoder(in_memory, processor))
    with pytest.raises(ValueError, match="computed with precision float32 instead of bfloat16: --set dtype=float32"):
        FeatureCache(tmp_path / "cache", PictureEncoder(half, processor))
    # An encoder that learnt since it was loaded is not the files' any more.
    with torch.no_grad():
        half.model.qformer.layernorm.bias[0] += 1
    with pytest.raises(ValueError, match="precision float32 instead of bfloat16|another encoder"):
        FeatureCache(tmp_path / "cache", PictureEncoder(half, processor))
    with torch.no_grad():
        full.model.qformer.layernorm.bias[0] += 1
    with pytest.raises(ValueError, match="another encoder"):
        FeatureCache(tmp_path / "cache", PictureEncoder(full, processor))


def load_tiny(folder: Path, dtype: torch.dtype):
    model = JMiniGPT4ForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    model.freeze()
    return model
