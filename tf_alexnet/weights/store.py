"""Find a weight file by name, or download it: verified, or not at all, and never a hang.

Environment variables:

``TF_ALEXNET_WEIGHTS``
    A weight file, or a folder to look in before all others.
``TF_ALEXNET_CACHE``
    Where downloads are kept; by default the system's cache folder.
``TF_ALEXNET_OFFLINE``
    Set to anything but 0, nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tf_alexnet.errors import OutputError, WeightsError
from tf_alexnet.weights.cache import cache_folder, remembered_checksum
from tf_alexnet.weights.catalog import KnownWeights, check_file, known_weights, names
from tf_alexnet.weights.workplace import clear_leftovers, workplace

_EMBEDDED = Path(__file__).parents[1] / "data"

# Seconds. Without a network the answer comes within PROBE_SECONDS, whatever the name server does.
PROBE_SECONDS = 8.0
# How long an earlier mirror may keep a later one waiting that has answered already.
GRACE_SECONDS = 1.5
# A mirror that takes longer than this for the next CHUNK bytes is given up.
STALL_SECONDS = 30.0
CHUNK = 1 << 16
# A mirror whose failure may pass is asked so often, after a pause.
ATTEMPTS = 2
PAUSE_SECONDS = 2.0
# Where the size is not known: four times that of the largest network, and no more.
MOST_BYTES = 1 << 30
_POLL_SECONDS = 0.1

Progress = Callable[[int, int | None], None]


def find_weights(name_or_path: str | os.PathLike, progress: Progress | None = None) -> Path:
    """The weight file of that name or path, downloaded if it is nowhere.

    A name is looked for in ``TF_ALEXNET_WEIGHTS``, ``./weights``, the cache folder and this
    package, in that order, under each of the record's spellings. A *file* in
    ``TF_ALEXNET_WEIGHTS`` stands for ``"imagenet"``, and for any name that spells it so.

    Parameters
    ----------
    name_or_path : str or path
        A path that exists, or a catalogue name; ``"imagenet"`` is ``"bvlc_alexnet"``.
    progress : callable, optional
        As in `fetch_weights`, where there is something to download.

    Returns
    -------
    Path

    Raises
    ------
    WeightsError
        If it is neither, if a file can't be downloaded, or if the file in the cache is damaged.
    OutputError
        If the download can't be kept.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if os.path.isfile(path):
        return path
    # A data set's folder is called "imagenet" more often than not, so a name beats a folder.
    if os.path.isdir(path) and name not in names():
        raise WeightsError(
            name, "this is a folder", "Give the weight file in it, or a name of the catalogue."
        )
    record = known_weights(name)
    found = local_file(record)
    if found is None:
        return fetch_weights(name, progress=progress)
    if found == _in_cache(record):
        check_file(found, record, remembered_checksum)
    return found


def local_file(record: KnownWeights) -> Path | None:
    """Where this machine has the file of `record`, or None.

    Raises
    ------
    WeightsError
        If ``TF_ALEXNET_WEIGHTS`` names something that does not exist.
    """
    folders = [Path("weights"), _EMBEDDED]
    with contextlib.suppress(OutputError):
        folders.insert(1, cache_folder())
    own = os.environ.get("TF_ALEXNET_WEIGHTS")
    if own:
        path = Path(os.path.expanduser(own))
        if not path.exists():
            raise WeightsError(
                f"TF_ALEXNET_WEIGHTS={own}",
                "there is no such file or folder",
                "Correct the variable, or unset it.",
            )
        if path.is_dir():
            folders.insert(0, path)
        elif _stands_for(path, record):
            return path
    for folder in folders:
        for spelling in record.spellings:
            if os.path.isfile(folder / spelling):
                return folder / spelling
    return None


