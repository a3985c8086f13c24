"""Damaged files of every kind that a command reads, save texts: each is told in one line, at once, or does no harm.

The texts are in tests/text/test_malformed.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from damage import VALUES, damaged, flipped, misread
from effort import tries
from hornbook import cli
from hornbook.base.errors import LONGEST_LINE
from yardstick import within

pytestmark = pytest.mark.xdist_group("damaged")  # one training
AT_LEAST = 40
SMALL = ["--model.n-layer=1", "--model.n-embd=32", "--model.n-head=2", "--model.context=32", "--train.device=cpu"]
SECONDS = 2


@pytest.fixture(scope="module")
def made(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a run on them, and its model by itself."""
    folder = tmp_path_factory.mktemp("made")
    shards, run = str(folder / "shards"), folder / "run"
    assert cli.main(["prepare", str(text_file), "--out", shards, "--tokenizer.vocab-size", "300"]) == 0
    words = ["--data", shards, "--out", str(run), "--tokenizer.vocab-size", "none", "--train.steps", "1"]
    assert cli.main(["train", *words, *SMALL]) == 0
    (checkpoint,) = (run / "checkpoints").iterdir()
    kept = ("config.json", "model.safetensors", "tokenizer.json")
    (folder / "model").mkdir()
    for name in kept:
        shutil.copy(checkpoint / name, folder / "model" / name)
    return folder


Tell = Callable[..., str]


@pytest.fixture
def tell(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Tell:
    """Run a command; what it says where it refuses, nothing where it does not. It leaves nothing behind."""

    def places() -> dict[Path, float]:
        roots = (made, tmp_path, Path.cwd())
        return {path: path.stat().st_mtime for root in roots for path in root.iterdir()}

    def run(*words: str | Path, names: str = "") -> str:
        before = set(places())
        with within(SECONDS):
            code = cli.main([*map(str, words)])
        said, error = capsys.readouterr()
        assert set(places()) - before <= {tmp_path / "out"}
        if code == 0:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            return ""
        if code == 1 and words[0] == "verify":  # it could read everything, and found what was changed
            return said
        assert code == 2, error
        assert not (tmp_path / "out" / "checkpoints").exists()
        lines = [line for line in error.splitlines() if not line.startswith("warning: ")]
        # One for each mistake, and a wrong name of a tensor or knob can be several.
        assert all(line.startswith("error: ") and len(line) <= len("error: ") + LONGEST_LINE for line in lines), error
        assert len(lines) <= 8
        assert names in error
        return lines[0]

    return run


@contextlib.contextmanager
def in_place_of(path: Path, data: bytes) -> Iterator[None]:
    kept = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(kept)


def refused(path: Path, cases: Mapping[str, bytes], try_it: Callable[[], str]) -> dict[str, str]:
    """What was said of the damaged files that were not taken."""
    found = {}
    for name, data in cases.items():
        with in_place_of(path, data):
            try:
                found[name] = try_it()
            except BaseException as error:
                error.add_note(f"{path.name}, {name}")
                raise
    return {name: line for name, line in found.items() if line}


def as_json(values: Iterator[tuple[str, Any]]) -> dict[str, bytes]:
    return {name: json.dumps(value).encode(errors="surrogatepass") for name, value in values}


def generate(made: Path) -> list[str]:
    return ["generate", str(made / "model"), "--prompt", "def f(x):", "--max-tokens", "1", "--device", "cpu"]


def test_nothing_is_wrong_with_what_is_damaged_here(made: Path, tell: Tell, tmp_path: Path) -> None:
    assert tell(*generate(made)) == ""
    assert tell("eval", made / "model", "--data", made / "shards", "--device", "cpu") == ""


def test_a_damaged_tokenizer_is_told(made: Path, tell: Tell) -> None:
    path = made / "model" / "tokenizer.json"
    data = path.read_bytes()
    whole = json.loads(data)
    cases = damaged(data) | flipped(data, 30) | as_json(misread(whole, tries(25, 120)))
    for key, value in [
        ("type", "Unigram"),
        ("type", "WordPiece"),
        ("continuing_subword_prefix", "long prefix"),
        ("unk_token", "none"),
        ("merges", [["zz", "zz"]]),
        ("merges", ["a"]),
        ("vocab", {}),
        ("vocab", whole["model"]["vocab"] | {"more": 300}),
        ("vocab", {f"{token} ": number for token, number in whole["model"]["vocab"].items()}),
    ]:
        cases[f"{key} {str(value)[:20]}"] = json.dumps(whole | {"model": whole["model"] | {key: value}}).encode()
    lines = refused(path, cases, lambda: tell(*generate(made), names="tokenizer"))
    assert len(lines) >= AT_LEAST
    for name in ("empty", "an empty object", "continuing_subword_prefix long prefix", "vocab {}", "a pickle"):
        assert "tokenizer.json" in lines[name]


def test_a_pattern_without_end_in_a_tokenizer_is_told(made: Path, tell: Tell) -> None:
    path = made / "model" / "tokenizer.json"
    endless = {"type": "Split", "pattern": {"Regex": "(x+)+$"}, "behavior": "Isolated", "invert": False}
    with in_place_of(path, json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": endless}).encode()):
        words = ["generate", made / "model", "--prompt", "x" * 40 + "!", "--max-tokens", "1", "--device", "cpu"]
        assert "tokenizer.json" in tell(*words)


def of_safetensors(data: bytes) -> dict[str, bytes]:
    """Headers that say another thing than the tensors do."""
    size = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + size]), data[8 + size :]

    def with_header(text: bytes, length: int | None = None) -> bytes:
        return (len(text) if length is None else length).to_bytes(8, "little") + text + tensors

    plain = json.dumps(header).encode()
    cases = {f"header: {name}": with_header(text) for name, text in as_json(misread(header, tries(25, 150))).items()}
    cases |= {f"header of {length}": with_header(plain, length) for length in (0, 1, 2**31, 2**40, 2**63, 2**64 - 1)}
    cases |= {
        "a header of braces": with_header(b"{" * 100_000),
        "a name twice": with_header(plain[:-1] + b"," + plain[1:]),
        "a header of its own length": with_header(plain + b" " * 1000, len(plain) - 1),
        "a hundred million spaces": with_header(b" " * 101_000_000),
    }
    return cases


