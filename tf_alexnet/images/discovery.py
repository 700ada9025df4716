"""Finding photos: from files, folders, patterns, lists and URLs to an ordered list of paths."""

from __future__ import annotations

import functools
import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from os import PathLike
from typing import Any

from tf_alexnet.errors import AlexNetError, ImageError, InputError, UsageError, one_line
from tf_alexnet.images.decode import SUFFIXES
from tf_alexnet.images.lists import LISTS, as_sequence, has_image_suffix, read_list
from tf_alexnet.remote import filesystem, is_url

Path = str | bytes | PathLike

# Folders that storage systems and other programs leave among photos, in lower case.
FOREIGN = {
    *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx"),
    *("$recycle.bin", "system volume information", "lost+found"),
}
# Suffixes that are left out silently.
_COMPANIONS = {
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".log", ".ini"),
    *(".db", ".htm", ".html", ".xmp", ".aae", ".lnk", ".url", ".parquet", ".py"),
}
_KINDS = 8  # kinds of files that a note lists

_INSIDE = "Name the photos in it: {1}://::{0} for all, {1}://*.jpg::{0} for a pattern."
_ARRAYS = "Load the pixels and pass them to FeatureExtractor.from_images: uint8 (N, H, W, 3)."
_TABLE = "Save it as .csv with a column `path`."
# Suffixes of other files, what they are, and what to do.
_NOT_PHOTOS = (
    (r"zip|tar(\.(gz|bz2|xz))?", "an archive", _INSIDE),
    ("tgz|rar|7z", "an archive", "Unpack it and name its folder."),
    ("npy|npz|mat|h5|hdf5", "a file of arrays", _ARRAYS),
    ("xlsx?|ods|jsonl?|feather", "a table in a format we don't read", _TABLE),
)
# Schemes, path, and what contains it: zip://photos/*.jpg::archive.zip
_URL = re.compile(r"((?:[\w+.-]+::)*[\w+.-]+://)(.*?)(::.*)?", re.DOTALL)

_log = logging.getLogger(__name__)


class ImagePaths(list):
    """The result of `find_images`, which returns it unchanged if it is passed again."""


def find_images(inputs: Path | Iterable[Path], *, repeats: bool = False) -> list[str]:
    """Find the photos named by files, folders, patterns, lists, tables and URLs.

    Parameters
    ----------
    inputs : path, or container of paths
        A list, generator, set (sorted), pandas column, array or tensor of strings
        (`tf_alexnet.images.lists.as_sequence`). Each is one of these:

        - A file with any suffix.
        - A folder: all files below it with an image suffix. Links are followed; hidden names and
          the folders in `FOREIGN` are skipped. Unreadable folders, and empty ones with an image
          suffix, are returned like photos, so that the reader reports them.
        - A list, ``.txt``: one path per line, optionally followed by a class (``a.jpg 7``). ``-``
          reads a list from standard input, relative to the current folder.
        - A table, ``.csv``, ``.tsv`` or ``.parquet``, separated by comma, semicolon or tab: the
          column `path`; else one called image, file, stimulus or the like, or whose cells look like
          photos; else the first. The first row is a header unless its cell has an image suffix.
        - A pattern (``*``, ``?``, ``[...]``, ``**``), unless it is the name of a file.
        - A URL (``s3://...``, ``zip://*.jpg::photos.zip``) of any of these, read through fsspec.

        Lists are UTF-8, or UTF-16 with a byte-order mark. Their entries are URLs or paths relative
        to the list's folder, and are not checked for existence. Blanks and quotes around an entry
        are stripped, and backslashes become slashes, unless a file has exactly that name.
    repeats : bool
        If True, return a photo as often as it is named (under its first name) rather than once.

    Returns
    -------
    list of str
        In the order of `inputs`; the contents of each folder sorted by the bytes of their names. A
        file that is named twice is returned once, at its first position. Names that are not UTF-8
        contain surrogates (`os.fsencode`). If only some of the inputs don't exist, they are
        returned too, so that the reader reports them.

    Raises
    ------
    ImageError
        If no input exists, or a list can't be read.
    InputError, UsageError
        If an entry is not a path, no image is found, or an input is an archive or a file of arrays.

    Notes
    -----
    Logs one warning about skipped files, by suffix (except text and metadata), and folders. Logs
    which column of a table is read.
    """
    if isinstance(inputs, ImagePaths):
        return inputs if repeats else ImagePaths(dict.fromkeys(inputs))
    named = [_path(x, f"images[{i}]") for i, x in enumerate(as_sequence(inputs))]
    search = _Search()
    places: dict[str, str] = {}
    mentions: list[str] = []
    first_names: dict[str, str] = {}  # folder -> the name it was first found by
    for image in chain.from_iterable(_photos(path, search) for path in named):
        folder, name = os.path.split(image)
        if (first := first_names.get(folder)) is None:
            real = folder if is_url(folder) else os.path.realpath(folder)
            first = first_names[folder] = first_names.setdefault(real, folder)
        # Nearly always `image` itself, which saves a second string.
        place = image if first == folder else os.path.join(first, name)
        image = places.setdefault(place, image)
        if repeats:
            mentions.append(image)
    if search.missing and all(image in search.missing for image in places.values()):
        raise next(iter(search.missing.values()))
    if not places:
        found = "; ".join(filter(None, ["no image found", str(search)]))
        advice = f"Looked for files ending in {' '.join(sorted(SUFFIXES))}."
        raise UsageError(", ".join(named) or "no input", found, advice)
    search.log()
    return ImagePaths(mentions or places.values())


