"""A process of its own for what fetches windows ahead, so that no process is forked from one that fetches.

A fork has the locks of all threads but none of the threads: what another thread holds in that moment, such as that of
a module it imports or of Arrow's memory, is held for ever. Workers that prepare steps are forked at any time.
"""

import multiprocessing
import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection

from ..checkpoint import lock_open_file
from .fetching import FetchAhead
from .windows import ALIVE
from .workers import end_with_parent, processes_are_forks

PATIENCE = 10  # seconds that it has to end by itself


class FetchProcess:
    """[`FetchAhead`] in a process that is forked now.

    Args:
        ahead: What is to run there; not started.
    """

    def __init__(self, ahead: FetchAhead):
        self.ahead = ahead

    def start(self):
        """Forks the process; returns when others can see that it is alive."""
        self._steps, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(self.ahead, theirs, self._steps), name="stream", daemon=True
        )
        self._process.start()
        theirs.close()
        self._steps.recv()

    def done(self, steps: int):
        """Takes note that so many steps of the run are done in all processes."""
        with suppress(OSError):  # it has ended: whoever waits for a window is told
            self._steps.send(steps)

    def end(self):
        """Gives up what is being fetched; nothing more is made."""
        with suppress(OSError):
            self._steps.send(None)
        self._process.join(PATIENCE)
        self._process.kill()  # a server that does not answer would hold it for as long as its driver waits
        self._process.join()
        self._steps.close()


def fetched_by(ahead: FetchAhead) -> FetchAhead | FetchProcess:
    """What does the work of `ahead`: a process where processes are forks, a thread elsewhere."""
    return FetchProcess(ahead) if processes_are_forks() else ahead


def _serve(ahead: FetchAhead, steps: Connection, others: Connection):
    """The process: fetches until it is told to end, or nobody is there any more who could tell it."""
    others.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which every process of a terminal gets; the run says when it ends
    end_with_parent()
    _show_alive(ahead)
    ahead.start()
    steps.send(None)
    with suppress(EOFError):
        while (done := steps.recv()) is not None:
            ahead.done(done)
    ahead.end()


def _show_alive(ahead: FetchAhead):
    """A file that is locked until this process is dead; nobody sees it unlocked before."""
    unfinished = ahead.folder / f"{ALIVE}.part"
    lock_open_file(os.open(unfinished, os.O_RDWR | os.O_CREAT, 0o666))
    unfinished.rename(ahead.folder / ALIVE)
