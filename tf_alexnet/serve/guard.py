"""`Guard`: checks on every request, and headers on every response."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tf_alexnet.serve.counters import Counters
from tf_alexnet.serve.limits import RequestError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
READING = "tf_alexnet.reading"  # key of a scope: whether the body is still being read
# Needed by the page before it can ask for a token, and by load balancers, which have none.
_OPEN = frozenset(
    {"/", "/app.js", "/style.css", "/icon.svg", "/healthz", "/v2/health/live", "/v2/health/ready"}
)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}

_log = logging.getLogger(__name__)


class Guard:
    """Middleware: check requests before anything reads them, limit their time, count them.

    Parameters
    ----------
    app : ASGI application
    counters : Counters
    seconds : float
        Time limit of a request.
    token : str, optional
        Required in ``Authorization: Bearer``.
    hosts : collection of str, optional
        Names allowed in ``Host``. On a loopback address, any other name means that a web page
        resolved its own name to this machine (DNS rebinding).
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        counters: Counters,
        seconds: float,
        token: str | None = None,
        hosts: Collection[str] | None = LOOPBACK,
    ):
        self._app, self._counters, self._seconds = app, counters, seconds
        self._token, self._hosts = token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # startup and shutdown; there are no web sockets
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            await asyncio.wait_for(self._app(scope, receive, send_guarded), self._seconds)
        except Exception as error:
            if status:  # too late for another response: close the connection
                raise
            response = error_response(self._translated(error, scope))
            await response(scope, receive, send_guarded)
        finally:
            name = getattr(scope.get("endpoint"), "__name__", "none")
            self._counters.request(name, status, time.perf_counter() - began)

    def _check(self, scope: Scope) -> None:
        """Refuse requests from other sites, without the token, or with an encoded body."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            raise RequestError(403, "Host names another machine; use http://localhost:PORT")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise RequestError(403, "the request comes from another site's page")
        if self._token is not None and scope["path"] not in _OPEN:
            given = headers.get("authorization", "")
            kind, _, token = given.partition(" ")
            # Starlette decodes headers as Latin-1.
            same = hmac.compare_digest(token.strip().encode("latin-1"), self._token.encode())
            if kind.lower() != "bearer" or not same:
                advice = "send Authorization: Bearer TOKEN"
                raise RequestError(401, advice, {"WWW-Authenticate": "Bearer"})
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(415, "Content-Encoding is not supported")

    def _translated(self, error: Exception, scope: Scope) -> RequestError:
        """The error to respond with to any exception."""
        if isinstance(error, RequestError):
            return error
        if isinstance(error, asyncio.TimeoutError):
            if scope.get(READING):
                return RequestError(408, f"no complete body within {self._seconds:g} seconds")
            return RequestError(504, f"no answer within {self._seconds:g} seconds")
        _log.error("%s %s: %s: %s", scope["method"], scope["path"], type(error).__name__, error)
        return RequestError(500, "internal error")


def error_response(error: RequestError) -> Callable[..., Awaitable[Any]]:
    """``{"error": message}`` with the status of an error."""
    return JSONResponse({"error": error.message}, error.status, error.headers)


def _name(host: str) -> str:
    """The name in a ``Host`` header, without port and brackets; empty if it is not one."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