def test_damaged_weights_are_told(made: Path, tell: Tell) -> None:
    path = made / "model" / "model.safetensors"
    data = path.read_bytes()
    cases = damaged(data) | flipped(data, 20) | of_safetensors(data)
    lines = refused(path, cases, lambda: tell(*generate(made), names="model.safetensors"))
    assert len(lines) >= AT_LEAST
    assert lines.keys() >= {"empty", "noise", "a pickle", "header of 18446744073709551615", "a hundred million spaces"}


def test_a_tensor_of_another_kind_is_told(made: Path, tell: Tell) -> None:
    path = made / "model" / "model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    name = "model.norm.weight"
    others = {
        str(kind): torch.ones(32).to(kind) for kind in (torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)
    }
    others |= {"no axis": torch.tensor(1.0), "no number": torch.ones(0), "more axes": torch.ones(1, 32)}
    cases = {what: safetensors.torch.save(tensors | {name: tensor}) for what, tensor in others.items()}
    cases["none"] = safetensors.torch.save({})
    assert refused(path, cases, lambda: tell(*generate(made), names="tensor")).keys() == cases.keys()


def test_a_damaged_description_of_a_model_is_told(made: Path, tell: Tell) -> None:
    path = made / "model" / "config.json"
    whole = json.loads(path.read_bytes())
    cases = damaged(path.read_bytes()) | as_json(misread({"hornbook": whole["hornbook"]}, tries(25, 120)))
    cases |= {f"model_type {kind}": json.dumps(whole | {"model_type": kind}).encode() for kind in ("gpt2", "x", 3, {})}
    for knob in ("n_layer", "n_head", "n_embd", "context", "vocab_size", "mlp_width", "head_width", "n_kv_head"):
        for size in (0, 7, 10**4, 10**6, 10**9, 10**30):
            ours = whole["hornbook"] | {knob: size}
            cases[f"{knob} {size}"] = json.dumps(whole | {"hornbook": ours}).encode()
    lines = refused(path, cases, lambda: tell(*generate(made), names="/model"))
    assert len(lines) >= AT_LEAST
    assert lines.keys() >= {"n_layer 10000", "n_layer 1000000000", "n_embd 1000000", "vocab_size 1000000000"}
    assert lines.keys() >= {"model_type gpt2", "model_type x"}


