"""Contact sheets drawn with Pillow, and saving of pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tf_alexnet.errors import ImageError, OutputError, UsageError, one_line
from tf_alexnet.files import check_folder, replacing
from tf_alexnet.images import load_image
from tf_alexnet.version import VERSION

_TILE = 220  # side of a thumbnail, pixels
_GAP = 12
_LINE = 20
_PERCENT = 55  # width of the label after a bar, pixels
_INK, _PALE, _PAPER, _BAR = (20, 20, 20), (110, 110, 110), (255, 255, 255), (188, 212, 240)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PAGE_ROWS = 50  # rows of a contact sheet; a JPEG is limited to 65,500 pixels
MARK = f"tf_alexnet {VERSION}"  # in every picture: only marked files are replaced
_SOFTWARE = 0x0131  # EXIF tag
_LOOK = 4096  # bytes at either end that are searched for a mark


def check_picture(path: str | os.PathLike) -> None:
    """Refuse a path that no picture can be saved to, before any work is done.

    Raises
    ------
    UsageError
        If the suffix is not a picture format.
    OutputError
        If the file can't be written.
    """
    Image.init()
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UsageError(f"picture {os.fspath(path)}", "unknown file type", "End it with .png.")
    check_folder(path)


def check_foreign(path: str | os.PathLike) -> None:
    """Raise OutputError if `path` exists and this package did not write it.

    Our files have a mark in their first or last bytes.
    """
    advice = "Choose another name with -o, or remove the file."
    try:
        with open(path, "rb") as file:
            head = file.read(_LOOK)
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOOK))
            ours = b"tf_alexnet" in head + file.read()
    except FileNotFoundError:
        return
    except OSError as error:
        found = f"it can't be replaced ({error.strerror or error})"
        raise OutputError(os.fspath(path), found, advice) from None
    if not ours:
        raise OutputError(os.fspath(path), "it exists, and tf-alexnet did not write it", advice)


def save_picture(picture: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture atomically.

    Raises
    ------
    OutputError
        If it can't be written.
    """
    check_picture(path)
    kind = Image.registered_extensions()[Path(path).suffix.lower()]
    about = Image.Exif()
    about[_SOFTWARE] = MARK
    with replacing(path) as temporary:
        picture.save(temporary, format=kind, exif=about)


def predictions_sheet(
    photos: Sequence[tuple[str, Sequence[tuple[str, float]]]], titled: bool = False
) -> Image.Image:
    """Photos with their classes as bars, two photos per row.

    Parameters
    ----------
    photos : sequence of (path, classes)
        `classes` are (name, probability), best first.
    titled : bool
        Whether the first class is the photo's title, with the file name below; otherwise the file
        name is the title.
    """
    lines = max(len(classes) for _, classes in photos)
    width, bars = 2 * _TILE + 3 * _GAP, _TILE
    foot = _LINE if titled else 0
    height = max(_TILE + foot, lines * 2 * _LINE) + _LINE + 2 * _GAP
    columns = min(2, len(photos))
    rows = -(-len(photos) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), _PAPER)
    for i, (path, classes) in enumerate(photos):
        left, top = i % columns * width + _GAP, i // columns * height + _GAP
        name = os.path.basename(path)
        if titled:
            _caption(sheet, (left, top - 5), classes[0][0], 2 * _TILE, _INK, size=17)
            _caption(sheet, (left, top + _LINE + _TILE + 3), name, _TILE, _PALE)
        else:
            _caption(sheet, (left, top), name, 2 * _TILE, _INK)
        _thumbnail(sheet, path, (left, top + _LINE))
        for j, (name, probability) in enumerate(classes):
            x, y = left + _TILE + _GAP, top + _LINE + 2 * j * _LINE
            end = x + max(1, round((bars - _PERCENT) * probability))
            ImageDraw.Draw(sheet).rectangle((x, y + _LINE, end, y + 2 * _LINE - 4), fill=_BAR)
            _caption(sheet, (x, y), name, bars, _INK)
            _caption(sheet, (end + 5, y + _LINE - 1), f"{probability:.1%}", _PERCENT, _PALE)
    return sheet


def contact_sheet(
    rows: Sequence[tuple[str, str, Sequence[tuple[str, float]]]], title: str
) -> Image.Image:
    """One row per photo: the photo, then its nearest neighbours with their similarity.

    Parameters
    ----------
    rows : sequence of (path, caption, neighbours)
        `neighbours` are (path, similarity), nearest first.
    title : str
        Title of the sheet.
    """
    columns = 1 + max((len(neighbours) for _, _, neighbours in rows), default=0)
    step = _TILE + _GAP
    height = _TILE + _LINE + _GAP
    sheet = Image.new(
        "RGB", (columns * step + 2 * _GAP, len(rows) * height + _LINE + 2 * _GAP), _PAPER
    )
    _caption(sheet, (_GAP, _GAP), title, sheet.width - 2 * _GAP, _INK)
    for i, (path, caption, neighbours) in enumerate(rows):
        top = i * height + _LINE + 2 * _GAP
        _thumbnail(sheet, path, (_GAP, top))
        _caption(sheet, (_GAP, top + _TILE), caption, _TILE, _INK)
        for j, (other, similarity) in enumerate(neighbours, 1):
            left = j * step + 2 * _GAP  # a wider gap after the photo
            _thumbnail(sheet, other, (left, top))
            _caption(
                sheet, (left, top + _TILE), f"{similarity:.2f}  {os.path.basename(other)}",
                _TILE, _PALE,
            )  # fmt: skip
    return sheet


def _thumbnail(sheet: Image.Image, path: str, corner: tuple[int, int]) -> None:
    left, top = corner
    try:
        photo = Image.fromarray(load_image(path))
    except ImageError:
        _caption(sheet, (left, top + _TILE // 2 - _LINE), "can't be read now", _TILE, _PALE)
        return
    photo.thumbnail((_TILE, _TILE))
    sheet.paste(photo, (left + (_TILE - photo.width) // 2, top + (_TILE - photo.height) // 2))


def _caption(
    sheet: Image.Image,
    corner: tuple[int, int],
    text: str,
    width: int,
    color: tuple,
    size: int = 14,
) -> None:
    """One line of text, cut to `width`."""
    font = ImageFont.load_default(size=size)
    text = one_line(text)
    if font.getlength(text) > width:
        while text and font.getlength(text + "...") > width:
            text = text[:-1]
        text += "..."
    ImageDraw.Draw(sheet).text(corner, text, fill=color, font=font)
