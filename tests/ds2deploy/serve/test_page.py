"""The page's files: types, headers, and nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's extra is not installed")
pytest.importorskip("httpx", reason="the test client of starlette needs it")

from starlette.testclient import TestClient, WebSocketDenialResponse

from ds2deploy.serve import page
from ds2deploy.serve.app import make_app
from ds2deploy.serve.server import Server

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def client() -> TestClient:
    """An application without models: its lifespan is not begun."""
    return TestClient(make_app(lambda: Server({}, api_key="secret")))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/page/app.js", "text/javascript"),
        ("/page/recorder.js", "text/javascript"),
        ("/page/style.css", "text/css"),
        ("/page/icon.svg", "image/svg+xml"),
    ],
)
def test_files_are_served_without_a_key(client: TestClient, path: str, kind: str):
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(kind)
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert response.text


def test_the_list_has_all_files_of_the_folder():
    assert {path.name for path in page.FOLDER.iterdir()} == set(page.FILES)


@pytest.mark.parametrize(
    "path", ["/page/index.html", "/page/none.js", "/page/..%2fpage.py", "/page/%2e%2e/page.py"]
)
def test_files_outside_the_page_are_not_served(client: TestClient, path: str):
    response = client.get(path, headers={"authorization": "Bearer secret"})
    assert response.status_code == 404


@pytest.mark.parametrize("name", sorted(page.FILES))
def test_nothing_comes_from_elsewhere(name: str):
    text = (page.FOLDER / name).read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"(?:https?|wss?)://\S+|(?:data|blob):\S+|[\"'(]//\w", text) == []


def test_nothing_stands_inline():
    text = (page.FOLDER / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text)
    assert re.findall(r"<script(?![^>]*\ssrc=)", text) == []


def test_all_that_the_page_refers_to_is_served(client: TestClient):
    text = (page.FOLDER / "index.html").read_text("utf-8")
    found = set(re.findall(r"(?:href|src)=\"([^\"]+)\"", text))
    scripts = [path.read_text("utf-8") for path in page.FOLDER.glob("*.js")]
    found |= {f"page/{name}" for one in scripts for name in re.findall(r"\"\./([\w.]+)\"", one)}
    assert len(found) > 5
    assert {name: client.get(f"/{name}").status_code for name in found} == dict.fromkeys(found, 200)


def test_every_control_has_a_name():
    text = (page.FOLDER / "index.html").read_text("utf-8")
    labelled = set(re.findall(r"<label for=\"([\w-]+)\"", text))
    for control in re.findall(r"<(?:input|select)\s[^>]*>", text):
        name = re.search(r"\sid=\"([\w-]+)\"", control)
        hidden = name is None and " hidden" in control
        inside = name is not None and re.search(rf"<label[^>]*><input id=\"{name[1]}\"", text)
        named = name is not None and (name[1] in labelled or "aria-label=" in control)
        assert hidden or inside or named, control


@pytest.mark.parametrize("key", ["secret", "sec%72et"])
def test_a_web_socket_takes_the_key_percent_encoded(client: TestClient, key: str):
    protocols = ["ds2deploy", f"ds2deploy-key.{key}"]
    with client.websocket_connect("/stream", subprotocols=protocols) as socket:
        assert socket.accepted_subprotocol == "ds2deploy"


def test_a_web_socket_with_another_key_is_refused(client: TestClient):
    protocols = ["ds2deploy", "ds2deploy-key.other"]
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect("/stream", subprotocols=protocols),
    ):
        pass
    assert refused.value.status_code == 401


def test_the_package_carries_the_files():
    document = (ROOT / "pyproject.toml").read_text("utf-8")
    packages, _, data = document.partition("[tool.setuptools.package-data]")
    assert '"ds2deploy.serve.page",' in packages  # else setuptools warns at length
    assert '"ds2deploy.serve.page" = ["*"]' in data
