"""The conversation as a web page: gradio's chat interface on `ChatSession`, one session for each visitor."""

import os
import signal
import sys
import tempfile
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .. import DEMO
from ..extras import install_command
from ..inference.answering import MAX_NEW_TOKENS
from .pictures import PictureLimits, open_bytes
from .session import ChatSession
from .settings import Settings
from .turns import Turn

if TYPE_CHECKING:
    import gradio

TEXTS = {
    "ja": {
        "about": "絵や写真を見せて、日本語で話しましょう。",
        "placeholder": "絵を入れて、質問してください",
        "settings": "設定",
        "sample": "毎回ちがう答え（サンプリング）",
        "temperature": "温度（高いほど自由に）",
        "top_p": "top-p（低いほど手堅く）",
        "length": "答えの長さ（トークン）",
    },
    "en": {
        "about": "Show a picture and talk about it in Japanese.",
        "placeholder": "Add a picture and ask",
        "settings": "Settings",
        "sample": "Another answer each time (sampling)",
        "temperature": "Temperature (higher is freer)",
        "top_p": "top-p (lower is safer)",
        "length": "Length of answers (tokens)",
    },
}
# The button behind a picture's download link would send the picture to a site on the Internet. A picture shown is to
# leave room for the text about it.
STYLE = """
.download-link + button { display: none; }
[data-testid="user"] .image-frame img { max-height: 10rem; width: auto; }
"""
FORGOTTEN = "会話が長くなったので、古い部分を忘れました。 The oldest turns are forgotten: the context window is full."
EVICTED = "会話を続けられません。最初からになります。 The conversation is no longer there; this is a new one."
WITHDRAWN = "答える前に止めました。質問は編集するとまた聞けます。 Stopped before an answer; edit it to ask again."
FAILED = "答えられませんでした。 Something went wrong here; the operator can see what."
BUSY = "順番待ちが多すぎます。少し待ってください。 You are waiting for many answers already; try again soon."
MAX_WAITING, MAX_WAITING_PER_ADDRESS = 64, 16
EXAMPLE_QUESTION = "何が写ってる?"


@dataclass
class Visitor:
    """One browser tab.

    Args:
        session: Its conversation.
        forgotten: How many of the oldest turns made room; the page shows them still.
        files: Uploads of the questions, by the place of the question among the messages of the page.
    """

    session: ChatSession
    forgotten: int = 0
    files: dict[int, list[Any]] = field(default_factory=dict)


@dataclass
class Visitors:
    """Sessions by the tab they belong to; the one unused longest goes when there are too many.

    Args:
        open_session: Makes the session of a new visitor.
        limit: How many conversations are kept in memory.
    """

    open_session: Callable[[], ChatSession]
    limit: int = 64
    _present: OrderedDict[str, Visitor] = field(default_factory=OrderedDict)

    def __getitem__(self, tab: str) -> Visitor:
        if tab not in self._present:
            self._present[tab] = Visitor(self.open_session())
        self._present.move_to_end(tab)
        while len(self._present) > self.limit:
            self.leave(next(iter(self._present)))
        return self._present[tab]

    def __len__(self) -> int:
        return len(self._present)

    def leave(self, tab: str):
        """Stops the answer to a visitor and drops the conversation."""
        visitor = self._present.pop(tab, None)
        if visitor is not None:
            visitor.session.stop()


