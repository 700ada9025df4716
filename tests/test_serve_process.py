"""The server as a process: sockets, signals, its own limits, a campaign of hostile requests."""

import json
import os
import random
import signal
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hostile_requests import (
    FORM,
    Hostile,
    exchange,
    form,
    hostile_bytes,
    hostile_requests,
    picture,
)
from small_server import server, small_run
from test_hostile_photos import WRITERS, damaged, memory_of_tree, photo

from tf_alexnet.cli import serve as serve_module

# pillow-heif's writer
pytestmark = pytest.mark.filterwarnings("ignore:Image.Image.getdata:DeprecationWarning")

HEADERS = {"Content-Type": FORM}
REFUSED = {*range(400, 500), 503, 504}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A RUN."""
    return small_run(tmp_path_factory.mktemp("runs") / "run").folder


@pytest.fixture(scope="module")
def served(folder):
    with server(folder) as (process, address):
        yield process, address


def is_healthy(address):
    response = httpx.get("http://{}:{}/healthz".format(*address), timeout=10)
    return response.status_code == 200


def test_hostile_bytes(served):
    process, address = served
    with ThreadPoolExecutor(8) as pool:
        table = {
            name: pool.submit(exchange, address, parts, patience=2.0)
            for name, parts in hostile_bytes().items()
        }
    found = {name: task.result() for name, task in table.items()}
    assert found.pop("pipelined") == [200] * 20
    assert found.pop("pipelined, then noise") == [200] * 3 + [400]
    assert found.pop("upgrade") == [200], "there are no web sockets"
    assert found.pop("header in lines") in ([200], [400])
    assert found.pop("expectation") == [413], "before anything is sent"
    for name, statuses in found.items():
        assert set(statuses) <= REFUSED, name
        assert len(statuses) <= 2, name
    assert is_healthy(address)
    assert process.poll() is None


def test_client_sees_why_its_photo_is_too_large(served):
    _, address = served
    url = "http://{}:{}/predict".format(*address)
    response = httpx.post(url, content=form(bytes(21 * 2**20)), headers=HEADERS, timeout=30)
    assert response.status_code == 413
    assert "20,971,520 bytes" in response.json()["error"]


def test_signal_lets_the_server_finish_what_has_begun(folder):
    token = "0123456789abcdef"
    bearer = {"Authorization": f"Bearer {token}", "Host": "alexnet.example"}
    environment = {"TF_ALEXNET_TOKEN": token}
    with server(folder, "--host", "0.0.0.0", environment=environment) as (process, (_, port)):
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/about").status_code == 401, "other machines need the token"
        assert httpx.get(f"{url}/about", headers=bearer).status_code == 200
        children = set(Path(f"/proc/{process.pid}/task").glob("*/children"))
        decoders = {x for path in children for x in path.read_text().split()}
        assert decoders
        body = form(*[picture(size=(300, 300), seed=i) for i in range(64)])
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(
                httpx.post, f"{url}/predict", content=body, headers={**HEADERS, **bearer},
                timeout=60,
            )  # fmt: skip
            while "images_waiting 64\n" not in httpx.get(f"{url}/metrics", headers=bearer).text:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            response = waiting.result()
            assert response.status_code == 200
            assert len(response.json()["photos"]) == 64
        assert process.wait(20) == 0
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), 1)
        assert not any(os.path.exists(f"/proc/{x}") for x in decoders)


@pytest.mark.slow
def test_head_of_a_request_must_come_in_time(served):
    _, address = served
    with socket.create_connection(address) as connection:
        connection.settimeout(80)
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        began = time.monotonic()
        assert connection.recv(100) == b"", "it is closed"
        assert 20 < time.monotonic() - began < 70


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--host", "0.0.0.0"], 2, "no token is set. Set --token or TF_ALEXNET_TOKEN"),
        (["--token", "short"], 2, "5 characters, fewer than 16"),
        (["--host", "256.1.1.1"], 4, "can't be used"),
        (["--index", "none.h5", "--port", "0"], 2, "none.h5: there is no such file"),
    ],
)
def test_wrong_calls_end_in_a_line(arguments, code, text, folder, run, monkeypatch):
    monkeypatch.delenv("TF_ALEXNET_TOKEN", raising=False)
    found, out, err = run("serve", folder, *arguments)
    assert (found, out) == (code, "")
    errors = [x for x in err.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1
    assert text in errors[0]


def test_port_that_is_taken(folder, run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run("serve", folder, "--port", taken.getsockname()[1])
    assert code == 4
    assert "Choose another --port" in err


def test_packages_that_are_missing(folder, run, monkeypatch):
    monkeypatch.setattr(serve_module.importlib.util, "find_spec", lambda _: None)
    code, _, err = run("serve", folder)
    assert code == 2
    assert "pip install 'tf-alexnet[serve]'" in err


def campaign(seed, count):
    """Hostile requests: (parts for a socket, seconds to wait, the statuses that are right)."""
    random_ = random.Random(seed)
    table = [x for x in hostile_requests() if x.name != "too large"]
    for number in range(count):
        kind = number % 10
        if kind < 4:
            hostile = random_.choice(table)
            yield [hostile.raw()], 40, REFUSED
        elif kind < 8:
            content = damaged(random_, photo(random_, *random_.choice(WRITERS)))
            hostile = Hostile("damaged", "/predict", form(content), HEADERS)
            yield [hostile.raw()], 40, REFUSED | {200}  # some survive
        elif number % 100 == 9:
            large = next(x for x in hostile_requests() if x.name == "too large")
            yield [large.raw()], 40, REFUSED
        else:
            yield random_.choice([*hostile_bytes().values()]), 1, REFUSED | {200}


@pytest.mark.slow
def test_thousand_hostile_requests(folder, example_photos):
    with server(folder) as (process, address):
        url = "http://{}:{}".format(*address)
        good = {"content": form(example_photos[0].read_bytes()), "headers": HEADERS}
        expected = httpx.post(f"{url}/predict", **good).json()
        ended, healths, answers, most = threading.Event(), [], [], 0

        def behave():
            with httpx.Client(base_url=url, timeout=60) as client:
                while not ended.is_set():
                    healths.append(client.get("/healthz").status_code)
                    answers.append(client.post("/predict", **good).json())

        def misbehave(task):
            parts, patience, right = task
            found = exchange(address, parts, patience=patience)
            assert set(found) <= right, found

        tasks = list(campaign(1, 1000))
        with ThreadPoolExecutor(10) as pool:
            well = [pool.submit(behave) for _ in range(2)]
            badly = [pool.submit(misbehave, task) for task in tasks]
            while not all(x.done() for x in badly):
                most = max(most, memory_of_tree(process.pid))
                time.sleep(0.2)
            ended.set()
            for task in (*badly, *well):
                task.result()
        assert process.poll() is None
        assert set(healths) == {200}
        assert len(answers) > 20
        assert all(answer == expected for answer in answers) or all(
            statistics.fmean(
                abs(a["probability"] - b["probability"])
                for a, b in zip(
                    answer["photos"][0]["predictions"],
                    expected["photos"][0]["predictions"],
                    strict=True,
                )
            )
            < 1e-6
            for answer in answers
        )
        assert most < 3_000_000, "kilobytes"
        text = httpx.get(f"{url}/metrics").text
        assert "tf_alexnet_images_waiting 0\n" in text
        assert json.dumps(text)
