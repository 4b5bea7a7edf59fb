"""A headless Chromium driven through its debugging pipe: real keys and clicks, what is on the screen, what the console says.

WebGL runs in software, so that no graphics card is needed.
"""

import base64
import contextlib
import io
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")


def chromium():
    found = next((i for i in ("chromium", "chromium-browser", "google-chrome", "chrome") if shutil.which(i)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return found


class Browser:
    """``with Browser(folder) as browser``: one page, 800 by 700 pixels, profile and log in ``folder``."""

    def __init__(self, folder, flags=WEBGL):
        (ours, its_out), (its_in, ours_out) = os.pipe(), os.pipe()

        def place():  # Chromium reads from 3 and writes to 4, whatever they are here
            first, second = os.dup(its_in), os.dup(its_out)
            os.dup2(first, 3)
            os.dup2(second, 4)

        common = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=800,700")
        argv = [chromium(), *common, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe", *flags, "about:blank"]
        with (folder / "chromium.log").open("w") as log:
            streams = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL}
            environment = {**os.environ, "HOME": str(folder)}
            self.process = subprocess.Popen(argv, preexec_fn=place, close_fds=False, env=environment, **streams)
        os.close(its_in)
        os.close(its_out)
        self._in, self._out, self._numbers, self._rest = ours, ours_out, itertools.count(1), b""
        self._session, self.events = {}, []
        page = next(i for i in self.call("Target.getTargets")["targetInfos"] if i["type"] == "page")
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            self.call("Browser.close", timeout=10)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method, timeout=240, **parameters):
        """One command of Chrome's DevTools protocol; its result. What else is told meanwhile is kept in ``events``."""
        number = next(self._numbers)
        os.write(self._out, json.dumps({"id": number, "method": method, "params": parameters, **self._session}).encode() + b"\0")
        while True:
            answer = self._read(timeout)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _read(self, timeout):
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], timeout)[0]:
                raise TimeoutError(f"Chromium has not answered for {timeout} seconds")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise EOFError("Chromium has ended")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, file):
        self.call("Page.navigate", url=Path(file).as_uri())
        self.wait("document.readyState === 'complete'")

    def js(self, expression):
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition, seconds=240):
        end = time.monotonic() + seconds
        while not self.js(f"Boolean({condition})"):
            assert time.monotonic() < end, f"after {seconds} seconds not true: {condition}; console: {self.complaints()}"
            time.sleep(0.1)

    def key(self, name):
        """Press a key where the focus is."""
        text = {"text": name} if len(name) == 1 else {}
        for kind, more in (("keyDown", text), ("keyUp", {})):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, **more)

    def click(self, selector):
        """A click into the middle of an element."""
        self.js(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'nearest'}})")
        x, y, width, height = self.box(selector)
        for kind in ("mousePressed", "mouseReleased"):
            place = {"x": x + width / 2, "y": y + height / 2}
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def box(self, selector):
        """Left, top, width and height of an element on the screen."""
        return self.js(
            f"(({{x, y, width, height}}) => [x, y, width, height])(document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect())"
        )

    def picture(self, selector):
        """What an element looks like, (rows, columns, 3)."""
        self.js(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'nearest'}})")
        # what was asked for is on the screen after two frames
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        left, top, width, height = (round(i) for i in self.box(selector))
        shot = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))[top : top + height, left : left + width]

    def complaints(self):
        """Everything the console has said, and exceptions that nobody caught."""
        said = [i["params"] for i in self.events if i.get("method", "").startswith(("Runtime.consoleAPI", "Log.", "Runtime.exc"))]
        return [json.dumps(i)[:500] for i in said]
