"""The conversation in a terminal, on a pipe, or for a single question."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from ..checkpoint import user_path
from .line_editor import LineEditor, open_line_editor
from .pictures import ShownPicture
from .session import ChatSession
from .settings import Settings, check_text
from .texts import NO_PICTURE, Language, explained, phrase, terminal_language
from .transcript import load_transcript, save_transcript
from .turns import Turn
from .typed_files import typed_files, typed_pictures

# Commands with what stands behind them and what they do.
COMMANDS = {
    "/image": ("FILE...", "show pictures with the next question; so does a file dragged in"),
    "/pictures": ("", "list the pictures for the next question"),
    "/drop": ("[N...]", "take these pictures back, or all"),
    "/undo": ("", "take the last question back"),
    "/reset": ("", "forget the conversation"),
    "/save": ("FILE", "write the conversation and its pictures"),
    "/load": ("FILE", "go on with a saved conversation"),
    "/persona": ("[TEXT]", "who the model is to be; nothing: no one"),
    "/help": ("", "this list"),
    "/exit": ("", "leave (also Ctrl-D)"),
}
GREETING = "Show a picture and talk about it in Japanese: /image FILE, or drag a file in.  /help  /exit"
FORGOTTEN = "(The oldest turns are forgotten, {count} of them: the context window is full.)"


def converse(settings: Settings):
    """One question answered, or a conversation on the terminal, or one question per line of a pipe.

    Raises:
        ValueError, OSError: Something of the user's cannot be used; in a conversation on a terminal it is printed, and
            the conversation goes on.
    """
    _prepare_streams()
    if settings.question is None and not _is_open(sys.stdin):
        raise ValueError("Standard input is closed, so nothing can be asked there: give a QUESTION.")
    language = terminal_language()
    interactive = settings.question is None and sys.stdin.isatty()
    session = settings.open_session(lambda turns: _print_note(phrase(language, FORGOTTEN, count=len(turns))))
    editor = open_line_editor(command_list(language)) if interactive else None
    conversation = Conversation(session, settings, language, editor)
    conversation.show(settings.images)
    if settings.question is not None:
        conversation.answer(settings.question)
    elif editor is not None:
        _converse(conversation, editor)
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
        language: Of what is said beside the answers.
        editor: Where there is a person to be asked.
    """

    def __init__(
        self, session: ChatSession, settings: Settings, language: Language = "en", editor: LineEditor | None = None
    ):
        self.session = session
        self.settings = settings
        self.language: Language = language
        self._editor = editor
        self._pending: list[tuple[str, ShownPicture]] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": lambda rest: self.show(typed_files(_given("/image", rest))),
            "/pictures": lambda _: self._list_pictures(),
            "/drop": self._drop,
            "/undo": lambda _: self._say("undone: {question}", question=self.session.undo().question),
            "/reset": lambda _: self._reset(),
            "/save": lambda rest: self._save(user_path(_given("/save", rest))),
            "/load": lambda rest: self._load(user_path(_given("/load", rest))),
            "/persona": self._set_persona,
            "/help": lambda _: _print_note(help_text(self.language)),
        }

    def take(self, line: str) -> bool:
        """Answers a question, shows pictures that were dragged in, or carries out a command.

        Returns:
            `False` for the command to leave.

        Raises:
            ValueError, OSError: It cannot be done; the conversation is as it was.
        """
        check_text(line, "The line")
        command, *rest = line.split(maxsplit=1) or [""]
        if command in ("/exit", "/quit"):
            return False
        if command in self._commands:
            self._commands[command]("".join(rest).strip())
            return True
        names, question = typed_pictures(line)
        if names:
            self.show(names)
        elif re.match(r"/\S", question):
            raise ValueError(f"There is no command {command}; /help lists them.")
        if question:
            self.answer(question)
        return True

    def show(self, names: list[str]):
        """Opens and decodes pictures for the next question."""
        processor = self.session.processor.image_processor
        opened = [(self.settings.open_picture(name, processor.max_pixels), name) for name in names]
        shown = [(name, ShownPicture(processor.to_rgb(picture, name))) for picture, name in opened]
        self._pending += shown
        if names and self._editor is not None and not self.settings.as_json:
            for drawn in filter(None, (preview(picture.image) for _, picture in shown)):
                _print_note(drawn)
            self._list_pictures()

    def answer(self, question: str):
        """Asks with the pictures shown since the last question, and prints the answer as it is generated."""
        pictures, last = [picture for _, picture in self._pending], self.session.turns[-1:]
        try:
            if self.settings.as_json:
                self.session.ask(question, pictures, **self.settings.options)
                print(json.dumps(_facts(self.session.turns[-1]), ensure_ascii=False), flush=True)
            else:
                self._stream(question, pictures)
        finally:
            if self.session.turns[-1:] != last:  # a question that was refused keeps its pictures for the next try
                self._pending = []

    def _stream(self, question: str, pictures: list[ShownPicture]):
        try:
            with contextlib.closing(self.session.stream(question, pictures, **self.settings.options)) as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
        finally:
            print(flush=True)
        if not self.session.has_pictures:
            self._say(NO_PICTURE)

    def _say(self, english: str, **values: object):
        _print_note(phrase(self.language, english, **values))

    def _list_pictures(self):
        if not self._pending:
            self._say("No pictures wait for the next question.")
            return
        self._say("For the next question ({count}):", count=len(self._pending))
        for number, (name, picture) in enumerate(self._pending, 1):
            _print_note(f"  {number}  {name}  ({picture.image.width} x {picture.image.height})")

    def _drop(self, rest: str):
        numbers = rest.split() or [str(number) for number in range(1, len(self._pending) + 1)]
        known = {str(number): number - 1 for number in range(1, len(self._pending) + 1)}
        if unknown := [number for number in numbers if number not in known]:
            raise ValueError(f"There is no picture {unknown[0]}: /pictures lists them.")
        dropped = {known[number] for number in numbers}
        self._pending = [each for place, each in enumerate(self._pending) if place not in dropped]
        self._list_pictures()

    def _reset(self):
        self.session.reset()
        self._pending = []
        self._say("forgotten")

    def _save(self, path: Path):
        if path.is_dir():
            raise ValueError(f"{path} is not a file.")
        if path.exists():
            if self._editor is None:
                raise ValueError(f"{path} exists already, and nobody can be asked here: choose another name.")
            if not self._editor.confirm(phrase(self.language, "{path} exists. Overwrite it? [y/N] ", path=path)):
                self._say("not saved")
                return
        self._say("saved: {path}", path=save_transcript(self.session, path))

    def _load(self, path: Path):
        load_transcript(self.session, path)
        self._pending = []
        for turn in self.session.turns:
            _print_note(f"> {turn.question}\n{turn.answer}")

    def _set_persona(self, persona: str):
        self.session.persona = persona or None
        if persona:
            self._say("persona: {persona}", persona=persona)
        else:
            self._say("persona: none")


