"""Limits on requests, and the errors for refused ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from tf_alexnet.images import MAX_PIXELS

_RETRY = {"Retry-After": "1"}


class RequestError(Exception):
    """A refused request.

    Attributes
    ----------
    status : int
        HTTP status.
    message : str
        Text of the body ``{"error": message}``.
    headers : dict of str to str
        Additional headers of the response.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


@dataclass(frozen=True)
class Limits:
    """Limits on requests.

    Attributes
    ----------
    body : int
        Bytes in the body of a request (413).
    images : int
        Images per request (413).
    pixels : int
        Pixels per image (413), as in `load_image`.
    seconds : float
        Time limit of a request, from its first byte to the response (408 while it is being sent,
        then 504).
    waiting : int
        Images waiting or being computed, over all requests (503).
    buffered : int
        Bytes of bodies, over all requests (503).
    connections : int
        Open connections (503).
    """

    body: int = 20 * 2**20
    images: int = 64
    pixels: int = MAX_PIXELS
    seconds: float = 30.0
    waiting: int = 256
    buffered: int = 256 * 2**20
    connections: int = 512


class Room:
    """Bytes and images held by all requests together."""

    def __init__(self, limits: Limits):
        self.limits, self.buffered, self.images = limits, 0, 0

    @contextlib.contextmanager
    def ticket(self) -> Iterator[Ticket]:
        """Room for one request, released at the end of the block."""
        ticket = Ticket(self)
        try:
            yield ticket
        finally:
            self.buffered -= ticket.buffered
            self.images -= ticket.images


class Ticket:
    """Bytes and images held by one request."""

    def __init__(self, room: Room):
        self._room, self.buffered, self.images = room, 0, 0

    def add_bytes(self, count: int) -> None:
        """Reserve room for bytes.

        Raises
        ------
        RequestError
            503 if there is no room for them.
        """
        room = self._room
        if room.buffered + count > room.limits.buffered:
            raise RequestError(503, "too many large requests at once; try again", _RETRY)
        room.buffered += count
        self.buffered += count

    def add_images(self, count: int) -> None:
        """Reserve room for images.

        Raises
        ------
        RequestError
            413 if they are too many for one request; 503 if there is no room for them.
        """
        room, most = self._room, self._room.limits.images
        if self.images + count > most:
            found = f"{self.images + count} images, and a request may hold {most}"
            raise RequestError(413, found)
        if room.images + count > room.limits.waiting:
            raise RequestError(503, "too many images at once; try again", _RETRY)
        room.images += count
        self.images += count
