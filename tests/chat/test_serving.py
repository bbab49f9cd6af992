"""Behind OpenAI's chat completions interface: what it answers, what it refuses, and when it stops."""

import base64
import concurrent.futures
import contextlib
import io
import json
import os
import random
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import torch

from jminigpt4.chat import serving
from jminigpt4.chat.completions import ChatCompletions, Ending, StreamedText
from jminigpt4.chat.pictures import PictureLimits
from jminigpt4.chat.requests import MAX_CHARACTERS
from jminigpt4.chat.server import ChatServer, ServingLimits

PATH = "/v1/chat/completions"


def data_url(picture) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def body(pictures, text, **options) -> dict:
    content = [{"type": "image_url", "image_url": {"url": address}} for address in pictures]
    content.append({"type": "text", "text": text})
    return {"messages": [{"role": "user", "content": content}], **options}


def as_bytes(request: dict) -> bytes:
    return json.dumps(request, ensure_ascii=False).encode()


class AskingClient(httpx.Client):
    def __init__(self, url, **headers):
        super().__init__(base_url=url, headers=headers, timeout=60, trust_env=False)
        self._pool = concurrent.futures.ThreadPoolExecutor()

    def ask(self, request) -> concurrent.futures.Future:
        """Asks in a thread: its response, some time."""
        return self._pool.submit(self.post, PATH, json=request)

    def __exit__(self, *error):
        self._pool.shutdown()
        super().__exit__(*error)


@contextlib.contextmanager
def running(server, on_end=lambda: None):
    """The server on a free port, in a thread: a client of it. `on_end` is called when the server begins to end."""
    started, startup, shutdown = threading.Event(), server.startup, server.shutdown

    async def announce(sockets=None):
        await startup(sockets)
        started.set()

    async def end(sockets=None):
        on_end()
        await shutdown(sockets)

    server.startup, server.shutdown = announce, end
    with serving._bound_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        assert started.wait(60)
        with AskingClient(f"http://127.0.0.1:{port}") as client:
            try:
                yield client
            finally:
                server.should_exit = True
                thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def client(checkpoint):
    with running(serving.build_server(str(checkpoint), "cpu", "float32")) as client:
        yield client


@pytest.fixture
def completions(chat_model, processor):
    return ChatCompletions(chat_model, processor)


def serve(completions, api_key=None, on_end=lambda: None, **limits):
    """A server of its own, for a test that changes what it answers or what it allows."""
    server = ChatServer(completions, "tiny", api_key, ServingLimits(**limits)).server(log_level="critical")
    return running(server, on_end)


class Blocked:
    """Takes the place of an answer that never ends by itself."""

    def __init__(self):
        self.begun = threading.Event()
        self.stopped = threading.Event()

    def __call__(self, prepared, on_piece, stop):
        on_piece("あ")
        self.begun.set()
        assert stop.wait(60)
        self.stopped.set()
        return Ending("stop", 1, 1)


@pytest.fixture
def blocked(completions, monkeypatch) -> Blocked:
    answer = Blocked()
    monkeypatch.setattr(completions, "answer", answer)
    return answer


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""])
@pytest.mark.parametrize("route", ["/health", "/v1/models", PATH, "/nothing"])
def test_a_foreign_host_is_refused(client, host, route):
    """A site that has given its own name the address 127.0.0.1: nothing is read of its requests."""
    answer = client.request("POST" if route == PATH else "GET", route, headers={"Host": host})
    assert answer.status_code == 421 and "another host" in answer.json()["error"]["message"]


def test_a_server_of_the_network_has_names_that_it_does_not_know(completions):
    application = ChatServer(completions, "tiny", None, ServingLimits(), host="0.0.0.0")
    with running(application.server(log_level="critical")) as client:
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 200
        assert client.get("/health").status_code == 200


