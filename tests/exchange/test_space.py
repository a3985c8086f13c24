"""The app of a Space, started as the hub starts it, and asked over HTTP by gradio's own client."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hornbook.exchange.export import export_model
from hornbook.infer.speaker import load_speaker
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed: make test-space"
)


@pytest.fixture(scope="module", params=["a shape of transformers", "with code of ours"])
def exported(request: pytest.FixtureRequest, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, with_code = tmp_path_factory.mktemp("space"), request.param == "with code of ours"
    knobs: dict[str, Any] = {
        "data": str(text_file),
        "tokenizer": {"kind": "byte"},
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "context": 64, "embedding_norm": with_code},
        "train": {"steps": 20, "batch_tokens": 512, "dtype": "float32"},
    }
    fit(RunConfig.model_validate(knobs), folder / "run")
    return export_model(folder / "run", "hf", folder / "small-hf", with_code=with_code)


@pytest.fixture(scope="module")
def client(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    from gradio_client import Client

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"PYTHONPATH": "", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(elsewhere)}
    process = subprocess.Popen(
        [sys.executable, str(exported / "app.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=elsewhere,
        env=os.environ | alone | {"GRADIO_SERVER_PORT": str(port)},
    )
    try:
        assert process.stdout is not None
        told = ""
        for line in process.stdout:
            told += line
            if found := re.search(r"http://[\d.]+:\d+", line):
                break
        else:
            pytest.fail(f"the app never told its address: {told}")
        yield Client(found[0], verbose=False)
    finally:
        process.kill()
        process.communicate()


def test_the_answer_comes_piece_by_piece(client: Any) -> None:
    job = client.submit("import sys\n", 40, 0.8, 0.95, 3, api_name="/continue")
    text = job.result(timeout=60)
    pieces = job.outputs()
    assert pieces[0] == "import sys\n"
    assert len(pieces) > 2
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(pieces))
    assert len(text) > len("import sys\n")
    assert client.predict("import sys\n", 40, 0.8, 0.95, 3, api_name="/continue") == text
    assert client.predict("import sys\n", 40, 0.8, 0.95, 4, api_name="/continue") != text


def test_the_likeliest_answer_is_ours(client: Any, exported: Path) -> None:
    ours = load_speaker(exported, device="cpu").generate("def ", max_tokens=30, temperature=0.0)
    assert client.predict("def ", 30, 0, 1, 0, api_name="/continue") == "def " + ours


@pytest.mark.parametrize("prompt", ["", "x = 1\n" * 200], ids=["empty", "longer than the context"])
def test_any_prompt_is_answered(prompt: str, client: Any) -> None:
    text = client.predict(prompt, 16, 0.8, 0.95, 0, api_name="/continue")
    assert text.startswith(prompt)
    assert text != prompt
