from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import httpx2
import psutil
import pytest
import safetensors.torch
from serving import Endless, Running, read_metrics

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.base.machine import free_memory_bytes
from hornbook.infer.decode import Batch
from hornbook.infer.speaker import Speaker
from hornbook.runs.folder import Record, RunFolder
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def trained(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2, 4 and 6."""
    model = {"n_layer": 1, "n_head": 1, "n_embd": 16, "context": 16}
    how = {"steps": 6, "save_every_steps": 2, "batch_tokens": 64, "keep_checkpoints": 9}
    return fit(tiny(model=model, train=how), tmp_path_factory.mktemp("runs") / "tiny").folder


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
    engines = sum(each.name == "engine" for each in threading.enumerate())
    with server.client() as client:
        for step in (2, 4, 2, 6, 2, 4):
            answer = client.post(COMPLETIONS, json={"model": f"tiny@{step}", "max_tokens": 2})
            assert answer.status_code == 200
        assert read_metrics(client.get("/metrics").text)["hornbook_models_loaded"] == 2
    assert "".join(loads).endswith("464")
    assert server.settles(lambda: sum(each.name == "engine" for each in threading.enumerate()) <= engines + 1)


def test_what_a_run_kept_is_not_looked_for_in_the_event_loop(
    start: Callable[..., Running], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, lookers = start(trained), []

    kept = RunFolder.kept

    def look(run: RunFolder) -> list[Path]:
        lookers.append(threading.current_thread())
        return kept(run)

    monkeypatch.setattr(RunFolder, "kept", look)
    with server.client() as client:
        for model in ("tiny", "tiny@4", "tiny@4"):
            assert client.post(COMPLETIONS, json={"model": model, "max_tokens": 2}).status_code == 200
        assert client.get("/v1/models").status_code == 200
    assert len(lookers) >= 4
    assert server.thread not in lookers


def test_no_model_makes_room_while_it_speaks(start: Callable[..., Running], trained: Path) -> None:
    server = start(trained, load=Endless, loaded=1)
    long = {"model": "tiny@2", "max_tokens": 4000, "temperature": 0, "stream": True}
    with server.client() as client:
        with client.stream("POST", COMPLETIONS, json=long) as answer:
            assert answer.status_code == 200, answer.read()
            lines = answer.iter_lines()  # kept: where it goes, the connection goes with it, and the row is free
            next(lines)
            other = client.post(COMPLETIONS, json={"model": "tiny@4"})
            assert other.status_code == 429, (other.text, server.outcomes())
            assert int(other.headers["retry-after"]) > 0
            assert client.post(COMPLETIONS, json={"model": "tiny@2", "max_tokens": 2}).status_code == 200
        assert server.settles(lambda: server.models.engines[0].is_idle)
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
        speaker.model.logits_of = lambda _: 1 / 0  # type: ignore[method-assign,assignment,return-value]
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


def test_weights_that_were_written_anew_are_loaded_anew(
    start: Callable[..., Running], toy: Path, tmp_path: Path
) -> None:
    folder, asked = tmp_path / "again", {"prompt": "ab", "temperature": 0, "max_tokens": 8}
    shutil.copytree(toy, folder)
    server = start(folder)
    with server.client() as client:
        before = client.post(COMPLETIONS, json=asked).json()["choices"][0]["text"]
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        shutil.rmtree(folder)
        shutil.copytree(toy, folder)
        (folder / "config.json").touch()
        flipped = {name: tensor.flip(0).contiguous() for name, tensor in weights.items()}
        safetensors.torch.save_file(flipped, folder / "model.safetensors", {"format": "pt"})
        after = client.post(COMPLETIONS, json=asked).json()["choices"][0]["text"]
        assert before != after
        assert after == Speaker(folder, "cpu").generate("ab", temperature=0, max_tokens=8)


def test_whoever_leaves_while_a_model_is_loaded_leaves_that_queue(start: Callable[..., Running], trained: Path) -> None:
    loads: list[str] = []
    go_on = threading.Event()
    go_on.set()

    def load(folder: Path) -> Speaker:
        loads.append(folder.name)
        assert go_on.wait(60)
        return Endless(folder)

    server = start(trained, load=load)
    loads.clear()
    go_on.clear()
    impatient = httpx2.Timeout(30, read=0.05)
    with server.client() as client:
        for step in (1, 2, 4, 6, 1, 2, 4, 6):
            with pytest.raises(httpx2.ReadTimeout):
                client.post(COMPLETIONS, json={"model": f"tiny@{step}", "max_tokens": 4000}, timeout=impatient)
        assert server.settles(lambda: server.outcomes()["cancelled"] == 8)
        go_on.set()
        assert client.post(COMPLETIONS, json={"model": "tiny@4", "max_tokens": 2}, timeout=30).status_code == 200
    assert len(loads) <= 2, "that which was begun, and that which was waited for"
    assert server.every_request_ended_once()
    assert server.settles(lambda: not any(engine.users for engine in server.models.engines))


def test_an_error_in_loading_ends_the_request_once(start: Callable[..., Running], trained: Path) -> None:
    def load(folder: Path) -> Speaker:
        if folder.name.endswith("1"):  # a snapshot, which is never the best
            raise RuntimeError("torch says no")
        return Speaker(folder, "cpu")

    server = start(trained, load=load)
    with server.client() as client:
        assert client.post(COMPLETIONS, json={"model": "tiny@1"}).status_code == 500
    with server.client() as client:  # after an error of ours the connection is closed
        assert client.post(COMPLETIONS, json={"model": "tiny@2", "max_tokens": 2}).status_code == 200
    assert server.every_request_ended_once()
    assert server.outcomes()["failed"] == 1


def test_as_many_texts_at_once_as_memory_has_room_for(
    start: Callable[..., Running], toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Batch(Speaker(toy, "cpu").model, 1).cache
    each = row.keys.nbytes + row.values.nbytes
    monkeypatch.setattr("hornbook.serve.models.free_memory_bytes", lambda _: each * 4)
    server = start(toy, rows=16)
    assert server.models.engines[0].rows == 3
    told = capsys.readouterr().err
    assert told.startswith("warning: toy: 3 texts at once, not 16: ")
    assert (told.count("\n"), len(told) <= 200) == (1, True)
    with server.client() as client:
        answer = client.post(COMPLETIONS, json={"prompt": "ab", "n": 8, "max_tokens": 2}).json()
        assert len(answer["choices"]) == 8
    monkeypatch.setattr("hornbook.serve.models.free_memory_bytes", lambda _: each)
    with pytest.raises(UserError, match="toy: no room to speak: ") as refused:
        start(toy)
    assert len(str(refused.value)) <= 200


def test_free_memory_is_part_of_what_there_is() -> None:
    free = free_memory_bytes("cpu")
    assert free is not None
    assert 0 < free <= psutil.virtual_memory().total


def test_a_model_that_is_gone_hides_no_other(start: Callable[..., Running], toy: Path, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "gone")
    server = start(toy, tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    with server.client() as client:
        there = {each["name"]: each["parameters"] for each in client.get("/api/models").json()}
        assert (there["toy"] > 0, there["gone"]) == (True, None)
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["toy"]


@pytest.mark.parametrize("gone", ["a model", "a run", "its checkpoints"])
def test_what_was_deleted_since_is_told_to_be(
    gone: str, start: Callable[..., Running], toy: Path, trained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(toy if gone == "a model" else trained, tmp_path / "mine")
    server, asked = start(folder), {"prompt": "a", "max_tokens": 1}
    with server.client() as client:
        assert client.post(COMPLETIONS, json=asked).status_code == 200
        for place in ("checkpoints", "snapshots") if gone == "its checkpoints" else (".",):
            shutil.rmtree(folder / place)
        answer = client.post(COMPLETIONS, json=asked)
        told = answer.json()["error"]["message"]
        assert answer.status_code == 404
        assert ("checkpoints were deleted" if gone == "its checkpoints" else "folder was deleted or moved") in told
        assert client.get("/api/models").json()[0]["silent"] == told


def test_a_run_without_a_checkpoint_yet_shows_its_curve_and_says_so(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    run = tmp_path / "young"
    model = {"vocab_size": 257, "n_layer": 1, "n_head": 1, "n_embd": 8, "context": 16}
    files.make_folder(run)
    RunFolder(run).write(Record({"model": model, "train": {"steps": 9}}, tmp_path / "shards", "0"))
    files.write_text(run / "metrics.jsonl", '{"step": 1, "tokens": 16, "loss": 5.5}\n{"step": 2, "tok')
    with start(run).client() as client:
        (told,) = client.get("/api/models").json()
        assert "no checkpoint yet" in told["silent"]
        assert (told["context"], told["vocab_size"], told["points"], told["training"]) == (16, 257, [], False)
        assert client.get("/api/runs/young/curve").json()["train"] == [[1, 5.5]]
        assert client.get("/api/runs/young/samples").json() == []
        answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
        assert answer.status_code == 404
        assert "has no checkpoint yet; ask again" in answer.json()["error"]["message"]
        for wrong in ("/api/runs/old/curve", "/api/runs/old/samples"):
            assert client.get(wrong).status_code == 404
        assert client.get("/api/runs/young/samples", params={"last": 0}).status_code == 400
        assert client.get("/api/runs/young/curve", params={"after": "x"}).status_code == 400
