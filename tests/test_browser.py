"""The page in a browser, driven by Chromium's DevTools protocol."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from base64 import b64decode
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from small_server import CLASSES, Loop, server, small_run

import tf_alexnet as ta

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
PHONE, DESK = (390, 844), (1280, 900)
# Names of what a screen reader announces.
ANNOUNCED = {"button", "radio", "image", "textbox", "group", "alert", "heading"}


class Browser:
    """A page of a headless Chromium."""

    def __init__(self, folder):
        self._process = subprocess.Popen(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-dev-shm-usage", "--remote-debugging-port=0",
                "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
                f"--user-data-dir={folder}", "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        port = Path(folder, "DevToolsActivePort")
        until(lambda: port.exists() and port.read_text().count("\n"), "Chromium's port")
        self._loop = Loop()
        self._run = self._loop.run
        self.events, self._number = [], 0
        self._run(self._connect(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"))
        for domain in ("Page", "Network", "Runtime", "Log", "DOM", "Accessibility"):
            self.command(f"{domain}.enable")

    async def _connect(self, url):
        self._session = aiohttp.ClientSession()
        async with self._session.get(url) as response:
            pages = [x for x in await response.json() if x["type"] == "page"]
        address = pages[0]["webSocketDebuggerUrl"]
        self._socket = await self._session.ws_connect(address, max_msg_size=0)

    async def _ask(self, message):
        await self._socket.send_json(message)
        while True:
            found = json.loads((await self._socket.receive()).data)
            if found.get("id") == message["id"]:
                return found
            self.events.append(found)

    def command(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        found = self._run(self._ask(message))
        assert "error" not in found, found
        return found["result"]

    def value(self, script):
        """What an expression of JavaScript is."""
        found = self.command(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script, seconds=30):
        return until(lambda: self.value(script), script, seconds)

    def open(self, url, size=DESK, dark=False):
        """A new page; nothing of the one before is left."""
        width, height = size
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.command("Page.navigate", url=url)
        self.until(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")
        self.events.clear()
        self.command("Page.reload")
        self.until("document.readyState === 'complete'")

    def choose(self, *paths):
        """Choose files, as a person does in the dialog."""
        root = self.command("DOM.getDocument")["root"]["nodeId"]
        node = self.command("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.command("DOM.setFileInputFiles", files=list(map(str, paths)), nodeId=node)

    def text(self, selector):
        return self.value(f"document.querySelector({selector!r})?.textContent ?? ''")

    def picture(self, path):
        """Write a PNG of the whole page."""
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.command("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        Path(path).write_bytes(b64decode(found["data"]))

    def hosts(self):
        """Hosts of all requests since the page was opened."""
        self.value("1")  # what came meanwhile is read
        urls = [
            x["params"]["request"]["url"]
            for x in self.events
            if x["method"] == "Network.requestWillBeSent"
        ]
        return {url.split("/")[2] for url in urls if not url.startswith("blob:")}

    def complaints(self):
        """Errors of scripts and of the policy; refusals are told apart."""
        self.value("1")
        return [
            x
            for x in self.events
            if x["method"] == "Runtime.exceptionThrown"
            or (
                x["method"] == "Log.entryAdded"
                and x["params"]["entry"]["level"] == "error"
                and "responded with a status of" not in x["params"]["entry"]["text"]
            )
        ]

    def close(self):
        with contextlib.suppress(Exception):
            self.command("Browser.close")
        self._process.terminate()
        self._process.wait(20)
        self._run(self._session.close())
        self._loop.close()


def until(holds, what, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.05)
    raise AssertionError(f"never: {what}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def address(run, example_photos, tmp_path_factory):
    index = tmp_path_factory.mktemp("index") / "features.h5"
    folder = example_photos[0].parent
    ta.extract_features(folder, index, weights=run.arrays, layers="pool5", engine="openvino")
    with server(run.folder, "--index", index) as (_, (host, port)):
        yield f"{host}:{port}"


@pytest.fixture(scope="module")
def expected(run, example_photos):
    extractor = ta.FeatureExtractor(run.arrays, "prob", engine="openvino")
    return extractor.from_images(list(map(str, example_photos)))["prob"]


def save(browser, name):
    """Pictures to look at, where somebody asks for them."""
    if folder := os.environ.get("PAGE_PICTURES"):
        browser.picture(Path(folder, f"{name}.png"))


SHOWN = "!document.querySelector('#result').hidden"
HEAT_MAP = "document.querySelector('#caption').textContent.includes(' for ')"
MOSAIC = "document.querySelector('#mosaic').naturalWidth > 100"


def test_file_that_is_no_photo(browser, address, tmp_path, example_photos):
    browser.open(f"http://{address}/", PHONE)
    browser.until("document.querySelectorAll('#layers input').length === 8")
    broken = tmp_path / "broken <b>.jpg"
    broken.write_bytes(b"\xff\xd8\xff no photo")
    browser.choose(broken)
    browser.until("!document.querySelector('#error').hidden")
    assert re.match("broken <b>.jpg: (damaged|not_an_image): ", browser.text("#error"))
    assert browser.value(SHOWN) is False
    save(browser, "broken-390-light")
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes(21 * 2**20))
    browser.choose(large)
    browser.until("document.querySelector('#error').textContent.includes('larger than 20 MiB')")
    browser.choose(example_photos[0])  # and then a good one
    browser.until(SHOWN)
    assert browser.value("document.querySelector('#error').hidden")
    assert browser.hosts() == {address}
    assert browser.complaints() == []


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_photo_is_dropped_or_pasted(event, browser, address):
    browser.open(f"http://{address}/")
    browser.until("document.querySelectorAll('#layers input').length === 8")
    kinds = {"drop": ("DragEvent", "dataTransfer"), "paste": ("ClipboardEvent", "clipboardData")}
    kind, data = kinds[event]
    browser.value(
        f"""(async () => {{
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = 64;
        canvas.getContext("2d").fillRect(9, 9, 30, 20);
        const blob = await new Promise((done) => canvas.toBlob(done));
        const files = new DataTransfer();
        files.items.add(new File([blob], "drawn.png", {{ type: "image/png" }}));
        document.body.dispatchEvent(new {kind}("{event}", {{
          {data}: files, bubbles: true, cancelable: true }}));
        }})()"""
    )
    browser.until(SHOWN)
    assert browser.value("document.querySelector('#photo').alt").strip()
    assert browser.complaints() == []


def test_camera(browser, address):
    browser.open(f"http://{address}/")
    browser.until("document.querySelectorAll('#layers input').length === 8")
    browser.value("document.querySelector('#camera').click()")
    browser.until("document.querySelector('#video').videoWidth > 0")
    browser.value("document.querySelector('#shoot').click()")
    browser.until(SHOWN)
    assert browser.value("document.querySelector('#camera-dialog').open") is False
    assert browser.complaints() == []


def test_page_asks_for_the_token(run, browser):
    token = "0123456789 token"
    with server(run.folder, "--token", token) as (_, (host, port)):
        browser.open(f"http://{host}:{port}/", PHONE)
        browser.until("!document.querySelector('#token-form').hidden")
        assert browser.value("document.querySelector('#error').hidden")
        save(browser, "token-390-light")
        browser.value(
            "document.querySelector('#token').value = 'another one'; "
            "document.querySelector('#token-form').requestSubmit()"
        )
        browser.until("document.querySelector('#error').textContent === 'Wrong token.'")
        browser.value(
            f"document.querySelector('#token').value = {token!r}; "
            "document.querySelector('#token-form').requestSubmit()"
        )
        browser.until("document.querySelectorAll('#layers input').length === 8")
        assert browser.value("document.querySelector('#token-form').hidden")
        assert browser.value("document.querySelector('#similar').hidden")


# What follows waits for heat maps; TensorFlow has been loaded for them since the first photo.


@pytest.mark.parametrize(
    ("size", "dark"),
    [
        (PHONE, True),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in ((DESK, False), (DESK, True))),
    ],
)
def test_photo_is_explained(size, dark, browser, address, example_photos, expected):
    browser.open(f"http://{address}/", size, dark)
    browser.until("document.querySelectorAll('#layers input').length === 8")
    assert browser.text("#network") == "torchvision, run (a RUN of tf-alexnet train)"
    save(browser, f"empty-{size[0]}-{'dark' if dark else 'light'}")
    place = [path.name for path in example_photos].index("chelsea.jpg")
    photo, values = example_photos[place], expected[place]
    browser.choose(photo)
    browser.until(SHOWN)
    best = np.argsort(-values)[:5]
    bars = browser.value(
        "[...document.querySelectorAll('#bars button')].map(x => [x.textContent, "
        "x.querySelector('.bar').style.width, x.querySelector('.bar').offsetWidth])"
    )
    assert [text for text, _, _ in bars] == [f"{CLASSES[i]}{100 * values[i]:.1f} %" for i in best]
    widths = [width for _, _, width in bars]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 1.5 * widths[-1]
    assert browser.text("#status") == f"{CLASSES[best[0]]}, {100 * values[best[0]]:.1f} %"
    browser.until(HEAT_MAP, 150)
    assert browser.text("#caption").startswith(f"Grad-CAM for {CLASSES[best[0]]}, score ")
    browser.until("document.querySelector('#photo').naturalWidth === 451")
    browser.until(MOSAIC)
    assert "conv1: 64 channels of 55 by 55" in browser.text("#mosaic-caption")
    browser.until(
        "[...document.querySelectorAll('#neighbours img')].every(x => x.naturalWidth > 50)"
    )
    names = browser.value("[...document.querySelectorAll('#neighbours p')].map(x => x.textContent)")
    assert len(names) == min(8, len(example_photos))
    assert names[0] == f"1.000  {photo.name}"
    assert browser.value("document.documentElement.scrollWidth") <= size[0]
    save(browser, f"photo-{size[0]}-{'dark' if dark else 'light'}")
    assert browser.hosts() == {address}
    assert browser.complaints() == []


def test_methods_classes_and_layers_are_switched(browser, address, example_photos, expected):
    browser.open(f"http://{address}/")
    browser.until("document.querySelectorAll('#layers input').length === 8")
    browser.choose(example_photos[1])
    browser.until(HEAT_MAP, 150)
    second = np.argsort(-expected[1])[1]
    browser.value("document.querySelectorAll('#bars button')[1].click()")
    browser.until(f"document.querySelector('#caption').textContent.includes({CLASSES[second]!r})")
    pressed = "[...document.querySelectorAll('#bars button')].map(x => x.ariaPressed)"
    assert browser.value(pressed) == ["false", "true", "false", "false", "false"]
    browser.value("document.querySelector('#methods input[value=gradient]').click()")
    browser.until("document.querySelector('#caption').textContent.startsWith('Gradient for')")
    browser.value("document.querySelector('#methods input[value=\"\"]').click()")
    browser.until("document.querySelector('#caption').textContent === ''")
    browser.value("document.querySelector('#layers input[value=conv5]').click()")
    browser.until("document.querySelector('#mosaic-caption').textContent.startsWith('conv5: 256')")
    assert browser.complaints() == []


def test_keyboard_and_screen_reader(browser, address, example_photos):
    browser.open(f"http://{address}/")
    browser.until("document.querySelectorAll('#layers input').length === 8")
    browser.choose(example_photos[0])
    browser.until(HEAT_MAP, 150)
    browser.value("document.activeElement.blur()")
    seen = []
    for _ in range(12):
        for kind in ("keyDown", "keyUp"):
            browser.command("Input.dispatchKeyEvent", type=kind, key="Tab", windowsVirtualKeyCode=9)
        seen.append(
            browser.value("document.activeElement.id || document.activeElement.parentElement.id")
        )
        outline = browser.value(
            "getComputedStyle(document.activeElement.matches('input') ? "
            "document.activeElement.nextElementSibling : document.activeElement).outlineStyle"
        )
        if document_has_focus(seen[-1]):
            assert outline == "solid", f"no focus to be seen on {seen[-1]}"
    assert seen[:2] == ["file", "camera"]
    assert "methods-0" in seen
    assert "layers-0" in seen
    tree = browser.command("Accessibility.getFullAXTree")["nodes"]
    for node in tree:
        role = node.get("role", {}).get("value")
        if role in ANNOUNCED and not node.get("ignored"):
            assert role == "alert" or node.get("name", {}).get("value", "").strip(), node
    headings = [x["name"]["value"] for x in tree if x.get("role", {}).get("value") == "heading"]
    assert headings[0] == "AlexNet"
    assert {"Classes", "Activations", "Most similar photos", "Network"} <= set(headings)


def document_has_focus(name):
    return bool(name) and name != "BODY"
