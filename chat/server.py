"""The application behind OpenAI's chat completions interface: routes, limits, server-sent events.

The event loop reads, refuses and sends; whatever takes time is done in threads: one request is tokenised and its
pictures are decoded while another is answered.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from .completions import ChatCompletions, Ending, PreparedRequest
from .web_guard import HostGuard, Receive, Scope, Send

Result = TypeVar("Result")


@dataclass(frozen=True)
class ServingLimits:
    """What clients may take.

    Args:
        max_requests: Requests at once, the one that is answered and those that wait.
        max_bytes: Size of a request, pictures in base64 included.
        timeout: Seconds from a request's first byte to the end of its answer.
        drain: Seconds that answers may still take when the server is to end.
    """

    max_requests: int = 16
    max_bytes: int = 50_000_000
    timeout: float = 300.0
    drain: float = 7.0


class Refusal(Exception):
    """An answer other than the one asked for.

    Args:
        status: HTTP status.
        message: One sentence.
        headers: Headers of the response.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": None, "code": None}}


class ChatServer:
    """The application: `/v1/chat/completions`, `/v1/models` and `/health`.

    Args:
        completions: The checkpoint.
        name: What clients call it.
        api_key: What they have to send as bearer token; `None` for no such key.
        limits: What they may take.
        host: Where it listens: on a loopback address, requests for other hosts are refused.
    """

    def __init__(
        self,
        completions: ChatCompletions,
        name: str,
        api_key: str | None,
        limits: ServingLimits,
        host: str = "127.0.0.1",
    ):
        self._completions = completions
        self._name = name
        self._api_key = api_key
        self._limits = limits
        self._host = host
        self._started = int(time.time())
        self._requests = 0
        self._answers: set[asyncio.Future[None]] = set()
        self._preparing = SingleThread()
        self._answering = SingleThread()

    def server(self, **options: Any) -> uvicorn.Server:
        """The server that listens; told to end, it waits for answers as long as the limits say.

        Args:
            **options: Arguments of `uvicorn.Config`.
        """
        cancel, drain = self._cancel, self._limits.drain

        class DrainingServer(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None):
                asyncio.get_running_loop().call_later(drain, cancel)
                await super().shutdown(sockets)

        # uvicorn's own limit is for clients that do not even send a whole request, or do not read.
        options["timeout_graceful_shutdown"] = drain + 1
        return DrainingServer(uvicorn.Config(self.application(), lifespan="off", ws="none", **options))

    def _cancel(self):
        for answer in self._answers:
            answer.cancel()

    def application(self) -> Starlette:
        async def health(request: Request) -> JSONResponse:
            return JSONResponse({"status": "ok"})

        async def models(request: Request) -> JSONResponse:
            self._check_key(request)
            model = {"id": self._name, "object": "model", "created": self._started, "owned_by": "jminigpt4"}
            return JSONResponse({"object": "list", "data": [model]})

        async def refuse(request: Request, error: Exception) -> JSONResponse:
            if isinstance(error, HTTPException):
                error = Refusal(error.status_code, "There is no such route here: POST /v1/chat/completions.")
            assert isinstance(error, Refusal)
            return JSONResponse(error.body(), error.status, error.headers)

        routes = [Route("/health", health), Route("/v1/models", models)]
        # An ASGI application, not a function: it sends by itself, and knows when the client hangs up.
        routes.append(Route("/v1/chat/completions", self, methods=["POST"]))
        elsewhere = Refusal(421, "The request is for another host than this server.")
        guard: Any = HostGuard
        answer = JSONResponse(elsewhere.body(), elsewhere.status)
        return Starlette(
            routes=routes,
            middleware=[Middleware(guard, listening=self._host, refusal=lambda headers: answer)],
            exception_handlers={HTTPException: refuse, Refusal: refuse},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        request, reply = Request(scope, receive), Reply(send)
        try:
            self._check_key(request)
            with self._place():
                await asyncio.wait_for(self._unless_hung_up(request, reply), self._limits.timeout)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            await reply.refuse(Refusal(503, "The server is ending."))
        except asyncio.TimeoutError:
            await reply.refuse(Refusal(504, f"The answer took longer than {self._limits.timeout:g} seconds."))
        except Refusal as refusal:
            await reply.refuse(refusal)
        except Exception:
            logging.getLogger("uvicorn.error").exception("A request could not be answered.")
            await reply.refuse(Refusal(500, "The server failed; its log says how."))

    def _check_key(self, request: Request):
        if self._api_key is None:
            return
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, f"Bearer {self._api_key}".encode()):
            raise Refusal(401, "The API key is missing or wrong.", {"WWW-Authenticate": "Bearer"})

    @contextlib.contextmanager
    def _place(self) -> Generator[None]:
        if self._requests >= self._limits.max_requests:
            raise Refusal(
                429, f"{self._requests} requests are waiting already: try again later.", {"Retry-After": "5"}
            )
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def _unless_hung_up(self, request: Request, reply: "Reply"):
        """Answers a request; ends as soon as its client has hung up."""
        body = await self._body(request)

        async def hung_up():
            while (await request.receive())["type"] != "http.disconnect":
                pass

        answer, hang_up = asyncio.ensure_future(self._answer(body, reply)), asyncio.ensure_future(hung_up())
        self._answers.add(answer)
        try:
            await asyncio.wait([answer, hang_up], return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
        finally:
            self._answers.remove(answer)
            answer.cancel()
            hang_up.cancel()
            await asyncio.gather(answer, hang_up, return_exceptions=True)

    async def _body(self, request: Request) -> bytearray:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a page of another site can send unasked is of other types
            raise Refusal(415, "The request's Content-Type must be application/json.")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._limits.max_bytes:
                raise Refusal(413, f"The request has more than {self._limits.max_bytes:,} bytes.")
        return body

    async def _answer(self, body: bytearray, reply: "Reply"):
        try:
            prepared = await self._preparing.run(lambda: self._completions.prepare(body))
        except ValueError as error:
            raise Refusal(400, str(error)) from None
        request = prepared.request
        if request.model not in (None, self._name):
            raise Refusal(404, f"The request: `model` {request.model!r:.80} is not here; {self._name!r} is.")
        named = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._name}
        if request.stream:
            include_usage = request.stream_options is not None and request.stream_options.include_usage
            await self._stream(prepared, reply, {**named, "object": "chat.completion.chunk"}, include_usage)
            return
        pieces: list[str] = []

        async def keep(piece: str):
            pieces.append(piece)

        ending = await self._generate(prepared, keep)
        message = {"role": "assistant", "content": "".join(pieces)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ending.finish_reason}
        named["object"] = "chat.completion"
        await reply.document(200, {**named, "choices": [choice], "usage": _usage(ending)})

    async def _stream(self, prepared: PreparedRequest, reply: "Reply", named: dict[str, Any], include_usage: bool):
        async def send(delta: dict[str, str], finish_reason: str | None = None):
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            await reply.event({**named, "choices": [choice]})

        async def send_piece(piece: str):
            await send({"content": piece})

        await send({"role": "assistant", "content": ""})
        ending = await self._generate(prepared, send_piece)
        await send({}, ending.finish_reason)
        if include_usage:
            await reply.event({**named, "choices": [], "usage": _usage(ending)})
        await reply.end_of_events()

    async def _generate(self, prepared: PreparedRequest, on_piece: Callable[[str], Awaitable[None]]) -> Ending:
        """Answers in the thread and hands on the pieces here. Cancelled, it stops the thread at its next token."""
        loop, stop = asyncio.get_running_loop(), threading.Event()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def put(piece: str):
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        answer = asyncio.ensure_future(self._answering.run(lambda: self._completions.answer(prepared, put, stop)))
        answer.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                await on_piece(piece)
            return await answer
        finally:
            stop.set()
            answer.cancel()


