"""`DecoderProcess`: the reader's end of a process that runs `tf_alexnet.extraction.decoder`."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from tf_alexnet.errors import AlexNetError
from tf_alexnet.extraction.decoder import ANSWER, READ, REQUEST

PROGRAM = "tf_alexnet.extraction.decoder"
# Not `python -m`: that would look for modules in the working folder first, which may be a folder
# of somebody's photos. The process finds modules where this one does, and nowhere else.
_START = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "import importlib; importlib.import_module(sys.argv[1]).main()"
)
_READY_WITHIN = 120.0
# Libraries that are built for many threads would start them, and reserve memory for each.
_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # The C library gives memory back after every photo and asks for it again at the next, page by
    # page: half of the time that decoding takes. It may keep 128 MiB, and what is larger, too.
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
    "MALLOC_MMAP_MAX_": "0",
}


class DecoderEndedError(Exception):
    """The process is no more."""


class DecoderHungError(Exception):
    """The process gave no answer in time."""


class Answer(NamedTuple):
    """What a decoder says about a photo: reason or `READ`, a text, height and width of the row."""

    reason: int
    text: str
    height: int
    width: int


class DecoderProcess:
    """A running decoder.

    Parameters
    ----------
    settings : bytes
        What the program reads first.
    pixels : int
        Descriptor of the shared memory.

    Raises
    ------
    AlexNetError
        If no process can be started.
    """

    def __init__(self, settings: bytes, pixels: int):
        try:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by `end`
        except OSError as error:
            raise _no_start(error) from None
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, PROGRAM, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                pass_fds=[pixels],
                bufsize=0,
                env={**os.environ, **_ENVIRONMENT},
            )
        except OSError as error:
            self._errors.close()
            raise _no_start(error) from None
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._stdin, False)
        self._settings, self._buffer = settings, b""

    def wait_until_ready(self) -> None:
        """Hand over the settings, and wait for the first answer; `AlexNetError` if none comes."""
        try:
            deadline = time.monotonic() + _READY_WITHIN
            self._write(self._settings, deadline)
            ready = self.receive(_READY_WITHIN).reason == READ
        except (DecoderEndedError, DecoderHungError):
            ready = False
        if not ready:
            raise _no_start(self._last_words())

    def send(self, kind: int, offset: int, source: bytes, timeout: float) -> None:
        """Ask for a photo; `DecoderHungError` if the process takes no request."""
        self._write(REQUEST.pack(kind, offset, len(source)) + source, time.monotonic() + timeout)

    def receive(self, timeout: float) -> Answer:
        """The next answer; `DecoderEndedError` or `DecoderHungError` if none comes."""
        deadline = time.monotonic() + timeout
        self._fill(ANSWER.size, deadline)
        reason, height, width, length = ANSWER.unpack_from(self._buffer)
        self._fill(ANSWER.size + length, deadline)
        text = self._buffer[ANSWER.size : ANSWER.size + length].decode("utf-8")
        self._buffer = self._buffer[ANSWER.size + length :]
        return Answer(reason, text, height, width)

    def kill(self) -> None:
        """End the process at once; whoever waits for it hears of its end."""
        self._process.kill()

    def end(self) -> None:
        """Kill the process, and leave nothing of it behind."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            stream.close()

    def _write(self, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._stdin, rest) :]
            except BlockingIOError:
                _await(self._stdin, select.POLLOUT, deadline)
            except BrokenPipeError:
                return  # `receive` hears of it, after the answers that were given before

    def _fill(self, length: int, deadline: float) -> None:
        while len(self._buffer) < length:
            _await(self._stdout, select.POLLIN, deadline)
            more = os.read(self._stdout, 65536)
            if not more:
                raise DecoderEndedError
            self._buffer += more

    def _last_words(self) -> str:
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"


def _no_start(reason: object) -> AlexNetError:
    return AlexNetError(
        "decoder process",
        f"it did not start ({reason})",
        "Check that Python, NumPy, Pillow and OpenCV work in a new process.",
    )


def _await(file: int, event: int, deadline: float) -> None:
    """Wait until a pipe can be used or is broken."""
    poll = select.poll()
    poll.register(file, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise DecoderHungError