def expected_text(chat_model, processor, messages, max_new_tokens) -> str:
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        ids = chat_model.generate(**inputs, max_new_tokens=max_new_tokens)
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def question(pictures, text) -> dict:
    parts = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": text}]
    return {"role": "user", "content": parts}


def answered(response) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


# What it answers.


def test_pictures_and_text(client, chat_model, processor, pictures):
    answers = []
    for shown in (pictures[:1], pictures[1:2], pictures[:2], []):
        response = client.post(PATH, json=body([data_url(picture) for picture in shown], "何色?", max_tokens=8))
        answers.append(answered(response))
        assert answers[-1] == expected_text(chat_model, processor, [question(shown, "何色?")], 8)
        assert response.json()["model"] == "checkpoint"
        assert response.json()["choices"][0]["finish_reason"] == "length"
        usage = response.json()["usage"]
        assert usage["completion_tokens"] == 8 and usage["prompt_tokens"] + 8 == usage["total_tokens"]
    assert len(set(answers)) == 4


def test_a_conversation(client, chat_model, processor, pictures):
    messages = [
        {"role": "system", "content": "短く答える。"},
        {"role": "user", "content": body([data_url(pictures[0])], "何色?")["messages"][0]["content"]},
        {"role": "assistant", "content": "赤です。"},
        {"role": "user", "content": "なぜ?"},
    ]
    expected = [*messages[:1], question(pictures[:1], "何色?"), *messages[2:]]
    answer = answered(client.post(PATH, json={"messages": messages, "max_tokens": 8}))
    assert answer == expected_text(chat_model, processor, expected, 8)


def test_streaming(client, chat_model, processor, pictures):
    request = body([data_url(pictures[0])], "何色?", max_tokens=8, stream=True, stream_options={"include_usage": True})
    with client.stream("POST", PATH, json=request) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 8
    choices = [choice for event in events for choice in event["choices"]]
    pieces = [choice["delta"].get("content", "") for choice in choices]
    assert "".join(pieces) == expected_text(chat_model, processor, [question(pictures[:1], "何色?")], 8)
    assert len([piece for piece in pieces if piece]) > 1
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]


def test_the_client_of_openai(client, chat_model, processor, pictures):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=str(client.base_url) + "/v1", api_key="none", max_retries=0) as asking:
        name = asking.models.list().data[0].id
        request = body([data_url(pictures[0])], "何色?", model=name, max_completion_tokens=8)
        expected = expected_text(chat_model, processor, [question(pictures[:1], "何色?")], 8)
        assert asking.chat.completions.create(**request).choices[0].message.content == expected
        events = asking.chat.completions.create(**request, stream=True)
        assert "".join(event.choices[0].delta.content or "" for event in events) == expected
        with pytest.raises(openai.BadRequestError, match="`tools` is no field"):
            asking.chat.completions.create(**request, tools=[])
        with pytest.raises(openai.NotFoundError, match="'gpt2'"):
            asking.chat.completions.create(**{**request, "model": "gpt2"})


def test_typed_control_text_is_inert(client, chat_model, processor):
    text = "<ImageHere></s>[PAD]<0x41>＜／ｓ＞"
    answer = answered(client.post(PATH, json=body([], text, max_tokens=4)))
    assert answer == expected_text(chat_model, processor, [question([], text)], 4)


def answer_of(completions, request, on_piece=lambda piece: None) -> tuple[str, Ending]:
    pieces = []
    stop = threading.Event()
    ending = completions.answer(
        completions.prepare(as_bytes(request)), lambda piece: (pieces.append(piece), on_piece(stop)), stop
    )
    return "".join(pieces), ending


def test_stop_strings(completions):
    whole, ending = answer_of(completions, body([], "何色?", max_tokens=40))
    assert ending.finish_reason == "length" and len(whole) > 8
    for length in (1, 2, 5):
        for stop in (whole[4 : 4 + length], ["no such text", whole[4 : 4 + length]]):
            text, ending = answer_of(completions, body([], "何色?", max_tokens=40, stop=stop))
            assert text == whole[: whole.index(whole[4 : 4 + length])]
            assert ending.finish_reason == "stop" and ending.completion_tokens < 40
    assert answer_of(completions, body([], "何色?", max_tokens=40, stop="no such text"))[0] == whole


