"""`create_app`: the HTTP interface of a `Service`, an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tf_alexnet.errors import ImageError
from tf_alexnet.extraction.decoder import Failure
from tf_alexnet.serve.guard import LOOPBACK, READING, Guard, error_response
from tf_alexnet.serve.limits import Limits, RequestError, Room, Ticket
from tf_alexnet.serve.photo_index import jpeg
from tf_alexnet.serve.protocols import (
    INPUT,
    SIGNATURE,
    Upload,
    Wanted,
    parse_form,
    parse_kserve,
    parse_tensorflow,
)
from tf_alexnet.serve.service import Answer, Service
from tf_alexnet.version import VERSION
from tf_alexnet.visualize import mosaic

MODEL = "alexnet"
_VERSION = "1"  # of the model
_TOP, _MOST_TOP, _MOST_NEIGHBOURS = 5, 1000, 64
_LINGER = 5.0  # seconds to keep reading a refused body
_PAGE = Path(__file__).parent / "page"
_ASSETS = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_DIGITS = re.compile("[0-9]{1,6}", re.ASCII)


def create_app(
    service: Service,
    *,
    token: str | None = None,
    hosts: Collection[str] | None = LOOPBACK,
    limits: Limits | None = None,
) -> Starlette:
    """Create the application: the page and all endpoints.

    Parameters
    ----------
    service : Service
        The service; it is closed at shutdown.
    token, hosts
        As in `Guard`.
    limits : Limits, optional
        Limits on requests.
    """
    limits = limits or Limits()
    endpoints = _Endpoints(service, limits)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    async def failed(_: Request, error: Exception) -> Response:
        found = RequestError(error.status_code, error.detail, dict(error.headers or {}))
        return error_response(found)

    guard = Middleware(
        Guard, counters=service.counters, seconds=limits.seconds, token=token, hosts=hosts
    )
    return Starlette(
        routes=endpoints.routes(),
        middleware=[guard],
        lifespan=lifespan,
        exception_handlers={HTTPException: failed},
    )


class _Endpoints:
    """One method per endpoint; refusals are raised as `RequestError`."""

    def __init__(self, service: Service, limits: Limits):
        self._service, self._limits, self._room = service, limits, Room(limits)

    def routes(self) -> list[Route]:
        get: dict[str, Callable] = {
            **dict.fromkeys(_ASSETS, self.page),
            "/about": self.about,
            "/healthz": self.health,
            "/metrics": self.metrics,
            "/photos/{row}": self.photo,
            "/v2": self.kserve_server,
        }
        post: dict[str, Callable] = {
            "/predict": self.predict,
            "/saliency": self.saliency,
            "/activations": self.activations,
        }
        for path in ("/v2/health/live", "/v2/health/ready"):
            get[path] = self.health
        for version in ("", f"/versions/{_VERSION}"):
            tensorflow, kserve = f"/v1/models/{MODEL}{version}", f"/v2/models/{MODEL}{version}"
            get[tensorflow] = self.tensorflow_status
            get[f"{tensorflow}/metadata"] = self.tensorflow_metadata
            get[kserve] = self.kserve_metadata
            get[f"{kserve}/ready"] = self.health
            post[f"{tensorflow}:predict"] = self.tensorflow_predict
            post[f"{kserve}/infer"] = self.kserve_infer
        return [
            *(Route(path, method, methods=["GET"]) for path, method in get.items()),
            *(Route(path, method, methods=["POST"]) for path, method in post.items()),
        ]

    async def page(self, request: Request) -> Response:
        """A file of the page."""
        name, kind = _ASSETS[request.url.path]
        return FileResponse(_PAGE / name, media_type=kind, headers={"Cache-Control": "no-cache"})

    async def about(self, _: Request) -> Response:
        """Facts about the network, and the limits."""
        limits = {name: getattr(self._limits, name) for name in ("body", "images", "pixels")}
        return JSONResponse({**self._service.facts(), "version": VERSION, "limits": limits})

    async def health(self, _: Request) -> Response:
        """Always ok: the server starts to listen when it is ready."""
        return JSONResponse({"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        """Metrics for Prometheus."""
        extractor, room = self._service.extractor, self._room
        gauges = {"images_waiting": room.images, "bytes_buffered": room.buffered}
        info = {
            "version": VERSION,
            "architecture": extractor.architecture,
            "weights": extractor.weights_digest,
            "engine": extractor.engine,
        }
        text = self._service.counters.text(gauges, info)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def photo(self, request: Request) -> Response:
        """A thumbnail of a photo in the index, by row: clients never name files."""
        index, row = self._service.index, request.path_params["row"]
        if index is None or not _DIGITS.fullmatch(row) or int(row) >= len(index):
            raise RequestError(404, "the index has no such row")
        try:
            content = await asyncio.to_thread(index.thumbnail, int(row))
        except ImageError as error:
            raise RequestError(404, error.found) from None
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private"})

    async def predict(self, request: Request) -> Response:
        """Classes of the photos in a form; optionally ``features`` and ``neighbours``."""
        top = _number(request, "top", _TOP, 1, _MOST_TOP)
        features = _number(request, "features", 0, 0, 1)
        count = _number(request, "neighbours", 0, 0, _MOST_NEIGHBOURS)
        with self._room.ticket() as ticket:
            uploads, _ = await self._form(request, ticket)
            found = await self._service.answers([upload.content for upload in uploads])
            rows, status = [], 400
            for upload, answer in zip(uploads, found, strict=True):
                if isinstance(answer, Failure):
                    error = _refusal(answer)
                    status = max(status, error.status)
                    rows.append({"name": upload.name, "error": error.message})
                    continue
                classes = [x.as_dict() for x in self._service.predictions(answer, top)]
                row = {"name": upload.name, "predictions": classes}
                if count:
                    near = await self._service.neighbours(answer, count)
                    row["neighbours"] = [x._asdict() for x in near]
                if features:
                    row[self._service.layer] = answer.features.ravel().tolist()
                rows.append(row)
        if all("error" in row for row in rows):
            raise RequestError(status, "; ".join(row["error"] for row in rows)[:1000])
        return JSONResponse({"photos": rows})

    async def saliency(self, request: Request) -> Response:
        """A photo under a heat map, as JPEG; ``X-Heat-Map`` tells class and score."""
        with self._room.ticket() as ticket:
            upload, fields = await self._one(request, ticket)
            known = self._service.facts()["methods"]
            method, target = fields.get("method", known[0]), fields.get("class", "")
            if method not in known:
                raise RequestError(400, f"method is not one of {', '.join(known)}")
            if target and not _DIGITS.fullmatch(target):
                raise RequestError(400, "class is not an index")
            target_class = int(target) if target else None
            seconds = 0.9 * self._limits.seconds  # before the request itself times out
            found = await self._service.heat_map(upload.content, method, target_class, seconds)
            found = _readable(found)
        label = self._service.name_of(found.facts["class"])
        headers = {"X-Heat-Map": json.dumps({"method": method, "label": label, **found.facts})}
        return Response(found.picture, media_type="image/jpeg", headers=headers)

    async def activations(self, request: Request) -> Response:
        """All channels of a layer side by side, as JPEG; ``X-Activations`` tells their shape."""
        with self._room.ticket() as ticket:
            upload, fields = await self._one(request, ticket)
            layer = fields.get("layer", self._service.layers[0])
            if layer not in self._service.layers:
                raise RequestError(400, f"layer is not one of {', '.join(self._service.layers)}")
            blob = _readable(await self._service.activations(upload.content, layer))
            picture = await asyncio.to_thread(lambda: jpeg(mosaic(blob)))
        facts = {
            "layer": layer,
            "shape": blob.shape,
            "largest": float(blob.max()),
            "above_zero": float((blob > 0).mean()),
        }
        headers = {"X-Activations": json.dumps(facts)}
        return Response(picture, media_type="image/jpeg", headers=headers)

    async def tensorflow_status(self, _: Request) -> Response:
        """TensorFlow Serving: the state of the model."""
        state = {
            "version": _VERSION,
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        return JSONResponse({"model_version_status": [state]})

    async def tensorflow_metadata(self, _: Request) -> Response:
        """TensorFlow Serving: names and types of inputs and outputs."""

        def tensor(kind: str, *shape: int) -> dict[str, Any]:
            dims = [{"size": str(size), "name": ""} for size in shape]
            return {"dtype": kind, "tensor_shape": {"dim": dims, "unknown_rank": False}, "name": ""}

        kinds = {"BYTES": "DT_STRING", "FP32": "DT_FLOAT"}
        signature = {
            "inputs": {INPUT: tensor("DT_STRING", -1)},
            "outputs": {
                name: tensor(kinds[kind], -1, *shape)
                for name, (kind, shape) in self._outputs().items()
            },
            "method_name": "tensorflow/serving/predict",
        }
        spec = {"name": MODEL, "signature_name": "", "version": _VERSION}
        definition = {"signature_def": {SIGNATURE: signature}}
        content = {"model_spec": spec, "metadata": {"signature_def": definition}}
        return JSONResponse(content)

    async def tensorflow_predict(self, request: Request) -> Response:
        """TensorFlow Serving: ``instances`` to ``predictions``, ``inputs`` to ``outputs``."""
        _, columns, found = await self._computed(request, parse_tensorflow)
        if columns:
            return JSONResponse({"outputs": found})
        rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
        return JSONResponse({"predictions": rows})

    async def kserve_server(self, _: Request) -> Response:
        """KServe: metadata of the server."""
        content = {"name": "tf_alexnet", "version": VERSION, "extensions": ["binary_tensor_data"]}
        return JSONResponse(content)

    async def kserve_metadata(self, _: Request) -> Response:
        """KServe: names and types of inputs and outputs."""
        return JSONResponse(
            {
                "name": MODEL,
                "versions": [_VERSION],
                "platform": f"tf_alexnet_{self._service.extractor.engine}",
                "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
                "outputs": [
                    {"name": name, "datatype": kind, "shape": [-1, *shape]}
                    for name, (kind, shape) in self._outputs().items()
                ],
            }
        )

    async def kserve_infer(self, request: Request) -> Response:
        """KServe: photos to tensors."""
        length = request.headers.get("inference-header-content-length")
        id_, _, found = await self._computed(request, lambda body: parse_kserve(body, length))
        kinds = self._outputs()
        outputs = [
            {
                "name": name,
                "datatype": kinds[name][0],
                "shape": [len(rows), *kinds[name][1]],
                "data": np.array(rows).ravel().tolist(),
            }
            for name, rows in found.items()
        ]
        content = {"model_name": MODEL, "model_version": _VERSION, "outputs": outputs}
        return JSONResponse(content if id_ is None else {**content, "id": id_})

    def _outputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """KServe type and shape per photo of every output, as in an exported SavedModel."""
        classes = min(_TOP, self._service.classes or 0)
        outputs: dict[str, tuple[str, tuple[int, ...]]] = {}
        if classes:
            outputs = dict.fromkeys(("classes", "synsets"), ("BYTES", (classes,)))
            outputs["probabilities"] = "FP32", (classes,)
        outputs[self._service.layer] = "FP32", self._service.shape
        return {**outputs, "status": ("BYTES", ())}

    async def _computed(
        self, request: Request, parse: Callable[[bytes], Wanted]
    ) -> tuple[str | None, bool, dict[str, list[list[Any]]]]:
        """Id and layout of a JSON request, and its outputs: one list per photo."""
        with self._room.ticket() as ticket:
            wanted = await asyncio.to_thread(parse, await self._body(request, ticket))
            names = tuple(self._outputs()) if wanted.outputs is None else wanted.outputs
            if unknown := set(names) - self._outputs().keys():
                found = f"no output {sorted(unknown)[0]!r}; outputs: {', '.join(self._outputs())}"
                raise RequestError(400, found)
            ticket.add_images(len(wanted.photos))
            answers = await self._service.answers(wanted.photos)
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        if len(failures) == len(answers):
            raise _refusal(failures[0])
        rows = [self._row(answer) for answer in answers]
        return wanted.id, wanted.columns, {name: [row[name] for row in rows] for name in names}

    def _row(self, answer: Answer | Failure) -> dict[str, Any]:
        """All outputs for a photo; empty except for the status if it can't be read."""
        if isinstance(answer, Failure):
            count = min(_TOP, self._service.classes or 0)
            empty = {
                "classes": [""] * count,
                "synsets": [""] * count,
                "probabilities": [0.0] * count,
            }
            features = np.zeros(self._service.shape).tolist()
            return {**empty, self._service.layer: features, "status": answer.code}
        found = self._service.predictions(answer, _TOP)
        return {
            "classes": [x.label for x in found],
            "synsets": [x.synset for x in found],
            "probabilities": [x.probability for x in found],
            self._service.layer: answer.features.tolist(),
            "status": "ok",
        }

    async def _one(self, request: Request, ticket: Ticket) -> tuple[Upload, dict[str, str]]:
        uploads, fields = await self._form(request, ticket)
        if len(uploads) > 1:
            raise RequestError(400, f"{len(uploads)} photos; send one")
        return uploads[0], fields

    async def _form(self, request: Request, ticket: Ticket) -> tuple[list[Upload], dict[str, str]]:
        kind = request.headers.get("content-type", "")
        body = await self._body(request, ticket)
        # In a thread: a form made to be slow to parse delays this request alone.
        found = await asyncio.to_thread(parse_form, kind, body, self._limits.images)
        ticket.add_images(len(found[0]))
        return found

    async def _body(self, request: Request, ticket: Ticket) -> bytes:
        """The body of a request, unless it is too large."""
        most = self._limits.body
        declared = request.headers.get("content-length", "")
        large = declared.isdecimal() and int(declared) > most
        refusal = RequestError(413, f"the body has more than {most:,} bytes")
        if large and "expect" in request.headers:
            raise refusal
        chunks: list[bytes] = []
        request.scope[READING] = True
        try:
            async for chunk in request.stream():
                if large or ticket.buffered + len(chunk) > most:
                    chunks.clear()
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(_skip(request, most), _LINGER)
                    raise refusal
                ticket.add_bytes(len(chunk))
                chunks.append(chunk)
        except ClientDisconnect:
            raise RequestError(400, "the body ended too early") from None
        request.scope[READING] = False
        return b"".join(chunks)


async def _skip(request: Request, most: int) -> None:
    """Read on for a while: a client that is still sending would miss the response."""
    async for chunk in request.stream():
        most -= len(chunk)
        if most < 0:
            return


def _readable(found: Any) -> Any:
    """Return `found`, or refuse a photo that could not be read."""
    if isinstance(found, Failure):
        raise _refusal(found)
    return found


def _refusal(failure: Failure) -> RequestError:
    """The error for a photo that can't be read."""
    status = 413 if failure.code == "too_large" else 400
    return RequestError(status, f"{failure.code}: {failure.detail}")


def _number(request: Request, name: str, default: int, least: int, most: int) -> int:
    """An integer parameter of the query."""
    text = request.query_params.get(name, str(default))
    if not _DIGITS.fullmatch(text) or not least <= int(text) <= most:
        raise RequestError(400, f"{name} is not a number from {least} to {most}")
    return int(text)
