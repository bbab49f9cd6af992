"""What the tests share: the originals' numbers, and tiny models built in-process."""

import contextlib
import io
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not os.environ.get("GPU_PAGE"):  # the numbers are a CPU's, on machines with a GPU as well; `make gpu` shows it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
if "JMINIGPT4_ROWS" not in os.environ:  # where processes that tests start find it, too
    _ROWS = tempfile.TemporaryDirectory(prefix="rows-")
    os.environ["JMINIGPT4_ROWS"] = _ROWS.name

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, Blip2QFormerConfig, Blip2VisionConfig

from jminigpt4 import JMiniGPT4Config, JMiniGPT4ForConditionalGeneration, JMiniGPT4ImageProcessor, JMiniGPT4Processor

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
REFERENCE = Path(__file__).parent / "reference"

# One tiny language model of every family a user may swap in. Initialised so wide that another picture gives another
# text: with the usual 0.02 the picture would hardly move a logit and every test of it would pass unseen.
TEXT_CONFIGS = {
    "gpt_neox": {
        "intermediate_size": 64,
        "use_parallel_residual": False,
        "attention_dropout": 0.1,
        "hidden_dropout": 0.1,
    },
    "llama": {"intermediate_size": 64, "num_key_value_heads": 2},
    "qwen2": {"intermediate_size": 64, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "mistral": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_inner": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "gemma2": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
}


def text_config(family: str = "gpt_neox", vocab_size: int = 513, **overrides):
    """A language model configuration of 2 layers of 32."""
    sizes = {"vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"max_position_embeddings": 256, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    sizes |= {"initializer_range": 0.3, "tie_word_embeddings": False}
    return AutoConfig.for_model(family, **{**sizes, **TEXT_CONFIGS.get(family, {}), **overrides})


def tiny_config(family: str = "gpt_neox", image_token_id: int = 512, **text_overrides) -> JMiniGPT4Config:
    """A whole configuration: 28-pixel pictures, ViT 2 x 32, Q-Former 2 x 32 with 4 queries, language model 2 x 32."""
    vision = Blip2VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        initializer_range=0.3,
    )
    qformer = Blip2QFormerConfig(
        vocab_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
        max_position_embeddings=16,
    )
    return JMiniGPT4Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text_config(family, **text_overrides),
        num_query_tokens=4,
        image_token_id=image_token_id,
        initializer_range=0.3,
    )


def tiny_model(family: str = "gpt_neox", seed: int = 0, **text_overrides) -> JMiniGPT4ForConditionalGeneration:
    """A tiny model with seeded random weights, in eval mode."""
    torch.manual_seed(seed)
    model = JMiniGPT4ForConditionalGeneration(tiny_config(family, **text_overrides)).eval()
    model.generation_config.eos_token_id = None  # random weights would stop at random
    model.generation_config.pad_token_id = 0
    return model


@pytest.fixture(scope="session")
def make_model():
    """`make_model(family, seed, **text_overrides)`: see [`tiny_model`]."""
    return tiny_model


@pytest.fixture(scope="session")
def make_config():
    return tiny_config


@pytest.fixture(scope="session")
def model() -> JMiniGPT4ForConditionalGeneration:
    """One tiny GPT-NeoX model for all tests that do not change it."""
    return tiny_model()


@pytest.fixture(scope="session")
def tokenizer():
    """The reference tokenizer, converted, with the image token: 512 pieces, the image token is 512."""
    from jminigpt4.convert.tokenizer import prepare_tokenizer

    return prepare_tokenizer(REFERENCE / "tokenizer", vocab_size=512)[0]


@pytest.fixture(scope="session")
def make_processor(tokenizer):
    """`make_processor(prompt_format, own)`: that belongs to `make_model()`; `own` is another tokenizer."""
    from jminigpt4.convert.formats import chat_template_for, prompt_format

    def make(name: str = "article-3.6b", own=tokenizer) -> JMiniGPT4Processor:
        chosen = prompt_format(name)
        return JMiniGPT4Processor(
            JMiniGPT4ImageProcessor(size={"height": 28, "width": 28}),
            own,
            num_query_tokens=4,
            chat_template=chat_template_for(chosen, own),
            newline=chosen.newline,
            stop_strings=chosen.stop_strings,
        )

    return make


