"""What the documents show works as they show it."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from effort import long
from hornbook.base.settings import described
from hornbook.cli import COMMANDS, main
from hornbook.cli.knobs import markdown
from hornbook.runs.logs import read_log
from hornbook.train.config import RunConfig

ROOT = Path(__file__).parent.parent


@long
def test_notebook_shows_curves_inline_and_lets_the_model_speak(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs" / "first-model.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    executed: list[dict[str, Any]] = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in executed for output in cell["outputs"]]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
    printed = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert "def " in printed
    assert "validation loss" in printed
    # The loss by hand, and that of the trained model on the same text.
    by_hand = float(re.findall(r"^loss (\d\.\d+), perplexity", printed, flags=re.MULTILINE)[0])
    shown = [output.get("data", {}).get("text/plain", "") for output in outputs]
    [score] = [text for text in shown if text.startswith("Score(")]
    assert float(re.findall(r"loss=([\d.]+)", score)[0]) < by_hand < math.log(1024)
    # Progress is one line that moves.
    training = next(cell["outputs"] for cell in executed if "hornbook.fit(" in cell["source"])
    live = [output for output in training if output["output_type"] == "display_data"]
    assert len(live) == 1
    assert re.match(r"epoch \d+  step 60  loss \d", live[0]["data"]["text/plain"])


def executed(name: str, folder: Path) -> list[dict[str, Any]]:
    """The outputs of a notebook's cells, run in a folder."""
    notebook = nbformat.read(ROOT / "docs" / name, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell["outputs"]]


@long
def test_the_notebook_for_a_free_gpu_goes_on_after_a_disconnect(tmp_path: Path) -> None:
    """In its small size, on this processor; the machine is gone when half of the run was kept."""
    run, kept = tmp_path / "runs" / "shakespeare-small", tmp_path / "kept" / "shakespeare-small"
    for _ in range(2):
        outputs = executed("shakespeare-124m.ipynb", tmp_path)
        assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
        printed = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
        assert "done\n" in printed
        assert "Once upon a time" in printed
        entries = read_log(run / "metrics.jsonl")
        trained = [{name: each[name] for name in each if not name.endswith("seconds")} for each in entries]
        if not (again := (tmp_path / "before.json")).exists():
            again.write_text(json.dumps(trained))
            shutil.rmtree(kept / "two", ignore_errors=True)
            shutil.copytree(run / "checkpoints" / "step-00000004", kept / "two")
            (kept / "one" / "state.json").write_text("")  # the copy of the end was cut off
            shutil.rmtree(tmp_path / "runs")
    assert "going on from runs/shakespeare-small/checkpoints/step-00000004" in printed
    assert trained == json.loads((tmp_path / "before.json").read_text())


def test_every_knob_is_documented_with_its_default_and_choices() -> None:
    text = (ROOT / "docs" / "knobs.md").read_text()
    assert text == markdown(), "make knobs writes docs/knobs.md anew"
    for knob, default, about in described(RunConfig):
        assert f"| `{knob}` | `{default}` | {about}" in text
    assert "How text is cut into tokens. One of: bpe, " in text


def test_documents_name_only_commands_and_files_that_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        text = document.read_text()
        for command in re.findall(r"^\s*(?:\.venv/bin/)?hornbook (\w+)", text, flags=re.MULTILINE):
            assert command in COMMANDS, f"{document.name}: hornbook {command}"
        for target in re.findall(r"\]\((?!http|#)([^)#]+)\)", text):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_walk_through_the_house_passes_thirty_files_and_all_are_there() -> None:
    walk, _, another_day = (ROOT / "docs" / "architecture.md").read_text().partition("\n## Met on the way")
    passed, met = (set(re.findall(r"`(\w+/\w+\.py)`", part)) for part in (walk, another_day))
    assert [name for name in passed | met if not (ROOT / "src" / "hornbook" / name).is_file()] == []
    assert (len(passed), passed & met) == (30, {"text/tokenizer.py"})
    assert "in which to read them: thirty files" in walk


def readme_commands() -> list[str]:
    """The hornbook commands of README's section on one's own text, in their order."""
    section = (ROOT / "README.md").read_text().partition("## Your own text")[2].partition("\n## ")[0]
    return re.findall(r"^hornbook .*$", section, flags=re.MULTILINE)


@pytest.mark.usefixtures("pictures")
def test_readme_commands_run(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each as it stands, but for the text's path and a length that a test can wait for."""
    commands = readme_commands()
    assert {words.split()[1] for words in commands} >= {"train", "resume", "generate", "eval", "report"}
    (tmp_path / "my-text.txt").write_bytes(text_file.read_bytes()[:30_000])
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = command.partition("#")[0].strip()
        if words.startswith("hornbook train"):
            words += " --train.steps 4 --model.n-layer 1 --model.n-embd 32 --model.n-head 2 --model.context 32"
        elif words.startswith("hornbook resume"):
            words = re.sub(r"--train\.\S+ \S+", "--train.steps 6", words)
        code = main(shlex.split(words.removeprefix("hornbook ")))
        assert code == 0, f"{command}\n{capsys.readouterr()}"
    assert capsys.readouterr().out.count("hornbook glossary perplexity") >= 3  # a summary each of train, resume, eval
