"""Formats of requests: multipart forms, TensorFlow Serving's REST, KServe's version 2.

Each function turns a body into the bytes of photos, or raises `RequestError`. Photos are always in
the body; paths and URLs are never opened.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from python_multipart import create_form_parser
from python_multipart.exceptions import FormParserError

from tf_alexnet.serve.limits import RequestError

INPUT = "image_bytes"
SIGNATURE = "serving_default"
_MOST_PARTS = 4096  # brackets, commas, ... in JSON: 64 photos need less than 200 of each
_FIELD_BYTES, _FIELDS = 1024, 16
_ADVICE = "send the photo itself; paths and URLs are not opened"


class Upload(NamedTuple):
    """A photo in a form, and its file name."""

    name: str
    content: bytes


class Wanted(NamedTuple):
    """Content of a JSON request.

    Attributes
    ----------
    photos : list of bytes
        Contents of image files.
    outputs : tuple of str or None
        Names of the outputs wanted; None for all.
    columns : bool
        TensorFlow Serving: whether to respond with a list per output, not an object per photo.
    id : str or None
        KServe: returned in the response.
    """

    photos: list[bytes]
    outputs: tuple[str, ...] | None = None
    columns: bool = False
    id: str | None = None


def parse_form(content_type: str, body: bytes, most: int) -> tuple[list[Upload], dict[str, str]]:
    """Photos and text fields of a ``multipart/form-data`` body.

    Parameters
    ----------
    content_type : str
        The request's header, with the boundary.
    body : bytes
        All of it.
    most : int
        Most photos to accept.

    Raises
    ------
    RequestError
        400 or 413.
    """
    if not content_type.lower().startswith("multipart/form-data"):
        raise RequestError(415, "send photos as files of a multipart/form-data form")
    uploads: list[Upload] = []
    fields: dict[str, str] = {}

    def on_file(file: Any) -> None:
        if len(uploads) == most:
            raise RequestError(413, f"more than {most} images, and a request may hold {most}")
        file.file_object.seek(0)
        name = (file.file_name or b"").decode("utf-8", "replace")
        uploads.append(Upload(name[:255], file.file_object.read()))
        file.close()

    def on_field(field: Any) -> None:
        name, value = field.field_name or b"", field.value or b""
        if len(value) > _FIELD_BYTES:
            found = f"{len(value):,} bytes without a filename"
            raise RequestError(400, f"field {name[:40].decode('ascii', 'replace')!r}: {found}")
        if len(fields) == _FIELDS:
            raise RequestError(400, f"more than {_FIELDS} fields")
        fields[name.decode("utf-8", "replace")] = value.decode("utf-8", "replace")

    settings = {"MAX_MEMORY_FILE_SIZE": float("inf"), "UPLOAD_ERROR_ON_BAD_CTE": True}
    try:
        headers = {"Content-Type": content_type.encode("latin-1")}
        parser = create_form_parser(headers, on_field, on_file, settings)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError, KeyError) as error:
        raise RequestError(400, f"not a multipart form ({str(error)[:100]})") from None
    if not uploads:
        raise RequestError(400, f"the form holds no file: {_ADVICE}")
    return uploads, fields


def parse_tensorflow(body: bytes) -> Wanted:
    """A ``:predict`` request of TensorFlow Serving, by row (``instances``) or column (``inputs``).

    Raises
    ------
    RequestError
        400.
    """
    content = _object(body)
    signature = content.get("signature_name", SIGNATURE)
    if signature not in ("", SIGNATURE):
        raise RequestError(400, f"signature_name {signature!r:.60}: the only one is {SIGNATURE!r}")
    columns = "inputs" in content
    if columns == ("instances" in content):
        raise RequestError(400, "exactly one of 'instances' and 'inputs' is needed")
    found = content["inputs" if columns else "instances"]
    if columns and isinstance(found, dict) and INPUT in found:
        found = found[INPUT]
    if columns and isinstance(found, dict):
        found = [found]
    if not isinstance(found, list) or not found:
        raise RequestError(400, f"'inputs' or 'instances' is not a list of photos: {_ADVICE}")
    where = "inputs" if columns else "instances"
    return Wanted([_b64(item, f"{where}[{i}]") for i, item in enumerate(found)], columns=columns)


def parse_kserve(body: bytes, header_length: str | None = None) -> Wanted:
    """An ``infer`` request of KServe's (Triton's) protocol, version 2.

    Parameters
    ----------
    body : bytes
        JSON, with photos in base64. With the binary extension the photos follow it, each after
        its length (4 bytes, little-endian).
    header_length : str, optional
        ``Inference-Header-Content-Length``: length of the JSON in `body`.

    Raises
    ------
    RequestError
        400.
    """
    length = len(body)
    if header_length is not None:
        if not re.fullmatch("[0-9]{1,9}", header_length) or int(header_length) > len(body):
            raise RequestError(400, "Inference-Header-Content-Length is not the length of the JSON")
        length = int(header_length)
    content = _object(body[:length])
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RequestError(400, "'inputs' is not a list of one tensor")
    tensor = inputs[0]
    if tensor.get("name") != INPUT or tensor.get("datatype") != "BYTES":
        raise RequestError(400, f"the input is not called {INPUT!r}, of datatype 'BYTES'")
    if header_length is not None:
        photos = _binary(body[length:])
    elif isinstance(data := tensor.get("data"), list):
        photos = [_b64({"b64": item}, f"data[{i}]") for i, item in enumerate(data)]
    else:
        raise RequestError(400, f"'data' is not a list of photos in base64: {_ADVICE}")
    if not photos or tensor.get("shape") not in ([len(photos)], [len(photos), 1]):
        raise RequestError(400, f"{len(photos)} photos, shape {tensor.get('shape')!r:.60}")
    return Wanted(photos, _outputs(content.get("outputs")), id=_text(content.get("id"), "id"))


def _object(body: bytes) -> dict[str, Any]:
    """Parse a body that is a JSON object."""
    # Parsing blocks all other requests: refuse JSON that is deep or has many parts.
    if any(body.count(x) > _MOST_PARTS for x in (b"[", b"{", b",", b":")):
        raise RequestError(400, "the JSON has too many parts for a request")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"not JSON ({str(error)[:100]})") from None
    if not isinstance(content, dict):
        raise RequestError(400, "the JSON is not an object")
    return content


def _b64(item: Any, where: str) -> bytes:
    """The bytes of ``{"b64": text}`` or ``{"image_bytes": {"b64": text}}``."""
    if isinstance(item, Mapping) and item.keys() == {INPUT}:
        item = item[INPUT]
    if not isinstance(item, Mapping) or item.keys() != {"b64"} or not isinstance(item["b64"], str):
        raise RequestError(400, f'{where} is not {{"{INPUT}": {{"b64": "..."}}}}: {_ADVICE}')
    text = item["b64"]
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        if {"-", "_"} & set(text):
            found = "URL-safe base64; send standard base64, with + and /"
        else:
            found = f"not base64 ({str(error)[:60]})"
        raise RequestError(400, f"{where}: {found}") from None


def _binary(data: bytes) -> list[bytes]:
    """Elements of a BYTES tensor of KServe's binary extension."""
    photos, place = [], 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "little")
        place += 4 + size
        if place > len(data) or len(photos) == _MOST_PARTS:
            raise RequestError(400, "the binary data is not a list of lengths and photos")
        photos.append(data[place - size : place])
    return photos


def _outputs(wanted: Any) -> tuple[str, ...] | None:
    if wanted is None:
        return None
    if not isinstance(wanted, list) or not all(isinstance(x, dict) for x in wanted):
        raise RequestError(400, "'outputs' is not a list of objects")
    return tuple(_text(x.get("name"), "outputs") or "" for x in wanted)


def _text(value: Any, where: str) -> str | None:
    if value is not None and not (isinstance(value, str) and len(value) <= 255):
        raise RequestError(400, f"{where} is not a text of at most 255 characters")
    return value
