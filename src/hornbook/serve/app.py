"""The routes.

In: models, limits, a key.  Out: an ASGI application: OpenAI's completions and models, /health, /metrics, and the page.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from hornbook.base import glossary
from hornbook.base.errors import UserError
from hornbook.base.names import own_version
from hornbook.base.settings import worded
from hornbook.serve.answers import COMPLETION, CompletionAnswer, Health, ModelEntry, ModelList
from hornbook.serve.attention import add_attention
from hornbook.serve.completions import Completion, CompletionRequest, MistakeError
from hornbook.serve.engine import Added, Engine, Job, RefusedError
from hornbook.serve.models import Models
from hornbook.serve.refusals import ApiError, ErrorAnswer, ended
from hornbook.serve.runs import add_runs

MOST_TOLD = 20
FAILURES = {
    400: "What is wrong with the request, all of it",
    401: "No key, or a wrong one",
    403: "Another Host or Origin than this server's",
    404: "No such model, or no such path",
    413: "The body is too large",
    429: "The queue is full; Retry-After tells how long to wait",
    500: "The model failed",
    503: "The server is shutting down",
}


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {each: {"model": ErrorAnswer, "description": FAILURES[each]} for each in statuses}


def build_app(models: Models) -> FastAPI:
    app = FastAPI(
        title="Hornbook",
        version=own_version(),
        description="Models that were trained with Hornbook, behind OpenAI's completions API.",
        docs_url=None,  # theirs would ask another host for its script
        redoc_url=None,
        # And no 422, which FastAPI would describe, but which is never sent here.
        responses={"default": {"model": ErrorAnswer, "description": "What went wrong"}},
    )
    _add_completions(app, models)
    _add_models(app, models)
    _add_health(app, models)
    add_runs(app, models)
    add_attention(app, models)
    _add_page(app)
    _add_errors(app)
    return app


def _add_completions(app: FastAPI, models: Models) -> None:
    @app.post("/v1/completions", response_class=JSONResponse, responses={200: COMPLETION, **_failures(*FAILURES)})
    async def create_completion(request: Request, asked: CompletionRequest) -> Response:
        """Continue a text, or several. With `stream`, server-sent events: a chunk for each token that gave text, and
        `data: [DONE]` at the end."""
        models.tally.count("requests_begun")
        holding, exchange = contextlib.AsyncExitStack(), None
        leaving = asyncio.create_task(_left(request))
        try:
            if models.closing:
                raise RefusedError("closing")
            engine = await _unless(leaving, holding.enter_async_context(models.engine(asked.model)))
            id = asked.model or next(iter(models.served))
            completion = await asyncio.to_thread(Completion, asked, engine.speaker, id)
            exchange = Exchange(completion, engine, leaving)
            models.tally.count("prompt_tokens", completion.prompt_tokens)
            if asked.stream:
                chunks = exchange.chunks()
                first = await anext(chunks)  # so that what is refused before it has a status of its own
                return Stream(exchange, first, chunks, holding.pop_all())
            return await exchange.whole()
        except RefusedError as error:
            models.tally.end(error.outcome)
            raise
        except (MistakeError, UserError):
            models.tally.end("impossible")
            raise
        except BaseException:
            if exchange is None:  # else its engine tells
                models.tally.end("failed")
            raise
        finally:
            if exchange is None:
                leaving.cancel()
            await holding.aclose()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _unless(leaving: asyncio.Task[None], work: Coroutine[Any, Any, Engine]) -> Engine:
    """The engine; refused where the client leaves before it is there."""
    working = asyncio.create_task(work)
    await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        return working.result()
    working.cancel()
    raise RefusedError("cancelled")


class Exchange:
    """One request between the engine's thread and the client: what was added comes out of a queue, and the client's
    leaving goes the other way."""

    def __init__(self, completion: Completion, engine: Engine, leaving: asyncio.Task[None]) -> None:
        """`leaving` ends when the client has left."""
        self.completion, self.engine = completion, engine
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[list[Added], str | None]] = asyncio.Queue()
        self._job = Job(completion.texts, self._tell)
        engine.submit(self._job)
        self._leaving = leaving
        leaving.add_done_callback(lambda _: engine.cancel(self._job))

    def _tell(self, added: list[Added], outcome: str | None) -> None:
        """In the engine's thread. The loop may be gone when the engine is ended last."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, (added, outcome))

    async def chunks(self) -> AsyncIterator[CompletionAnswer]:
        opening, outcome = self.completion.opening(), None
        try:
            while outcome is None:
                added, outcome = await self._events.get()
                self._raise_if_failed(outcome)
                for chunk in opening + self.completion.chunks(added):
                    yield chunk
                opening = []
        finally:
            self.leave()

    async def whole(self) -> Response:
        outcome = None
        try:
            while outcome is None:
                _, outcome = await self._events.get()
            self._raise_if_failed(outcome)
            # With alternatives to every token, an answer can be half a million numbers.
            return await asyncio.to_thread(lambda: JSONResponse(self.completion.whole()))
        finally:
            self.leave()

    def leave(self) -> None:
        """However it ends: nobody listens any more. Of a job that has ended, nothing is left to cancel."""
        self._leaving.cancel()
        self.engine.cancel(self._job)

    def _raise_if_failed(self, outcome: str | None) -> None:
        if outcome not in (None, "complete"):
            raise ended(str(outcome))