def test_stop_strings_between_pieces(processor):
    """However the text is cut into pieces: up to the first stop string, and nothing is held back for good."""
    for text, stops, expected in (
        ("abcabd", ["abd"], "abc"),
        ("aaab", ["aab"], "a"),
        ("ab", ["abc"], "ab"),
        ("xaby", ["by", "ab"], "x"),
    ):
        for cut in range(len(text) + 1):
            pieces = []
            streamed = StreamedText(processor, stops, set(), pieces.append, threading.Event())
            for piece in (text[:cut], text[cut:]):
                streamed._push(piece)
            streamed.finish()
            assert "".join(pieces) == expected


def test_an_answer_stops_on_request(completions):
    _, ending = answer_of(completions, body([], "何色?", max_tokens=500), on_piece=threading.Event.set)
    assert ending.completion_tokens < 20


def test_seeds(completions):
    request = body([], "何色?", max_tokens=20, temperature=1.5, top_p=0.9)
    state = torch.get_rng_state()
    first, again = (answer_of(completions, {**request, "seed": 7})[0] for _ in range(2))
    assert first == again != answer_of(completions, {**request, "seed": 8})[0]
    assert torch.equal(state, torch.get_rng_state())


def test_temperature_zero_is_greedy(completions, chat_model, monkeypatch):
    request = body([], "何色?", max_tokens=20)
    greedy = answer_of(completions, request)[0]
    monkeypatch.setattr(chat_model.generation_config, "do_sample", True)
    assert answer_of(completions, {**request, "temperature": 0})[0] == greedy
    assert answer_of(completions, {**request, "temperature": 2.0, "seed": 1})[0] != greedy


def test_beams_are_one_piece(completions, chat_model, monkeypatch):
    monkeypatch.setattr(chat_model.generation_config, "num_beams", 2)
    pieces = []
    completions.answer(
        completions.prepare(as_bytes(body([], "何色?", max_tokens=6))), pieces.append, threading.Event()
    )
    assert "".join(pieces)


# What it refuses.

ADDRESS = "http://127.0.0.1:9/inner"
QUESTION = {"role": "user", "content": "何色?"}
REFUSED = {
    "chat_template_kwargs": {"chat_template_kwargs": {"processor_kwargs": {"images": [ADDRESS]}}},
    "chat_template": {"chat_template": "{{ bos_token }}"},
    "processor_kwargs": {"processor_kwargs": {"size": {"height": 100_000, "width": 100_000}}},
    "mm_processor_kwargs": {"mm_processor_kwargs": {"max_pixels": 10**12}},
    "generation_config": {"generation_config": '{"max_new_tokens": 100000}'},
    "images": {"images": ["/etc/hostname"]},
    "tools": {"tools": []},
    "tool_choice": {"tool_choice": "none"},
    "logit_bias": {"logit_bias": {"512": 100}},
    "n": {"n": 2},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"top_logprobs": 3},
    "response_format.type": {"response_format": {"type": "json_object"}},
    "presence_penalty": {"presence_penalty": 0.5},
    "max_tokens": {"max_tokens": -5},
    "max_completion_tokens": {"max_tokens": 5, "max_completion_tokens": 6},
    "temperature": {"temperature": 1e-9},
    "top_p": {"top_p": 0},
    "seed": {"seed": -1},
    "stop.0": {"stop": [["a"]]},
    "stop.4": {"stop": ["a", "b", "c", "d", ""]},
    "stream": {"stream": "yes"},
    "stream_options": {"stream_options": {"include_usage": True}},
    "messages": {"messages": []},
    "messages.0": {"messages": [None]},
    "messages.0.role": {"messages": [{"role": "tool", "content": "a"}]},
    "messages.0.content": {"messages": [{"role": "user", "content": None}]},
    "messages.0.name": {"messages": [{**QUESTION, "name": "a"}]},
    "messages.1.role": {"messages": [QUESTION, {"role": "system", "content": "a"}, QUESTION]},
    "messages.2.role": {
        "messages": [QUESTION, {"role": "assistant", "content": "a"}, {**QUESTION, "role": "assistant"}]
    },
    "messages.0.content.0.text": {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
}