def build_page(
    session: ChatSession, settings: Settings, limits: PictureLimits | None = None
) -> tuple["gradio.ChatInterface", Visitors]:
    """The page, not yet served, and the visitors that it will have.

    Args:
        session: Gives model, processor, persona and examples to the sessions of all visitors; nobody asks it anything.
        settings: Its `options` are the sampling settings that the page starts with.
        limits: What uploads are refused. The page opens uploads only: no path and no address, whatever a request says.

    Raises:
        ImportError: gradio is not installed.
    """
    try:
        import gradio
    except ImportError:
        raise ImportError(f"The web page needs gradio: {install_command('chat')}.") from None

    limits = limits or PictureLimits()
    visitors = Visitors(lambda: ChatSession(session.model, session.processor, session.persona, session.examples))

    def answer(
        message: dict[str, Any],
        history: list[dict[str, Any]],
        sample: bool,
        temperature: float,
        top_p: float,
        length: float,
        request: gradio.Request,
    ) -> Iterator[str]:
        options: dict[str, Any] = {"do_sample": sample, "max_new_tokens": int(length)}
        options |= {"temperature": temperature, "top_p": top_p} if sample else {}
        try:
            visitor = visitors[str(request.session_hash)]
            follow_page(visitor, history, gradio.Info)
            visitor.files[len(history)] = message["files"]
            text = ""
            pictures = uploads(message["files"], limits)
            for piece in visitor.session.stream(_well_formed(message["text"] or ""), pictures, **options):
                text += piece
                yield text
        # Not `gradio.Error`: after one, gradio's chat interface does not give the box back, and the page is dead.
        except (ValueError, OSError) as error:
            gradio.Warning(" ".join(str(error).split()))
        except Exception:
            traceback.print_exc()
            gradio.Warning(FAILED)

    def leave(request: gradio.Request):
        visitors.leave(str(request.session_hash))

    i18n: Any = gradio.I18n(**TEXTS)
    page = _interface_class(visitors)(
        answer,
        multimodal=True,
        chatbot=gradio.Chatbot(
            show_label=False,
            height="min(60vh, 640px)",
            placeholder=i18n("about"),
            # In one bubble with a picture, an edited question is never sent by the page.
            group_consecutive_messages=False,
            # Not "share": it would send the conversation and its pictures to a site on the Internet.
            buttons=["copy", "copy_all"],
        ),
        textbox=gradio.MultimodalTextbox(
            file_types=[".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"],
            file_count="multiple",
            placeholder=i18n("placeholder"),
            stop_btn=True,
            max_plain_text_length=100_000,
        ),
        additional_inputs=_sampling_inputs(session, settings, i18n),
        additional_inputs_accordion=gradio.Accordion(i18n("settings"), open=False),
        examples=[[{"text": EXAMPLE_QUESTION, "files": [str(file)]}] for file in _sample_pictures()] or None,
        title="日本語 MiniGPT-4",
        editable=True,
        analytics_enabled=False,
        api_visibility="private",
        delete_cache=(600, 7200),
    )
    with page:
        page.textbox.stop(notify_withdrawn, [page.chatbot], None, api_visibility="private")
    page.unload(leave)
    for block in page.blocks.values():
        _refuse_addresses(block)
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    _share_queue(page)
    return page, visitors


def launch(page: "gradio.ChatInterface", host: str, port: int, limits: PictureLimits | None = None) -> str:
    """Starts serving in threads of their own; returns the address.

    Raises:
        OSError: The port is taken.
    """
    import gradio

    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        max_file_size=(limits or PictureLimits()).max_bytes,
        footer_links=[],
        css=STYLE,
        enable_monitoring=False,
        ssr_mode=False,
        i18n=gradio.I18n(**TEXTS),
    )
    return address