def _path(entry: Any, what: str) -> str:
    if (isinstance(entry, bytes) and b"\0" in entry) or not isinstance(entry, Path):
        advice = "Pass paths, or pass pixels to FeatureExtractor.from_images."
        kind = "bytes of an image" if isinstance(entry, bytes) else type(entry).__name__
        raise InputError(what, f"{kind}, not a path", advice)
    if not (path := str(os.fsdecode(entry))):  # not NumPy's str_
        raise InputError(what, "an empty string", "Give paths of photos, or leave it out.")
    return path


class _Search:
    """Record of a search: files and folders left out, and those that can't be read."""

    def __init__(self):
        self.missing: dict[str, ImageError] = {}
        self._suffixes: Counter[str] = Counter()
        self._foreign: set[str] = set()

    def wants(self, path: str, is_folder: bool) -> bool:
        """Whether to search a folder, or whether a file's name is that of a photo."""
        name = os.path.basename(path)
        stem, suffix = os.path.splitext(name.lower())
        if is_folder and name.lower() in FOREIGN:
            self._foreign.add(path)
            return False
        if name.startswith(".") or is_folder or suffix in SUFFIXES:
            return not name.startswith(".")
        if suffix not in _COMPANIONS and stem not in ("readme", "license", "makefile"):
            known = suffix if len(suffix) <= 12 and suffix.isprintable() else "of other kinds"
            self._suffixes[known or "without"] += 1
        return False

    def __str__(self) -> str:
        parts = []
        if self._suffixes:
            parts.append(f"left out by suffix: {_counted(self._suffixes)}")
            if self._suffixes.keys() & {".heic", ".heif"}:
                parts[0] += " (pip install 'tf-alexnet[heic]' reads .heic)"
        if self._foreign:
            parts.append(f"skipped {_counted(Counter(map(os.path.basename, self._foreign)))}")
        return "; ".join(parts)

    def log(self) -> None:
        """Log what was left out, if anything."""
        if text := str(self):
            _log.warning("%s", one_line(text))


def _counted(counts: Counter[str]) -> str:
    """Names with their counts, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda x: (-x[1], x[0]))
    more = sum(count for _, count in ordered[_KINDS:])
    parts = [f"{count} {name}" for name, count in ordered[:_KINDS]]
    return ", ".join([*parts, f"{more} more"] if more else parts)


def subfolders(folder: str) -> dict[str, str]:
    """Name -> path of the folders in a folder, sorted by the bytes of their names.

    Hidden folders and those in `FOREIGN` are left out.

    Raises
    ------
    ImageError
        If the folder is missing or can't be read.
    """
    if not os.path.isdir(folder):
        raise ImageError(folder, "there is no such folder", "Name one with a folder per class.")
    search = _Search()
    paths = {name: os.path.join(folder, name) for name in _names(folder)}
    paths = {n: p for n, p in paths.items() if os.path.isdir(p) and search.wants(p, True)}
    search.log()
    return paths


def find_by_class(folders: Mapping[str, str]) -> dict[str, list[str]]:
    """Class -> photos, from class -> folder. What is left out of them is logged once.

    Raises
    ------
    ImageError
        If a folder can't be read.
    """
    search = _Search()
    found = {name: list(_in_folder(folder, search)) for name, folder in folders.items()}
    for folder in folders.values():
        if folder in search.missing:
            raise search.missing[folder]
    search.log()
    return found


def _names(folder: str) -> list[str]:
    """Sorted names in a folder, or an ImageError."""
    try:
        return sorted(os.listdir(folder), key=os.fsencode)
    except OSError as error:
        fault = f"the folder can't be read ({error.strerror})"
        raise ImageError(folder, fault, "Make it readable, or move it.") from None


def _photos(path: str, search: _Search) -> Iterator[str]:
    """The photos of one input."""
    if is_url(path):
        return _at_url(path, search)
    if path == "-":
        return _in_list(path, ".txt")
    if os.path.isdir(path):
        return _in_folder(path, search)
    if not os.path.lexists(path):
        return _matching(path, search)
    return _in_file(path, path)


def _in_file(path: str, name: str) -> Iterator[str]:
    """The file itself, or the photos in a list. The suffix is that of `name`."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in LISTS:
        return _in_list(path, suffix)
    for suffixes, what, advice in _NOT_PHOTOS:
        if re.search(rf"\.({suffixes})\Z", name.lower()):
            scheme = "zip" if suffix == ".zip" else "tar"
            raise UsageError(path, f"{what}, not a photo", advice.format(path, scheme))
    return iter([path])