def hashed(manifest: Any) -> Any:
    """As one that was written so: the hash of itself in it is right."""
    if isinstance(manifest, dict):
        rest = {key: value for key, value in manifest.items() if key != "sha256"}
        manifest = rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}
    return manifest


def of_a_manifest(data: bytes) -> dict[str, bytes]:
    whole = json.loads(data)
    changes: list[tuple[str, Any]] = [(name, hashed(value)) for name, value in misread(whole, tries(40, 250))]
    for part, value in [
        ("dtype", "float64"),
        ("dtype", "<u2"),
        ("dtype", "uint32"),
        ("vocab_size", 10),
        ("vocab_size", 2**40),
        ("tokenizer_fingerprint", "0" * 64),
        ("splits", {}),
        ("splits", {"train": whole["splits"]["train"]}),
        ("splits", whole["splits"] | {"more": whole["splits"]["val"]}),
    ]:
        changes.append((f"{part} {str(value)[:30]}", hashed(whole | {part: value})))
    return as_json(iter(changes))


def test_a_damaged_manifest_of_shards_is_told(made: Path, tell: Tell, tmp_path: Path) -> None:
    path = made / "shards" / "manifest.json"
    data = path.read_bytes()
    cases = damaged(data) | flipped(data, tries(12, 40)) | of_a_manifest(data)
    score = ["eval", str(made / "model"), "--data", str(made / "shards"), "--device", "cpu"]
    lines = refused(path, cases, lambda: tell(*score, names="/shards"))
    assert len(lines) >= 2 * AT_LEAST
    train = ["train", "--data", made / "shards", "--out", tmp_path / "out", *SMALL, "--tokenizer.vocab-size=none"]
    for name in list(lines)[::8]:
        if "tokenizer_fingerprint" not in name:
            assert refused(path, {name: cases[name]}, lambda: tell(*train, "--train.steps=1", names="shards"))


