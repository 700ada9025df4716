"""Files at URLs (``s3://``, ``gs://``, ``memory://``, ...), through fsspec."""

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
    """Whether a path is a URL, with a scheme for fsspec."""
    return _SCHEME.match(path) is not None


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Returns
    -------
    fsspec.AbstractFileSystem, str

    Raises
    ------
    UsageError
        If the scheme is unknown, or a package that fsspec needs for it is not installed.
    Exception
        Of any kind, if a server can't be reached or an archive can't be opened.
    """
    import fsspec  # 80 ms, not needed for local photos

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
    """Context manager: set options of fsspec's file systems in this process.

    Parameters
    ----------
    options : dict of dict, optional
        Scheme -> arguments of its file system, as in fsspec's configuration files:
        ``{"s3": {"endpoint_url": "http://localhost:9000", "key": ..., "secret": ...}}``.

    Raises
    ------
    UsageError
        If the options are not grouped by scheme.
    """
    if not options:
        yield
        return
    from fsspec.config import conf

    for scheme, values in options.items():
        if not isinstance(values, Mapping):
            raise UsageError(
                f"storage_options with {scheme!r}",
                "options must be grouped by scheme",
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
    """Reads URLs in a thread of its own, which is abandoned if a server does not answer.

    Parameters
    ----------
    read : callable
        Takes a URL and returns its content.
    """

    def __init__(self, read: Callable[[str], bytes]):
        self._read = read
        self._begin()

    def _begin(self) -> None:
        """Start one thread for many URLs: fsspec opens a connection per thread."""
        self._urls, self._found = queue.SimpleQueue(), queue.SimpleQueue()
        arguments = self._read, self._urls, self._found
        threading.Thread(target=_fetch_all, args=arguments, daemon=True).start()

    def __del__(self):
        self._urls.put(None)  # ends the thread, once the server has answered

    def fetch(self, url: str, closed: threading.Event) -> bytes:
        """The content of a URL.

        Raises
        ------
        ImageError
            If there is no answer within a minute, or before `closed` is set.
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
    """Read URLs from a queue until it gives None; runs in a thread."""
    for url in iter(urls.get, None):
        try:
            found.put(read(url))
        except BaseException as error:
            found.put(error)
