"""Find a weight file by name, or download it. A file gets its name only once it is verified.

Environment variables:

``TF_ALEXNET_WEIGHTS``
    A weight file, or a folder to look in first.
``TF_ALEXNET_CACHE``
    Where downloads are kept; by default the system's cache folder.
``TF_ALEXNET_OFFLINE``
    Unless it is 0, nothing is downloaded.
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

# Seconds to wait for a connection, and for the next bytes.
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
# A mirror that failed for a passing reason is asked once more, after a pause.
ATTEMPTS = 2
PAUSE_SECONDS = 2.0
# Limit where the size is not published: four times the largest network.
MOST_BYTES = 1 << 30
_BROKEN = "the connection broke off"
# What may go better a little later.
_PASSING = re.compile(f"{_BROKEN}|HTTP status (408|429|5..)")

Progress = Callable[[int, int | None], None]


def cache_folder() -> Path:
    """Where downloads are kept: ``TF_ALEXNET_CACHE``, or the system's cache folder.

    Raises
    ------
    OutputError
        If neither is known, as for a user without a home.
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
    """The weight file of that name or path, downloaded unless it is on this machine.

    A name is looked for in ``TF_ALEXNET_WEIGHTS``, ``./weights``, the cache folder and this
    package, in that order, under each of the record's file names. A *file* in
    ``TF_ALEXNET_WEIGHTS`` stands for ``"imagenet"``, and for any weights published under its name.

    Parameters
    ----------
    name_or_path : str or path
        A path that exists, or a catalogue name; ``"imagenet"`` is ``"bvlc_alexnet"``.
    progress : callable, optional
        As in `fetch_weights`.
    download : bool
        With False, weights that are not on this machine are an error.

    Returns
    -------
    Path

    Raises
    ------
    WeightsError
        If it is neither, if a file can't be downloaded, or if the file has the name and size of a
        published one but another checksum (in the cache folder: the name).
    OutputError
        If the download can't be kept.
    """
    path, name = Path(name_or_path), str(name_or_path)
    # A data set's folder is often called "imagenet", so a name takes precedence over a folder. The
    # reader says what is wrong with other folders.
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
    """Where this machine has the weights of `record`, or None.

    Raises
    ------
    WeightsError
        If ``TF_ALEXNET_WEIGHTS`` names something that does not exist.
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
    """The weights that `find_weights` takes this file for, if it may have found it by name.

    Only files in ``TF_ALEXNET_WEIGHTS`` and ``./weights`` count.
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
    """Download weights of the catalogue, verify the file, and keep it.

    The sources are tried in order, and each mirror of a source. A file without a published checksum
    has to be a readable weight file.

    Parameters
    ----------
    name : str
        A catalogue name.
    to : str or path, optional
        The folder to keep it in; by default the cache folder.
    progress : callable, optional
        Called as ``progress(bytes_so_far, bytes_in_all_or_None)``.

    Returns
    -------
    Path
        The file. One that is there already and passes its check is not downloaded again.

    Raises
    ------
    WeightsError
        If there is no such name, no network, or no mirror that serves the right bytes.
    OutputError
        If the folder can't be written to or is full.
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
    advice = "Name a folder with room that you may write to."
    if to is None:
        advice = (
            "Set TF_ALEXNET_CACHE to a folder with room that you may write to, or put "
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
            str(folder), f"can't keep {file_name} here, {_words(cause)}", advice
        ) from error


def _look(record: KnownWeights, folder: Path) -> tuple[Path | None, list[Source]]:
    """The verified file of `record` in `folder`, or None, and the sources that are not there."""
    absent = []
    for source in record.sources:
        path = folder / source.file_name
        if not path.is_file():
            absent.append(source)
        elif source.urls or len(record.sources) == 1:
            # Of no published size, and not the first choice: perhaps a conversion of the user's.
            strict = source.size is not None or source is record.sources[0]
            if published_file(path, strict) or not source.checksum:
                return path, []
    return None, absent


def _no_file(record: KnownWeights, found: str, otherwise: str) -> WeightsError:
    """The error for weights that are not here and can't be downloaded."""
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
    """The verified file of the first mirror that serves one of `sources`."""
    import pooch
    import requests

    # By default pooch logs to standard error where it puts the file.
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
            # No hash: `_transfer` knows kinds of checksums that pooch doesn't.
            pooch.retrieve(url, None, source.file_name, folder, downloader=downloader)
        except (WeightsError, requests.RequestException) as error:
            failures[url] = _words(error)
        else:
            (folder / source.file_name).chmod(0o644)  # pooch's temporary files are private
            return folder / source.file_name
    said = "; ".join(f"{urlsplit(url).netloc}: {why}" for url, why in failures.items())
    raise _no_file(record, f"no mirror served it ({said})", "Check the network, try later, or")


def _transfer(source: Source, progress: Progress | None, url: str, output_file: str, _: object):
    """A downloader for pooch that counts the bytes, and accepts only the published file."""
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
        os.fsync(file.fileno())  # or the name may survive a power cut that the bytes do not
    found = mismatch(output_file, source)
    if found:
        raise WeightsError(url, f"not the published file: {found}", "")
    if not source.checksum:
        from tf_alexnet.weights.formats import read_file

        read_file(output_file)
    progress(done, done)


def _words(error: Exception) -> str:
    """A few plain words for what went wrong, instead of a library's nested exceptions."""
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
