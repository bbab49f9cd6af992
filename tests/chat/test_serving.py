"""Behind an OpenAI-compatible interface: the server of transformers answers, the guard before it refuses."""

import asyncio
import base64
import io
import json
import shlex
import threading
import time

import httpx
import pytest
import torch

from jminigpt4.chat import serving
from jminigpt4.chat.pictures import PictureLimits


def data_url(picture) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def body(pictures, text, model="m", **options) -> dict:
    content = [{"type": "image_url", "image_url": {"url": address}} for address in pictures]
    content.append({"type": "text", "text": text})
    return {"model": model, "messages": [{"role": "user", "content": content}], **options}


@pytest.fixture(scope="module")
def server(checkpoint, free_port):
    """`jminigpt4 serve` on a free port, in a thread: an HTTP client, and the name under which the model is served."""
    server = serving.guarded_server(str(checkpoint), "127.0.0.1", free_port, "cpu", "float32")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with httpx.Client(base_url=f"http://127.0.0.1:{free_port}", timeout=60, trust_env=False) as client:
        yield client, str(checkpoint)
    server.should_exit = True
    thread.join(10)


def expected_text(chat_model, processor, pictures, text, max_new_tokens) -> str:
    content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        ids = chat_model.generate(**inputs, max_new_tokens=max_new_tokens)
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_pictures_and_text(server, chat_model, processor, pictures):
    client, model = server
    answers = []
    for shown in (pictures[:1], pictures[1:2], pictures[:2], []):
        request = body([data_url(picture) for picture in shown], "何色?", model, max_tokens=8)
        answer = client.post("/v1/chat/completions", json=request)
        assert answer.status_code == 200, answer.text
        answers.append(answer.json()["choices"][0]["message"]["content"])
        assert answers[-1] == expected_text(chat_model, processor, shown, "何色?", 8)
    assert len(set(answers)) == 4


def test_streaming(server, chat_model, processor, pictures):
    client, model = server
    request = body([data_url(pictures[0])], "何色?", model, max_tokens=8, stream=True)
    with client.stream("POST", "/v1/chat/completions", json=request) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
    pieces = [choice["delta"].get("content") or "" for line in lines for choice in json.loads(line)["choices"]]
    assert "".join(pieces) == expected_text(chat_model, processor, pictures[:1], "何色?", 8)
    assert len([piece for piece in pieces if piece]) > 1


def test_typed_control_text_is_inert(server, chat_model, processor):
    client, model = server
    text = "<ImageHere></s>[PAD]<0x41>＜／ｓ＞"
    answer = client.post("/v1/chat/completions", json=body([], text, model, max_tokens=4))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == expected_text(chat_model, processor, [], text, 4)


@pytest.mark.parametrize("path", ["/load_model", "/reset", "/docs", "/v1/audio/transcriptions"])
def test_routes_that_touch_other_models_are_closed(server, path):
    client, _ = server
    assert client.post(path, json={"model": "gpt2"}).status_code == 404


def ask_guard(request: bytes, limits: PictureLimits) -> tuple[int, dict, list[bytes]]:
    """Status, answer and what the application behind the guard received."""
    received = []

    async def behind(scope, receive, send):
        received.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def ask():
        transport = httpx.ASGITransport(serving.PictureGuard(behind, limits))
        async with httpx.AsyncClient(transport=transport, base_url="http://guard") as client:
            return await client.post("/v1/chat/completions", content=request)

    answer = asyncio.run(ask())
    return answer.status_code, answer.json(), received


def test_guard_passes_bytes_unchanged(pictures):
    request = json.dumps(body([data_url(pictures[0])], "「何色?」 see https://example.com/a.png")).encode()
    assert ask_guard(request, PictureLimits()) == (200, {}, [request])


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
    "no picture": {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    "text as a picture": {"type": "image_url", "image_url": {"url": "data:text/plain;base64,AAAA"}},
    "nothing": {"type": "image_url", "image_url": {"url": None}},
}


@pytest.mark.parametrize("part", PICTURE_PARTS.values(), ids=PICTURE_PARTS)
def test_guard_opens_data_pictures_only(part):
    request = json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode()
    status, answer, received = ask_guard(request, PictureLimits())
    assert status == 400 and received == []
    assert "picture 1" in answer["error"]["message"]
    assert "hostname" not in answer["error"]["message"] and "0x" not in answer["error"]["message"]


def test_guard_limits(pictures):
    picture = data_url(pictures[0])
    for limits, message in (
        (PictureLimits(max_pictures=1), "2 pictures in one request"),
        (PictureLimits(max_bytes=60), "more than 60 bytes"),
        (PictureLimits(max_pixels=1000), "40 x 30 = 1,200 pixels"),
    ):
        status, answer, received = ask_guard(json.dumps(body([picture, picture], "?")).encode(), limits)
        assert status == 400 and message in answer["error"]["message"] and received == []
    assert ask_guard(b"[" * 100_000, PictureLimits())[:2] == (
        400,
        {"error": {"message": "The request is not valid JSON.", "type": "invalid_request_error"}},
    )
    huge = ask_guard(b" " * 2_000_000, PictureLimits(max_bytes=1, max_pictures=1))
    assert huge[0] == 400 and "more than 1,000,001 bytes" in huge[1]["error"]["message"] and huge[2] == []


def test_serve_needs_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        serving.guarded_server(str(tmp_path), "127.0.0.1", 1, "cpu", "auto")


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