@pytest.fixture(scope="session")
def processor(make_processor) -> JMiniGPT4Processor:
    return make_processor()


def drawing(number: int) -> Image.Image:
    """A picture of 40 x 32 pixels that no other number gives."""
    generator = np.random.default_rng(number)
    return Image.fromarray(generator.integers(0, 255, (32, 40, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def draw():
    return drawing


@pytest.fixture
def captions(tmp_path) -> Path:
    """`captions.jsonl`: eight pictures with three captions each."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = []
    for number in range(8):
        drawing(number).save(folder / f"{number}.png")
        for word in ("犬", "猫がいます", "赤い車"):
            lines.append({"image": f"{number}.png", "caption": f"{word}{number}", "image_id": f"coco:{number}"})
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def make_picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A seeded picture of coloured stripes."""
    picture = Image.new("RGB", size)
    picture.putdata(
        [
            ((x * 37 + seed * 91) % 256, (x * x * seed) % 256, (x // 7 * 53 * seed) % 256)
            for x in range(size[0] * size[1])
        ]
    )
    return picture


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return [make_picture(seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="session")
def chat_model(make_model):
    """The tiny model with a window of 1024 positions, which speaks 12 tokens greedily and stops at EOS."""
    model = make_model(max_position_embeddings=1024)
    model.generation_config.eos_token_id = 3
    model.generation_config.max_new_tokens = 12
    model.generation_config.do_sample = False
    return model


@pytest.fixture(scope="session")
def checkpoint(chat_model, processor, tmp_path_factory):
    """The tiny model as a folder."""
    folder = tmp_path_factory.mktemp("chat") / "checkpoint"
    chat_model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the originals' checkpoints and of the tensors that the original code computed from them."""
    return REFERENCE


@pytest.fixture(scope="session")
def expected(reference) -> dict:
    """`{"forward": tensors, "train": tensors, "meta": dict}` of the original code."""
    return {
        "forward": load_file(reference / "expected" / "forward.safetensors"),
        "train": load_file(reference / "expected" / "train.safetensors"),
        "meta": json.loads((reference / "expected" / "meta.json").read_text(encoding="utf-8")),
    }


@pytest.fixture(scope="session")
def make_originals_model(reference):
    """`make_originals_model()`: the language model of the originals' training numbers, and their projection."""

    def make() -> JMiniGPT4ForConditionalGeneration:
        """The fixtures' language model with a row for the image token, and the projection of their checkpoint."""
        values = json.loads((reference / "llm" / "config.json").read_text())
        text_config = AutoConfig.for_model(**{**values, "vocab_size": 513, "torch_dtype": "float32"})
        config = JMiniGPT4Config(
            vision_config=Blip2VisionConfig(
                hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=56
            ),
            qformer_config=Blip2QFormerConfig(
                hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=80
            ),
            text_config=text_config,
            num_query_tokens=8,
            image_token_id=512,
        )
        model = JMiniGPT4ForConditionalGeneration(config)
        stored = load_file(reference / "llm" / "model.safetensors")
        layers = {
            name.removeprefix("gpt_neox."): tensor for name, tensor in stored.items() if name.startswith("gpt_neox.")
        }
        ours = model.model.language_model.state_dict()
        with torch.no_grad():
            for name, tensor in layers.items():
                if name in ours:
                    ours.pop(name)[: len(tensor)] = tensor
            model.lm_head.weight[:512] = stored["embed_out.weight"]
            projection = torch.load(reference / "checkpoints" / "checkpoint.pth", weights_only=True)["model"]
            model.model.language_projection.weight.copy_(projection["llama_proj.weight"])
            model.model.language_projection.bias.copy_(projection["llama_proj.bias"])
        assert not [name for name in ours if "inv_freq" not in name]
        model.freeze()
        return model

    return make


@pytest.fixture(scope="session")
def article_rows():
    """`article_rows(meta)`: the rows of those numbers, in the article's format."""
    from jminigpt4.train.packing import EncodedRow

    def rows(data: dict) -> list[EncodedRow]:
        """The article's rows from the token ids of the fixtures."""
        encoded = []
        for ids, mask in zip(data["target_ids"], data["target_mask"], strict=True):
            target = [token for token, kept in zip(ids, mask, strict=True) if kept]
            prompt = [2, *data["prompt_start_ids"], *[512] * 8, *data["prompt_after_ids"]]
            encoded.append(EncodedRow(prompt + target, [-100] * len(prompt) + target))
        return encoded

    return rows


@pytest.fixture
def full_disk():
    """`with full_disk(size)`: no file can grow beyond `size` bytes, as on a full disk; the system says `EFBIG`."""
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def limit(size: int):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture
def killed_at():
    """`killed_at(run, folder, last)`: `run` in a forked process that kills itself before its `last`-th operation on
    files in `folder`; between two of them nothing on the disk changes but a file that is being written. With `None`
    it lives. Returns exit status and number of operations."""
    context = multiprocessing.get_context("fork")

    def live_and_die(run, folder: Path, last: int | None = None) -> tuple[int, int]:
        operations = context.Value("q", 0)

        def watch(event: str, arguments: tuple):
            if arguments and str(arguments[0]).startswith(str(folder)):
                operations.value += 1
                if operations.value == last:
                    os.kill(os.getpid(), signal.SIGKILL)

        def live():
            sys.addaudithook(watch)
            run()

        process = context.Process(target=live)
        process.start()
        process.join(120)
        return process.exitcode, operations.value

    return live_and_die


@pytest.fixture(scope="session")
def blocks():
    """`blocks(text, language)`: the blocks of code in a document."""

    def find(text: str, language: str) -> list[str]:
        return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)

    return find


@pytest.fixture
def run_blocks(monkeypatch):
    """`run_blocks(name, pairs, folder)` runs blocks of Python in one namespace, which it returns, in the root of the
    repository or in `folder`, and compares what they print with what the document shows; `None` where it shows
    nothing."""

    def run(name: str, pairs: Iterable[tuple[str, str | None]], folder: Path = ROOT) -> dict:
        monkeypatch.chdir(folder)
        names: dict = {}
        for block, expected in pairs:
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block, name, "exec"), names)
            assert expected in (None, output.getvalue())
        return names

    return run


class ScriptedServer:
    """An OpenAI-compatible server on loopback that answers as it is told.

    `answer` makes the text of a request's answer, or `(status, headers, body)`, or `None`: the connection breaks.
    `requests` are the bodies that came, `headers` those of the last one.
    """

    def __init__(self, answer):
        self.answer, self.requests, self.headers = answer, [], {}
        self._lock = threading.Lock()
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._send(*scripted.reply_to_models())

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with scripted._lock:
                    scripted.requests.append(body)
                    scripted.headers = dict(self.headers)
                said = scripted.answer(body)
                if said is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                elif isinstance(said, tuple):
                    self._send(*said)
                else:
                    choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
                    usage = {"prompt_tokens": 5, "completion_tokens": 2}
                    self._send(200, {}, json.dumps({"choices": [choice], "usage": usage}))

            def _send(self, status, headers, body):
                self.send_response(status)
                for name, value in {"content-length": str(len(body.encode())), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def reply_to_models(self):
        return 200, {}, '{"object": "list", "data": []}'

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def scripted_server(monkeypatch):
    """`with scripted_server(answer) as server`: see [`ScriptedServer`]; nobody waits between attempts."""
    monkeypatch.setattr("jminigpt4.inference.endpoint.FIRST_WAIT", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return ScriptedServer
