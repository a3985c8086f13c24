"""The commands as a user meets them: real processes where start-up or exit codes matter, in process where not."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from hornbook import cli
from hornbook.base.names import own_version
from hornbook.base.output import visible
from hornbook.base.settings import knobs
from hornbook.cli import conclusion
from hornbook.runs.folder import RunFolder, resolve, step_of
from hornbook.train.config import ALSO_CALLED, RunConfig
from yardstick import within

pytestmark = pytest.mark.xdist_group("cli")  # one training
SIZES = {"n-layer": 1, "n-embd": 32, "n-head": 2, "context": 32}
SMALL = [f"--model.{name}={size}" for name, size in SIZES.items()] + ["--train.steps=4"]


def run(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hornbook", *words], cwd=cwd, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def trained(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run, made by the command itself."""
    folder = tmp_path_factory.mktemp("cli") / "runs" / "small"
    assert cli.main(["train", "--data", str(text_file), "--out", str(folder), *SMALL]) == 0
    return folder


def test_help_answers_at_once_and_does_not_import_torch() -> None:
    code = "import sys, hornbook.cli as c; c.main(['--help']); print('torch' in sys.modules, 'pydantic' in sys.modules)"
    times, plain = [], []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        helped = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import argparse, json, re"], check=True)
        times.append(helped - began)
        plain.append(time.perf_counter() - helped)
        if times[-1] < 0.5:
            break
    assert done.stdout.endswith("False False\n")
    # Half a second, unless Python alone takes more than the tenth of one that it takes on an idle processor.
    assert min(times) < max(0.5, 5 * min(plain)), (times, plain)


def test_the_module_answers_as_the_command_does() -> None:
    done = run("--help")
    assert (done.returncode, done.stdout, done.stderr) == (0, cli.ABOUT, "")


def test_sources_that_were_not_installed_have_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("hornbook.base.names.version", unknown)
    assert own_version() == "from its sources, not installed"


def test_the_version_is_told_with_torch_s_and_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"hornbook {version('hornbook')}"
    assert re.match(rf"torch {re.escape(version('torch'))} on (cpu|cuda|mps): .+, (float32|bfloat16)$", told[1])


def test_settings_recipes_and_corpora_do_not_wait_for_torch() -> None:
    code = "import sys, hornbook.cli as c; c.main(['recipes']); c.main(['corpora']); c.main(['train', '--help'])"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert "--train.batch-tokens" in done.stdout