@pytest.mark.parametrize("field", REFUSED)
def test_unsupported_fields_are_named(client, field):
    response = client.post(PATH, json={"messages": [QUESTION], "max_tokens": 1, **REFUSED[field]})
    assert response.status_code == 400, response.text
    assert f"`{field}`" in response.json()["error"]["message"]


def test_an_empty_question_and_misplaced_pictures(client, pictures):
    shown = body([data_url(pictures[0])], "何色?")["messages"][0]["content"]
    for messages, reason in (
        ([{"role": "user", "content": " \n"}], "`messages.0`: the message is empty"),
        (
            [{"role": "system", "content": shown}, QUESTION],
            "`messages.0`: a message of role 'system' holds no pictures",
        ),
        ([{"role": "user", "content": [{**shown[0], "text": "?"}]}], "`messages.0.content.0`: a part of type"),
    ):
        response = client.post(PATH, json={"messages": messages})
        assert response.status_code == 400 and reason in response.json()["error"]["message"]


PICTURE_PARTS = {
    "address": {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    "address as a string": {"type": "input_image", "image_url": "http://127.0.0.1/a.png"},
    "path": {"type": "image_url", "image_url": {"url": "/etc/hostname"}},
    "file": {"type": "image_url", "image_url": {"url": "file:///etc/hostname"}},
    "path of the format of transformers": {"type": "image", "path": "/etc/hostname"},
    "address of the format of transformers": {"type": "image", "url": "https://example.com/a.png"},
    "video": {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}},
    "audio": {"type": "input_audio", "input_audio": {"data": "/etc/hostname"}},
    "no base64": {"type": "image_url", "image_url": {"url": "data:image/png;base64,@@@"}},
    "no ASCII": {"type": "image_url", "image_url": {"url": "data:image/png;base64,ああ"}},
    "no picture": {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    "text as a picture": {"type": "image_url", "image_url": {"url": "data:text/plain;base64,AAAA"}},
    "nothing": {"type": "image_url", "image_url": {"url": None}},
    "another detail": {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "high"}},
}


@pytest.mark.parametrize("part", PICTURE_PARTS.values(), ids=PICTURE_PARTS)
def test_data_pictures_only(completions, part):
    with pytest.raises(ValueError, match=r"^The request: `messages\.0\.content\.0") as raised:
        completions.prepare(as_bytes({"messages": [{"role": "user", "content": [part]}]}))
    assert "0x" not in str(raised.value)


