"""Page at `/` for speech to text in a browser, served from files of the package."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

FOLDER = Path(__file__).parent / "page"

INDEX = "index.html"

FILES = {
    INDEX: "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "microphone.js": "text/javascript; charset=utf-8",
    "recorder.js": "text/javascript; charset=utf-8",
    "view.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""Files of the page, and their media types."""

PATHS = ("/", *(f"/page/{name}" for name in FILES if name != INDEX))
"""URL paths of the page."""

HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "permissions-policy": "microphone=(self)",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
"""Headers of the page: it may not load anything from other sites or be embedded in other pages."""


@router.get("/")
async def index() -> Response:
    """Serve the page."""
    return _file(INDEX)


@router.get("/page/{name}")
async def page_file(name: str) -> Response:
    """Serve a file of the page."""
    if name not in FILES or name == INDEX:
        raise HTTPException(404, "no such file of the page")
    return _file(name)


def _file(name: str) -> Response:
    return Response((FOLDER / name).read_bytes(), media_type=FILES[name], headers=HEADERS)
