"""Files behind a URL (``s3://``, ``gs://``, ``memory://`` ...), by fsspec."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tf_alexnet.errors import ImageError, UsageError

FETCH_SECONDS = 60.0

_NAME = "[A-Za-z][A-Za-z0-9+.-]*"
_SCHEME = re.compile(f"({_NAME}::)*{_NAME}://")  # fsspec chains them: simplecache::s3://


def is_url(path: str) -> bool:
    """Whether a path has a scheme, and so is fsspec's."""
    return _SCHEME.match(path) is not None


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Returns
    -------
    fsspec.AbstractFileSystem, str

    Raises
    ------
    UsageError
        If there is no such scheme, or what fsspec needs for it is not installed.
    Exception
        Of any kind, if a server can't be reached or an archive can't be opened.
    """
    import fsspec  # it takes 80 ms, which photos on a disk need not wait for

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = url.rpartition("::")[2].partition(":")[0].replace("https", "http")
        raise UsageError(
            url, f"it can't be reached ({error})", f"Install it: pip install 'fsspec[{scheme}]'."
        ) from None
    except ValueError as error:
        raise UsageError(url, f"it can't be reached ({error})", "Check the scheme.") from None


@contextlib.contextmanager
def storage_options(options: Mapping[str, Mapping[str, Any]] | None) -> Iterator[None]:
    """Use options for fsspec's file systems, in this process and for the time of the block.

    Parameters
    ----------
    options : dict of dicts, optional
        Arguments of file systems by scheme, as in fsspec's configuration files:
        ``{"s3": {"endpoint_url": "http://localhost:9000", "key": ..., "secret": ...}}``.

    Raises
    ------
    UsageError
        If the options are not given by scheme.
    """
    if not options:
        yield
        return
    from fsspec.config import conf

    for scheme, values in options.items():
        if not isinstance(values, Mapping):
            raise UsageError(
                f"storage_options with {scheme!r}",
                "options are given by scheme",
                'Write {"s3": {"endpoint_url": "http://localhost:9000"}}.',
            )
    before = dict(conf)
    for scheme, values in options.items():
        conf[scheme] = {**conf.get(scheme, {}), **values}
    try:
        yield
    finally:
        conf.clear()
        conf.update(before)


class Fetcher:
    """A function of a URL in a thread of its own, which is left behind if no server answers.

    Parameters
    ----------
    read : callable
        Takes a URL, returns its content or raises an exception.
    """

    def __init__(self, read: Callable[[str], bytes]):
        self._read = read
        self._begin()

    def _begin(self) -> None:
        """Start a thread, one for many URLs: to fsspec each thread is another connection."""
        self._urls, self._found = queue.SimpleQueue(), queue.SimpleQueue()
        arguments = self._read, self._urls, self._found
        threading.Thread(target=_fetch_all, args=arguments, daemon=True).start()

    def __del__(self):
        self._urls.put(None)  # the thread ends, once it has an answer

    def fetch(self, url: str, closed: threading.Event) -> bytes:
        """The content of a URL.

        Raises
        ------
        ImageError
            If it has not come within a minute, or before `closed` is set.
        Exception
            As raised by `read`.
        """
        self._urls.put(url)
        deadline = time.monotonic() + FETCH_SECONDS
        while not closed.is_set() and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                found = self._found.get(timeout=min(0.2, FETCH_SECONDS))
                if isinstance(found, BaseException):
                    raise found
                return found
        self._urls.put(None)
        self._begin()
        text = f"no answer within {FETCH_SECONDS:g} seconds"
        raise ImageError(url, text, "Check the address, or try again later.", "timed_out")


def _fetch_all(read: Callable[[str], bytes], urls: queue.SimpleQueue, found: queue.SimpleQueue):
    """Read URLs until there is a None (the work of a thread)."""
    for url in iter(urls.get, None):
        try:
            found.put(read(url))
        except BaseException as error:
            found.put(error)
