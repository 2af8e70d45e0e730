"""Chromium without a window, driven over the DevTools protocol."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import websockets

PATIENCE_S = 120

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--use-fake-device-for-media-stream",
)

PROBLEMS = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"}


class Chromium:
    """A browser with one page; an asynchronous context manager.

    Args:
        program: path of Chromium.
        folder: folder of its profile.
        flags: further flags.

    Attributes:
        console: messages of the console from warnings on, and exceptions.
    """

    def __init__(self, program: str, folder: Path, *flags: str) -> None:
        self._command = [program, *FLAGS, f"--user-data-dir={folder}", *flags, "about:blank"]
        self._port_file = folder / "DevToolsActivePort"
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.console: list[str] = []

    async def __aenter__(self) -> Chromium:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            await self._connect()
        except BaseException:
            self._process.kill()
            raise
        return self

    async def _connect(self) -> None:
        for _ in range(PATIENCE_S * 20):
            if self._port_file.exists() and len(self._port_file.read_text().split()) > 1:
                break
            assert self._process.poll() is None, "Chromium ended"
            await asyncio.sleep(0.05)
        port = self._port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            targets = json.load(answer)
        address = next(one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page")
        self._socket = await websockets.connect(address, max_size=None)
        self._reading = asyncio.ensure_future(self._read())
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    async def _read(self) -> None:
        async for content in self._socket:
            message = json.loads(content)
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
            elif message["method"] in PROBLEMS:
                level = message["params"].get("entry", message["params"]).get("level", "error")
                if level not in ("verbose", "info"):
                    self.console.append(json.dumps(message["params"]))

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        found = await asyncio.wait_for(answer, PATIENCE_S)
        assert "error" not in found, f"{method}: {found}"
        result: dict[str, Any] = found["result"]
        return result

    async def value(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True,
            userGesture=True,
        )  # fmt: skip
        assert "exceptionDetails" not in found, f"{expression}: {found['exceptionDetails']}"
        return found["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until an expression is true; returns its value."""
        for _ in range(PATIENCE_S * 20):
            if value := await self.value(expression):
                return value
            await asyncio.sleep(0.05)
        shown = await self.value("document.body.innerText")
        raise AssertionError(f"not so after {PATIENCE_S} s: {expression}; the page shows:\n{shown}")

    async def press(self, key: str) -> None:
        """Press a key."""
        code, text = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), " ": (32, " ")}[key]
        event = {"key": key, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    async def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to an input."""
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.call("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)
