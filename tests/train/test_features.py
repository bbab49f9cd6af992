"""The query-feature cache: one computation per picture, known by content, refused when anything changed."""

import json
import shutil

import pytest
import torch
from PIL import Image

from jminigpt4.data.pictures import FilePicture
from jminigpt4.train.features import FeatureCache, PictureEncoder


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
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda pixels: calls.append(len(pixels)) or encode(pixels))
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
    with pytest.raises(ValueError, match="views"):
        FeatureCache(tmp_path / "cache", PictureEncoder(frozen, processor, views=2))
    with pytest.raises(ValueError, match="dtype"):
        FeatureCache(tmp_path / "cache", PictureEncoder(frozen, processor), "bfloat16")


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
        cache.load()
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
