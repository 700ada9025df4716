"""`HeatMaps`: heat maps over photos, computed in a separate process.

They need gradients, and so TensorFlow: OpenVINO has none. In a separate process neither its import
(three seconds) nor a long computation delays predictions, and either can be killed.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tf_alexnet.errors import AlexNetError
from tf_alexnet.serve.limits import RequestError
from tf_alexnet.serve.photo_index import jpeg
from tf_alexnet.weights import WeightArrays

_READY = b"ready"
_LATER = {"Retry-After": "2"}
_SIDE = 1024  # larger photos are downscaled to this size


class HeatMap(NamedTuple):
    """A photo under a heat map.

    Attributes
    ----------
    picture : bytes
        JPEG.
    facts : dict
        ``class`` (index), ``score`` (its logit), ``gap`` (of integrated gradients), ``signed``,
        ``constant``: as in `SaliencyMap`.
    """

    picture: bytes
    facts: dict[str, Any]


class HeatMaps:
    """A process that starts with the first heat map, and again after a failure.

    Parameters
    ----------
    weights, architecture
        As in `tf_alexnet.visualize.Explainer`.
    """

    def __init__(self, weights: str | os.PathLike | WeightArrays, architecture: str | None):
        self._arguments = weights, architecture
        self._lock = threading.Lock()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._ready = self._closed = False

    def draw(self, photo: bytes, method: str, target: int | None, seconds: float) -> HeatMap:
        """Explain a class of a photo; thread-safe, one photo at a time.

        Parameters
        ----------
        photo : bytes
            Content of an image file.
        method : str
            As in `saliency_map`.
        target : int, optional
            Index of the class; by default the most probable one.
        seconds : float
            Time limit; at most half of it is spent waiting for others.

        Raises
        ------
        RequestError
            400 if the photo can't be explained; 503 if others are being explained, or the process
            is still starting; 504 if it takes too long.
        """
        end = time.monotonic() + seconds
        if not self._lock.acquire(timeout=seconds / 2):
            raise RequestError(503, "other photos are being explained", _LATER)
        try:
            self._wait_for_start(seconds / 2)
            self._pipe.send_bytes(json.dumps([method, target]).encode())
            self._pipe.send_bytes(photo)
            if not self._pipe.poll(max(0.0, end - time.monotonic())):
                self._end()
                raise RequestError(504, f"{method} took more than {seconds:.0f} seconds")
            facts = json.loads(self._pipe.recv_bytes())
            picture = self._pipe.recv_bytes()
        except (EOFError, OSError):
            self._end()
            raise RequestError(503, "the process that explains photos ended", _LATER) from None
        finally:
            self._lock.release()
        if "error" in facts:
            raise RequestError(400, facts["error"])
        return HeatMap(picture, facts)

    def close(self) -> None:
        """End the process."""
        self._closed = True
        if process := self._process:
            process.kill()

    def _wait_for_start(self, seconds: float) -> None:
        """Start the process if necessary, and wait until it is ready."""
        if self._process is None:
            self._start()
        if not self._ready:
            if not self._pipe.poll(seconds):  # it keeps starting
                raise RequestError(503, "TensorFlow is being loaded; try again", _LATER)
            self._ready = self._pipe.recv_bytes() == _READY

    def _start(self) -> None:
        if self._closed:
            raise RequestError(503, "the server is stopping")
        self._ready = False
        # A fork could inherit locks that other threads of the server hold.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_main, args=(theirs, *self._arguments), daemon=True, name="heat maps"
        )
        self._process.start()
        theirs.close()

    def _end(self) -> None:
        process, self._process = self._process, None
        process.kill()
        process.join()
        self._pipe.close()


def _main(
    pipe: Connection, weights: str | os.PathLike | WeightArrays, architecture: str | None
) -> None:
    """Body of the process: explain photos until the server ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles it
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    from tf_alexnet.visualize import Explainer

    explainer = Explainer(weights, architecture=architecture)
    with contextlib.suppress(AttributeError, OSError):
        os.nice(5)  # predictions come first
    with contextlib.suppress(EOFError, OSError):
        pipe.send_bytes(_READY)
        while True:
            method, target = json.loads(pipe.recv_bytes())
            photo, picture = pipe.recv_bytes(), b""
            try:
                facts, picture = _drawn(explainer, photo, method, target)
            except AlexNetError as error:
                facts = {"error": error.found}
            except Exception as error:  # fails this photo only
                facts = {"error": f"it can't be explained ({type(error).__name__})"}
            pipe.send_bytes(json.dumps(facts).encode())
            pipe.send_bytes(picture)


def _drawn(
    explainer: Any, content: bytes, method: str, target: int | None
) -> tuple[dict[str, Any], bytes]:
    from tf_alexnet.images.decode import decode_photo
    from tf_alexnet.visualize import overlay, saliency_map
    from tf_alexnet.visualize.figures import shrunk

    photo = shrunk(decode_photo(content, opencv=True), _SIDE)
    found = saliency_map(explainer, photo, method, target)
    facts = {
        "class": found.class_index,
        "score": found.score,
        "gap": found.completeness_gap,
        "signed": found.signed,
        "constant": found.constant,
    }
    return facts, jpeg(overlay(photo, found))