@pytest.mark.usefixtures("pictures")
def test_training_tells_what_was_reached_and_what_to_try_next(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(conclusion, "MOST_TO_ASK", 1e6)
    monkeypatch.setattr(conclusion, "LEAST_TO_ASK", 1e6)
    assert cli.main(["train", "--data", str(text_file), *SMALL]) == 0
    told = capsys.readouterr().out
    for part in (
        "sizes chosen",
        "validation loss",
        "bits per byte",
        "gzip -9",
        "xz -9",
        "continuation 3 of 3",
        "next:",
    ):
        assert part in told
    folder = tmp_path / "runs" / text_file.stem
    assert (folder / "loss.png").is_file()
    assert (folder / "perplexity.png").is_file()
    # What it says to try next is a command that works.
    suggestion = next(line.split() for line in told.splitlines() if line.startswith("  hornbook resume"))
    assert cli.main([*suggestion[1:3], "--train.steps", "5"]) == 0
    answers = json.loads((folder / "answers.json").read_text())["answers"]
    assert [each["step"] for each in answers] == sorted({step_of(each) for each in RunFolder(folder).kept()})
    # And a second run takes the next free name.
    assert cli.main(["train", "--data", str(text_file), *SMALL]) == 0
    assert f"this is a new run, runs/{text_file.stem}-2" in capsys.readouterr().out.replace("\\", "/")
    assert (tmp_path / "runs" / f"{text_file.stem}-2" / "checkpoints").is_dir()


@pytest.mark.parametrize(
    ("file", "name"), [(b"e\x1bf\tg\xe9 (" + "长".encode() * 75, "e_f_g_ (" + "长" * 30), (b"...", "text")], ids=str
)
def test_a_text_of_any_name_on_a_screen_of_any_kind(
    file: bytes, name: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controls, bytes that are no UTF-8, too long, and nothing but dots; where the screen has the letters of ASCII."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / os.fsdecode(file + b".txt")).write_bytes(text_file.read_bytes())
    screen = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    words = ["--data", os.fsdecode(file + b".txt"), "--sample.prompts", '["é"]', *SMALL]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cli.main(["train", *words]) == 0
        assert cli.main(["resume", f"runs/{name}", "--train.steps", "5"]) == 0
    assert [each.name for each in (tmp_path / "runs").iterdir()] == [name]
    assert (tmp_path / "runs" / name / "checkpoints").is_dir()
    told = screen.buffer.getvalue().decode("ascii").replace("?", "")  # type: ignore[attr-defined]
    assert visible(told) == told


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("fails", ["not at all", "by itself", "to begin"])
def test_the_pictures_are_there_when_a_command_ends(
    fails: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By whichever process; one that fails may have had no memory, and says nothing."""
    run = Path(shutil.copytree(trained, tmp_path / "a run"))
    for picture in run.glob("*.png"):
        picture.unlink()
    if fails == "by itself":
        monkeypatch.setattr(conclusion, "DRAW", conclusion.DRAW.replace("sys.argv[1]", "sys.argv[2]"))
    if fails == "to begin":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    with conclusion.drawn_beside(run) as pictures:
        pass
    assert capfd.readouterr().err == ""
    assert pictures() == [run / "loss.png", run / "perplexity.png"]
    assert all(picture.is_file() for picture in pictures())


@pytest.mark.usefixtures("pictures")
def test_generate_eval_verify_and_report_on_a_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", str(trained), "--prompt", "def ", "--max-tokens", "5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert cli.main(["generate", str(trained), "--prompt", "def ", "--max-tokens", "5"]) == 0
    assert capsys.readouterr().out == said["prompt"] + said["text"] + "\n"

    assert cli.main(["eval", str(trained), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    logged = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    best = min(entry["val_loss"] for entry in logged if "val_loss" in entry)
    assert scored["loss"] == pytest.approx(best, rel=0.02)  # the run may have computed in bf16

    assert cli.main(["verify", str(trained)]) == 0
    assert capsys.readouterr().out.count("good") >= 2
    assert cli.main(["report", str(trained)]) == 0
    assert str(trained / "loss.png") in capsys.readouterr().out


def test_several_models_are_scored_beside_one_another(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sorted((trained / "snapshots").iterdir())[0]
    (tmp_path / "text.txt").write_text("def f(x):\n    return x\n" * 20)
    words = ["eval", str(trained), str(first), "--data", str(tmp_path / "text.txt")]
    assert cli.main([*words, "--json"]) == 0
    scored = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["model"] for each in scored] == [str(resolve(trained)), str(first)]
    assert scored[0]["loss"] != scored[1]["loss"]
    assert cli.main(words) == 0
    shown = capsys.readouterr()
    for each in scored:
        assert f"{each['bits_per_byte']:.4f}" in shown.out
    assert "different texts" not in shown.err
    assert cli.main(["eval", str(trained), str(first)]) == 2  # of a model that is no run, the text is to be named


def test_a_prompt_may_stand_behind_the_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        assert cli.main(["generate", *words, "--json"]) == 0
        return capsys.readouterr().out

    for prompt in ("def ", "some/thing and more", "class"):
        expected = said(str(trained), "--prompt", prompt, "--max-tokens", "3")
        assert said(str(trained), prompt, "--max-tokens", "3") == expected
        assert said(str(trained), "--max-tokens", "3", prompt) == expected
    assert cli.main(["generate", str(trained), str(trained.parent / "missing")]) == 2
    assert "no such model or run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("knob", "said"),
    [
        ("--learning-rate", "did you mean --optim.lr?"),
        ("--batch-size", "did you mean --train.batch-tokens?"),
        ("--train.max-iters", "did you mean --train.steps?"),
        ("--foo", "see hornbook train --help.all"),
    ],
)
def test_a_knob_of_other_programs_is_told_ours(knob: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", knob, "3"]) == 2
    assert capsys.readouterr().err == f"error: {knob}: no such knob; {said}\n"


def test_every_name_of_other_programs_stands_for_a_knob() -> None:
    assert set(ALSO_CALLED.values()) <= set(knobs(RunConfig))
    assert not set(ALSO_CALLED) & {knob.rpartition(".")[2] for knob in knobs(RunConfig)}


def test_prepare_then_train_on_the_shards(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["prepare", str(text_file), "--out", "shards", "--tokenizer.kind", "char"]) == 0
    assert "next:  hornbook train --data shards" in capsys.readouterr().out
    assert cli.main(["train", "--data", "shards", *SMALL, "--tokenizer.vocab-size", "none", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["ended"] == "done"
    assert "validation loss" in said.err


def mistakes(tmp_path: Path) -> dict[str, list[str]]:
    """What a user may do wrong, as the words that do it."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "short.txt").write_text("too short a text\n" * 12)
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.toml").write_text("[train]\nstepz = 3\n")
    return {
        "unknown command": ["trian"],
        "unknown recipe": ["train", "demmo"],
        "unknown knob": ["train", "--train.stepz", "3"],
        "unknown knob in a file": ["train", str(tmp_path / "bad.toml")],
        "wrong type": ["train", "--train.steps", "many"],
        "impossible combination": ["train", "--model.n-kv-head", "3"],
        "missing file": ["train", "--data", str(tmp_path / "none.txt")],
        "missing settings file": ["train", str(tmp_path / "none.toml")],
        "empty file": ["train", "--data", str(tmp_path / "empty.txt")],
        "binary file": ["train", "--data", str(tmp_path / "binary.txt")],
        "folder without text": ["train", "--data", str(tmp_path / "folder")],
        "text too short": ["train", "--data", str(tmp_path / "short.txt"), "--model.context", "512"],
        "no such device": ["train", "--train.device", "tpu"],
        "no run": ["resume", str(tmp_path / "none")],
        "no model": ["generate", str(tmp_path / "folder")],
        "no metrics": ["report", str(tmp_path / "folder")],
        "nothing to verify": ["verify", str(tmp_path / "folder")],
        "unknown option": ["generate", str(tmp_path), "--temprature", "1"],
        "out of range": ["generate", str(tmp_path), "--max-tokens", "0"],
        "too large a seed": ["train", "--seed", "99999999999999999999"],
        "too large a batch": ["train", "--train.batch-tokens", "99999999999999999999"],
        "too many threads": ["train", "--train.threads", "100000"],
        "a prompt of no text": ["train", "--sample.prompts", "\udcff"],
    }


def test_each_mistake_is_one_line_that_says_the_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch  # noqa: F401  # the two seconds below do not count its import

    for name, words in mistakes(tmp_path).items():
        with within(2):
            code = cli.main([*words, "--out", str(tmp_path / "out")] if words[0] == "train" else words)
        error = capsys.readouterr().err
        assert code == 2, f"{name}: {code} {error}"
        assert error.startswith("error: "), f"{name}: {error}"
        assert error.count("\n") == 1, f"{name}: {error}"
        assert len(error) <= len("error: ") + 201, f"{name}: {error}"


def test_a_folder_whose_name_is_no_text_is_refused_before_it_costs_anything(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "caf\udce9")
    assert cli.main(["train", "--data", str(text_file), "--out", out, *SMALL]) == 2
    assert "not UTF-8" in capsys.readouterr().err
    assert not os.path.exists(out)
    os.mkdir(out)
    assert cli.main(["prepare", str(text_file), "--out", out]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_all_mistakes_in_a_config_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "--train.stepz 3 --optim.lr fast --model.n-kv-head 3 --modle.n_layer 2"
    assert cli.main(["train", *wrong.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert any("did you mean --train.steps?" in line for line in lines)
    assert any("did you mean --model.n-layer?" in line for line in lines)


def test_a_real_process_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    done = run("train", "--data", str(tmp_path / "none.txt"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_bug_of_ours_exits_with_1_and_names_the_way_to_see_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(words: list[str]) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setitem(cli.COMMANDS, "recipes", broken)
    assert cli.main(["recipes"]) == 1
    assert "HORNBOOK_DEBUG=1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--out", "--train.steps", "3"], "error: --out: name the run's folder: --out runs/NAME\n"),
        (["train", "--out.x", "5"], "error: --out: name the run's folder: --out runs/NAME\n"),
        (
            ["plan", "--processes", "2"],
            "error: plan: --processes is left out; it times one process here, and --gpus N --gpu NAME tells of many\n",
        ),
    ],
    ids=str,
)
def test_what_is_no_folder_and_no_knob_is_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err == said


def test_resume_with_half_a_knob_names_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["resume", str(trained), "--train"]) == 2
    assert capsys.readouterr().err.startswith("error: --train: ")
