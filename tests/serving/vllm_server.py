"""`vllm serve FOLDER` on a CPU, in the environment of this interpreter, and a client that sends nothing special."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

START_TIMEOUT = 900  # seconds; half a minute on a quiet machine
# What vLLM needs on a small CPU, whatever the model. float32: greedy tokens can be compared.
ON_A_CPU = ("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16", "--gpu-memory-utilization", "0.1")


@contextmanager
def vllm_server(model: str, log: Path, tensor_parallel: int = 1, options: Sequence[str] = ()) -> Iterator["Client"]:
    """Runs the server for the time of a `with`.

    Args:
        model: The checkpoint folder.
        log: Where the server's output goes.
        tensor_parallel: Over how many processes the model is split.
        options: Further ones of `vllm serve`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "vllm"
    command = [str(program), "serve", model, *options, "--host", "127.0.0.1", "--port", str(port), *ON_A_CPU]
    command += ["--tensor-parallel-size", str(tensor_parallel)] if tensor_parallel > 1 else []
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(cores[-tensor_parallel:]),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            yield Client(f"http://127.0.0.1:{port}", process, log)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Client:
    """Questions to the OpenAI-compatible interface of a server, from the time on that it answers.

    Args:
        address: Its address.
        process: Its process.
        log: Where its output goes.

    Raises:
        RuntimeError: The server ended before it answered.
    """

    def __init__(self, address: str, process: subprocess.Popen, log: Path):
        limits = httpx.Limits(max_connections=32)
        self._http = httpx.Client(base_url=address, timeout=600, trust_env=False, limits=limits)
        self._wait(process, log)
        self._model = self._http.get("/v1/models").json()["data"][0]["id"]

    def _wait(self, process: subprocess.Popen, log: Path):
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if self._http.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(1)
        raise RuntimeError(f"vLLM did not start; its last words: {log.read_text(errors='replace')[-3000:]}")

    def request(self, pictures: Sequence[str | Path], text: str, **options: Any) -> dict[str, Any]:
        addresses = [str(each) if "://" in str(each) else data_url(Path(each)) for each in pictures]
        content = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
        content.append({"type": "text", "text": text})
        return {"model": self._model, "messages": [{"role": "user", "content": content}], **options}

    def post(self, body: dict[str, Any]) -> httpx.Response:
        return self._http.post("/v1/chat/completions", json=body)

    def ask(self, pictures: Sequence[str | Path], text: str, **options: Any) -> tuple[list[int], list[int], str]:
        """Ids of the prompt and of the answer, and the answer's text."""
        answer = self.post(self.request(pictures, text, return_token_ids=True, **options))
        answer.raise_for_status()
        choice = answer.json()["choices"][0]
        return answer.json()["prompt_token_ids"], choice["token_ids"], choice["message"]["content"]

    def stream(self, pictures: Sequence[str | Path], text: str, **options: Any) -> list[str]:
        body = self.request(pictures, text, stream=True, **options)
        with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
        deltas = [choice["delta"].get("content") for line in lines for choice in json.loads(line)["choices"]]
        return [piece for piece in deltas if piece]


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
