"""Requests that nobody should send: for the application, and for a socket."""

import base64
import contextlib
import gzip
import json
import random
import re
import socket
import struct
import time
import zlib
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from PIL import Image

BOUNDARY = "Xhostile"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
TENSORFLOW, KSERVE = "/v1/models/alexnet:predict", "/v2/models/alexnet/infer"


@dataclass(frozen=True)
class Hostile:
    """A request and the only statuses that are right for it."""

    name: str
    path: str
    body: bytes = b""
    headers: dict = field(default_factory=dict)
    method: str = "POST"
    status: tuple = (400,)

    def raw(self, host="localhost"):
        """As bytes for a socket."""
        headers = {"Host": host, "Connection": "close", "Content-Length": str(len(self.body))}
        headers |= self.headers
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{self.method} {self.path} HTTP/1.1\r\n{lines}\r\n".encode() + self.body


def form(*files, fields=(), boundary=BOUNDARY):
    """A multipart body of files, each bytes or (filename, bytes)."""
    parts = []
    for number, file in enumerate(files):
        name, content = file if isinstance(file, tuple) else (f"{number}.jpg", file)
        head = f'Content-Disposition: form-data; name="photo"; filename="{name}"'
        parts.append(f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + b"\r\n")
    for name, value in fields:
        head = f'Content-Disposition: form-data; name="{name}"'
        parts.append(f"--{boundary}\r\n{head}\r\n\r\n{value}\r\n".encode())
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


