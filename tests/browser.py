"""Headless Chromium, driven through a pipe by the DevTools protocol; one for all pages."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1200,1000"),
    *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-pipe"),
)
COMPLAINTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


class Browser:
    """events: what has happened on the page since it was opened."""

    def __init__(self, profile: Path) -> None:
        (theirs, self.commands), (self.answers, answers) = os.pipe(), os.pipe()
        self.buffer, self.count, self.events = b"", 0, list[dict[str, Any]]()

        def connect() -> None:  # Chromium reads from 3 and writes to 4
            for source, number in ((os.dup(theirs), 3), (os.dup(answers), 4)):
                os.dup2(source, number)

        assert CHROMIUM is not None
        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            close_fds=False,
            preexec_fn=connect,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answers)
        self.session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params, **self.session}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                data = os.read(self.answers, 1 << 20)
                assert data, "Chromium ended"
                self.buffer += data
            one, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(one)
            if answer.get("id") == self.count:
                return answer.get("result", {})
            self.events.append(answer)

    def run(self, script: str) -> Any:
        """The value of an expression on the page, once it is there."""
        options = {"returnByValue": True, "awaitPromise": True}
        done = self.call("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in done, done
        return done.get("result", {}).get("value")

    def wait(self, script: str, seconds: float = 180) -> Any:
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, script
            time.sleep(0.1)
        return value

    def open(self, url: str) -> None:
        self.call("Page.navigate", url="about:blank")
        self.wait("document.readyState == 'complete'")
        self.events.clear()  # of the page before, down to what it said as it was left
        self.call("Page.navigate", url=url)
        self.wait("document.readyState == 'complete'")

    def upload(self, selector: str, path: str) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[path])

    def complaints(self) -> list[dict[str, Any]]:
        """What was logged to the console, or thrown."""
        return [event for event in self.events if event["method"] in COMPLAINTS]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.call("Browser.close")
    browser.process.wait(30)