def command_list(language: Language) -> dict[str, str]:
    """The commands and what they do."""
    return {command: phrase(language, description) for command, (_, description) in COMMANDS.items()}


def help_text(language: Language) -> str:
    """The commands with what stands behind them and what they do, a line each."""
    lines = []
    for command, (argument, description) in COMMANDS.items():
        lines.append(f"{f'{command} {argument}':18}{phrase(language, description)}")
    return "\n".join([*lines, phrase(language, "Ctrl-C stops the answer only. Tab completes commands and files.")])


def preview(picture: Image.Image, columns: int = 32) -> str:
    """A picture as lines of half blocks, two pixels to a character; nothing where the terminal lacks 24-bit colour."""
    if os.environ.get("COLORTERM") not in ("truecolor", "24bit"):
        return ""
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


def _converse(conversation: Conversation, editor: LineEditor):
    language = conversation.language
    _print_note(phrase(language, GREETING))
    while True:
        try:
            line = editor.read("> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            _print_note(phrase(language, "/exit leaves."))
            continue
        try:
            if not conversation.take(line):
                return
        except KeyboardInterrupt:
            _print_note(phrase(language, "(stopped)"))
        except (ValueError, OSError) as error:
            _print_note(explained(error, language))


def _given(command: str, rest: str) -> str:
    if not rest:
        raise ValueError(f"Name a file: {command} FILE")
    return rest


def _facts(turn: Turn) -> dict:
    return {
        "question": turn.question,
        "answer": turn.answer,
        "pictures": [picture.sha256 for picture in turn.pictures],
        "tokens": len(turn.answer_ids or []),
        "prefilled_tokens": turn.prefilled_tokens,
    }


def _print_note(text: str):
    print(text, file=sys.stderr, flush=True)
