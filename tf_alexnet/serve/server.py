"""`run_server`: serve an application on a socket until a signal stops it."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from tf_alexnet.errors import OutputError
from tf_alexnet.serve.limits import Limits

_GRACE = 5  # seconds to shut down, beyond the time limit of a request
_KEEP = 5  # seconds a connection may be idle


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket to serve on.

    Parameters
    ----------
    host : str
        Address or name of this machine.
    port : int
        0 picks a free one.

    Raises
    ------
    OutputError
        If the address is not available, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        if os.name == "posix":  # on Windows, two servers could share the port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
        except OSError:
            found.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        advice = "Choose another --port (0 takes a free one), or another --host."
        raise OutputError(f"{host}, port {port}", f"can't be used ({reason})", advice) from None
    return found


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach a socket."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def run_server(
    app: Starlette,
    bound: socket.socket,
    limits: Limits | None = None,
    ready: Callable[[], Any] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish open requests.

    Parameters
    ----------
    app : Starlette
        What `create_app` returns.
    bound : socket
        What `listen` returns.
    limits : Limits, optional
        Limits of the application.
    ready : callable, optional
        Called when the server accepts requests.
    """
    limits = limits or Limits()
    config = uvicorn.Config(
        app,
        http=_protocol(limits.seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.CRITICAL,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=_KEEP,
        timeout_graceful_shutdown=int(limits.seconds) + _GRACE,
    )
    server = _Server(config, ready)
    # After a clean shutdown uvicorn raises the signal again: ignore it.
    before = {x: signal.signal(x, lambda *_: None) for x in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run([bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """Calls `ready` after startup."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], Any] | None):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._ready:
            self._ready()


def _protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol with a time limit for the head of a request, which uvicorn lacks."""

    class Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(seconds, self._watch, None)

        def _watch(self, before: Any) -> None:
            if self.transport.is_closing():
                return
            waiting = self.conn.their_state is h11.IDLE
            if waiting and before is self.cycle:  # no request since the last check
                self.transport.close()
                return
            self.loop.call_later(seconds, self._watch, self.cycle if waiting else self)

        def send_400_response(self, msg: str) -> None:
            """Respond as uvicorn does, but in JSON."""
            body = json.dumps({"error": msg}).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            events = h11.Response(status_code=400, headers=headers), h11.Data(data=body)
            with contextlib.suppress(h11.LocalProtocolError):  # another response has started
                for event in (*events, h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event))
            self.transport.close()

    return Protocol
