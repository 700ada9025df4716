"""The endpoints: what they answer is the library's own, and what they refuse costs nothing else."""

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import shutil
import threading
import time
from dataclasses import replace

import httpx
import numpy as np
import pytest
import reference
import unreliable
from hostile_requests import FORM, KSERVE, TENSORFLOW, form, hostile_requests, picture
from PIL import Image
from small_server import CLASSES, Loop, small_run

import tf_alexnet as ta
from tf_alexnet.errors import UsageError
from tf_alexnet.extraction.formats import open_output
from tf_alexnet.serve import Limits, Service, batching, create_app
from tf_alexnet.serve import heatmaps as heatmaps_module
from tf_alexnet.serve.batching import SIZE, Batcher
from tf_alexnet.serve.limits import RequestError
from tf_alexnet.visualize import mosaic

HEADERS = {"Content-Type": FORM}


class Client(Loop):
    """Requests to applications that share an event loop, as connections to a server do."""

    def ask(self, app, path, method="GET", url="http://localhost", **arguments):
        async def request():
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=url, timeout=100) as client:
                return await client.request(method, path, **arguments)

        return self.run(request())

    def together(self, app, requests):
        """Responses of (method, path, arguments) that are sent at once."""

        async def all_of_them():
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=100
            ) as client:
                return await asyncio.gather(
                    *(client.request(method, path, **more) for method, path, more in requests)
                )

        return self.run(all_of_them())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def photos(example_photos):
    return [path.read_bytes() for path in example_photos]


