"""Files behind a URL (``s3://``, ``gs://``, ``memory://`` ...), by fsspec."""

from __future__ import annotations

import re
from typing import Any

from tf_alexnet.errors import UsageError

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
        If what fsspec needs for this scheme is not installed.
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
