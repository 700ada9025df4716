"""A mirror on this machine with every fault that a download may meet."""

import contextlib
import hashlib
import http.server
import sys
import threading
from dataclasses import replace

from tf_alexnet.weights import Source, known_weights

GOOD = bytes(range(256)) * 1024  # four chunks
LENGTH = len(GOOD)
SHA256 = hashlib.sha256(GOOD).hexdigest()
SHA1 = hashlib.sha1(GOOD).hexdigest()
GIT_BLOB = hashlib.sha1(b"blob %d\0" % len(GOOD) + GOOD).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Does what the path asks for: ``/<what>[-<argument>]/<file>``."""

    def do_GET(self):
        what, _, self.argument = self.path.split("/")[1].partition("-")
        self.server.served.append(what)
        try:
            getattr(self, what)()
        finally:
            self.close_connection = True

    def start(self, length, status=200, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send(self, content, length=LENGTH, **headers):
        self.start(length, **headers)
        self.wfile.write(content)

    def good(self):
        self.send(self.server.content, len(self.server.content))

    def missing(self):
        self.send_error(404)

    def busy(self):
        self.send_error(503)

    def flaky(self):
        """500 at the first request, the file afterwards."""
        self.send_error(500) if self.server.served.count("flaky") == 1 else self.send(GOOD)

    def wrong(self):
        self.send(GOOD[:-1] + b"!")

    def page(self):
        self.send(b"<html>gone</html>", 17)

    def empty(self):
        self.send(b"", 0)

    def cut(self):
        self.send(GOOD[: int(self.argument or len(GOOD) // 2)])

    def silent_cut(self):
        """Cut without a length by which it shows."""
        self.send(GOOD[: len(GOOD) // 2], None)

    def short(self):
        self.send(GOOD[:-1], len(GOOD) - 1)

    def long(self):
        self.send(GOOD + b"more", len(GOOD) + 4)

    def packed(self):
        """Said to be compressed, and not."""
        self.send(GOOD, Content_Encoding="gzip")

    def endless(self):
        self.start(None)
        with contextlib.suppress(OSError):
            while not self.server.released.is_set():
                self.wfile.write(GOOD)
                self.server.sent += len(GOOD)

    def slow(self):
        """The file in about `argument` milliseconds."""
        self.start(len(GOOD))
        with contextlib.suppress(OSError):
            for at in range(0, len(GOOD), len(GOOD) // 32):
                self.server.released.wait(int(self.argument) / 32_000)
                self.wfile.write(GOOD[at : at + len(GOOD) // 32])

    def stall(self):
        self.send(GOOD[:1000])
        self.wfile.flush()
        self.server.released.wait(20)

    def drip(self):
        self.start(len(GOOD))
        with contextlib.suppress(OSError):
            for i in range(200):
                if self.server.released.wait(0.05):
                    break
                self.wfile.write(GOOD[i : i + 1])

    def redirect(self):
        """To what the argument names: on another host name, at another protocol, or here."""
        _, _, to = self.path.split("/")[1].partition("-")
        port = self.server.server_address[1]
        target = {"loop": self.path, "ftp": "ftp://127.0.0.1/x", "file": "file:///etc/passwd"}
        self.start(0, 302, Location=target.get(to, f"http://localhost:{port}/{to}/x"))

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):
        """Clients that hang up are what is tested."""


@contextlib.contextmanager
def serving(content=GOOD):
    """A running mirror of `content`; `served` lists what was asked for."""
    server = Server(("127.0.0.1", 0), Handler)
    server.content = content
    server.served, server.sent, server.released = [], 0, threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


def publisher(server, monkeypatch):
    """A function that puts one record in the catalogue's place: what `server` does, in order."""

    def publish(*what, size=LENGTH, checksum=f"sha256:{SHA256}", others=()):
        server.served.clear()
        server.sent = 0
        record = known_weights("bvlc_alexnet")
        name, port = record.sources[0].file_name, server.server_address[1]
        urls = tuple(w if "://" in w else f"http://127.0.0.1:{port}/{w}/{name}" for w in what)
        record = replace(record, sources=(Source(name, urls, size, checksum), *others))
        monkeypatch.setattr(sys.modules[known_weights.__module__], "_CATALOG", (record,))

    return publish