def picture(kind="PNG", size=(60, 50), seed=0):
    """A readable picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def png_bomb(width, height):
    """A small PNG whose header promises a lot."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(10**6))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def _pictures():
    jpeg, png = picture("JPEG"), picture()
    broken = {
        "empty": b"",
        "text": b"not a picture",
        "half a JPEG": jpeg[: len(jpeg) // 2],
        "half a PNG": png[: len(png) // 2],
        "start of a JPEG": b"\xff\xd8\xff",
        "zeros": bytes(4096),
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "GIF header": b"GIF89a",
        "endless TIFF": b"II*\x00\x08\x00\x00\x00\xff\xff" + bytes(200),
        "archive": b"PK\x03\x04" + bytes(100),
        "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
    }
    for name, content in broken.items():
        yield Hostile(f"picture: {name}", "/predict", form(content), {"Content-Type": FORM})
    for width, height in ((2**31 - 1, 2**31 - 1), (50_000, 50_000)):
        content = form(png_bomb(width, height))
        name = f"picture: {width}x{height}"
        yield Hostile(name, "/predict", content, {"Content-Type": FORM}, status=(413, 400))


def _forms():
    png = picture()
    whole = form(png)
    bodies = {
        "no file": form(fields=[("photo", "x")]),
        "no part": f"--{BOUNDARY}--\r\n".encode(),
        "cut": whole[:-30],
        "empty": b"",
        "another boundary": form(png, boundary="other"),
        "long field": form(png, fields=[("method", "x" * 10**6)]),
        "many fields": form(png, fields=[(f"f{i}", "x") for i in range(40)]),
        "line ends": b"\r\n" * 10**5,
        "dashes": b"-" * 10**6,
        "many headers": b"--Xhostile\r\n" + b"A: b\r\n" * 10**4,
        "photo in a field": f"--{BOUNDARY}\r\n\r\n".encode() + png,
    }
    for name, body in bodies.items():
        yield Hostile(f"form: {name}", "/predict", body, {"Content-Type": FORM})
    for kind in ("multipart/form-data", 'multipart/form-data; boundary=""', "text/plain", ""):
        yield Hostile(
            f"form: type {kind!r}", "/predict", whole, {"Content-Type": kind}, status=(400, 415)
        )
    many = form(*[b"x"] * 65)
    yield Hostile("form: 65 photos", "/predict", many, {"Content-Type": FORM}, status=(413,))
    for path in ("/saliency", "/activations"):
        for name, value in (("method", "magic"), ("layer", "../../etc"), ("class", "-1")):
            if (path == "/saliency") == (name != "layer"):
                body = form(png, fields=[(name, value)])
                yield Hostile(f"{path} {name}", path, body, {"Content-Type": FORM})
        yield Hostile(f"{path} two photos", path, form(png, png), {"Content-Type": FORM})
        yield Hostile(f"{path} broken", path, form(b"?"), {"Content-Type": FORM})
    for query in ("top=0", "top=x", "top=99999", "neighbours=-1", "features=2", "top=%F0%9F%98%80"):
        yield Hostile(f"query {query}", f"/predict?{query}", whole, {"Content-Type": FORM})


def _json():
    good = base64.b64encode(picture()).decode()
    # Bytes whose base64 has - and _ in the URL-safe alphabet.
    odd = base64.urlsafe_b64encode(b"\xfb\xef\xff" * 40).decode()
    values = {
        "number": 3,
        "list": [],
        "null": None,
        "nothing": {},
        "no photos": {"instances": []},
        "a text": {"instances": "x"},
        "rows and columns": {"instances": [{"b64": good}], "inputs": [{"b64": good}]},
        "a path": {"instances": ["/etc/passwd"]},
        "a URL": {"instances": [{"image_url": "http://localhost/healthz"}]},
        "a file URL": {"instances": [{"image_bytes": "file:///etc/passwd"}]},
        "numbers": {"instances": [[[1, 2, 3]]]},
        "b64 of a number": {"instances": [{"b64": 5}]},
        "b64 beside others": {"instances": [{"b64": good, "x": 1}]},
        "bad padding": {"instances": [{"b64": good[:-3]}]},
        "not base64": {"instances": [{"b64": "%%%"}]},
        "URL-safe base64": {"instances": [{"b64": odd}]},
        "base64 in lines": {"instances": [{"b64": good[:40] + "\n" + good[40:]}]},
        "surrogates": {"instances": [{"b64": "\ud800"}]},
        "another signature": {"signature_name": "x", "instances": [{"b64": good}]},
        "both broken": {"instances": [{"b64": ""}, {"b64": "AAAA"}]},
        "one of two bad": {"instances": [{"b64": good}, {"b64": "%"}]},
    }
    for name, value in values.items():
        yield Hostile(f"JSON: {name}", TENSORFLOW, json.dumps(value).encode())
    texts = {
        "empty": b"",
        "cut": b'{"instances": [',
        "deep": b'{"instances": ' + b"[" * 10**5,
        "wide": b'{"instances": [' + b"0," * 10**6 + b"0]}",
        "long number": b'{"instances": ' + b"9" * 10**5 + b"}",
        "NaN": b'{"instances": NaN}',
        "UTF-16": '{"instances": []}'.encode("utf-16"),
        "bytes": bytes(range(256)),
    }
    for name, body in texts.items():
        yield Hostile(f"JSON: {name}", TENSORFLOW, body)
    many = {"instances": [{"b64": "AAAA"}] * 65}
    yield Hostile("JSON: 65 photos", TENSORFLOW, json.dumps(many).encode(), status=(413,))


def _kserve():
    good = base64.b64encode(picture()).decode()
    tensor = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": [good]}
    changes = {
        "another shape": {"shape": [2]},
        "a shape of text": {"shape": "1"},
        "another type": {"datatype": "FP32"},
        "another name": {"name": "x"},
        "no data": {"data": None},
        "nested data": {"data": [[good]]},
    }
    for name, change in changes.items():
        body = json.dumps({"inputs": [{**tensor, **change}]}).encode()
        yield Hostile(f"KServe: {name}", KSERVE, body)
    others = {
        "an unknown output": {"outputs": [{"name": "x"}]},
        "outputs of text": {"outputs": "prob"},
        "a long id": {"id": "x" * 300},
        "an id of numbers": {"id": 3},
    }
    for name, change in others.items():
        body = json.dumps({"inputs": [tensor], **change}).encode()
        yield Hostile(f"KServe: {name}", KSERVE, body)
    head = json.dumps({"inputs": [{**tensor, "data": None}]}).encode()
    for name, length, data in (
        ("too long", len(head) + 99, b""),
        ("no number", "x", b""),
        ("endless part", len(head), b"\xff\xff\xff\xff"),
        ("cut part", len(head), b"\x10\x00"),
    ):
        headers = {"Inference-Header-Content-Length": str(length)}
        yield Hostile(f"KServe: binary, {name}", KSERVE, head + data, headers)


def _others():
    png = form(picture())
    bomb = gzip.compress(bytes(10**7))
    for kind in ("gzip", "deflate", "br"):
        headers = {"Content-Type": FORM, "Content-Encoding": kind}
        yield Hostile(f"packed: {kind}", "/predict", bomb, headers, status=(415,))
    yield Hostile(
        "too large", "/predict", form(bytes(21 * 2**20)), {"Content-Type": FORM}, status=(413,)
    )
    for path in ("/photos/-1", "/photos/99999999", "/photos/..%2f..%2fetc%2fpasswd", "/photos/x"):
        yield Hostile(path, path, method="GET", status=(404,))
    for path in ("/etc/passwd", "/../../etc/passwd", "/v1/models/x", "/%00"):
        yield Hostile(path, path, method="GET", status=(404,))
    for method in ("DELETE", "PUT", "GET"):
        headers = {"Content-Type": FORM}
        yield Hostile(f"{method} /predict", "/predict", png, headers, method, status=(405,))
    headers = {"Content-Type": FORM, "Origin": "https://example.com"}
    yield Hostile("another site", "/predict", png, headers, status=(403,))
    headers = {"Content-Type": FORM, "Host": "example.com"}
    yield Hostile("another host", "/predict", png, headers, status=(403,))


def hostile_requests():
    """All that an application can be given."""
    return [*_pictures(), *_forms(), *_json(), *_kserve(), *_others()]


def hostile_bytes(host="localhost"):
    """Name -> parts for a socket, each sent after a pause; the server may just close it."""
    head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: {FORM}\r\n".encode()
    body = form(picture())
    good = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    length = b"Content-Length: %d\r\n"
    return {
        "body ends early": [head + length % (len(body) + 50) + b"\r\n" + body],
        "body goes on": [head + length % (len(body) - 20) + b"\r\n" + body],
        "two lengths": [head + length % 5 + length % 6 + b"\r\n" + body],
        "length and chunks": [head + length % 5 + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello"],
        "negative length": [head + b"Content-Length: -1\r\n\r\n" + body],
        "length of text": [head + b"Content-Length: x\r\n\r\n" + body],
        "huge length": [head + b"Content-Length: 99999999999\r\n\r\n" + body],
        "bad chunk": [head + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n"],
        "huge chunk": [head + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx"],
        "long header": [head + b"X: " + b"a" * 10**6],
        "many headers": [head + b"X: y\r\n" * 10**5],
        "no host": [b"GET /healthz HTTP/1.1\r\n\r\n"],
        "two hosts": [b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: example.com\r\n\r\n"],
        "old HTTP": [b"GET /healthz\r\n"],
        "HTTP/2": [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
        "TLS": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)],
        "noise": [random.Random(0).randbytes(3000)],
        "NUL": [b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n"],
        "header in lines": [b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n"],
        "pipelined": [good * 20],
        "pipelined, then noise": [good * 3 + b"\xff" * 100 + b"\r\n\r\n"],
        "slow head": [head[i : i + 8] for i in range(0, 48, 8)],
        "slow body": [head + length % len(body) + b"\r\n", *([b"-"] * 5)],
        "nothing": [b""],
        "half a line": [b"GET /heal"],
        "upgrade": [good[:-2] + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"],
        "expectation": [head + length % 10**9 + b"Expect: 100-continue\r\n\r\n"],
    }


def exchange(address, parts, pause=0.05, patience=5.0):
    """Send parts to a server; the statuses of what it answers until it or `patience` ends."""
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection(address, patience) as connection:
        with contextlib.suppress(OSError):  # it may close before all is sent
            for part in parts:
                connection.sendall(part)
                time.sleep(pause if len(parts) > 1 else 0)
        while part := connection.recv(2**16):
            answer += part
    return [int(x) for x in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]
