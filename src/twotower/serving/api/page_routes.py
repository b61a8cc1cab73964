"""`/` shows what the system does: a page of static files, which asks the API as any other caller does."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request, Response

FOLDER = Path(__file__).parent / "page"
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
"""The page runs its own files and asks its own server, nothing else."""
FRAME_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "font-src data:; frame-ancestors 'self'"
)
"""For the bundle's report, which holds scripts and styles of its own, and for the frame that shows it: they get no
origin and no network, so that they can neither ask the server nor read the key."""
FRAME = "report.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFile:
    """One file as it goes out."""

    body: bytes
    headers: dict[str, str]

    async def answer(self, request: Request) -> Response:
        """The file, or that the caller's copy is still the file."""
        is_same = self.headers["ETag"] in request.headers.get("If-None-Match", "")
        return Response(b"" if is_same else self.body, status_code=304 if is_same else 200, headers=self.headers)


def add_page(app: FastAPI) -> None:
    """The routes of the page, tagged `page`, which are no part of the API's description."""
    for path, file in page_files().items():
        app.add_api_route(path, file.answer, methods=["GET", "HEAD"], tags=["page"], include_in_schema=False)


def page_files() -> dict[str, PageFile]:
    """Path -> what answers there. None of it needs a key; what the page asks for does."""
    found = [path for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES]
    return {"/" if path.name == "index.html" else f"/{FOLDER.name}/{path.name}": _page_file(path) for path in found}


def _page_file(path: Path) -> PageFile:
    body = path.read_bytes()
    return PageFile(
        body=body,
        headers={
            "Content-Type": TYPES[path.suffix],
            # Asked again each time, and answered with 304 until the server is of another version.
            "Cache-Control": "no-cache",
            "ETag": f'"{hashlib.sha256(body).hexdigest()[:16]}"',
            "Content-Security-Policy": FRAME_POLICY if path.name == FRAME else POLICY,
        },
    )
