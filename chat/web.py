"""The conversation as a web page: gradio's chat interface on `ChatSession`, one session for each visitor."""

import html
import os
import re
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
from ..image_processing_jminigpt4 import reads_heic
from ..inference.answering import MAX_NEW_TOKENS
from .page_texts import TRANSLATIONS, head
from .pictures import PictureLimits, open_bytes
from .session import ChatSession
from .settings import Settings, served_name
from .texts import NO_PICTURE, Language, browser_language, explained, phrase, terminal_language
from .turns import Turn
from .web_guard import HeaderAdder, HostGuard, page_headers

if TYPE_CHECKING:
    import gradio

# The button behind a picture's download link would send the picture to a site on the Internet. A picture shown is to
# leave room for the text about it.
STYLE = """
.download-link + button { display: none; }
[data-testid="user"] .image-frame img { max-height: 10rem; width: auto; }
@media (max-width: 640px) { .examples { grid-template-columns: 1fr 1fr !important; } .example { min-height: 0; } }
"""
FORGOTTEN = "The oldest turns are forgotten: the context window is full."
EVICTED = "The conversation is no longer there; this is a new one."
WITHDRAWN = "Stopped before an answer; edit the question to ask again."
FAILED = "Something went wrong here; the operator can see what."
BUSY = "This application is currently busy. Please try again."  # gradio's page says this whatever it is told
ELSEWHERE = "This page is at another address."
MAX_WAITING, MAX_WAITING_PER_ADDRESS = 64, 16
# Samples of the demo and questions about them that it answers rightly.
EXAMPLES = {
    "two": "左は何ですか?",
    "apple": "何が写ってる?",
    "cat": "何の仲間?",
    "hamburger": "食べられる?",
    "fire_engine": "何色?",
    "key": "説明して",
}
FILE_TYPES = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"]


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
        notify = _notices(request)
        try:
            visitor = visitors[str(request.session_hash)]
            follow_page(visitor, history, notify)
            visitor.files[len(history)] = message["files"]
            text = ""
            pictures = uploads(message["files"], limits)
            for piece in visitor.session.stream(_well_formed(message["text"] or ""), pictures, **options):
                text += piece
                yield text
            if not visitor.session.has_pictures:
                notify(NO_PICTURE)
        # Not `gradio.Error`: after one, gradio's chat interface does not give the box back, and the page is dead.
        except (ValueError, OSError) as error:
            gradio.Warning(html.escape(explained(error, _language(request))))
        except Exception:
            traceback.print_exc()
            gradio.Warning(phrase(_language(request), FAILED))

    def tell_withdrawn(shown: list[dict[str, Any]], request: gradio.Request):
        if shown and shown[-1]["role"] == "user":
            _notices(request)(WITHDRAWN)

    def leave(request: gradio.Request):
        visitors.leave(str(request.session_hash))

    i18n: Any = gradio.I18n(**TRANSLATIONS)
    types = FILE_TYPES + ([".heic", ".heif"] if reads_heic() else [])
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
            file_types=types,
            file_count="multiple",
            placeholder=i18n("placeholder"),
            stop_btn=True,
            max_plain_text_length=100_000,
        ),
        additional_inputs=_sampling_inputs(session, settings, i18n),
        additional_inputs_accordion=gradio.Accordion(i18n("settings"), open=False),
        examples=[[{"text": question, "files": [str(file)]}] for file, question in example_questions()],
        title=f"MiniGPT-4 · {re.sub('[<>&]', '', served_name(settings.model))}",
        editable=True,
        analytics_enabled=False,
        api_visibility="private",
        delete_cache=(600, 7200),
    )
    with page:
        page.textbox.stop(tell_withdrawn, [page.chatbot], None, api_visibility="private")
        _give_back_box(page)
    page.unload(leave)
    for block in page.blocks.values():
        _refuse_addresses(block)
    page.queue(max_size=2 * MAX_WAITING, default_concurrency_limit=1)
    _share_queue(page)
    return page, visitors


def launch(
    page: "gradio.ChatInterface",
    host: str,
    port: int,
    login: tuple[str, str] | None = None,
    limits: PictureLimits | None = None,
    frame: str | None = None,
) -> str:
    """Starts serving in threads of their own; returns the address.

    Args:
        page: Of [`build_page`].
        host, port: Where to listen.
        login: User and password that visitors need.
        limits: See [`build_page`].
        frame: See [`page_headers`].

    Raises:
        OSError: Nobody can listen there.
    """
    import gradio
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse

    def refusal(headers: dict[str, str]) -> Any:
        return PlainTextResponse(phrase(browser_language(headers.get("accept-language")), ELSEWHERE), 421)

    guard: Any = HostGuard
    headers: Any = HeaderAdder
    middleware = [Middleware(headers, headers=page_headers(frame)), Middleware(guard, listening=host, refusal=refusal)]
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            auth=login,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            max_file_size=(limits or PictureLimits()).max_bytes,
            footer_links=[],
            css=STYLE,
            head=head(),
            enable_monitoring=False,
            ssr_mode=False,
            i18n=gradio.I18n(**TRANSLATIONS),
            app_kwargs={"middleware": middleware},
        )
    except OSError:
        raise OSError(f"Nobody can listen on {host}, port {port}: it is taken, or not of this machine.") from None
    return address


