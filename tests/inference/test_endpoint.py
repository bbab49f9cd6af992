"""Asking an OpenAI-compatible server: what is asked again, what is not, and what a picture travels as."""

import base64
import io
import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from jminigpt4.image_processing_jminigpt4 import JMiniGPT4ImageProcessor
from jminigpt4.inference.endpoint import ATTEMPTS, Endpoint, RefusedRequest, image_part

ASKED = [{"role": "user", "content": "何ですか?"}]


def in_turn(*replies):
    """Answers one after the other, the last one for ever."""
    coming = itertools.chain(replies, itertools.repeat(replies[-1]))
    return lambda body: next(coming)


def error(status: int, said: str = "いいえ", **headers: str):
    return status, headers, json.dumps({"error": {"message": said}})


def test_an_answer_with_its_counts(scripted_server):
    with scripted_server(in_turn("りんごです。")) as server:
        said = Endpoint(server.url, "gpt").complete(ASKED, 7, temperature=0.0, seed=None)
    assert (said.text, said.finished, said.prompt_tokens, said.completion_tokens) == ("りんごです。", True, 5, 2)
    assert server.requests == [{"model": "gpt", "messages": ASKED, "temperature": 0.0, "max_tokens": 7}]
    assert "Authorization" not in server.headers


def test_the_key_comes_from_the_environment(scripted_server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    with scripted_server(in_turn("はい")) as server:
        Endpoint(server.url, "gpt").complete(ASKED, 7)
    assert server.headers["Authorization"] == "Bearer sk-1"


@pytest.mark.parametrize(
    "fault",
    [
        error(429, **{"retry-after": "0"}),
        error(500),
        error(503),
        None,
        (200, {}, '{"choices": [{"mess'),
        (200, {}, "<html>"),
    ],
    ids=["429", "500", "503", "broken connection", "truncated", "a proxy's page"],
)
def test_what_may_pass_is_asked_again(scripted_server, fault):
    with scripted_server(in_turn(fault, fault, "はい")) as server:
        assert Endpoint(server.url, "gpt").complete(ASKED, 7).text == "はい"
    assert len(server.requests) == 3


def test_the_server_says_how_long_to_wait(scripted_server, monkeypatch):
    waited = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waited.append)
    dated = error(503, **{"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})
    with scripted_server(in_turn(error(429, **{"retry-after": "17"}), dated, "はい")) as server:
        Endpoint(server.url, "gpt").complete(ASKED, 7)
    assert waited == [17.0, 0.0]


def test_a_server_with_few_places_gets_as_many_requests(scripted_server):
    """Else new requests would take the places of those that were put off, until one of these gives up."""
    places, room = 3, threading.Lock()
    taken = [0]

    def answer(body):
        with room:
            if taken[0] == places:
                return error(429, **{"retry-after": "0"})
            taken[0] += 1
        time.sleep(0.02)
        with room:
            taken[0] -= 1
        return "はい"

    with scripted_server(answer) as server, ThreadPoolExecutor(16) as pool:
        endpoint = Endpoint(server.url, "gpt")
        said = list(pool.map(lambda _: endpoint.complete(ASKED, 7).text, range(100)))
    assert said == ["はい"] * 100 and len(server.requests) <= 100 + 16


def test_a_slow_answer_is_given_up_and_asked_for_again(scripted_server):
    gates = itertools.chain([True], itertools.repeat(False))
    stop = threading.Event()

    def answer(body):
        if next(gates):
            stop.wait(20)
        return "はい"

    with scripted_server(answer) as server:
        assert Endpoint(server.url, "gpt", timeout=0.2).complete(ASKED, 7).text == "はい"
        stop.set()
    assert len(server.requests) == 2


def test_a_server_that_stays_away_is_named(scripted_server):
    given_up = pytest.raises(ConnectionError, match=f"did not answer in {ATTEMPTS} attempts: .* answers 500: kaputt")
    with scripted_server(in_turn(error(500, "kaputt"))) as server, given_up:
        Endpoint(server.url, "gpt").complete(ASKED, 7)
    assert len(server.requests) == ATTEMPTS
    with pytest.raises(ConnectionError, match="No server answers at http://127.0.0.1:9/v1"):
        Endpoint("http://127.0.0.1:9", "gpt").check()


@pytest.mark.parametrize(("status", "kind"), [(400, RefusedRequest), (413, RefusedRequest), (422, RefusedRequest)])
def test_a_request_that_is_refused_is_not_repeated(scripted_server, status, kind):
    with (
        scripted_server(in_turn(error(status, "too long"))) as server,
        pytest.raises(kind, match=f"{status}: too long"),
    ):
        Endpoint(server.url, "gpt").complete(ASKED, 7)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "said"), [(401, "the key is read from OPENAI_API_KEY"), (404, "no such model")])
def test_what_no_request_would_change_is_no_refusal_of_one(scripted_server, status, said):
    with (
        scripted_server(in_turn(error(status, "no such model"))) as server,
        pytest.raises(ValueError, match=said) as raised,
    ):
        Endpoint(server.url, "gpt").complete(ASKED, 7)
    assert not isinstance(raised.value, RefusedRequest) and len(server.requests) == 1


def test_the_newer_name_of_the_length_is_learnt(scripted_server):
    def answer(body):
        return "はい" if "max_completion_tokens" in body else error(400, "Use 'max_completion_tokens' instead.")

    with scripted_server(answer) as server:
        endpoint = Endpoint(server.url, "gpt")
        assert [endpoint.complete(ASKED, 7).text for _ in range(2)] == ["はい", "はい"]
    assert [sorted(body.keys() - {"model", "messages"}) for body in server.requests] == [
        ["max_tokens"],
        ["max_completion_tokens"],
        ["max_completion_tokens"],
    ]


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a/v1", "", "http://"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="An endpoint is an address such as"):
        Endpoint(url, "gpt")


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("http://a:1", "http://a:1/v1"),
        ("http://a:1/v1/", "http://a:1/v1"),
        ("https://a/api/v1/chat/completions", "https://a/api/v1"),
        ("https://a/v1beta/openai/", "https://a/v1beta/openai"),
    ],
)
def test_addresses_with_and_without_their_version(given, asked):
    assert Endpoint(given, "gpt").url == asked


def sent(part: dict) -> tuple[str, bytes]:
    head, _, content = part["image_url"]["url"].partition(";base64,")
    return head.removeprefix("data:"), base64.b64decode(content)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def test_pictures_travel_as_our_models_see_them():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    plain = encoded(image, "JPEG")
    assert sent(image_part(plain, "a")) == ("image/jpeg", plain)

    turned = Image.Exif()
    turned[0x0112] = 6
    grey = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    others = [
        encoded(image, "JPEG", exif=turned),
        encoded(grey, "PNG"),
        encoded(image.convert("RGBA"), "PNG"),
        encoded(image.convert("L"), "JPEG"),
    ]
    for content in others:
        kind, arrived = sent(image_part(content, "b"))
        seen = JMiniGPT4ImageProcessor().to_rgb(content, "b")
        assert kind == "image/png" and np.array_equal(np.asarray(Image.open(io.BytesIO(arrived))), np.asarray(seen))
    with pytest.raises(ValueError, match="The picture c"):
        image_part(b"no picture", "The picture c")
