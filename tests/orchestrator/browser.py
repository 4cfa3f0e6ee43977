"""A real Chromium without a window, driven through its DevTools protocol. Knows no page."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-port=0"
).split()


class Page:
    """One page: `open`, `run` JavaScript in it, press keys, move the mouse, take pictures."""

    def __init__(self, folder: Path) -> None:
        """folder: a new one, for the browser's own files."""
        command = [CHROMIUM, *QUIET, f"--user-data-dir={folder}", "--window-size=1200,1000", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self.requests: list[str] = []
        """Addresses that the page asked for."""
        self.errors: list[str] = []
        """What the page threw, or the browser refused."""
        try:
            self._loop.run_until_complete(self._connect(folder / "DevToolsActivePort"))
        except BaseException:
            self.close()
            raise

    async def _connect(self, file: Path) -> None:
        end = time.monotonic() + 60
        while not (file.exists() and file.read_text().strip()):
            if time.monotonic() > end or self._process.poll() is not None:
                raise TimeoutError("Chromium did not start")
            await asyncio.sleep(0.05)
        port = file.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            target = next(page for page in await answer.json() if page["type"] == "page")
        self._socket = await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self._ask(f"{domain}.enable")

    async def _ask(self, method: str, until: str | None = None, **parameters) -> dict[str, Any]:
        """Sends a command; waits for its answer, and for the event `until`."""
        self._number += 1
        number, result = self._number, None
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(60):
            while result is None or until:
                message = await self._socket.receive_json()
                event = message.get("method")
                if message.get("id") == number:
                    if "error" in message:
                        raise RuntimeError(message["error"]["message"])
                    result = message["result"]
                elif event == "Network.requestWillBeSent":
                    self.requests.append(message["params"]["request"]["url"])
                elif event == "Runtime.exceptionThrown":
                    self.errors.append(message["params"]["exceptionDetails"]["text"])
                elif event == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                    self.errors.append(message["params"]["entry"]["text"])
                if event == until:
                    until = None
        return result

    def ask(self, method: str, until: str | None = None, **parameters) -> dict[str, Any]:
        return self._loop.run_until_complete(self._ask(method, until, **parameters))

    def open(self, url: str) -> None:
        self.ask("Page.navigate", "Page.loadEventFired", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def until(self, script: str, text: str, patience: float = 120.0) -> str:
        """Waits until the text that a JavaScript expression gives contains `text`; returns it. Raises TimeoutError."""
        end = time.monotonic() + patience
        while text not in (found := self.run(script)):
            if time.monotonic() > end:
                raise TimeoutError(f"{text!r} did not appear: {found}")
            time.sleep(0.2)
        return found

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_CODES[key])

    def point(self, script: str) -> None:
        """Moves the mouse to the middle of the element that a JavaScript expression gives."""
        box = self.run(
            f"(() => {{ const b = ({script}).getClientRects()[0]; return [b.x, b.y, b.width, b.height] }})()"
        )
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + box[2] / 2, y=box[1] + box[3] / 2)

    def scheme(self, name: str) -> None:
        """`light` or `dark`, as the person's system has it."""
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def shot(self) -> bytes:
        """What is seen now, as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])

    def picture(self, path: Path) -> None:
        path.write_bytes(self.shot())

    def close(self) -> None:
        if hasattr(self, "_session"):
            self._loop.run_until_complete(self._session.close())
        self._process.terminate()
        self._process.wait(30)
        self._loop.close()


_CODES = {"Tab": 9, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}
