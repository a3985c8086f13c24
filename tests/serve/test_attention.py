"""What the server says that a model looked at is what the model looks at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Running

from hornbook.infer.attended import attended_by
from hornbook.infer.decode import window_start
from hornbook.infer.speaker import Speaker

ATTENTION = "/api/attention"


def test_the_attention_of_every_token_of_an_answer(running: Running, toy_speaker: Speaker) -> None:
    """Also where the text outgrows the context, and tokens are but parts of characters."""
    prompt = "Ä text: " * 6
    with running.client() as client:
        asked = {"prompt": prompt, "max_tokens": 30, "seed": 1, "logprobs": 1}
        answer = client.post("/v1/completions", json=asked).json()["choices"][0]
        ids = answer["logprobs"]["token_ids"]
        for layer in (None, 0, 1):
            for place in (0, 7, 29):
                told = client.post(ATTENTION, json={"prompt": prompt, "ids": ids[:place], "layer": layer}).json()
                text = [*toy_speaker.encode(prompt), *ids[:place]]
                start = window_start(len(text), 64)
                weights = attended_by(toy_speaker.model, text[start:]).weights[:, :, -1]  # of all, the last
                assert told["forgotten"] == start
                assert told["layers"] == 2
                assert b"".join(map(bytes_of, told["tokens"])) == bytes(text[start:])  # ids are bytes here
                wanted = weights.mean(axis=0) if layer is None else weights[layer]
                assert np.allclose(told["weights"], wanted, atol=1e-5)
                assert np.allclose(np.sum(told["weights"], axis=1), 1, atol=1e-4)


def test_where_none_may_wait_one_is_answered(start: Callable[..., Running], toy: Path) -> None:
    with start(toy, queue=0).client() as client:
        assert client.post(ATTENTION, json={"prompt": "A"}).status_code == 200


def bytes_of(name: str) -> bytes:
    spelt = name.removeprefix("bytes:")
    return name.encode() if spelt == name else spelt.encode().decode("unicode_escape").encode("latin-1")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"layer": 2}, 400, "layer"),
        ({"ids": [300]}, 400, "ids"),
        ({"model": "gpt"}, 404, "model"),
        ({"prompt": "", "seed": 1}, 400, "seed"),
    ],
)
def test_what_cannot_be_told_is_refused(running: Running, body: dict[str, Any], status: int, param: str) -> None:
    with running.client() as client:
        answer = client.post(ATTENTION, json=body)
    assert answer.status_code == status
    assert param in (answer.json()["error"]["param"] or answer.json()["error"]["message"])
