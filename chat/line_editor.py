"""Lines as a person types them: edited, remembered, completed by Tab."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .typed_files import PICTURE_SUFFIXES, typed_pictures

if TYPE_CHECKING:
    from prompt_toolkit.completion import Completer


class LineEditor:
    """Lines of standard input, edited as far as Python's `readline` can."""

    def __init__(self):
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives `input` its editing and history

    def read(self, prompt: str) -> str:
        """The next line.

        Raises:
            EOFError, KeyboardInterrupt: Ctrl-D and Ctrl-C.
        """
        return input(prompt)

    def confirm(self, question: str) -> bool:
        """Whether a question is answered with yes; leaving it is a no."""
        try:
            return self._read_answer(question).strip().lower() in ("y", "yes", "はい")
        except (EOFError, KeyboardInterrupt):
            return False

    def _read_answer(self, question: str) -> str:
        return input(question)


class CompletingLineEditor(LineEditor):
    """Line editing that knows Japanese widths, remembers lines, and completes commands and files.

    Args:
        commands: Commands, `/save` and so on, and what they do.

    Raises:
        ImportError: prompt_toolkit is not installed.
    """

    def __init__(self, commands: Mapping[str, str]):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory

        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "jminigpt4"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            history = FileHistory(str(folder / "history"))
            self._lines = PromptSession(history=history)
        except OSError:
            self._lines = PromptSession()
        self._lines.completer = line_completer(commands)
        self._lines.complete_while_typing = False
        self._answers = PromptSession()

    def read(self, prompt: str) -> str:
        return self._lines.prompt(prompt)

    def _read_answer(self, question: str) -> str:
        return self._answers.prompt(question)


def open_line_editor(commands: Mapping[str, str]) -> LineEditor:
    """The best editor that is installed."""
    try:
        return CompletingLineEditor(commands)
    except ImportError:
        return LineEditor()


def line_completer(commands: Mapping[str, str]) -> "Completer":
    """Completes commands and the files behind them, and files at the beginning of a line; questions never.

    Args:
        commands: Commands and what they do.
    """
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class LineCompleter(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            line = document.text_before_cursor
            command, space, rest = line.partition(" ")
            if command in commands and space:
                suffixes = {"/image": PICTURE_SUFFIXES, "/save": ("json",), "/load": ("json",)}.get(command, ())
                yield from self._files(rest, suffixes, complete_event, several=command == "/image")
                return
            found = [name for name in commands if name.startswith(line)] if line.startswith("/") else []
            for name in found:
                yield Completion(name, -len(line), display_meta=commands[name])
            if not found and line.lstrip("'\"").startswith(("/", "~/", "./", "../")):
                yield from self._files(line, PICTURE_SUFFIXES, complete_event, several=True)

        def _files(
            self, text: str, suffixes: tuple[str, ...], complete_event: CompleteEvent, several: bool
        ) -> Iterable[Completion]:
            begun = text.lstrip()
            if several:
                try:
                    begun = typed_pictures(text)[1]
                except ValueError:  # a whole name, of no file
                    return
            if not suffixes or (text.strip() and not begun and not text[-1].isspace()):
                return
            begun = begun.lstrip("'\"").replace("\\ ", " ")

            def is_offered(path: str) -> bool:
                return os.path.isdir(path) or path.lower().endswith(tuple(f".{suffix}" for suffix in suffixes))

            files = PathCompleter(file_filter=is_offered, expanduser=True)
            for each in files.get_completions(Document(begun), complete_event):
                is_folder = each.display_text.endswith("/")
                yield Completion(each.text + ("/" if is_folder else ""), display=each.display)

    return LineCompleter()