class Stream(Response):
    """Server-sent events, each sent when it is there."""

    def __init__(
        self,
        exchange: Exchange,
        first: CompletionAnswer,
        chunks: AsyncIterator[CompletionAnswer],
        holding: contextlib.AsyncExitStack,
    ) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["x-accel-buffering"] = "no"  # nginx would collect them
        self.exchange, self.first, self.chunks, self.holding = exchange, first, chunks, holding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        completion = self.exchange.completion
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await _send_event(send, json.dumps(self.first, ensure_ascii=False))
                async for chunk in self.chunks:
                    await _send_event(send, json.dumps(chunk, ensure_ascii=False))
                options = completion.asked.stream_options
                if options is not None and options.include_usage:
                    await _send_event(send, json.dumps(completion.last_chunk()))
                await _send_event(send, "[DONE]")
            except ApiError as error:
                await _send_event(send, json.dumps(error.body()))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.exchange.leave()
            await self.holding.aclose()


async def _send_event(send: Send, data: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})


def _add_models(app: FastAPI, models: Models) -> None:
    def entries() -> Iterator[ModelEntry]:
        for served in models.served.values():
            for id, folder in served.ids().items():
                with contextlib.suppress(OSError):  # rotated away since it was listed
                    made = int(folder.stat().st_mtime)
                    yield {"id": id, "object": "model", "created": made, "owned_by": "hornbook"}

    @app.get("/v1/models", responses=_failures(401, 403))
    def list_models() -> ModelList:
        """Every id that is good as `model`."""
        return {"object": "list", "data": list(entries())}

    @app.get("/v1/models/{id:path}", responses=_failures(401, 403, 404))
    def get_model(id: str) -> ModelEntry:
        for entry in entries():
            if entry["id"] == id:
                return entry
        raise ApiError(404, f"no model {id!r} is served here", param="model", code="model_not_found")


def _add_health(app: FastAPI, models: Models) -> None:
    @app.get("/health", responses=_failures(503))
    async def health() -> Health:
        if models.closing:
            raise ended("closing")
        if not all(engine.is_healthy for engine in models.engines):
            raise ApiError(503, "a model fails again and again; the server's log says why", code="model_failed")
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse, responses=_failures(401, 403))
    async def metrics() -> PlainTextResponse:
        """Prometheus' text form."""
        return PlainTextResponse(models.tally.text(), media_type="text/plain; version=0.0.4")

    def sum_of(value: Callable[[Engine], int]) -> Callable[[], float]:
        return lambda: sum(value(engine) for engine in models.engines)

    watch = models.tally.watch
    watch("models_loaded", "Models in memory", lambda: len(models.engines))
    watch("queue_length", "Requests that wait for a row", sum_of(lambda engine: engine.waiting))
    watch("rows_in_use", "Texts that are being continued", sum_of(lambda engine: engine.rows_in_use))
    watch("rows", "Texts that can be continued at once", sum_of(lambda engine: engine.rows))


def _add_page(app: FastAPI) -> None:
    files = StaticFiles(packages=[("hornbook.serve", "page"), ("hornbook.report", "page")])

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    @app.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def part_of_page(request: Request) -> Response:
        part = await files.get_response(request.path_params.get("name", "index.html"), request.scope)
        part.headers["cache-control"] = "no-cache"  # asked for each time, and sent where it has changed
        return part

    @app.api_route("/glossary", methods=["GET", "HEAD"], include_in_schema=False)
    def words() -> HTMLResponse:
        return HTMLResponse(glossary.page())


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def ours(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return ended(error.outcome).response()

    @app.exception_handler(UserError)
    async def unknown(_: Request, error: UserError) -> Response:
        return ApiError(404, str(error), param="model", code="model_not_found").response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        found = list(dict.fromkeys(each for mistake in error.errors()[:MOST_TOLD] for each in _told(mistake)))
        told = "\n".join(f"{param}: {what}" if param else what for param, what in found)
        return ApiError(400, told, param=found[0][0] or None).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        told = str(error.detail)
        if error.status_code == 404:
            told = "no such path: models here continue text, at /v1/completions; /openapi.json describes all paths"
        return ApiError(error.status_code, told).response()

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:  # uvicorn prints the traceback
        return ApiError(500, "a bug of ours; the server's log says where").response()


def _told(mistake: Any) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with it): a mistake of pydantic's in few words."""
    if mistake["type"] == "combination":
        yield from mistake["ctx"]["found"]
        return
    place = [str(each) for each in mistake["loc"] if each != "body"]
    field = place[0] if place and place[0] in CompletionRequest.model_fields else ""
    if mistake["type"] == "extra_forbidden":
        yield ".".join(place)[:80], "no such field"
    elif mistake["type"] == "model_attributes_type" and not place:
        yield "", "the body should be a JSON object, with the header Content-Type: application/json"
    elif mistake["type"] == "json_invalid":
        yield "", f"the body is not JSON: {mistake['ctx']['error']}"
    elif field == "prompt":
        yield field, "should be a text, ids, or a list of either, none of them empty"
    else:
        yield field or ".".join(place)[:80], worded(mistake)