class Reply:
    """What goes back to a client: one JSON document, or a stream of server-sent events."""

    def __init__(self, send: Send):
        self._send = send
        self._started = False
        self._streaming = False

    async def document(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None):
        body = _json(content)
        await self._start(
            status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        )
        await self._send({"type": "http.response.body", "body": body})

    async def event(self, content: dict[str, Any]):
        if not self._streaming:
            await self._start(200, {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"})
            self._streaming = True
        await self._send(
            {"type": "http.response.body", "body": b"data: " + _json(content) + b"\n\n", "more_body": True}
        )

    async def end_of_events(self):
        await self._send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def refuse(self, refusal: Refusal):
        """Says what went wrong: as the response, or as the last event of a stream, which then lacks its end mark."""
        if self._streaming:
            await self.event(refusal.body())
            await self._send({"type": "http.response.body", "body": b""})
        elif not self._started:
            await self.document(refusal.status, refusal.body(), refusal.headers)

    async def _start(self, status: int, headers: dict[str, str]):
        self._started = True
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})


class SingleThread:
    """Work that takes time, one after the other, beside the event loop. What waits can be cancelled; what has begun
    goes on to its end, and what waits behind it does so until then.

    The thread is a daemon: a process that is to end would wait for the event loop's own threads.
    """

    def __init__(self):
        self._free = asyncio.Lock()

    async def run(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, or what it raised."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()

        def settle(settle_result: Callable[[Any], None], value: Any):
            self._free.release()
            if not result.cancelled():
                settle_result(value)

        def run():
            try:
                outcome = (result.set_result, work())
            except BaseException as failure:
                outcome = (result.set_exception, failure)
            with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(settle, *outcome)

        threading.Thread(target=run, daemon=True).start()
        return await result


def _usage(ending: Ending) -> dict[str, int]:
    total = ending.prompt_tokens + ending.completion_tokens
    return {
        "prompt_tokens": ending.prompt_tokens,
        "completion_tokens": ending.completion_tokens,
        "total_tokens": total,
    }


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
