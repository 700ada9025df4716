"""Finding weight files by name, and downloading them. Downloads are verified before use.

Environment variables:

``TF_ALEXNET_WEIGHTS``
    A weight file, or a folder to look in first.
``TF_ALEXNET_CACHE``
    Folder for downloads (default: the system's cache folder).
``TF_ALEXNET_OFFLINE``
    If set, and not to 0, nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from tf_alexnet.errors import OutputError, WeightsError
from tf_alexnet.files import replacing
from tf_alexnet.weights.catalog import (
    KnownWeights,
    Source,
    catalog,
    known_weights,
    mismatch,
    names,
    published_file,
)

_EMBEDDED = Path(__file__).parents[1] / "data"

# Timeouts for connecting, and for the next bytes.
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
# Mirrors with a temporary failure are tried again after a pause.
ATTEMPTS = 2
PAUSE_SECONDS = 2.0
# Limit if the size is not published: four times the largest network.
MOST_BYTES = 1 << 30
_BROKEN = "the connection broke off"
# Temporary failures
_PASSING = re.compile(f"{_BROKEN}|HTTP status (408|429|5..)")

Progress = Callable[[int, int | None], None]


def cache_folder() -> Path:
    """Folder for downloads: ``TF_ALEXNET_CACHE``, or the system's cache folder.

    Raises
    ------
    OutputError
        If there is neither, for example for a user without a home folder.
    """
    own = os.environ.get("TF_ALEXNET_CACHE")
    if own:
        return Path(os.path.expanduser(own))
    import pooch

    try:
        folder = os.path.expanduser(pooch.os_cache("tf_alexnet"))
    except RuntimeError:  # recent platformdirs; earlier ones leave the ~ in
        folder = "~/.cache/tf_alexnet"
    if not os.path.isabs(folder):
        raise OutputError(
            str(folder),
            "there is no home folder to keep downloads in",
            "Set TF_ALEXNET_CACHE to a folder, or put the file in ./weights.",
        )
    return Path(folder)


def find_weights(
    name_or_path: str | os.PathLike, progress: Progress | None = None, download: bool = True
) -> Path:
    """Find weights by name or path; download them if they are not on this machine.

    A name is looked up in ``TF_ALEXNET_WEIGHTS``, ``./weights``, the cache folder and this package,
    in this order, by each of the record's file names. If ``TF_ALEXNET_WEIGHTS`` is a *file*, it is
    used for ``"imagenet"``, and for weights published with its file name.

    Parameters
    ----------
    name_or_path : str or path
        An existing path, or a catalogue name; ``"imagenet"`` is ``"bvlc_alexnet"``.
    progress : callable, optional
        As in `fetch_weights`.
    download : bool
        If False, raise an error instead of downloading.

    Returns
    -------
    Path
        The weight file.

    Raises
    ------
    WeightsError
        If it is neither, the file can't be downloaded, or it has the name and size of a published
        file (in the cache folder: only the name) but another checksum.
    OutputError
        If the download can't be saved.
    """
    path, name = Path(name_or_path), str(name_or_path)
    # Data sets are often in a folder called "imagenet", so names take precedence over folders. The
    # reader reports what is wrong with other folders.
    if os.path.isfile(path) or (os.path.exists(path) and name not in names()):
        published_file(path)
        return path
    found = local_file(known_weights(name))
    if found:
        published_file(found, strict=found.parent == _cache())
        return found
    if download:
        return fetch_weights(name, progress=progress)
    raise WeightsError(
        f"weights {name!r}",
        "not on this machine",
        f"Run `tf-alexnet weights fetch {name}`, or name a file.",
    )


def local_file(record: KnownWeights) -> Path | None:
    """The file with the weights of `record` on this machine, or None.

    Raises
    ------
    WeightsError
        If ``TF_ALEXNET_WEIGHTS`` does not exist.
    """
    own = _own_place()
    if own and not own.exists():
        raise WeightsError(
            f"TF_ALEXNET_WEIGHTS={os.environ['TF_ALEXNET_WEIGHTS']}",
            "there is no such file or folder",
            "Correct the variable, or unset it.",
        )
    named = own and (own.name in record.file_names or record is known_weights("imagenet"))
    if named and not own.is_dir():
        return own
    folders = [x for x in (own, Path("weights"), _cache(), _EMBEDDED) if x]
    places = (folder / spelling for folder in folders for spelling in record.file_names)
    return next(filter(os.path.isfile, places), None)


def _own_place() -> Path | None:
    own = os.environ.get("TF_ALEXNET_WEIGHTS")
    return Path(os.path.expanduser(own)) if own else None


def _cache() -> Path | None:
    with contextlib.suppress(OutputError):
        return cache_folder()


def expected_record(path: str | os.PathLike) -> KnownWeights | None:
    """The weights for which `find_weights` may have returned this file, or None.

    Only files in ``TF_ALEXNET_WEIGHTS`` and ``./weights`` are considered.
    """
    path, own = Path(path), _own_place()
    if path == own or path.parent in (Path("weights"), Path("weights").absolute(), own):
        for record in catalog():
            if path.name in record.file_names:
                return record
    return known_weights("imagenet") if path == own else None


def fetch_weights(
    name: str, to: str | os.PathLike | None = None, progress: Progress | None = None
) -> Path:
    """Download published weights and verify the file.

    Sources, and the mirrors of each source, are tried in order. A file without a published checksum
    must be a readable weight file. Files already present and valid are not downloaded again.

    Parameters
    ----------
    name : str
        A catalogue name.
    to : str or path, optional
        Folder for the file (default: the cache folder).
    progress : callable, optional
        Called as ``progress(bytes_done, bytes_total_or_None)``.

    Returns
    -------
    Path
        The weight file.

    Raises
    ------
    WeightsError
        If there is no such name, no network connection, or no mirror with the right file.
    OutputError
        If the folder is not writable or full.
    """
    record = known_weights(name)
    file_name, size = record.sources[0].file_name, record.sources[0].size or 0
    embedded = _EMBEDDED / file_name
    if embedded.is_file() and to is None:
        return embedded
    folder = cache_folder() if to is None else Path(to)
    present, absent = _look(record, folder)
    if present:
        return present
    if not embedded.is_file() and os.environ.get("TF_ALEXNET_OFFLINE", "0") not in ("", "0"):
        raise _no_file(record, "TF_ALEXNET_OFFLINE is set", "Unset TF_ALEXNET_OFFLINE, or")
    advice = "Name a writable folder with enough space."
    if to is None:
        advice = (
            "Set TF_ALEXNET_CACHE to a writable folder with enough space, or put "
            f"{file_name} into ./weights."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < size:
            found = f"{free} bytes are free, {file_name} needs {size}"
            raise OutputError(str(folder), found, advice)
        if embedded.is_file():
            with replacing(folder / file_name) as temporary:
                shutil.copyfile(embedded, temporary)
            return folder / file_name
        return _download(record, absent, folder, progress)
    except OSError as error:
        # pooch wraps a PermissionError in another with a longer text.
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise OutputError(
            str(folder), f"can't save {file_name} here, {_words(cause)}", advice
        ) from error


def _look(record: KnownWeights, folder: Path) -> tuple[Path | None, list[Source]]:
    """The verified file of `record` in `folder`, or None; and the sources that are missing."""
    absent = []
    for source in record.sources:
        path = folder / source.file_name
        if not path.is_file():
            absent.append(source)
        elif source.urls or len(record.sources) == 1:
            # Without a published size, a file other than the first may be a user's conversion.
            strict = source.size is not None or source is record.sources[0]
            if published_file(path, strict) or not source.checksum:
                return path, []
    return None, absent


def _no_file(record: KnownWeights, found: str, otherwise: str) -> WeightsError:
    """The error for weights that are neither on this machine nor downloadable."""
    source = record.sources[0]
    return WeightsError(
        f"weights {record.name!r}",
        f"{source.file_name} is not on this machine and {found}",
        f"{otherwise} put {source.file_name} into ./weights or the folder TF_ALEXNET_WEIGHTS "
        f"(published at {source.urls[0]}); weights='torchvision-convs' needs no download.",
    )


def _download(
    record: KnownWeights, sources: list[Source], folder: Path, progress: Progress | None
) -> Path:
    """Download one of `sources` from the first mirror that has it."""
    import pooch
    import requests

    # By default pooch logs the file's path to stderr.
    pooch.get_logger().setLevel("WARNING")
    mirrors = [(url, source) for source in sources for url in source.urls]
    failures = {}
    for url, source in mirrors * ATTEMPTS:
        if url in failures:
            if not _PASSING.match(failures[url]):
                continue
            time.sleep(PAUSE_SECONDS)
        downloader = partial(_transfer, source, progress)
        try:
            # No hash: `_transfer` verifies checksums that pooch does not support.
            pooch.retrieve(url, None, source.file_name, folder, downloader=downloader)
        except (WeightsError, requests.RequestException) as error:
            failures[url] = _words(error)
        else:
            (folder / source.file_name).chmod(0o644)  # pooch's temporary files are private
            return folder / source.file_name
    said = "; ".join(f"{urlsplit(url).netloc}: {why}" for url, why in failures.items())
    raise _no_file(record, f"no mirror served it ({said})", "Check the network, try later, or")


def _transfer(source: Source, progress: Progress | None, url: str, output_file: str, _: object):
    """A downloader for pooch that limits the size and accepts only the published file."""
    import requests

    progress = progress or (lambda *_: None)
    done, most = 0, source.size or MOST_BYTES
    timeouts = (CONNECT_SECONDS, READ_SECONDS)
    with (
        requests.get(url, stream=True, timeout=timeouts) as response,
        open(output_file, "wb") as file,
    ):
        response.raise_for_status()
        for chunk in response.iter_content(1 << 16):
            done += len(chunk)
            if done > most:
                raise WeightsError(url, f"more than {most} bytes", "")
            file.write(chunk)
            progress(done, source.size)
        file.flush()
        os.fsync(file.fileno())  # so that name and content survive a power cut together
    found = mismatch(output_file, source)
    if found:
        raise WeightsError(url, f"not the published file: {found}", "")
    if not source.checksum:
        from tf_alexnet.weights.formats import read_file

        read_file(output_file)
    progress(done, done)


def _words(error: Exception) -> str:
    """A short reason for an error, instead of the text of nested exceptions."""
    import requests

    if isinstance(error, WeightsError):
        return error.found
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    kinds = (
        (requests.exceptions.ProxyError, "the proxy does not answer"),
        (requests.exceptions.SSLError, "the TLS certificate is not accepted"),
        (requests.Timeout, "no answer in time"),
        (requests.exceptions.ChunkedEncodingError, _BROKEN),
        (requests.ConnectionError, "no connection"),
        (requests.TooManyRedirects, "too many redirects"),
        (requests.exceptions.InvalidSchema, "it redirects to something that is not HTTP"),
        (requests.RequestException, type(error).__name__),
    )
    for kind, words in kinds:
        if isinstance(error, kind):
            return words
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