def serve_page(
    settings: Settings, host: str, port: int, login: tuple[str, str] | None = None, frame: str | None = None
):
    """Serves the page until Ctrl-C or SIGTERM; uploads are removed then.

    Args:
        settings: See [`build_page`].
        host, port, login, frame: See [`launch`].

    Raises:
        OSError: The port is taken.
    """
    session = settings.open_session()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # else the process would end and leave its uploads
    with tempfile.TemporaryDirectory(prefix="jminigpt4-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # gradio reads it at every upload
        page, _ = build_page(session, settings)
        address = launch(page, host, port, login, frame=frame)
        print(phrase(terminal_language(), "{address}  (Ctrl-C ends)", address=address), file=sys.stderr, flush=True)
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


def _language(request: Any) -> Language:
    """Of what is said to a visitor: the language that the page has in their browser."""
    return browser_language(request.headers.get("accept-language") if request is not None else None)


def _notices(request: Any) -> Callable[[str], None]:
    """Tells a visitor a text of the table beside the conversation."""
    import gradio

    return lambda english: gradio.Info(phrase(_language(request), english))


def _interface_class(visitors: Visitors) -> type["gradio.ChatInterface"]:
    import gradio

    class PictureChatInterface(gradio.ChatInterface):
        """gradio's, with questions that keep their pictures when edited, and are taken back one by one."""

        def _edit_message(self, history: Any, edit_data: gradio.EditData, request: gradio.Request) -> Any:
            # The page sends the new words alone, and has dropped the pictures of the question when it does.
            kept, _, text = super()._edit_message(history, edit_data)
            files = visitors[str(request.session_hash)].files.get(len(kept), [])
            return kept, kept, {"text": text, "files": files}

        def _clear_and_save_textbox(self, message: Any) -> Any:
            # gradio would take the words in the empty box away for good.
            return type(self.textbox)("", interactive=False), message

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

    def slider(name: str, lowest: float, highest: float, step: float, otherwise: float) -> gradio.Slider:
        chosen = value(name, otherwise)  # which may be beyond what is usual
        return gradio.Slider(min(lowest, chosen), max(highest, chosen), chosen, step=step, label=i18n(name))

    return [
        gradio.Checkbox(value("do_sample", False), label=i18n("sample")),
        slider("temperature", 0.1, 2.0, 0.05, 1.0),
        slider("top_p", 0.05, 1.0, 0.05, 1.0),
        slider("length", 1, 1024, 1, value("max_new_tokens", MAX_NEW_TOKENS)),
    ]


def example_questions() -> list[tuple[Path, str]]:
    """Pictures that come with the package, each with a question."""
    return [(DEMO / "samples" / f"{name}.png", question) for name, question in EXAMPLES.items()]


def _well_formed(text: str) -> str:
    """A lone surrogate, which JSON can hold and no tokenizer takes, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_question(page: Any, index: int | None) -> bool:
    """Whether an event of the page waits for an answer: those come in pieces, nothing else does."""
    return index in page.fns and page.fns[index].types_generator


def _give_back_box(page: Any):
    """gradio's chat interface goes on after an answer only: a question that gets no place would lock its box."""
    import gradio
    from gradio.events import Dependency

    given_back = gradio.update(interactive=True, submit_btn=True, stop_btn=False)
    for index in [index for index in page.fns if _is_question(page, index)]:
        refused = Dependency(page.textbox, {}, index, None)
        refused.failure(lambda: given_back, None, [page.textbox], queue=False, api_visibility="private")


def _share_queue(page: Any):
    """Of the places where questions wait an address gets a part, however many tabs it claims to have. Events that are
    no questions pass."""
    queue, push = page._queue, page._queue.push

    def address(request: Any) -> str | None:
        return request.client.host if request is not None and request.client else None

    async def push_fairly(body: Any, request: Any, username: str | None) -> tuple[bool, Any, str]:
        events = [event for waiting in queue.event_queue_per_concurrency_id.values() for event in waiting.queue]
        asking = [address(event.request) for event in events if _is_question(page, event.fn._id)]
        too_many = len(asking) >= MAX_WAITING or asking.count(address(request)) >= MAX_WAITING_PER_ADDRESS
        if _is_question(page, body.fn_index) and too_many:
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