def _matching(pattern: str, search: _Search) -> Iterator[str]:
    """The photos that a pattern matches, as a shell would expand it."""
    found = []
    if glob.has_magic(pattern) and "\0" not in pattern:
        found = sorted(glob.glob(pattern, recursive=True), key=os.fsencode)
    if not found:
        advice = "Check the name and the current folder."
        search.missing[pattern] = ImageError(pattern, "there is no such file or folder", advice)
        yield pattern
    for path in found:
        yield from _photos(path, search)


def _in_folder(top: str, search: _Search) -> Iterator[str]:
    """Images below a folder, depth first. Folders reached again through links are skipped."""
    seen, stack = set(), [(top, True)]
    while stack:
        path, is_folder = stack.pop()
        if not is_folder:
            yield path
            continue
        status = os.stat(path)
        if (place := (status.st_dev, status.st_ino)) in seen:
            continue
        seen.add(place)
        try:
            places = [os.path.join(path, name) for name in _names(path)]
        except ImageError as error:
            search.missing[path] = error
            yield path  # decoding it reports the error
            continue
        kinds = ((x, os.path.isdir(x)) for x in places)  # one isdir per photo
        below = [x for x in kinds if search.wants(*x)]
        if not below and path != top and has_image_suffix(path):
            yield path  # a folder with the name of a photo: decoding it reports the error
        stack += reversed(below)


def _at_url(url: str, search: _Search) -> Iterator[str]:
    """Images at a URL, sorted like those of a folder."""
    try:
        files, path = filesystem(url)
        found, folders = [], []
        if glob.has_magic(path) and not files.exists(path):
            for x, status in files.glob(path, detail=True).items():
                (folders if status.get("type") == "directory" else found).append(x)
        elif files.isdir(path):
            folders = [path]
        else:
            return _in_file(url, path)
        for top in folders:
            wants = _wants_folder(top.rstrip("/"), search)
            below = (x for x in files.find(top) if wants(x.rpartition("/")[0]))
            found += [x for x in below if search.wants(x, False)]
    except AlexNetError:
        raise
    except Exception as error:  # each kind of storage has its own
        fault = getattr(error, "strerror", None) or error or type(error).__name__
        advice = "Check the address and your permissions."
        raise ImageError(url, f"it can't be listed ({fault})", advice) from error
    shown = {x for x in found if not x.rpartition("/")[2].startswith(".")}
    ordered = sorted(shown, key=lambda x: [*map(os.fsencode, x.split("/"))])
    return iter([_full_url(url, path, x, files) for x in ordered])


def _wants_folder(top: str, search: _Search) -> Callable[[str], bool]:
    """A cached function that tells whether to search a folder at or below `top`."""

    @functools.cache
    def wants(folder: str) -> bool:
        if len(folder) <= len(top):
            return True
        return wants(folder.rpartition("/")[0]) and search.wants(folder, True)

    return wants


def _full_url(url: str, path: str, found: str, files: Any) -> str:
    """The URL of a file listed at `url`, with the same host or archive."""
    scheme, place, inside = _URL.fullmatch(url).groups("")
    if "://" in found:
        return found + inside
    place, path = place.rstrip("/"), path.strip("/")
    host = place.removesuffix(path).rstrip("/") if place.endswith(path) else ""
    if not host and "::" not in scheme + inside:
        return files.unstrip_protocol(found)
    return scheme + (f"{host}/" if host else "") + found.lstrip("/") + inside


def _in_list(path: str, suffix: str) -> Iterator[str]:
    scheme, place, inside = _URL.fullmatch(path).groups("") if is_url(path) else ("", path, "")
    base = scheme + os.path.dirname(place)
    for entry in read_list(path, suffix, base):
        yield entry if is_url(entry) else os.path.join(base, entry) + inside
