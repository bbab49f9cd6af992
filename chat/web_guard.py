"""What stands before the web page and `jminigpt4 serve`: whom a server on the loopback address answers, and what other
pages may do with the page."""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

# Asynchronous Server Gateway Interface, version 3.
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# gradio's page has inline scripts and styles of its own, and makes functions of texts.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "media-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors {frame}",
    )
)


def page_headers(frame: str | None = None) -> dict[str, str]:
    """Headers of every response of the page.

    Args:
        frame: Origin of the only site that may show the page in a frame; by default none may.
    """
    headers = {"content-security-policy": CONTENT_SECURITY_POLICY.format(frame=frame or "'none'")}
    headers |= {} if frame else {"x-frame-options": "DENY"}  # which cannot name a site
    return headers | {"x-content-type-options": "nosniff", "referrer-policy": "same-origin"}


def is_own_host(header: str | None, listening: str) -> bool:
    """Whether a request's `Host` header names this server.

    A page of another site can give its own name the address 127.0.0.1 (DNS rebinding); its requests then reach a
    server that only this machine reaches, but they bear that name. A server that listens on an address of the network
    cannot know its names, and takes any.

    Args:
        header: The header's value.
        listening: Host name or address on which the server listens.
    """
    if not _is_loopback(listening):
        return True
    try:
        name = urlsplit(f"//{header or ''}").hostname or ""
    except ValueError:
        return False
    return _is_loopback(name) or name == listening.lower()


def _is_loopback(name: str) -> bool:
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class HostGuard:
    """Middleware that answers requests for other hosts with a refusal.

    Args:
        application: What it stands before.
        listening: See [`is_own_host`].
        refusal: Makes the answer from the headers of the request, an application itself.
    """

    def __init__(self, application: Application, listening: str, refusal: Callable[[dict[str, str]], Application]):
        self._application = application
        self._listening = listening
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] in ("http", "websocket"):
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            if not is_own_host(headers.get("host"), self._listening):
                await self._refusal(headers)(scope, receive, send)
                return
        await self._application(scope, receive, send)


class HeaderAdder:
    """Middleware that adds headers to every response.

    Args:
        application: What it stands behind.
        headers: Names in lower case, and values.
    """

    def __init__(self, application: Application, headers: dict[str, str]):
        self._application = application
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        async def send_with_headers(message: dict[str, Any]):
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
            await send(message)

        await self._application(scope, receive, send_with_headers if scope["type"] == "http" else send)
