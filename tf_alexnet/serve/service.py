"""`Service`: computes classes, features and pictures from the bytes of photos."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tf_alexnet.architectures import PREACT, Conv
from tf_alexnet.errors import UsageError
from tf_alexnet.extraction import FeatureExtractor
from tf_alexnet.extraction.decoder import Failure
from tf_alexnet.extraction.formats import printable
from tf_alexnet.extraction.predictions import decode_blobs
from tf_alexnet.extraction.reader import PhotoReader
from tf_alexnet.labels import Prediction
from tf_alexnet.serve.batching import SIZE, Batcher
from tf_alexnet.serve.counters import Counters
from tf_alexnet.serve.heatmaps import HeatMap, HeatMaps
from tf_alexnet.serve.photo_index import Neighbour, PhotoIndex
from tf_alexnet.training.run import Run, find_run
from tf_alexnet.visualize.saliency import METHODS
from tf_alexnet.weights import WeightArrays
from tf_alexnet.weights.resolve import last_features, resolve_weights


class Answer(NamedTuple):
    """Outputs of the network for a photo.

    Attributes
    ----------
    scores : ndarray of float32 (classes,), or None
        The blob of `Service.output`; None without a classifier.
    features : ndarray of float32
        The blob of `Service.layer`, without a batch axis.
    """

    scores: np.ndarray | None
    features: np.ndarray


class Service:
    """A network, its decoder processes, and an index of photos.

    Parameters
    ----------
    weights : str, path, WeightArrays or Run
        As in `FeatureExtractor`, or a RUN, also by its path.
    architecture : str, optional
        As in `AlexNet`.
    index : path, optional
        Features computed with these weights, as in `PhotoIndex`.
    engine : {"auto", "tensorflow", "openvino"}
        As in `FeatureExtractor`.
    workers : int, optional
        As in `PhotoReader`.

    Attributes
    ----------
    extractor : FeatureExtractor
    output : str or None
        Layer of the scores: `prob`, or `fc8` if a sigmoid per class follows it (multi-label).
    layer : str
        Layer of the features returned: that of the index, else the last one before `fc8`.
    shape : tuple of int
        Shape of these features.
    layers : tuple of str
        Layers available in `activations`.
    classes : int or None
        Number of classes.
    index : PhotoIndex or None
    run : Run or None
        The RUN served.
    counters : Counters

    Raises
    ------
    WeightsError, UsageError
        If weights or index are missing or invalid.
    """

    def __init__(
        self,
        weights: str | os.PathLike | WeightArrays | Run = "imagenet",
        *,
        architecture: str | None = None,
        index: str | os.PathLike | None = None,
        engine: str = "auto",
        workers: int | None = None,
    ):
        run = find_run(weights)
        self.index = None if index is None else PhotoIndex(index)
        arrays, table = resolve_weights(run.arrays if run else weights, architecture)
        if arrays is None:
            raise UsageError("Service(None)", "it needs weights", "Pass a weight file.")
        self.classes = arrays.classes
        self.run, self._names = run, None
        if run:
            self._names = [printable(name) for name in run.record.classes]
        self.layer = self.index.layer if self.index else last_features(arrays, table)
        self.output = (run.outputs[0] if run else "prob") if self.classes else None
        wanted = (self.output, self.layer) if self.output else self.layer
        self.extractor = FeatureExtractor(arrays, wanted, architecture=architecture, engine=engine)
        if self.index:
            self.index.check(self.extractor, run)
        blob = self.layer.removesuffix(PREACT)
        self.shape = next(x.output_shape for x in table.rows() if x.name == blob)
        self._side = table.input_size
        names = [layer.name for layer in table.layers]
        self.layers = tuple(names[: names.index("pool5") + 1])
        convolutions = {
            layer.name: arrays.layers[layer.name]
            for layer in table.layers
            if isinstance(layer, Conv)
        }
        self._convolutions = replace(arrays, layers=convolutions), architecture or table.name
        self._early: FeatureExtractor | None = None
        self._heatmaps = HeatMaps(run.arrays if run else weights, architecture)
        self.counters = Counters()
        self._batcher = Batcher(self._answers, self.counters.batch)
        self._workers = workers or os.cpu_count() or 1
        self._reader = PhotoReader(
            self.extractor.preset, mean_image=self.extractor.mean_image, workers=self._workers
        )
        self._decoding = ThreadPoolExecutor(self._workers, "decoding")
        self._drawing = ThreadPoolExecutor(4, "heat maps")

    def start(self) -> None:
        """Start the decoders and warm up the network."""
        file = BytesIO()
        Image.new("RGB", (64, 64), "grey").save(file, "PNG")
        photos = [file.getvalue()] * self._workers
        list(self._decoding.map(self._reader.decode, photos))
        for count in (1, SIZE):
            self._answers(np.zeros((count, self._side, self._side, 3), np.float32))

    def close(self) -> None:
        """Stop all processes and threads."""
        self._batcher.close()
        self._heatmaps.close()
        self._reader.close()
        for pool in (self._decoding, self._drawing):
            pool.shutdown(wait=False, cancel_futures=True)

    async def answer(self, photo: bytes) -> Answer | Failure:
        """Scores and features of a photo, computed in a batch with those of other requests."""
        with self._batcher.expecting():
            found, pixels = await self._decode(photo)
        if isinstance(found, Failure):
            return found
        return await self._batcher.compute(pixels[0])

    async def answers(self, photos: Sequence[bytes]) -> list[Answer | Failure]:
        """`answer` of several photos, in their order."""
        return list(await asyncio.gather(*map(self.answer, photos)))

    def predictions(self, answer: Answer, top: int) -> list[Prediction]:
        """The most probable classes; empty without a classifier."""
        if self.output is None:
            return []
        return decode_blobs({self.output: answer.scores[None]}, "center", top, self._names)[0]

    async def neighbours(self, answer: Answer, count: int) -> list[Neighbour]:
        """The most similar photos in the index; empty without one."""
        if self.index is None or count < 1:
            return []
        row = self.index.row_of(answer.features)
        return await asyncio.to_thread(self.index.nearest, row, count)

    async def activations(self, photo: bytes, layer: str) -> np.ndarray | Failure:
        """A blob of one of `layers`, float32 (height, width, channels)."""
        found, pixels = await self._decode(photo)
        if isinstance(found, Failure):
            return found
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._batcher.thread, self._blob, pixels, layer)

    async def heat_map(
        self, photo: bytes, method: str, target: int | None, seconds: float
    ) -> HeatMap | Failure:
        """A heat map over a photo, as in `HeatMaps.draw`."""
        found, _ = await self._decode(photo)  # first refuse what is not a photo
        if isinstance(found, Failure):
            return found
        loop = asyncio.get_running_loop()
        arguments = self._heatmaps.draw, photo, method, target, seconds
        return await loop.run_in_executor(self._drawing, *arguments)

    def facts(self) -> dict[str, Any]:
        """Facts about the network, as JSON types."""
        extractor = self.extractor
        facts: dict[str, Any] = {
            "architecture": extractor.architecture,
            "weights": os.path.basename(self.run.folder if self.run else extractor.weights_source),
            "weights_digest": extractor.weights_digest,
            "trained_as": extractor.trained_as,
            "untrained": extractor.untrained,
            "run": self.run is not None,
            "preset": extractor.preset,
            "engine": extractor.engine,
            "classes": self.classes,
            "multi_label": self.output == "fc8",
            "layer": self.layer,
            "layers": list(self.layers),
            "methods": list(METHODS),
            "index": None,
        }
        if self.index:
            facts["index"] = {"photos": len(self.index), "layer": self.index.layer}
        return facts

    def name_of(self, index: int) -> str:
        """The name of a class or, without a classifier, of a channel of `pool5`."""
        if not self.classes:
            return f"channel {index} of pool5"
        one = np.eye(1, self.classes, index)
        return decode_blobs({"prob": one}, "center", 1, self._names)[0][0].label

    async def _decode(self, photo: bytes) -> tuple[Any, np.ndarray]:
        loop = asyncio.get_running_loop()
        found, pixels = await loop.run_in_executor(self._decoding, self._reader.decode, photo)
        if not isinstance(found, Failure) and pixels.shape[1:3] != (self._side, self._side):
            text = f"preset {self.extractor.preset!r} does not resize, and the network takes "
            found = Failure(found.path, "bad_shape", f"{text}{self._side}x{self._side} pixels")
        self.counters.photo(found.code if isinstance(found, Failure) else "ok")
        return found, pixels

    def _answers(self, batch: np.ndarray) -> list[Answer]:
        blobs = self.extractor(batch)
        features = blobs[self.layer]
        if self.output is None:
            return [Answer(None, row) for row in features]
        return [Answer(*pair) for pair in zip(blobs[self.output], features, strict=True)]

    def _blob(self, pixels: np.ndarray, layer: str) -> np.ndarray:
        if self._early is None:
            arrays, architecture = self._convolutions
            self._early = FeatureExtractor(
                arrays, self.layers, architecture=architecture, engine=self.extractor.engine
            )
        return self._early(pixels)[layer][0]
