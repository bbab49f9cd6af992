"""vLLM as the command of `jminigpt4 serve-command` starts it, on a CPU."""

import base64
import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from jminigpt4.chat.serving import vllm_command

START_TIMEOUT = 900  # seconds; half a minute on a quiet machine
# What vLLM needs on a small CPU, beside the command that is printed. float32: greedy tokens can be compared.
ON_A_CPU = ("--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16", "--gpu-memory-utilization", "0.1")


@contextmanager
def vllm_server(python: Path, model: str, log: Path, tensor_parallel: int = 1) -> Iterator["Client"]:
    """Runs the server for the time of a `with`.

    Args:
        python: Interpreter of an environment that `environment.py` made.
        model: The checkpoint folder.
        log: Where the server's output goes.
        tensor_parallel: Over how many processes the model is split.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = shlex.split(vllm_command(model, host="127.0.0.1", port=port), comments=True)
    folder = words[words.index("serve") + 1]
    options = words[words.index("serve") + 2 :]
    # The console script of the CPU build looks for a distribution called `vllm`, which it is not.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", folder, *options, *ON_A_CPU]
    command += ["--tensor-parallel-size", str(tensor_parallel)]
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
    environment = {
        **os.environ,
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(cores[-tensor_parallel:]),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            served = words[words.index("--served-model-name") + 1]
            client = Client(f"http://127.0.0.1:{port}", served)
            client.wait(process, log)
            yield client
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Client:
    """Questions to the OpenAI-compatible interface, answered greedily."""

    def __init__(self, address: str, model: str):
        self._http = httpx.Client(
            base_url=address, timeout=600, trust_env=False, limits=httpx.Limits(max_connections=32)
        )
        self._model = model

    def wait(self, process: subprocess.Popen, log: Path):
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            try:
                if self._http.get("/health").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(1)
        raise RuntimeError(f"vLLM did not start; its last words: {log.read_text(errors='replace')[-3000:]}")

    def request(self, pictures: list[str | Path], text: str, **options: Any) -> dict[str, Any]:
        addresses = [str(each) if "://" in str(each) else data_url(Path(each)) for each in pictures]
        content = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
        content.append({"type": "text", "text": text})
        body = {"model": self._model, "messages": [{"role": "user", "content": content}]}
        return {**body, "temperature": 0, "repetition_penalty": 1.0, "return_token_ids": True, **options}

    def post(self, body: dict[str, Any]) -> httpx.Response:
        return self._http.post("/v1/chat/completions", json=body)

    def ask(self, pictures: list[str | Path], text: str, **options: Any) -> tuple[list[int], list[int], str]:
        """Ids of the prompt and of the answer, and the answer's text."""
        answer = self.post(self.request(pictures, text, **options))
        answer.raise_for_status()
        choice = answer.json()["choices"][0]
        return answer.json()["prompt_token_ids"], choice["token_ids"], choice["message"]["content"]

    def stream(self, pictures: list[str | Path], text: str, **options: Any) -> list[str]:
        body = self.request(pictures, text, stream=True, **options)
        with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
        deltas = [choice["delta"].get("content") for line in lines for choice in json.loads(line)["choices"]]
        return [piece for piece in deltas if piece]


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
