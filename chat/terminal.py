"""The conversation in a terminal, on a pipe, or for a single question."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from ..checkpoint import user_path
from .pictures import ShownPicture
from .session import ChatSession
from .settings import Settings, check_text
from .transcript import load_transcript, save_transcript
from .turns import Turn

GREETING = "絵を見せて、日本語で話しましょう。 /image FILE  /help  /exit"
HELP = """/image FILE ...   show pictures with the next question      絵を見せる
/undo             take the last question back              一つ戻る
/reset            forget the conversation                  最初から
/save FILE        write the conversation and its pictures  保存
/load FILE        go on with a saved conversation          読み込み
/persona [TEXT]   who the model is to be; nothing: no one  役柄
/exit             leave (also Ctrl-D)                      終わる
Ctrl-C stops the answer only."""


def converse(settings: Settings):
    """One question answered, or a conversation on the terminal, or one question per line of a pipe.

    Raises:
        ValueError, OSError: Something of the user's cannot be used; in a conversation on a terminal it is printed, and
            the conversation goes on.
    """
    _prepare_streams()
    if settings.question is None and not _is_open(sys.stdin):
        raise ValueError("Standard input is closed, so nothing can be asked there: give a QUESTION.")
    interactive = settings.question is None and sys.stdin.isatty()
    conversation = Conversation(settings.open_session(_print_forgotten), settings)
    conversation.show(settings.images)
    if settings.question is not None:
        conversation.answer(settings.question)
    elif interactive:
        _converse(conversation)
    else:
        for number, line in enumerate(sys.stdin, 1):
            check_text(line, f"Line {number} of standard input")
            if line.strip() and not conversation.take(line.rstrip("\n")):
                break


def _is_open(stream: TextIO | None) -> bool:
    """Under cron and the like, standard streams may be closed: Python has `None` then."""
    return stream is not None and not stream.closed


def _prepare_streams():
    """Bytes that are no text come in as what `check_text` refuses; a character that the terminal's encoding lacks goes
    out as a question mark, so that an answer goes on."""
    if isinstance(sys.stdin, TextIOWrapper) and _is_open(sys.stdin):
        sys.stdin.reconfigure(errors="surrogateescape")
    if isinstance(sys.stdout, TextIOWrapper) and _is_open(sys.stdout):
        sys.stdout.reconfigure(errors="replace")


class Conversation:
    """Lines that a person types, questions and commands, carried out on a session.

    Args:
        session: The conversation.
        settings: Where pictures may come from, how answers are generated and printed.
    """

    def __init__(self, session: ChatSession, settings: Settings):
        self.session = session
        self.settings = settings
        self._pictures: list[ShownPicture] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": lambda rest: self.show(_words(rest)),
            "/undo": lambda _: _print_note(f"undone: {self.session.undo().question}"),
            "/reset": lambda _: self._reset(),
            "/save": lambda rest: _print_note(f"saved: {save_transcript(self.session, _file(rest))}"),
            "/load": lambda rest: self._load(_file(rest)),
            "/persona": lambda rest: self._set_persona(rest),
            "/help": lambda _: _print_note(HELP),
        }

    def take(self, line: str) -> bool:
        """Answers a question or carries out a command; `False` for the command to leave.

        Raises:
            ValueError, OSError: It cannot be done; the conversation is as it was.
        """
        check_text(line, "The line")
        command, _, rest = line.strip().partition(" ")
        if command in ("/exit", "/quit"):
            return False
        if command in self._commands:
            self._commands[command](rest.strip())
        elif command.startswith("/"):
            raise ValueError(f"There is no command {command}; /help lists them.")
        elif line.strip():
            self.answer(line.strip())
        return True

    def show(self, names: list[str]):
        """Opens and decodes pictures for the next question."""
        processor = self.session.processor.image_processor
        opened = [(self.settings.open_picture(name, processor.max_pixels), name) for name in names]
        pictures = [ShownPicture(processor.to_rgb(picture, name)) for picture, name in opened]
        self._pictures += pictures
        quiet = self.settings.as_json or self.settings.question is not None
        if not quiet and sys.stdin.isatty() and _is_open(sys.stdout) and sys.stdout.isatty():
            for picture in pictures:
                _print_note(preview(picture.image))

    def answer(self, question: str):
        """Asks with the pictures shown since the last question, and prints the answer as it is generated."""
        if self.settings.as_json:
            self.session.ask(question, self._pictures, **self.settings.options)
            print(json.dumps(_facts(self.session.turns[-1]), ensure_ascii=False), flush=True)
        else:
            try:
                for piece in self.session.stream(question, self._pictures, **self.settings.options):
                    print(piece, end="", flush=True)
            finally:
                print(flush=True)
        self._pictures = []

    def _reset(self):
        self.session.reset()
        self._pictures = []
        _print_note("forgotten")

    def _load(self, path: Path):
        load_transcript(self.session, path)
        self._pictures = []
        for turn in self.session.turns:
            _print_note(f"> {turn.question}\n{turn.answer}")

    def _set_persona(self, persona: str):
        self.session.persona = persona or None
        _print_note(f"persona: {persona or 'none'}")


def preview(picture: Image.Image, columns: int = 32) -> str:
    """A picture as lines of half blocks, two pixels to a character; nothing where the terminal lacks 24-bit colour."""
    if os.environ.get("COLORTERM") not in ("truecolor", "24bit"):
        return f"({picture.width} x {picture.height})"
    rows = max(1, round(columns * picture.height / picture.width / 2))
    small = picture.resize((columns, 2 * min(rows, columns)))
    pixels = np.asarray(small.convert("RGB"))
    lines = []
    for y in range(0, small.height, 2):
        cells = []
        for x in range(columns):
            upper, lower = (";".join(map(str, pixels[y + below, x])) for below in (0, 1))
            cells.append(f"\x1b[38;2;{upper};48;2;{lower}m▀")
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _converse(conversation: Conversation):
    read = _line_reader()
    _print_note(GREETING)
    while True:
        try:
            line = read("> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            _print_note("/exit leaves.")
            continue
        try:
            if not conversation.take(line):
                return
        except KeyboardInterrupt:
            _print_note("(stopped)")
        except (ValueError, OSError) as error:
            _print_note(" ".join(str(error).split()))


def _line_reader() -> Callable[[str], str]:
    """Line editing that knows Japanese widths and remembers lines, where prompt_toolkit is installed."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory
    except ImportError:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives `input` its editing and history
        return input
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "jminigpt4"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return PromptSession(history=FileHistory(str(folder / "history"))).prompt
    except OSError:
        return PromptSession().prompt


def _words(rest: str) -> list[str]:
    try:
        words = shlex.split(rest)
    except ValueError:
        words = [rest]
    if not words:
        raise ValueError("Name a file: /image FILE")
    return [rest] if len(words) > 1 and os.path.isfile(user_path(rest)) else words


def _file(rest: str) -> Path:
    if not rest:
        raise ValueError("Name a file: /save FILE, /load FILE")
    return user_path(rest)


def _facts(turn: Turn) -> dict:
    return {
        "question": turn.question,
        "answer": turn.answer,
        "pictures": [picture.sha256 for picture in turn.pictures],
        "tokens": len(turn.answer_ids or []),
        "prefilled_tokens": turn.prefilled_tokens,
    }


def _print_forgotten(turns: list[Turn]):
    _print_note(f"(context window full: the oldest {len(turns)} turns are forgotten  古い会話を忘れました)")


def _print_note(text: str):
    print(text, file=sys.stderr, flush=True)