def fetch_weights(
    name: str, to: str | os.PathLike | None = None, progress: Progress | None = None
) -> Path:
    """Download a file of the catalogue, verify it, and keep it.

    The file gets its name only when all of it is there and its checksum is right.

    Parameters
    ----------
    name : str
        A catalogue name.
    to : str or path, optional
        The folder to keep it in; by default the cache folder.
    progress : callable, optional
        Called now and then as ``progress(bytes_so_far, bytes_in_all_or_None)``.

    Returns
    -------
    Path
        The file; one that is there already and passes its check is not downloaded again.

    Raises
    ------
    WeightsError
        If there is no such name, no network, or no mirror that serves the right bytes.
    OutputError
        If the folder can't be written to or is full.
    """
    record = known_weights(name)
    embedded = _EMBEDDED / record.file_name
    if not record.mirrors and to is None:
        return embedded
    folder = cache_folder() if to is None else Path(to)
    final = folder / record.file_name
    if final.is_file():
        check_file(final, record)
        return final
    offline = os.environ.get("TF_ALEXNET_OFFLINE", "0") not in ("", "0")
    if offline and record.mirrors:
        raise _no_file(record, "TF_ALEXNET_OFFLINE is set", "Unset TF_ALEXNET_OFFLINE, or")
    with _room_for(record, folder, in_cache=to is None) as place:
        if record.mirrors:
            part = _from_mirrors(record, place, progress)
        else:
            part = Path(shutil.copyfile(embedded, place / record.file_name))
        # Temporary files are their owner's alone; these are public.
        part.chmod(0o644)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # or the name may survive a power cut that the bytes do not
        os.replace(part, final)
    return final


def _in_cache(record: KnownWeights) -> Path | None:
    """Where a download of `record` is kept; under its published name nothing else is believed."""
    with contextlib.suppress(OutputError):
        return cache_folder() / record.file_name
    return None


def _stands_for(path: Path, record: KnownWeights) -> bool:
    """Whether the file in TF_ALEXNET_WEIGHTS is meant where `record` is asked for."""
    return path.name in record.spellings or record is known_weights("imagenet")


def _no_file(record: KnownWeights, found: str, otherwise: str) -> WeightsError:
    """The error for a file that is not here and can't be had."""
    return WeightsError(
        f"weights {record.name!r}",
        f"{record.file_name} is not on this machine and {found}",
        f"{otherwise} put {record.file_name} into ./weights or the folder TF_ALEXNET_WEIGHTS "
        f"(published at {record.mirrors[0]}); weights='torchvision-convs' needs no download.",
    )


@contextlib.contextmanager
def _room_for(record: KnownWeights, folder: Path, in_cache: bool) -> Iterator[Path]:
    """A private folder beside the final file; what the disk refuses is said in one line."""
    where = "Set TF_ALEXNET_CACHE to a folder" if in_cache else "Name a folder"
    advice = f"{where} with room that you may write to"
    advice += f", or put {record.file_name} into ./weights." if in_cache else "."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        free = shutil.disk_usage(folder).free
        if record.size and free < record.size:
            found = f"{free} bytes are free, {record.file_name} needs {record.size}"
            raise OutputError(str(folder), found, advice)
        with workplace(folder) as place:
            yield place
    except OSError as error:
        raise OutputError(
            str(folder), f"can't keep {record.file_name} here, {_words(error)}", advice
        ) from error


def _from_mirrors(record: KnownWeights, folder: Path, progress: Progress | None) -> Path:
    """The verified file of `record` in `folder`, from the first mirror that serves it."""
    alive, failures = _reachable(record.mirrors)
    if not alive:
        raise _no_file(
            record,
            f"no mirror can be reached ({_listed(failures)})",
            "Check the network and the proxy variables, or",
        )
    waiting = [mirror for mirror in record.mirrors if mirror in alive]
    for attempt in range(ATTEMPTS):
        if attempt and waiting:
            time.sleep(PAUSE_SECONDS)
        for mirror in list(waiting):
            place = Path(tempfile.mkdtemp(dir=folder))
            try:
                return _download(mirror, record, place, progress)
            except WeightsError as error:
                failures[mirror] = error.found
                if not isinstance(error, _Passing):
                    waiting.remove(mirror)
    raise _no_file(
        record, f"no mirror served the right bytes ({_listed(failures)})", "Try again later, or"
    )


def _reachable(mirrors: tuple[str, ...]) -> tuple[set[str], dict[str, str]]:
    """The mirrors that answer at all, and what came from the others.

    All are asked at once, from threads that may be left behind: a name look-up heeds no timeout.
    """
    answers: dict[str, str | None] = dict.fromkeys(mirrors, "no answer in time")

    def ask(mirror: str) -> None:
        import requests

        try:
            requests.head(mirror, timeout=PROBE_SECONDS, allow_redirects=True).close()
            answers[mirror] = None
        except (OSError, ValueError) as error:
            answers[mirror] = _words(error)

    threads = [threading.Thread(target=ask, args=(m,), daemon=True) for m in mirrors]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PROBE_SECONDS
    while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS / 4)
        if None in answers.values():
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    failures = {mirror: why for mirror, why in answers.items() if why is not None}
    return set(mirrors) - set(failures), failures


