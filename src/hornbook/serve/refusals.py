"""Errors as OpenAI's clients read them.

In: what went wrong.  Out: a status, and JSON: {"error": {"message", "type", "param", "code"}}.
"""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from hornbook.base.errors import one_line

RETRY_SECONDS = 5
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
KEY_WANTED = "this server wants its key: Authorization: Bearer KEY; in a browser, http://HOST:PORT/?key=KEY"


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorBody


class ApiError(Exception):
    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        """Words of the request's come in as they are: what no terminal and no JSON can show is spelt out."""
        self.status, self.code = status, code
        self.message = "; ".join(one_line(each) for each in message.split("\n"))
        self.param = None if param is None else one_line(param)

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_SECONDS)} if self.code in ("queue_full", "shutting_down") else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def ended(outcome: str) -> ApiError:
    """Why a job did not complete, to whoever asked for it."""
    if outcome == "full":
        return ApiError(429, "the queue is full; try again later", code="queue_full")
    if outcome == "closing":
        return ApiError(503, "the server is shutting down", code="shutting_down")
    if outcome == "cancelled":  # told to nobody but the tally
        return ApiError(499, "the client has left", code="cancelled")
    return ApiError(500, "the model failed at this request; the server's log says why", code="model_failed")