def test_damaged_shards_are_told(made: Path, tell: Tell, tmp_path: Path) -> None:
    path = made / "shards" / "val-00000.bin"
    data = path.read_bytes()
    beyond = {}
    for place in range(1, len(data), len(data) // 45 | 1):
        high = place | 1  # of two bytes the higher: 300 entries leave no room for its bits
        beyond[f"an id too high at {high}"] = data[:high] + b"\xf0" + data[high + 1 :]
    score = ["eval", str(made / "model"), "--data", str(made / "shards"), "--device", "cpu"]
    cases = damaged(data) | beyond
    lines = refused(path, cases, lambda: tell(*score, names=path.name))
    assert lines.keys() >= cases.keys() - {"nothing but zeros", "zeros in the middle"}
    assert len(lines) >= AT_LEAST
    train = made / "shards" / "train-00000.bin"
    words = ["train", "--data", made / "shards", "--out", tmp_path / "out", *SMALL, "--tokenizer.vocab-size=none"]
    for number, bad in enumerate([b"\xff" * train.stat().st_size, b"", data]):
        assert refused(train, {str(number): bad}, lambda: tell(*words, "--train.steps=1", names=train.name))


@pytest.mark.parametrize("put", ["nothing", "a folder", "a link to nowhere", "a link to itself", "a pipe"])
@pytest.mark.parametrize("name", ["shards/val-00000.bin", "shards/manifest.json", "shards/tokenizer.json"])
def test_another_thing_where_a_file_of_shards_should_be_is_told(put: str, name: str, made: Path, tell: Tell) -> None:
    path = made / name
    kept = path.rename(made / "kept")
    try:
        {
            "nothing": lambda: None,
            "a folder": path.mkdir,
            "a link to nowhere": lambda: path.symlink_to("nowhere"),
            "a link to itself": lambda: path.symlink_to(path.name),
            "a pipe": lambda: os.mkfifo(path),
        }[put]()
        assert tell("train", "--data", made / "shards", *SMALL, "--train.steps=1", names="shards")
    finally:
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        kept.rename(path)


def test_a_damaged_record_of_a_run_is_told(made: Path, tell: Tell) -> None:
    path = made / "run" / "run.json"
    data = path.read_bytes()
    cases = damaged(data) | as_json(misread(json.loads(data), tries(4, 30)))
    for knob in ("run_id", "config", "data"):
        cases |= {
            f"{knob}: {what}": json.dumps(json.loads(data) | {knob: VALUES[what]}).encode(errors="surrogatepass")
            for what in VALUES
        }
    far = json.loads(data)
    far["data"]["folder"] = "x" * 100_000
    cases["data.folder: too long"] = json.dumps(far).encode()
    told = {
        "empty",
        "noise",
        "a pickle",
        "data.folder: too long",
        "data: null",
        "data: an array",
        "data: a half",
    }
    some = {name: cases[name] for number, name in enumerate(cases) if name in told or number % tries(5, 1) == 0}
    for words in (["eval", "--device", "cpu"], ["resume", "--train.steps", "1"], ["verify"]):
        command = [words[0], str(made / "run"), *words[1:]]
        met = cases if words[0] == "resume" else some
        lines = refused(path, met, lambda command=command: tell(*command))  # type: ignore[misc]
        unnamed = {name: line for name, line in lines.items() if "run.json" not in line}
        assert all("/shards" in line or "every checkpoint" in line for line in unnamed.values()), unnamed
        assert lines.keys() >= told


def files_of_settings() -> list[tuple[str, int, bytes]]:
    """Of each the line in which it is wrong, or 0 where none can be told."""
    toml: list[tuple[int, str]] = [
        (1, "="),
        (1, "steps"),
        (1, "[train"),
        (1, "train = 3"),
        (1, "[train]]"),
        (1, "train.steps = "),
        (2, "[train]\nsteps = 'x'"),
        (2, "[train]\nsteps = 1.5"),
        (2, "[train]\nsteps = -1"),
        (2, "[train]\nsteps = true"),
        (2, "[train]\nsteps = 0x"),
        (2, "[train]\nsteps = 1__0"),
        (2, "[train]\nsteps = 1e999"),
        (2, "[train]\nsteps = [1]"),
        (2, "[train]\nsteps = 2020-01-01"),
        (2, "[train]\nminutes = nan"),
        (2, "[train]\nminutes = inf"),
        (2, "[train]\nstepz = 3"),
        (2, "[train]\nthreads = 0"),
        (3, "[train]\nsteps = 1\nsteps = 2"),
        (2, "[train]\n[train]"),
        (1, "[[train]]\nsteps = 1"),
        (1, "data = 3"),
        (1, "data = [\n'a'"),
        (1, "seed = -1"),
        (1, "seed = '1'"),
        (1, "'unfinished"),
        (1, "a = 'x"),
        (1, "a = 12:99:00"),
        (1, "a = 2020-13-45"),
        (2, "\n\u2028"),
        (3, "\n\n[trian]\nsteps = 1"),
        (2, "[model]\nn_layer = 0"),
        (2, "[model]\nn_layer = 1000000000"),
        (2, "[model]\nn_embd = 1000000000000"),
        (2, "[model]\nn_kv_head = 3"),
        (2, "[model]\ndropout = 1.5"),
        (2, "[optim]\nlr = 'fast'"),
        (2, "[sample]\nprompts = [3]"),
        (2, "[sample]\nprompts = 'x'"),
        (2, "[tokenizer]\nkind = 'bpee'"),
        (2, "[tokenizer]\nranks_file = 'x'"),
        (0, "recipe = 'demmo'"),
        (0, "recipe = 3"),
        (0, "data = ''\ntrain.steps = 1"),
        (0, f"data = '{'x' * 5000}'\ntrain.steps = 1"),
        (0, "a = " + "[" * 20_000),
        (0, "a." * 3000 + "b = 1"),
    ]
    js: list[tuple[int, str]] = [
        (1, ""),
        (1, "{"),
        (1, '{"train": {"steps": 1}'),
        (1, '{"train": {"steps": 1,}}'),
        (1, "{'train': 1}"),
        (1, '{"train": 1}'),
        (1, '{"train": {"steps": 1}} {}'),
        (2, '{"train":\n{"steps": "x"}}'),
        (2, '{"train":\n{"steps": 1.5}}'),
        (2, '{"train":\n{"stepz": 1}}'),
        (2, '{"train":\n{"steps": NaN}}'),
        (2, '{"train":\n{"steps": 1e999}}'),
        (3, '{\n"train": {\n"minutes": -1}}'),
        (0, "[]"),
        (0, "null"),
        (0, '"text"'),
        (0, "[" * 200_000),
        (0, '{"seed": ' + "9" * 5_000 + "}"),
    ]
    broken = damaged(b'[train]\nsteps = 1\n[model]\nn_layer = "two"\n')
    texts = [(".toml", line, text.encode()) for line, text in toml]
    texts += [(".json", line, text.encode()) for line, text in js]
    texts += [(".toml", 0, broken[name]) for name in ("noise", "more at the beginning", "nothing but zeros")]
    return texts


@pytest.mark.parametrize(("ending", "line", "data"), files_of_settings(), ids=range(len(files_of_settings())))
def test_a_damaged_file_of_settings_is_told_with_its_line(
    ending: str, line: int, data: bytes, tell: Tell, tmp_path: Path
) -> None:
    path = tmp_path / f"settings{ending}"
    path.write_bytes(data)
    said = tell("train", path, "--out", tmp_path / "out")
    assert said
    if line:
        assert path.name in said
        assert f"line {line}" in said or "end of document" in said


def files_that_are_too_large(made: Path) -> list[tuple[Path, list[str]]]:
    shards = ["--data", str(made / "shards")]
    return [
        (made / "model" / "tokenizer.json", generate(made)),
        (made / "model" / "config.json", generate(made)),
        (made / "shards" / "manifest.json", ["eval", str(made / "model"), *shards, "--device", "cpu"]),
        (made / "run" / "run.json", ["resume", str(made / "run"), "--train.steps", "1"]),
    ]


def test_a_file_without_end_is_not_read_whole(made: Path, tell: Tell, tmp_path: Path) -> None:
    """Holes of a terabyte, which take no room on the disk."""
    for path, words in files_that_are_too_large(made):
        with in_place_of(path, b"{"):
            os.truncate(path, 1 << 40)
            assert path.name in tell(*words)
    for name in ("settings.toml", "settings.json", "ranks"):
        (tmp_path / name).write_bytes(b"")
        os.truncate(tmp_path / name, 1 << 40)
    assert "settings.toml" in tell("train", tmp_path / "settings.toml")
    assert "settings.json" in tell("train", tmp_path / "settings.json")
    gpt2 = ["--tokenizer.kind", "gpt2", "--tokenizer.ranks-file", tmp_path / "ranks", "--out", tmp_path / "out"]
    assert "ranks" in tell("prepare", "python-stdlib", "--text.max-documents", "70", *gpt2)