class _Passing(WeightsError):
    """A failure that may be over the next time."""


class _Transfer:
    """What pooch calls to get the bytes, counted, and at an end when they are too many.

    Attributes
    ----------
    done : int
        Bytes so far.
    given_up : bool
        Set from outside, ends the transfer at the next chunk.
    """

    def __init__(self, limit: int):
        self.limit, self.done, self.given_up = limit, 0, False

    def __call__(self, url: str, output_file: str, _: object) -> None:
        import requests

        with (
            requests.get(url, stream=True, timeout=STALL_SECONDS) as response,
            open(output_file, "wb") as file,
        ):
            response.raise_for_status()
            for chunk in response.iter_content(CHUNK):
                self.done += len(chunk)
                if self.given_up or self.done > self.limit:
                    raise WeightsError(url, f"more than {self.limit} bytes", "Try again later.")
                file.write(chunk)


def _download(mirror: str, record: KnownWeights, folder: Path, progress: Progress | None) -> Path:
    """One mirror's file, verified, in `folder`.

    The transfer runs in a thread of its own: what is watched here is that bytes keep arriving,
    which no timeout of a single read can tell.

    Raises
    ------
    WeightsError
        If the mirror does not serve the right bytes, or too slowly.
    OSError
        If the disk does not take them.
    """
    outcome: list[BaseException] = []
    transfer = _Transfer(record.size or MOST_BYTES)
    thread = threading.Thread(
        target=_retrieve, args=(mirror, record, folder, transfer, outcome), daemon=True
    )
    thread.start()
    before, since = 0, time.monotonic()
    try:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            done = transfer.done
            if done != before:
                before, since = done, time.monotonic()
                if progress and thread.is_alive():
                    progress(done, record.size)
            elif done != record.size and time.monotonic() - since > STALL_SECONDS:
                raise WeightsError(mirror, f"stalled after {done} bytes", "Try again later.")
    finally:
        transfer.given_up = True
    if outcome:
        raise outcome[0]
    if progress:
        progress(transfer.done, transfer.done)
    return folder / record.file_name


def _retrieve(
    mirror: str,
    record: KnownWeights,
    folder: Path,
    transfer: _Transfer,
    outcome: list[BaseException],
) -> None:
    """Download and verify with pooch; what goes wrong is left in `outcome`."""
    import pooch
    import requests

    checked = None if record.checksum is None or record.git_blob else record.checksum
    # pooch tells where the file goes in its log, which is on standard error by default.
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(mirror, checked, record.file_name, folder, downloader=transfer)
        if not checked:
            check_file(folder / record.file_name, record)
    except requests.RequestException as error:
        kind = _Passing if _may_pass(error) else WeightsError
        outcome.append(kind(mirror, _words(error), "Try again later."))
    except ValueError:
        # pooch's own words for a wrong checksum; the file is gone already.
        outcome.append(WeightsError(mirror, "the checksum is wrong", "Try again later."))
    except BaseException as error:
        outcome.append(error)


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    lasting = (requests.exceptions.SSLError, requests.exceptions.ProxyError)
    broken = (requests.Timeout, requests.ConnectionError, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, broken) and not isinstance(error, lasting)


def _listed(failures: dict[str, str]) -> str:
    """Hosts and what came from them, for a message."""
    return "; ".join(f"{urlsplit(mirror).netloc}: {why}" for mirror, why in failures.items())


def _words(error: BaseException) -> str:
    """A few plain words for what went wrong, instead of a library's nested exceptions."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code}"
    kinds = (
        (requests.exceptions.ProxyError, "the proxy does not answer"),
        (requests.exceptions.SSLError, "the TLS certificate is not accepted"),
        (requests.Timeout, "no answer in time"),
        (requests.exceptions.ChunkedEncodingError, "the connection broke off"),
        (requests.ConnectionError, "no connection"),
        (requests.TooManyRedirects, "it redirects without end"),
        (requests.exceptions.InvalidSchema, "it redirects to something other than the web"),
        (requests.RequestException, type(error).__name__),
    )
    for kind, words in kinds:
        if isinstance(error, kind):
            return words
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