def serve_page(settings: Settings, host: str, port: int):
    """Serves the page until Ctrl-C or SIGTERM; uploads are removed then.

    Raises:
        OSError: The port is taken.
    """
    session = settings.open_session()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # else the process would end and leave its uploads
    with tempfile.TemporaryDirectory(prefix="jminigpt4-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # gradio reads it at every upload
        page, _ = build_page(session, settings)
        print(f"{launch(page, host, port)}  (Ctrl-C ends)", file=sys.stderr, flush=True)
        page.block_thread()


def uploads(files: list[str | dict[str, Any]], limits: PictureLimits) -> list[Image.Image]:
    """Uploaded files to pictures that are not decoded yet.

    Args:
        files: Paths; of a question asked again, gradio's `FileData` with the path.
        limits: What is refused.

    Raises:
        ValueError: There are too many, one is no upload, or one breaks the limits; it is called by its number, not by
            its path.
    """
    from gradio.utils import get_upload_folder

    folder = Path(get_upload_folder()).resolve()
    if len(files) > limits.max_pictures:
        raise ValueError(f"{len(files)} pictures at once; at most {limits.max_pictures} are taken.")
    pictures = []
    for number, file in enumerate(files, 1):
        name = f"picture {number}"
        path = Path(file["path"] if isinstance(file, dict) else file).resolve()
        if not path.is_relative_to(folder):
            raise ValueError(f"{name} was not uploaded.")
        if path.stat().st_size > limits.max_bytes:
            raise ValueError(f"{name} has more than {limits.max_bytes:,} bytes.")
        pictures.append(open_bytes(path.read_bytes(), name, limits))
    return pictures


def follow_page(visitor: Visitor, history: list[dict[str, Any]], notify: Callable[[str], Any]):
    """Takes back what the page no longer shows: undo, retry, an edited question and clear all end here."""

    def forget(turns: list[Turn]):
        visitor.forgotten += len(turns)
        notify(FORGOTTEN)

    visitor.session.stop()
    visitor.session.on_forget = forget
    answered = sum(message["role"] == "assistant" for message in history)
    visitor.forgotten = min(visitor.forgotten, answered)
    kept = answered - visitor.forgotten
    if kept > len(visitor.session.turns):
        notify(EVICTED)
        visitor.forgotten = answered
        kept = 0
    visitor.files = {place: files for place, files in visitor.files.items() if place < len(history)}
    while len(visitor.session.turns) > kept:
        visitor.session.undo()


def notify_withdrawn(shown: list[dict[str, Any]]):
    """Tells a visitor who stopped before the first word that the question, though shown, is not in the conversation.

    Args:
        shown: Messages of the page.
    """
    import gradio

    if shown and shown[-1]["role"] == "user":
        gradio.Info(WITHDRAWN)


def _interface_class(visitors: Visitors) -> type["gradio.ChatInterface"]:
    import gradio

    class PictureChatInterface(gradio.ChatInterface):
        """gradio's, with questions that keep their pictures when edited, and are taken back one by one."""

        def _edit_message(self, history: Any, edit_data: gradio.EditData, request: gradio.Request) -> Any:
            # The page sends the new words alone, and has dropped the pictures of the question when it does.
            kept, _, text = super()._edit_message(history, edit_data)
            files = visitors[str(request.session_hash)].files.get(len(kept), [])
            return kept, kept, {"text": text, "files": files}

        def _pop_last_user_message(self, history: Any) -> Any:
            # A question that got no answer is not to be merged with the one after it.
            last = max((index for index, message in enumerate(history) if message["role"] == "user"), default=0)
            return history[:last], super()._pop_last_user_message(history[last:])[1]

    return PictureChatInterface


def _sampling_inputs(session: ChatSession, settings: Settings, i18n: Any) -> list[Any]:
    """The settings below the page, at the values of the command line or else of the checkpoint."""
    import gradio

    def value(name: str, otherwise: Any) -> Any:
        given = settings.options.get(name, getattr(session.model.generation_config, name, None))
        return otherwise if given is None else given

    return [
        gradio.Checkbox(value("do_sample", False), label=i18n("sample")),
        gradio.Slider(0.1, 2.0, value("temperature", 1.0), step=0.05, label=i18n("temperature")),
        gradio.Slider(0.05, 1.0, value("top_p", 1.0), step=0.05, label=i18n("top_p")),
        gradio.Slider(1, 1024, value("max_new_tokens", MAX_NEW_TOKENS), step=1, label=i18n("length")),
    ]


def _sample_pictures() -> list[Path]:
    return sorted((DEMO / "samples").glob("*.png"))[:6] if (DEMO / "samples").is_dir() else []


def _well_formed(text: str) -> str:
    """A lone surrogate, which JSON can hold and no tokenizer takes, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _share_queue(page: Any):
    """One address gets a part of the places where questions wait, however many tabs it claims to have."""
    queue, push = page._queue, page._queue.push

    def address(request: Any) -> str | None:
        return request.client.host if request is not None and request.client else None

    async def push_fairly(body: Any, request: Any, username: str | None) -> tuple[bool, Any, str]:
        events = (event for waiting in queue.event_queue_per_concurrency_id.values() for event in waiting.queue)
        if sum(address(event.request) == address(request) for event in events) >= MAX_WAITING_PER_ADDRESS:
            return False, BUSY, "queue_full"
        return await push(body=body, request=request, username=username)

    queue.push = push_fairly


def _refuse_addresses(block: Any):
    """gradio downloads a file that a request names by address; this page never does."""
    if not hasattr(block, "async_move_resource_to_block_cache"):
        return
    move = block.async_move_resource_to_block_cache

    async def move_local(path: Any) -> str | None:
        if "://" in str(path):
            raise ValueError("Pictures are uploaded here, not fetched from addresses.")
        return await move(path)

    block.async_move_resource_to_block_cache = move_local
