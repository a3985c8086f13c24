from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from effort import long
from hornbook import cli
from hornbook.base.console import columns
from hornbook.base.errors import UserError
from hornbook.base.output import visible
from hornbook.infer.config import SamplerConfig
from hornbook.infer.speaker import Speaker, load_speaker
from hornbook.infer.terminal import read_prompts
from hornbook.model.folder import save_model
from hornbook.model.gpt import GPT
from hornbook.text.tokenizer import TokenizerConfig, train_tokenizer


def test_a_file_holds_a_prompt_on_each_line(tmp_path: Path) -> None:
    lines, objects = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    lines.write_bytes("Once upon\r\n\nnäher \n".encode())
    assert read_prompts(lines) == ["Once upon", "", "näher "]
    objects.write_text('"two\\nlines"\n\n{"prompt": "b", "name": 1}\n')
    assert read_prompts(objects) == ["two\nlines", "b"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", b"", "holds no prompt"),
        ("a.txt", b"\xff\n", "not UTF-8"),
        ("a.jsonl", b'"a"\n{"text": "b"}\n', "a.jsonl:2: should be a JSON string"),
        ("a.jsonl", b'"a"\n\nb\n', "a.jsonl:3: not JSON"),
        ("b.txt", None, "no such file"),
    ],
)
def test_a_file_without_prompts_is_refused(name: str, content: bytes | None, complaint: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(complaint)):
        read_prompts(tmp_path / name)