@pytest.fixture(scope="module")
def index(run, example_photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "features.h5"
    folder = example_photos[0].parent
    ta.extract_features(folder, path, weights=run.arrays, layers="pool5", engine="openvino")
    return path


@pytest.fixture(scope="module")
def service(run, index, photos):
    service = Service(run, index=index, engine="openvino", workers=2)
    service.start()

    def load():
        """TensorFlow is loaded for heat maps while other tests run."""
        with contextlib.suppress(RequestError):
            service._heatmaps.draw(photos[CHELSEA], "gradcam", None, 100)

    threading.Thread(target=load).start()
    yield service
    service.close()


@pytest.fixture(scope="module")
def client():
    client = Client()
    yield client
    client.close()


@pytest.fixture(scope="module")
def app(service):
    return create_app(service)


@pytest.fixture(scope="module")
def expected(run, example_photos):
    """What the library says of the example photos: prob and pool5."""
    extractor = ta.FeatureExtractor(run.arrays, ("prob", "pool5"), engine="openvino")
    return extractor.from_images(list(map(str, example_photos)))


@pytest.fixture
def ask(client, app):
    def ask(path, method="GET", **arguments):
        return client.ask(app, path, method, **arguments)

    return ask


CHELSEA = 1  # of the photos, in the order of their names


def content_of(response, status=200):
    assert response.status_code == status, response.text
    return response.json()


def probabilities(row):
    """Of a row of predictions, in the order of the classes."""
    assert {x["label"] for x in row} == set(CLASSES)
    return np.array([x["probability"] for x in sorted(row, key=lambda x: x["index"])])


def test_predict_gives_the_library_s_answers(ask, photos, expected, example_photos):
    files = [(path.name, photo) for path, photo in zip(example_photos, photos, strict=True)]
    response = ask("/predict?top=6&features=1", "POST", content=form(*files), headers=HEADERS)
    rows = content_of(response)["photos"]
    assert [row["name"] for row in rows] == [path.name for path in example_photos]
    features = np.array([row["pool5"] for row in rows])
    assert reference.relative_error(features, expected["pool5"].reshape(len(rows), -1)) < 1e-5
    found = np.array([probabilities(row["predictions"]) for row in rows])
    assert reference.relative_error(found, expected["prob"]) < 1e-5
    for row in rows:
        values = [x["probability"] for x in row["predictions"]]
        assert values == sorted(values, reverse=True)
        assert all(CLASSES[x["index"]] == x["label"] for x in row["predictions"])
    # The classifier once more, in float64.
    kernel, bias = small_head()
    assert reference.relative_error(found, reference.softmax(features @ kernel + bias)) < 1e-5


def small_head():
    from small_server import small_arrays

    kernel, bias = small_arrays().layers["fc8"]
    return kernel.astype(np.float64), bias.astype(np.float64)


def test_predict_names_the_photo_that_is_broken(ask, photos):
    body = form(("good.jpg", photos[0]), ("bad.jpg", b"no photo"), fields=[("note", "x")])
    rows = content_of(ask("/predict?top=2", "POST", content=body, headers=HEADERS))["photos"]
    assert [row["name"] for row in rows] == ["good.jpg", "bad.jpg"]
    assert len(rows[0]["predictions"]) == 2
    assert rows[1]["error"].startswith("not_an_image: ")
    alone = ask("/predict", "POST", content=form(b"no photo"), headers=HEADERS)
    assert content_of(alone, 400)["error"].startswith("not_an_image: ")


def b64(photo):
    return base64.b64encode(photo).decode()


def test_tensorflow_serving_by_row_and_column(ask, photos, expected):
    instances = [{"image_bytes": {"b64": b64(photo)}} for photo in photos[:3]]
    rows = content_of(ask(TENSORFLOW, "POST", json={"instances": instances}))["predictions"]
    assert [set(row) for row in rows] == [
        {"classes", "synsets", "probabilities", "pool5", "status"}
    ] * 3
    order = np.argsort(-expected["prob"][:3], axis=1)[:, :5]
    for row, best, values in zip(rows, order, expected["prob"], strict=False):
        assert row["classes"] == [CLASSES[i] for i in best]
        assert row["synsets"] == [""] * 5
        assert row["probabilities"] == pytest.approx(values[best].tolist(), rel=1e-4)
    pool5 = np.array([row["pool5"] for row in rows])
    assert reference.relative_error(pool5, expected["pool5"][:3]) < 1e-5
    assert [row["status"] for row in rows] == ["ok"] * 3
    short = [{"b64": b64(photo)} for photo in photos[:3]]
    for inputs in (short, {"image_bytes": short}):
        request = {"signature_name": "serving_default", "inputs": inputs}
        path = "/v1/models/alexnet/versions/1:predict"
        columns = content_of(ask(path, "POST", json=request))["outputs"]
        assert columns["classes"] == [row["classes"] for row in rows]
        assert np.allclose(columns["pool5"], pool5, rtol=1e-4, atol=1e-4)


def test_broken_photo_fails_alone(ask, photos):
    instances = [{"b64": b64(x)} for x in (photos[0], b"no photo")]
    good, bad = content_of(ask(TENSORFLOW, "POST", json={"instances": instances}))["predictions"]
    assert (good["status"], bad["status"]) == ("ok", "not_an_image")
    assert bad["classes"] == [""] * 5
    assert not np.any(bad["pool5"])
    assert np.shape(bad["pool5"]) == np.shape(good["pool5"])


def test_tensorflow_serving_says_what_it_serves(ask):
    state = content_of(ask("/v1/models/alexnet"))["model_version_status"][0]
    assert (state["version"], state["state"]) == ("1", "AVAILABLE")
    found = content_of(ask("/v1/models/alexnet/metadata"))
    assert found["model_spec"]["name"] == "alexnet"
    signature = found["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["image_bytes"]["dtype"] == "DT_STRING"
    dims = {
        name: [int(dim["size"]) for dim in output["tensor_shape"]["dim"]]
        for name, output in signature["outputs"].items()
    }
    assert dims == {
        "classes": [-1, 5], "synsets": [-1, 5], "probabilities": [-1, 5],
        "pool5": [-1, 6, 6, 256], "status": [-1],
    }  # fmt: skip


def kserve(photos, **more):
    tensor = {"name": "image_bytes", "datatype": "BYTES", "shape": [len(photos)]}
    return {"id": "42", "inputs": [{**tensor, "data": [b64(photo) for photo in photos]}], **more}


def test_kserve_in_json_and_with_binary_data(ask, photos, expected):
    found = content_of(ask(KSERVE, "POST", json=kserve(photos[:2])))
    assert (found["model_name"], found["model_version"], found["id"]) == ("alexnet", "1", "42")
    outputs = {x["name"]: x for x in found["outputs"]}
    assert [outputs["pool5"][x] for x in ("datatype", "shape")] == ["FP32", [2, 6, 6, 256]]
    pool5 = np.array(outputs["pool5"]["data"]).reshape(2, -1)
    assert reference.relative_error(pool5, expected["pool5"][:2].reshape(2, -1)) < 1e-5
    assert outputs["classes"]["shape"] == [2, 5]
    assert outputs["classes"]["datatype"] == "BYTES"

    wanted = {"outputs": [{"name": "probabilities"}]}
    request = kserve(photos[:2], **wanted)
    request["inputs"][0].pop("data")
    head = json.dumps(request).encode()
    body = head + b"".join(len(x).to_bytes(4, "little") + x for x in photos[:2])
    headers = {"Inference-Header-Content-Length": str(len(head))}
    again = content_of(ask(KSERVE, "POST", content=body, headers=headers))["outputs"]
    assert [x["name"] for x in again] == ["probabilities"]
    assert again[0]["data"] == pytest.approx(outputs["probabilities"]["data"], rel=1e-4)


def test_kserve_says_what_it_serves(ask):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/alexnet/ready", "/healthz"):
        content_of(ask(path))
    assert content_of(ask("/v2"))["extensions"] == ["binary_tensor_data"]
    found = content_of(ask("/v2/models/alexnet"))
    assert found["inputs"] == [{"name": "image_bytes", "datatype": "BYTES", "shape": [-1]}]
    assert {x["name"]: x["shape"] for x in found["outputs"]}["pool5"] == [-1, 6, 6, 256]


def test_neighbours_are_the_nearest_rows(ask, photos, expected, example_photos):
    body = form(photos[1])
    response = ask("/predict?neighbours=4", "POST", content=body, headers=HEADERS)
    found = content_of(response)["photos"][0]["neighbours"]
    rows = expected["pool5"].reshape(len(photos), -1).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = rows @ rows[1]
    order = np.argsort(-similarity)[:4]
    assert order[0] == 1, "itself"
    assert [x["name"] for x in found] == [example_photos[i].name for i in order]
    assert [x["similarity"] for x in found] == pytest.approx(similarity[order].tolist(), abs=1e-5)
    response = ask(f"/photos/{found[0]['row']}")
    assert response.headers["content-type"] == "image/jpeg"
    shown = pixels(response.content)
    whole = Image.open(example_photos[1]).convert("RGB")
    theirs = np.asarray(whole.resize(shown.shape[1::-1], Image.Resampling.BOX), np.float64)
    assert max(shown.shape) == 224
    assert np.abs(shown - theirs).mean() < 6, "of 255: JPEG, and another filter"


def test_index_of_other_weights_is_refused(index, tmp_path):
    with pytest.raises(UsageError, match="its weights_digest is sha256:"):
        Service("random:1", architecture="compact", index=index, engine="openvino")
    for name, reason in (
        ("none.h5", "there is no such file"),
        ("bad.h5", "it can't be read as features"),
    ):
        (tmp_path / "bad.h5").write_bytes(b"no features")
        with pytest.raises(UsageError, match=reason):
            Service("torchvision-convs", index=tmp_path / name)


def test_index_of_the_weights_that_a_head_was_trained_on(run, example_photos, tmp_path):
    path = tmp_path / "features.h5"
    settings = {"weights": "torchvision-convs", "layers": "pool5", "engine": "openvino"}
    ta.extract_features(str(example_photos[0]), path, **settings)
    based = replace(run, record=replace(run.record, base=base_of(path)))
    Service(based, index=path, engine="openvino", workers=1).close()
    for other in (run, replace(based, record=replace(based.record, mode="finetune"))):
        with pytest.raises(UsageError, match="its weights_digest"):
            Service(other, index=path, engine="openvino", workers=1)


def base_of(path):
    with open_output(path) as output:
        return {"digest": output.attributes["weights_digest"]}


def test_activations_are_the_mosaic_of_the_layer(ask, run, photos, example_photos):
    extractor = ta.FeatureExtractor(run.arrays, ["conv1", "pool5"], engine="openvino")
    blobs = extractor.from_images([str(example_photos[0])])
    for layer in ("conv1", "pool5"):
        body = form(photos[0], fields=[("layer", layer)])
        response = ask("/activations", "POST", content=body, headers=HEADERS)
        facts = json.loads(response.headers["X-Activations"])
        blob = blobs[layer][0]
        assert facts["shape"] == list(blob.shape)
        assert facts["largest"] == pytest.approx(float(blob.max()), rel=1e-5)
        assert facts["above_zero"] == pytest.approx(float((blob > 0).mean()), abs=1e-5)
        shown = pixels(response.content)
        assert shown.shape == mosaic(blob).shape
        assert np.abs(shown - mosaic(blob)).mean() < 6, "of 255: it is a JPEG"


def test_process_that_draws_heat_maps_may_fail(monkeypatch):
    monkeypatch.setattr(heatmaps_module, "_main", unreliable.main)
    monkeypatch.setenv("UNRELIABLE_START", "2")
    drawn = heatmaps_module.HeatMaps("torchvision-convs", None)
    try:
        with pytest.raises(RequestError, match="being loaded; try again"):
            drawn.draw(b"", "answer", None, 0.5)
        monkeypatch.setenv("UNRELIABLE_START", "0")
        for method, status in (("die", 503), ("hang", 504)):
            assert drawn.draw(b"", "answer", None, 60).picture == b"picture"
            with pytest.raises(RequestError) as refused:
                drawn.draw(b"", method, None, 1 if status == 504 else 60)
            assert refused.value.status == status
        assert drawn.draw(b"", "answer", None, 60).facts == {"class": 1}
    finally:
        drawn.close()
    assert drawn._process.join(10) is None
    assert not drawn._process.is_alive()


def test_forty_clients_get_their_own_answers(client, app, service, monkeypatch):
    monkeypatch.setattr(batching, "LONGEST", 60.0)  # also where decoders are slow
    pictures = [picture(seed=seed, size=(40 + seed % 7, 50)) for seed in range(40)]
    before = sum_of_batches(service)
    arguments = [{"content": form(x), "headers": HEADERS} for x in pictures]
    requests = [("POST", "/predict?top=6", more) for more in arguments]
    rows = [content_of(x)["photos"][0] for x in client.together(app, requests)]
    found = np.array([probabilities(row["predictions"]) for row in rows])
    theirs = service.extractor.from_images(pictures)["prob"]
    assert reference.relative_error(found, theirs) < 1e-5
    distances = np.abs(found[:, None] - theirs).max(axis=2)
    assert distances.argmin(axis=1).tolist() == list(range(40)), "each its own"
    distances[np.diag_indices(40)] = 1
    assert distances.min() > 1e-5, "which could be told"
    assert sum_of_batches(service) - before < 20, "they went through the network together"


def sum_of_batches(service):
    text = service.counters.text({}, {})
    return int(text.split("tf_alexnet_batch_size_count ")[1].split()[0])


def test_hostile_requests_are_refused_in_a_line(ask):
    wrong, table = [], hostile_requests()
    assert len(table) > 80
    for x in table:
        headers = {"Content-Length": str(len(x.body)), **x.headers}
        response = ask(x.path, x.method, content=x.body, headers=headers)
        error = response.json().get("error", "")
        told = error.strip() and "\n" not in error and "Traceback" not in error
        if response.status_code not in x.status or not told or len(error) > 1200:
            wrong.append((x.name, response.status_code, error))
    assert wrong == []
    assert ask("/healthz").status_code == 200


def test_urlsafe_base64_is_called_so(ask):
    text = base64.urlsafe_b64encode(b"\xfb\xef\xff" * 4).decode()
    response = ask(TENSORFLOW, "POST", json={"instances": [{"b64": text}]})
    assert "URL-safe base64; send standard base64" in content_of(response, 400)["error"]


def test_room_is_limited_and_given_back(client, service):
    limits = Limits(waiting=4, buffered=10_000, body=5_000, images=3)
    app = create_app(service, limits=limits)
    post = {"method": "POST", "headers": HEADERS}
    found = client.ask(app, "/predict", content=form(*[b"x"] * 4), **post)
    assert "more than 3 images" in content_of(found, 413)["error"]
    found = client.ask(app, "/predict", content=form(b"x" * 6000), **post)
    assert "more than 5,000 bytes" in content_of(found, 413)["error"]

    async def endless():
        for _ in range(40):
            yield b"x" * 1000

    found = client.ask(app, "/predict", content=endless(), **post)
    content_of(found, 413)
    small = form(picture(size=(8, 8)), picture(size=(8, 8)))
    requests = [("POST", "/predict", {"content": small, "headers": HEADERS})] * 12
    statuses = [response.status_code for response in client.together(app, requests)]
    assert {*statuses} == {200, 503}
    refused = [x for x in client.together(app, requests) if x.status_code == 503]
    assert all(x.headers["Retry-After"] == "1" for x in refused)
    assert "try again" in refused[0].json()["error"]
    content_of(client.ask(app, "/predict", content=small, **post))
    gauges = client.ask(app, "/metrics").text
    assert "tf_alexnet_images_waiting 0\n" in gauges
    assert "tf_alexnet_bytes_buffered 0\n" in gauges


def test_large_picture_is_refused(ask):
    file = io.BytesIO()
    Image.new("1", (10_000, 5_001)).save(file, "PNG")
    response = ask("/predict", "POST", content=form(file.getvalue()), headers=HEADERS)
    assert "too_large: it has 10000x5001 pixels" in content_of(response, 413)["error"]


def test_slow_requests_are_ended(client, service, monkeypatch):
    app = create_app(service, limits=Limits(seconds=0.5))

    async def slow():
        yield b"--X"
        await asyncio.sleep(5)

    found = client.ask(app, "/predict", "POST", content=slow(), headers=HEADERS)
    assert "no complete body within 0.5 seconds" in content_of(found, 408)["error"]

    async def never(_):
        await asyncio.sleep(60)

    monkeypatch.setattr(service, "answers", never)
    found = client.ask(app, "/predict", "POST", content=form(b"x"), headers=HEADERS)
    assert "no answer within 0.5 seconds" in content_of(found, 504)["error"]
    assert "tf_alexnet_images_waiting 0\n" in client.ask(app, "/metrics").text


def test_fault_of_ours_tells_nothing_of_itself(client, app, service, monkeypatch):
    async def broken(_):
        raise RuntimeError("a secret")

    monkeypatch.setattr(service, "answers", broken)
    found = client.ask(app, "/predict", "POST", content=form(b"x"), headers=HEADERS)
    assert content_of(found, 500) == {"error": "internal error"}


@pytest.mark.parametrize(
    ("url", "headers", "status"),
    [
        ("http://localhost:8000", {}, 200),
        ("http://127.0.0.1:8000", {}, 200),
        ("http://[::1]:8000", {}, 200),
        ("http://LOCALHOST", {}, 200),
        ("http://evil.example", {}, 403),
        ("http://localhost.evil.example", {}, 403),
        ("http://localhost:8000", {"Host": "evil.example:8000"}, 403),
        ("http://localhost:8000", {"Host": "[::"}, 403),
        ("http://localhost:8000", {"Host": ""}, 403),
        ("http://localhost:8000", {"Origin": "http://localhost:8000"}, 200),
        ("http://localhost:8000", {"Origin": "http://localhost:9000"}, 403),
        ("http://localhost:8000", {"Origin": "null"}, 403),
    ],
)
def test_other_names_and_sites_are_refused(url, headers, status, client, app):
    response = client.ask(app, "/about", url=url, headers=headers)
    assert response.status_code == status


def test_token(client, service):
    token = "a long and ünusual token"
    app = create_app(service, token=token, hosts=None)
    body = form(b"x")
    bearer = {"Authorization": f"Bearer {token}".encode()}
    for headers, status in (
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": f"Basic {token}".encode()}, 401),
        ({"Authorization": b"Bearer \xff\xfe"}, 401),
        (bearer, 400),
    ):
        found = client.ask(
            app, "/predict", "POST", content=body, headers={**HEADERS, **headers},
            url="http://other.example",
        )  # fmt: skip
        assert found.status_code == status
        if status == 401:
            assert found.headers["WWW-Authenticate"] == "Bearer"
    for path, status in (
        *((x, 200) for x in ("/", "/app.js", "/style.css", "/icon.svg", "/healthz")),
        *((x, 401) for x in ("/about", "/metrics", "/photos/0", "/v1/models/alexnet", "/x")),
    ):
        assert client.ask(app, path).status_code == status, path
    assert client.ask(app, "/about", headers=bearer).status_code == 200


def test_page_is_ours_alone(ask):
    for path in ("/", "/app.js", "/style.css", "/icon.svg"):
        response = ask(path)
        assert response.status_code == 200
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        text = response.text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text.replace("of https;", "")
        assert "style=" not in text
        assert "innerHTML" not in text
    html = ask("/").text
    assert html.count("<script") == html.count("<script src=") == 1
    assert "<style" not in html
    assert not re.search(r"\son\w+=", html)


def test_about_says_what_is_served(ask, run, service):
    found = content_of(ask("/about"))
    assert found["weights_digest"] == run.arrays.digest
    assert found["preset"] == "torchvision"
    assert (found["classes"], found["run"], found["untrained"]) == (6, True, False)
    assert found["layers"] == [
        *("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
    ]
    assert found["index"] == {"photos": len(service.index), "layer": "pool5"}
    assert found["limits"] == {"body": 20 * 2**20, "images": 64, "pixels": 50_000_000}
    assert os.sep not in found["weights"], "no path of the server's"


def test_metrics(ask, photos):
    ask("/predict", "POST", content=form(photos[0], b"?"), headers=HEADERS)
    response = ask("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {}
    for line in response.text.splitlines():
        assert line.startswith(("# HELP tf_alexnet_", "# TYPE tf_alexnet_", "tf_alexnet_")), line
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    assert values['tf_alexnet_requests_total{endpoint="predict",status="200"}'] >= 1
    assert values['tf_alexnet_photos_total{result="not_an_image"}'] >= 1
    assert values['tf_alexnet_photos_total{result="ok"}'] >= 1
    for name in ("request_seconds", "batch_size"):
        label = 'endpoint="predict",' if name == "request_seconds" else ""
        counts = [
            value
            for key, value in values.items()
            if key.startswith(f"tf_alexnet_{name}_bucket{{{label}le=")
        ]
        assert counts == sorted(counts)
        suffix = f"{{{label[:-1]}}}" if label else ""
        assert counts[-1] == values[f"tf_alexnet_{name}_count{suffix}"] > 0


def test_weights_without_classes(client, photos):
    service = Service("torchvision-convs", engine="openvino", workers=1)
    try:
        service.start()
        app = create_app(service)
        assert content_of(client.ask(app, "/about"))["classes"] is None
        post = {"method": "POST", "content": form(photos[0]), "headers": HEADERS}
        found = content_of(client.ask(app, "/predict?features=1", **post))["photos"][0]
        assert found["predictions"] == []
        assert len(found["pool5"]) == 9216
        instances = {"instances": [{"b64": b64(photos[0])}]}
        found = content_of(client.ask(app, TENSORFLOW, "POST", json=instances))
        assert found["predictions"][0].keys() == {"pool5", "status"}
    finally:
        service.close()


@pytest.mark.parametrize("kind", ["Run", pytest.param("folder", marks=pytest.mark.slow), "weights"])
def test_classes_of_a_multi_label_run(client, run, photos, expected, tmp_path, kind):
    several = replace(run, record=replace(run.record, multi_label=True))
    if kind != "Run":
        shutil.copytree(run.folder, tmp_path / "RUN")
        record = tmp_path / "RUN" / "run.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "multi_label": True}))
        several = record.parent if kind == "folder" else record.parent / "weights.safetensors"
    service = Service(several, engine="openvino", workers=1)
    try:
        service.start()
        app = create_app(service)
        assert content_of(client.ask(app, "/about"))["multi_label"] is True
        post = {"method": "POST", "content": form(photos[0]), "headers": HEADERS}
        row = content_of(client.ask(app, "/predict?top=6", **post))["photos"][0]["predictions"]
        kernel, bias = small_head()
        logits = expected["pool5"][0].ravel().astype(np.float64) @ kernel + bias
        assert probabilities(row) == pytest.approx(1 / (1 + np.exp(-logits)), rel=1e-4)
        instances = {"instances": [{"b64": b64(photos[0])}]}
        found = content_of(client.ask(app, TENSORFLOW, "POST", json=instances))["predictions"][0]
        best = sorted(1 / (1 + np.exp(-logits)), reverse=True)[:5]
        assert found["probabilities"] == pytest.approx(best, rel=1e-4)
    finally:
        service.close()


def test_layer_that_is_answered():
    for weights, architecture, layer in (("random:1", "compact", "fc7"),):
        service = Service(weights, architecture=architecture, engine="openvino", workers=1)
        assert (service.layer, service.shape, service.classes) == (layer, (2048,), 1000)
        assert service.facts()["untrained"] is True
        service.close()


def test_batches(client):
    sizes = []

    def compute(batch):
        if batch[0, 0, 0, 0] == 13:
            raise ValueError("unlucky")
        time.sleep(0.02)
        return [float(x) for x in batch[:, 0, 0, 0]]

    async def work():
        batcher = Batcher(compute, sizes.append)
        pixels = [np.full((1, 1, 3), i, np.float32) for i in range(100)]
        tasks = [asyncio.ensure_future(batcher.compute(x)) for x in pixels]
        await asyncio.sleep(0)
        tasks[40].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        alone = await asyncio.gather(batcher.compute(pixels[13]), return_exceptions=True)
        after = await batcher.compute(pixels[7])
        batcher.close()
        return found, alone, after

    found, alone, after = client.run(work())
    assert isinstance(found.pop(40), asyncio.CancelledError)
    assert found == [float(i) for i in range(100) if i != 40]
    assert sizes[:4] == [SIZE, SIZE - 1, SIZE, 4]
    assert isinstance(alone[0], ValueError)
    assert after == 7.0


def test_client_that_goes_away_is_no_fault(client, app):
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/predict",
        "raw_path": b"/predict", "query_string": b"", "root_path": "", "scheme": "http",
        "headers": [(b"host", b"localhost"), (b"content-type", FORM.encode())],
    }  # fmt: skip
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    with contextlib.suppress(OSError):
        client.run(app(scope, receive, send))
    assert sent[0]["status"] == 400


def test_heat_maps(ask, photos, expected, example_photos):
    photo = ta.load_image(example_photos[CHELSEA])
    kernel, bias = small_head()
    logits = expected["pool5"][CHELSEA].ravel().astype(np.float64) @ kernel + bias
    pictures = []
    for more in ([], [("method", "gradient"), ("class", "3")], [("class", "3")]):
        body = form(photos[CHELSEA], fields=more)
        response = patient(ask, "/saliency", "POST", content=body, headers=HEADERS)
        assert response.status_code == 200, response.text
        facts = json.loads(response.headers["X-Heat-Map"])
        assert facts["method"] == dict(more).get("method", "gradcam")
        assert facts["class"] == int(dict(more).get("class", logits.argmax()))
        assert facts["label"] == CLASSES[facts["class"]]
        assert facts["score"] == pytest.approx(logits[facts["class"]], rel=1e-4)
        pictures.append(pixels(response.content))
        assert pictures[-1].shape == photo.shape
        assert np.abs(pictures[-1] - photo).mean() > 12, "it is not the photo alone"
        grey, shown = (x.mean(axis=2).ravel() for x in (photo, pictures[-1]))
        assert np.corrcoef(grey, shown)[0, 1] > 0.5, "the photo is below"
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(pictures[a] - pictures[b]).mean() > 5
    body = form(photos[CHELSEA], fields=[("class", str(len(CLASSES)))])
    response = ask("/saliency", "POST", content=body, headers=HEADERS)
    assert "the network has 6 classes" in content_of(response, 400)["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["gradcam", "gradient", "smoothgrad", "integrated", "occlusion", "guided"]
)
def test_heat_maps_are_the_library_s(method, ask, run, photos, example_photos):
    from tf_alexnet.visualize import overlay, saliency_map

    photo = ta.load_image(example_photos[CHELSEA])
    body = form(photos[CHELSEA], fields=[("method", method)])
    response = patient(ask, "/saliency", "POST", content=body, headers=HEADERS)
    assert response.status_code == 200, response.text
    theirs = overlay(photo, saliency_map(run.arrays, photo, method))
    assert np.abs(pixels(response.content) - theirs).mean() < 4, "of 255: it is a JPEG"


def patient(ask, *arguments, **more):
    """Ask again while TensorFlow is loaded."""
    for _ in range(20):
        response = ask(*arguments, **more)
        if response.status_code != 503:
            break
    return response


def pixels(content):
    """A picture as numbers."""
    return np.asarray(Image.open(io.BytesIO(content)), np.float64)