def test_limits_of_pictures(chat_model, processor, pictures):
    request = as_bytes(body([data_url(pictures[0])] * 2, "?"))
    for limits, message in (
        (PictureLimits(max_pictures=1), "`messages` show 2 pictures; at most 1"),
        (PictureLimits(max_bytes=60), "`messages.0.content.0.image_url.url` has more than 60 bytes"),
        (PictureLimits(max_pixels=1000), "40 x 30 = 1,200 pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            ChatCompletions(chat_model, processor, limits).prepare(request)


@pytest.mark.parametrize(
    "request_bytes, message",
    [
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "not valid JSON"),
        (b"[1]", "must be an object"),
        (b"[" + b"1," * 200_000 + b"1]", "more than 110,000 values"),
        (
            as_bytes({"messages": [{"role": "user", "content": "あ" * (MAX_CHARACTERS + 1)}]}),
            "`messages` hold 100,001",
        ),
    ],
)
def test_malformed_requests(completions, request_bytes, message):
    with pytest.raises(ValueError, match=message):
        completions.prepare(request_bytes)


def test_a_prompt_longer_than_the_window(completions, blocked, monkeypatch, pictures):
    monkeypatch.setattr(completions, "_picture", lambda *_: pytest.fail("decoded"))
    with serve(completions) as client:
        response = client.post(PATH, json=body([data_url(pictures[0])], "犬" * 5000))
    assert response.status_code == 400 and not blocked.begun.is_set()
    message = response.json()["error"]["message"]
    assert "with 1 pictures; the context window of this model has 1,024" in message and "`messages` take" in message


def test_an_answer_ends_with_the_window(completions):
    text, ending = answer_of(completions, body([], "犬" * 300, max_tokens=10**30, temperature=0))
    assert ending.finish_reason == "length" and ending.prompt_tokens + ending.completion_tokens == 1024


def test_size_and_type_of_a_request(completions):
    with serve(completions, max_bytes=1000) as client:
        assert client.post(PATH, content=b" " * 1001, headers={"Content-Type": "application/json"}).status_code == 413
        for headers in ({"Content-Type": "text/plain"}, {}):  # what a page of another site can send
            assert client.post(PATH, content=b"{}", headers=headers).status_code == 415


@pytest.mark.parametrize("path", ["/load_model", "/reset", "/docs", "/v1/completions", "/v1/responses", PATH + "/x"])
def test_there_are_three_routes(client, path):
    response = client.post(path, json={"model": "gpt2"})
    assert response.status_code == 404 and "no such route" in response.json()["error"]["message"]
    assert client.get(PATH).status_code == 405
    assert client.get("/health").json() == {"status": "ok"}


def test_the_api_key(completions):
    with serve(completions, api_key="ひみつ") as client:
        right = {"Authorization": b"Bearer " + "ひみつ".encode()}
        request = body([], "何色?", max_tokens=1)
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "ひみつ".encode()}):
            assert client.get("/v1/models", headers=headers).status_code == 401
            response = client.post(PATH, json=request, headers=headers)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/models", headers=right).json()["data"][0]["id"] == "tiny"
        answered(client.post(PATH, json=request, headers=right))
        assert client.get("/health").status_code == 200


VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**63,
    10**400,
    1e308,
    -0.0,
    0.5,
    "",
    "user",
    "text",
    "あ",
    "\x00",
    "</s>",
    [],
    {},
]
VALUES += [
    [[]],
    {"": {}},
    {"type": "text"},
    {"url": "/etc/hostname"},
    ["a"] * 9,
    "data:image/png;base64,iVBORw0KGgo=",
    "x" * 3000,
]
KEYS = [
    "role",
    "content",
    "type",
    "text",
    "image_url",
    "url",
    "images",
    "chat_template",
    "n",
    "stop",
    "top_k",
    "\u0000",
]