def test_the_command_prints_a_line_of_json_for_each_continuation(
    speaker: Speaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("x\ny\n")
    words = ["generate", str(speaker.folder), "--prompt", "", "--prompts", str(file), "--n", "2", "--seed", "3"]
    words += ["--max-tokens", "6", "--repetition-penalty", "1.2", "--presence-penalty", "0.5", "--device", "cpu"]
    assert cli.main([*words, "--logprobs", "2", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["prompt"], each["seed"]) for each in lines] == [(p, s) for p in ("", "x", "y") for s in (3, 4)]
    rules = {"repetition_penalty": 1.2, "presence_penalty": 0.5}
    assert lines[3]["text"] == speaker.generate("x", seed=4, max_tokens=6, **rules)
    assert len(lines[3]["tokens"][0]["alternatives"]) == 2
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert all(f"\n{each['prompt']}{each['text']}\n" in said for each in lines)


def test_the_command_searches_with_beams(speaker: Speaker, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(speaker.folder), "--prompt", "ab", "--beams", "3", "--length-penalty", "0.5", "--json"]
    assert cli.main([*words, "--n", "2", "--max-tokens", "6"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = speaker.beam_search("ab", beams=3, n=2, length_penalty=0.5, max_tokens=6)
    assert [each["text"] for each in lines] == [each.text for each in found]
    assert cli.main([*words, "--temperature", "0.5"]) == 2
    assert cli.main([*words, "--n", "4"]) == 2
    assert [line[:6] for line in capsys.readouterr().err.splitlines()] == ["error:"] * 2


def test_help_tells_what_each_option_does_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    said = " ".join(capsys.readouterr().out.split()).partition("options:")[2]
    for option, default in (("max-tokens", "256"), *SamplerConfig()):
        about = said.rpartition(f" --{option.replace('_', '-')} ")[2].partition(" --")[0]
        assert f"{'off' if default is None else default} when not given" in about
        assert len(about) > 40


def test_what_is_piped_in_is_the_prompt(
    speaker: Speaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for piped, prompt in (("two\nlines\n", "two\nlines"), ("", "")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
        assert cli.main(["generate", str(speaker.folder), "--max-tokens", "5"]) == 0
        assert capsys.readouterr().out == prompt + speaker.generate(prompt, max_tokens=5) + "\n"


class Screen(io.StringIO):
    """What a person sees."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("more", [[], ["--n", "2"], ["--beams", "2"]], ids=str)
def test_what_a_model_says_does_not_steer_a_terminal_and_is_left_alone_elsewhere(
    more: list[str], speaker: Speaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This model has an equal mind to say any byte."""
    said = {}
    for stream in (io.StringIO(), Screen()):
        monkeypatch.setattr(sys, "stdout", stream)
        prompt = "\x1b]0;mine\x07\tover\rwritten\n"
        assert cli.main(["generate", str(speaker.folder), "--prompt", prompt, "--max-tokens", "60", *more]) == 0
        said[type(stream)] = stream.getvalue()
    assert visible(said[io.StringIO]) == said[Screen]
    if not more:
        assert said[io.StringIO] == prompt + speaker.generate(prompt, max_tokens=60) + "\n"
    assert "\\x1b]0;mine\\x07\tover\\x0dwritten\n" in said[Screen]


def test_an_option_that_cannot_be_is_told_before_anything_is_said(
    speaker: Speaker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", str(speaker.folder), "--prompt", "hi", "--temperature", "-1"]) == 2
    assert capsys.readouterr() == ("", "error: --temperature: should be greater than or equal to 0, not -1.0\n")


def test_an_error_in_the_middle_of_a_text_has_a_line_of_its_own(
    speaker: Speaker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> Iterator[object]:
        raise UserError("the weights are damaged")
        yield

    monkeypatch.setattr(Speaker, "_grown", failing)
    assert cli.main(["generate", str(speaker.folder), "--prompt", "hi"]) == 2
    assert capsys.readouterr() == ("hi\n", "error: the weights are damaged\n")


def test_a_prompt_longer_than_the_context_is_told_of(speaker: Speaker, capsys: pytest.CaptureFixture[str]) -> None:
    for letters, told in ((16, False), (17, True)):
        assert cli.main(["generate", str(speaker.folder), "--prompt", "x" * letters, "--max-tokens", "3"]) == 0
        assert ("the first 8" in (err := capsys.readouterr().err)) is told, err


@pytest.mark.parametrize(
    "words",
    [
        ["--n", "0"],
        ["--beams", "0"],
        ["--logprobs", "-1", "--json"],
        ["--logprobs", "2"],
        ["--length-penalty", "1"],
        ["--repetition-penalty", "0"],
        ["--prompts", "nowhere.txt"],
    ],
    ids=" ".join,
)
def test_wrong_options_are_told_in_a_line(
    words: list[str], speaker: Speaker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", str(speaker.folder), "--prompt", "a", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert len(line) <= 200


class Terminal:
    """The command at a terminal, as a person would have it."""

    def __init__(self, folder: Path, home: Path, *more: str, max_tokens: int = 5) -> None:
        self._master, slave = pty.openpty()
        words = [sys.executable, "-m", "hornbook", "generate", str(folder)]
        words += ["--max-tokens", str(max_tokens), "--device", "cpu", *more]
        environment = os.environ | {"HORNBOOK_HOME": str(home), "TERM": "dumb"}
        self.process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        self._heard = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def hear(self, until: str) -> str:
        """What comes, up to and with `until`."""
        end = time.monotonic() + 60
        while until not in self._heard:
            assert select.select([self._master], [], [], max(end - time.monotonic(), 0))[0], (until, self._heard)
            self._heard += os.read(self._master, 4096).decode(errors="replace").replace("\r\n", "\n")
        heard, _, self._heard = self._heard.partition(until)
        return heard + until


@pytest.fixture
def another(untaught: Callable[..., GPT], tmp_path: Path) -> Path:
    folder = tmp_path / "another"
    folder.mkdir()
    save_model(untaught("classic", context=16), train_tokenizer(TokenizerConfig(kind="byte"), [], 0), folder)
    return folder


def test_models_answer_the_same_prompts_beside_one_another(
    speaker: Speaker, another: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names, prompts = [str(speaker.folder), str(another)], ["x", "y"]
    words = ["generate", *names, *(f"--prompt={prompt}" for prompt in prompts), "--max-tokens=5", "--device=cpu"]
    alone = {
        (name, prompt): load_speaker(Path(name), device="cpu").generate(prompt, max_tokens=5)
        for prompt in prompts
        for name in names
    }
    assert len(set(alone.values())) >= 3
    assert cli.main([*words, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(line["model"], line["prompt"]): line["text"] for line in lines} == alone
    assert cli.main(words) == 0
    expected = "".join(f"--- {name}, seed 0\n{prompt}{text}\n" for (name, prompt), text in alone.items())
    assert capsys.readouterr().out == expected
    monkeypatch.setattr("hornbook.base.console.is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "60")
    columns(["[b]left", "right"], ["one two " * 9, "[i]three " * 9])
    drawn = capsys.readouterr().out.splitlines()
    assert [line.split() for line in drawn if "left" in line] == [["[b]left", "right"]]
    assert sum("one two" in line and "[i]three" in line for line in drawn) >= 2
    assert max(map(len, drawn)) <= 60


def test_the_prompt_line_answers_and_remembers(speaker: Speaker, tmp_path: Path) -> None:
    (tmp_path / "prompt-history.txt").write_text("ab\n")  # by one before
    terminal = Terminal(speaker.folder, tmp_path)
    greeting = terminal.hear("> ")
    assert "parameters, a context of " in greeting
    assert "Speaker(" not in greeting
    for seed, (keys, prompt) in enumerate([("\x1b[A\n", "ab"), ("cd\n", "cd"), ("cd\n", "cd")]):  # the arrow up
        terminal.type(keys)
        heard = terminal.hear("\n> ")
        answer = visible(speaker.generate(prompt, max_tokens=5, seed=seed))
        assert "".join(answer.split()) in "".join(heard.split())
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0
    assert (tmp_path / "prompt-history.txt").read_text() == "ab\ncd\n"


@long
def test_ctrl_c_stops_an_answer_and_not_the_prompt_line(speaker: Speaker, tmp_path: Path) -> None:
    tried = speaker.generate_batch([*"abcdefghijklmnop"], max_tokens=500, temperature=0.0)
    prompt = next(each.prompt for each in tried if each.ended == "length")  # one that the likeliest tokens never end
    shown = visible(speaker.generate(prompt, max_tokens=20, temperature=0.0))
    endless = Terminal(speaker.folder, tmp_path, "--temperature", "0", max_tokens=1_000_000)
    endless.hear("> ")
    endless.type(f"{prompt}\n")
    endless.hear(f"{prompt}\n{prompt}{shown}")
    endless.process.send_signal(signal.SIGINT)
    endless.hear("\n> ")
    assert (tmp_path / "prompt-history.txt").read_text() == f"{prompt}\n"  # also of a terminal that is closed now
    endless.type("\x04")
    assert endless.process.wait(30) == 0
