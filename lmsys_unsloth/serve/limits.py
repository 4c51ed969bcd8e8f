"""Requests that are refused before they are read: too large a body, or no valid token."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

OPEN = ("/", "/page.js", "/page.css", "/healthz")
"""Paths that need no token."""


class TooLarge(Exception):
    """The body exceeds the limit."""


class Limits:
    """ASGI middleware: limits the size of bodies and asks for a bearer token.

    Args:
        app: the application.
        max_bytes: largest body.
        token: required of all paths but :data:`OPEN`; None: none is needed.
    """

    def __init__(self, app: App, *, max_bytes: int, token: str | None) -> None:
        self.app, self.max_bytes = app, max_bytes
        self.expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        guarded = self.expected is not None and scope["path"] not in OPEN
        if guarded and not hmac.compare_digest(given, self.expected or b""):
            return await _refuse(send, 401, "a valid token is needed: Authorization: Bearer TOKEN")
        too_large = f"the body is larger than {self.max_bytes:,} bytes"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_bytes:
            return await _refuse(send, 413, too_large)
        received, began = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except TooLarge:
            if not began:
                await _refuse(send, 413, too_large)


async def _refuse(send: Send, status: int, text: str) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
