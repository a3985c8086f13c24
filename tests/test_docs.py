"""What the documents show works as they show it."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
import yaml

from effort import long
from hornbook.base.settings import described
from hornbook.cli import COMMANDS, main
from hornbook.cli.knobs import markdown
from hornbook.cli.launching import Launch
from hornbook.cli.meeting import place
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
    assert "in which it meets them: thirty files" in " ".join(walk.split())


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


def shown(language: str, document: str) -> str:
    """The first block of a document in that language."""
    return (ROOT / "docs" / document).read_text().partition(f"```{language}\n")[2].partition("```")[0]


@pytest.mark.parametrize(("code", "queued_again"), [(0, False), (130, True), (1, False)])
def test_the_job_for_slurm_starts_one_launcher_a_node_and_queues_again_what_was_saved(
    code: int, queued_again: bool, tmp_path: Path
) -> None:
    """With commands that do as Slurm's: srun runs its words on each node, and tells the worst exit code."""
    job = shown("bash", "many-devices.md")
    options = dict(
        each.removeprefix("--").partition("=")[::2]
        for line in re.findall(r"^#SBATCH (.*)$", job, flags=re.MULTILINE)
        for each in line.split()
    )
    programs = {
        "scontrol": '[ "$1" = requeue ] && echo "requeue $2" >> told || printf "node-7\\nnode-8\\n"',
        "srun": 'printf "%s\\n" "$@" > words-of-srun; while [ "${1#--}" != "$1" ]; do shift; done; "$@"; "$@"',
        "hornbook": f'echo "$@" >> told; exit {code}',
    }
    for name, does in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    env = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node-[7-8]",
        "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
        "SLURM_JOB_ID": "12",
    }
    done = subprocess.run(["bash", "-u"], input=job, cwd=tmp_path, env=env, text=True)
    assert done.returncode == code
    told = (tmp_path / "told").read_text().splitlines()
    assert told[2:] == ["requeue 12"] * queued_again
    words = shlex.split(told[0])
    launch = Launch.taken_from(words)
    assert words == ["train", "run.toml", "--out", "runs/big"]
    assert launch == Launch(int(options["gpus-per-node"]), 1, int(options["nodes"]), "node-7:29400")
    assert options["ntasks-per-node"] == "1"
    assert {"--no-kill", "--kill-on-bad-exit=0", "--cpus-per-task=64"} < set(
        (tmp_path / "words-of-srun").read_text().split()
    )


def test_the_job_for_kubernetes_is_whole() -> None:
    service, job = yaml.safe_load_all(shown("yaml", "many-devices.md"))
    pod, name = job["spec"]["template"]["spec"], job["metadata"]["name"]
    (container,) = pod["containers"]
    assert (service["apiVersion"], service["kind"], job["apiVersion"], job["kind"]) == (
        "v1",
        "Service",
        "batch/v1",
        "Job",
    )
    assert service["spec"] == {"clusterIP": "None", "selector": {"job-name": name}, "publishNotReadyAddresses": True}
    assert job["spec"].keys() == {"completions", "parallelism", "completionMode", "backoffLimit", "template"}
    assert pod.keys() == {"subdomain", "restartPolicy", "terminationGracePeriodSeconds", "containers", "volumes"}
    assert container.keys() == {"name", "image", "workingDir", "command", "resources", "volumeMounts"}
    words = container["command"][1:]
    launch = Launch.taken_from(words)
    assert launch is not None
    assert words == ["train", "run.toml", "--out", "runs/big"]
    assert launch.processes == container["resources"]["limits"]["nvidia.com/gpu"]
    assert launch.most_hosts == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert place(launch.meet or "") == (f"{name}-0.{service['metadata']['name']}", 29400)
    assert pod["subdomain"] == service["metadata"]["name"]
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    assert container["workingDir"] in [each["mountPath"] for each in container["volumeMounts"]]
