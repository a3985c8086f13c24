from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import Endless, Running

from hornbook.infer.speaker import Speaker
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def trained(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2, 4 and 6."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    knobs: dict[str, Any] = {
        "data": str(text_file),
        "tokenizer": {"kind": "byte"},
        "model": {"n_layer": 1, "n_head": 1, "n_embd": 16, "context": 16},
        "train": {"steps": 6, "save_every_steps": 2, "batch_tokens": 64, "dtype": "float32", "compile": False},
    }
    knobs["train"] |= {"device": "cpu", "keep_checkpoints": 9}
    fit(RunConfig.model_validate(knobs), out)
    return out


def test_each_point_of_a_run_has_an_id(start: Callable[..., Running], trained: Path, toy: Path) -> None:
    server = start(trained, toy)
    asked = {"prompt": "ab", "seed": 1, "max_tokens": 12}
    with server.client() as client:
        ids = [each["id"] for each in client.get("/v1/models").json()["data"]]
        assert {"tiny", "tiny@newest", "tiny@2", "tiny@4", "tiny@6", "toy"} <= set(ids)
        for id in ids:
            assert client.get(f"/v1/models/{id}").json()["id"] == id
        texts = {}
        for id in ids:
            answer = client.post(COMPLETIONS, json=asked | {"model": id}).json()
            assert answer["model"] == id
            texts[id] = answer["choices"][0]["text"]
        assert texts["tiny@6"] == texts["tiny@newest"] != texts["toy"]
        alone = Speaker(trained / "checkpoints" / "step-00000002", "cpu")
        assert texts["tiny@2"] == alone.generate("ab", seed=1, max_tokens=12, temperature=1.0, top_p=None)
        for wrong in ("tiny@99", "tiny@", "tiny@best", "toy@newest", "toy@1", "tiny@-2", "tiny@2@2", "", "../tiny"):
            answer = client.post(COMPLETIONS, json=asked | {"model": wrong})
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        unnamed = client.post(COMPLETIONS, json=asked)
        assert (unnamed.status_code, "tiny, toy" in unnamed.json()["error"]["message"]) == (404, True)
    assert server.every_request_ended_once()


def test_the_model_that_was_idle_longest_makes_room(start: Callable[..., Running], trained: Path) -> None:
    loads: list[str] = []

    def load(folder: Path) -> Speaker:
        loads.append(folder.name[-1])
        return Speaker(folder, "cpu")

    server = start(trained, load=load, loaded=2)
    loads.clear()
    threads = threading.active_count()
    with server.client() as client:
        for step in (2, 4, 2, 6, 2, 4):
            answer = client.post(COMPLETIONS, json={"model": f"tiny@{step}", "max_tokens": 2})
            assert answer.status_code == 200
        assert "hornbook_models_loaded 2\n" in client.get("/metrics").text
    assert "".join(loads).endswith("464")
    assert server.settles(lambda: threading.active_count() <= threads + 3)


def test_no_model_makes_room_while_it_speaks(start: Callable[..., Running], trained: Path) -> None:
    server = start(trained, load=Endless, loaded=1)
    long = {"model": "tiny@2", "max_tokens": 4000, "temperature": 0, "stream": True}
    with server.client() as client:
        with client.stream("POST", COMPLETIONS, json=long) as answer:
            next(answer.iter_lines())
            other = client.post(COMPLETIONS, json={"model": "tiny@4"})
            assert (other.status_code, int(other.headers["retry-after"]) > 0) == (429, True)
            assert client.post(COMPLETIONS, json={"model": "tiny@2", "max_tokens": 2}).status_code == 200
        assert server.settles(lambda: server.models.loaded[0][1].is_idle)
        assert client.post(COMPLETIONS, json={"model": "tiny@4", "max_tokens": 2}).status_code == 200
    assert server.every_request_ended_once()


def test_a_model_that_cannot_be_loaded_is_told_of(start: Callable[..., Running], trained: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(trained, spoilt)
    server = start(spoilt)
    weights = spoilt / "checkpoints" / "step-00000006" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with server.client() as client:
        answer = client.post(COMPLETIONS, json={"model": "spoilt@6"})
        assert (answer.status_code, "damaged" in answer.json()["error"]["message"]) == (404, True)
        assert client.post(COMPLETIONS, json={"model": "spoilt"}).status_code == 200
    assert server.every_request_ended_once()


def test_a_model_that_always_fails_makes_the_server_unhealthy(
    start: Callable[..., Running], toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(folder: Path) -> Speaker:
        speaker = Speaker(folder, "cpu")
        speaker.model.read_off = lambda _: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        return speaker

    server = start(toy, load=load)
    with server.client() as client:
        assert client.get("/health").status_code == 200
        for stream in (False, True, False, True):
            answer = client.post(COMPLETIONS, json={"prompt": "a", "stream": stream})
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_failed")
        assert client.get("/health").status_code == 503
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert server.every_request_ended_once()