def places(value, path=()):
    """Paths to everything inside a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield from places(each, (*path, key))


def mutated(request: dict, chance: random.Random) -> dict:
    """The request with one thing in it replaced, left out, added, doubled or called otherwise."""
    request = json.loads(json.dumps(request))
    *path, last = chance.choice(list(places(request))[1:])
    parent = request
    for key in path:
        parent = parent[key]
    way = chance.randrange(5)
    if way == 0:
        del parent[last]
    elif way == 1 and isinstance(parent, list):
        parent.insert(last, parent[last])
    elif way == 2 and isinstance(parent, dict):
        parent[chance.choice(KEYS)] = parent.pop(last)
    elif way == 3 and isinstance(parent, dict):
        parent[chance.choice(KEYS)] = chance.choice(VALUES)
    else:
        parent[last] = chance.choice(VALUES)
    return request


def spoilt(request: bytes, chance: random.Random) -> bytes:
    """The bytes of a request with some lost, exchanged or doubled."""
    start = chance.randrange(len(request))
    end = min(len(request), start + chance.choice([1, 1, 1, 2, 5, 50]))
    return (
        request[:start] + chance.choice([b"", bytes([chance.randrange(256)]), request[start:end] * 2]) + request[end:]
    )


def test_mutated_requests(completions, pictures):
    """4,000 requests: each is refused in a sentence that names a field, or answered."""
    chance = random.Random(11)
    options = {"max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["a"], "n": 1, "stream": False}
    options["response_format"] = {"type": "text"}
    shown = body([data_url(pictures[0].resize((4, 3)))], "何色?", **options)
    seeds = [
        body([], "何色?", max_tokens=2, stream=True, stream_options={"include_usage": True}),
        shown,
        {
            "messages": [
                {"role": "system", "content": "a"},
                *shown["messages"],
                {"role": "assistant", "content": "b"},
                QUESTION,
            ]
        },
    ]
    before, answered_requests = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for number in range(4000):
        request = chance.choice(seeds)
        for _ in range(chance.choice([1, 1, 2, 4])):
            request = mutated(request, chance) if len(request) else request
        request = as_bytes(request) if number % 3 else spoilt(as_bytes(request), chance)
        began = time.process_time()
        try:
            prepared = completions.prepare(request)
        except ValueError as error:
            assert re.match("The request: (`|it must be an object)|The request is not valid JSON", str(error)), request
        else:
            answered_requests += 1
            if answered_requests % 2 == 0 and (prepared.request.max_tokens or 9) < 9:
                completions.answer(prepared, str, threading.Event())
        assert time.process_time() - began < 5, request
    assert answered_requests > 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024


# When it is busy, and when it stops.


def test_too_many_requests(completions, blocked):
    with serve(completions, max_requests=1, drain=0.1) as client:
        response = client.ask(body([], "何色?"))
        assert blocked.begun.wait(60)
        refused = client.post(PATH, json=body([], "何色?"))
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
        assert client.get("/health").status_code == 200
    assert response.result(60).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_the_time_limit(completions, blocked, stream):
    with serve(completions, timeout=0.2) as client:
        response = client.post(PATH, json=body([], "何色?", stream=stream))
        assert blocked.stopped.wait(60)
    assert "longer than 0.2 seconds" in response.text
    assert response.status_code == (200 if stream else 504) and "[DONE]" not in response.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up(completions, blocked, stream):
    request = as_bytes(body([], "何色?", stream=stream))
    fields = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(request)}"
    head = f"POST {PATH} HTTP/1.1\r\n{fields}\r\n\r\n"
    with serve(completions) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(head.encode() + request)
            assert blocked.begun.wait(60)
        assert blocked.stopped.wait(60)


def test_health_while_a_request_is_prepared(completions, monkeypatch, pictures):
    begun, go_on = threading.Event(), threading.Event()
    to_rgb = completions._picture

    def slow(field, url):
        begun.set()
        assert go_on.wait(60)
        return to_rgb(field, url)

    monkeypatch.setattr(completions, "_picture", slow)
    with serve(completions) as client:
        response = client.ask(body([data_url(pictures[0])], "?", max_tokens=1))
        assert begun.wait(60)
        assert client.get("/health").status_code == 200
        go_on.set()
        answered(response.result(60))


def test_mistakes_do_not_wait_for_answers(completions, blocked):
    with serve(completions, drain=0.1) as client:
        client.ask(body([], "何色?"))
        assert blocked.begun.wait(60)
        assert client.post(PATH, json={"messages": []}).status_code == 400


def test_a_failure_of_the_model(completions, monkeypatch):
    def fail(*_):
        raise RuntimeError("/secret/path at 0x7f")

    monkeypatch.setattr(completions, "answer", fail)
    with serve(completions) as client:
        for stream in (False, True):
            response = client.post(PATH, json=body([], "何色?", stream=stream))
            assert "The server failed" in response.text and "secret" not in response.text


def test_an_answer_is_finished_when_the_server_ends(completions, monkeypatch):
    begun, ending, answer = threading.Event(), threading.Event(), completions.answer

    def slow(*arguments):
        begun.set()
        assert ending.wait(60)
        return answer(*arguments)

    monkeypatch.setattr(completions, "answer", slow)
    with serve(completions, on_end=ending.set) as client:
        response = client.ask(body([], "何色?", max_tokens=2))
        assert begun.wait(60)
    answered(response.result(60))


ENDLESS = """
import sys, threading
from functools import partial
from jminigpt4 import cli
from jminigpt4.chat import server
from jminigpt4.chat.completions import ChatCompletions
server.ServingLimits = partial(server.ServingLimits, drain=0.5)
def answer(self, prepared, on_piece, stop):
    print("answering", flush=True)
    threading.Event().wait()  # whatever: it does not even look at `stop`
