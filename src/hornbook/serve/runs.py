"""Routes by which a page looks at models and runs.

In: the models that are served.  Out: what each is, and of a run what it kept, its curve, and its samples; also while it
trains, from its first second on.
"""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

from fastapi import FastAPI, Query

from hornbook.base.errors import UserError
from hornbook.serve.models import Models
from hornbook.serve.refusals import ApiError
from hornbook.serve.watch import SAMPLES_KEPT, Watch


def add_runs(app: FastAPI, models: Models) -> None:
    watches = {served.name: Watch(served.path, served.name) for served in models.served.values() if served.is_run}

    def watch_of(name: str) -> Watch:
        if name not in watches:
            raise ApiError(404, f"no run {name[:80]!r} is served here; GET /api/models lists those that are")
        return watches[name]

    @app.get("/api/models")
    def look_at_models() -> list[dict[str, Any]]:
        """What is served, and of a run all that it kept, by steps."""
        described = []
        for name, served in models.served.items():
            watch, config = watches.get(name), None
            with contextlib.suppress(UserError, OSError):  # one that is damaged, or gone, hides no other
                config = served.config()
            entry: dict[str, Any] = {
                "id": name,
                "name": name,
                "kind": "model" if watch is None else "run",
                "parameters": config and config.n_params(),
                "context": config and config.context,
                "vocab_size": config and config.known_vocab_size,
                "training": watch is not None and watch.training,
                "silent": models.why_silent(served),
            }
            described.append(entry | {"points": [] if watch is None else watch.points()})
        return described

    @app.get("/api/runs/{name}/curve")
    def look_at_curve(name: str, after: int = -1) -> dict[str, Any]:
        """Both losses after a step, at most about a thousand points of each."""
        return watch_of(name).curve(after)

    @app.get("/api/runs/{name}/samples")
    def look_at_samples(name: str, last: Annotated[int, Query(ge=1, le=SAMPLES_KEPT)] = 10) -> list[dict[str, Any]]:
        """What the model said while it trained, the newest last."""
        return watch_of(name).samples(last)
