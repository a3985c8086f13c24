"""The page.

In: the files of page/.  Out: a route for each.
"""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from fastapi.responses import Response

from hornbook.serve.errors import ApiError

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def add_page(app: FastAPI) -> None:
    """From a fixed list of names, so that no name leads elsewhere."""
    folder = resources.files("hornbook.serve") / "page"
    files = {each.name: each.read_bytes() for each in folder.iterdir() if _ending(each.name) in TYPES}

    def file(name: str) -> Response:
        return Response(files[name], media_type=TYPES[_ending(name)], headers={"Cache-Control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def part_of_page(name: str) -> Response:
        if name not in files:
            raise ApiError(404, f"no file {name!r} belongs to the page")
        return file(name)


def _ending(name: str) -> str:
    return name.rpartition(".")[2]