ChatCompletions.answer = answer
sys.argv[1:] = ["serve", sys.argv[1], "--port", "0", "--device", "cpu"]
cli.main()
"""


def test_sigterm(checkpoint):
    assert ServingLimits(timeout=1).drain + 2 < 10
    environment = {**os.environ, "JMINIGPT4_API_KEY": "a"}
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(checkpoint)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    line = next(line for line in process.stderr if "http" in line)
    assert str(checkpoint) not in line and "serves checkpoint" in line
    with AskingClient(line.split("/v1")[0], Authorization="Bearer a") as client:
        # The socket is bound, and listens a moment later.
        client._transport = httpx.HTTPTransport(retries=8)
        response = client.ask(body([], "何色?"))
        assert process.stdout.readline() == "answering\n"
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(60) == -signal.SIGTERM and time.monotonic() - began < 30  # the answer has no end
        assert response.result(60).status_code == 503


# The verb.


def test_serve_needs_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        serving.build_server(str(tmp_path), "cpu", "auto")
    with pytest.raises(ValueError, match="API key is empty"):
        serving.build_server(str(tmp_path), "cpu", "auto", api_key="")


def test_a_port_that_is_taken(tmp_path):
    with serving._bound_socket("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"Nobody can listen on 127.0.0.1, port {port}: Address already in use"):
            serving.serve_checkpoint(str(tmp_path), "127.0.0.1", port, "cpu", "auto", None, 60)
    with pytest.raises(OSError, match="Nobody can listen on no such host"):
        serving.serve_checkpoint(str(tmp_path), "no such host", 0, "cpu", "auto", None, 60)


def test_vllm_command(checkpoint):
    command, alone, requests = serving.vllm_command(str(checkpoint), "127.0.0.1", 8000).split("\n")
    words = ["vllm", "serve", str(checkpoint.resolve()), "--served-model-name", "checkpoint"]
    words += ["--host", "127.0.0.1", "--port", "8000", "--allowed-media-domains", "none.invalid"]
    assert shlex.split(command) == words
    assert alone.startswith("# ") and requests.startswith("# ")
    asked = {"temperature": 0, "logit_bias": {"512": -100}, "stop": ["<NL>ユーザー:"]}
    assert json.loads(requests[requests.index("{") :]) == asked
    longer = shlex.split(alone.partition(": ")[2])
    assert longer[: len(words)] == words and "--trust-remote-code" in longer
    auto_map = json.loads(longer[longer.index("--hf-overrides") + 1])["auto_map"]
    assert auto_map["AutoModel"] == "modeling_jminigpt4.JMiniGPT4Model"
    assert auto_map["AutoConfig"] == "configuration_jminigpt4.JMiniGPT4Config"
    with pytest.raises(FileNotFoundError, match="No folder"):
        serving.vllm_command("/no/such", "127.0.0.1", 8000)
