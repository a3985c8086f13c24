"""Files of others: whatever stands where a command writes, none that it did not write is removed or changed.

HORNBOOK_SOAK=100 tries a hundred times as many trees.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effort import tries
from hornbook.base import files
from hornbook.base.errors import HornbookError, UserError
from hornbook.base.ours import Hidden, hidden
from hornbook.base.settings import merge
from hornbook.cli import PATH_ERRORS, main
from hornbook.exchange.export import export_model
from hornbook.exchange.imports import import_model
from hornbook.exchange.mean import average_checkpoints
from hornbook.infer.looking_back import look_back
from hornbook.report.comparison import compare
from hornbook.report.comparison_page import write_comparison
from hornbook.report.curves import draw
from hornbook.report.run_page import Told, write_report
from hornbook.shards.format import Shards
from hornbook.shards.hdf5 import places_for, write_hdf5
from hornbook.shards.prepare import ShardsConfig, open_or_prepare, prepare
from hornbook.text.readers import source_from_path
from hornbook.text.tokenizer import TokenizerConfig
from hornbook.train.config import RunConfig, override
from hornbook.train.start import fit, resume

EXAMPLES = tries(8, 24) * int(os.environ.get("HORNBOOK_SOAK", "1"))
BYTE = TokenizerConfig(kind="byte")
KINDS = ("staged", "discarded", "replaced", "unfinished", "partial", "spooled")
LOOKALIKES = [f".{kind}-{owner}place" for kind in KINDS for owner in ("", "1-", "p1-00000000-", "00000000-")]
SHARDS = ("manifest.json", "train-00000.bin", "tokenizer.json", "notes.txt", ".DS_Store", "inner/a")
MODEL = ("MANIFEST.json", "config.json", "model.safetensors", "Thumbs.db", "._model.safetensors")
STEPS = [f"{kept}/step-0000000{step}" for kept in ("checkpoints", "snapshots") for step in (1, 2, 3, 4, 8)]
WRITTEN = ("run.json", "metrics.jsonl", "samples.jsonl", "answers.json", "loss.png", "report.html", ".lock")
RUN = (*WRITTEN, "checkpoints", "snapshots")
IN_STEPS = [f"{step}/{name}" for step in STEPS for name in ("a", "Thumbs.db", "MANIFEST.json")]
CACHE = ("verified.json", "shards", "shards/text", "spool/1-0", "tokenizers", "models")
# What stands at a path: a file by its bytes, or a link by whether it leads to a file, to a folder or nowhere.
leaves = st.one_of(
    st.binary(max_size=9),
    st.sampled_from([b"{}", b"[]", b'{"run_id": "mine"}', b'{"sha256": ""}', b"\x89PNG\r\n\x1a\n"]),
    st.sampled_from(["file", "folder", "nowhere"]),
)


def trees(*likely: str) -> st.SearchStrategy[dict[str, bytes | str]]:
    """Below `place`: much of what a command would write itself. Beside it, or in it, names like those of leftovers."""
    names = st.sampled_from([f"place/{name}" for name in likely])
    others = [
        *LOOKALIKES,
        *(f"{name}/a" for name in LOOKALIKES),
        "place",
        "place/a",
        "comparison.png",
        "comparison.html",
    ]
    others += [f"place/{name}" for name in (*SHARDS, *MODEL, *LOOKALIKES, f"checkpoints/{LOOKALIKES[0]}")]
    return st.builds(
        lambda one, two: one | two,
        st.dictionaries(names, leaves, max_size=4),
        st.dictionaries(st.sampled_from(others), leaves, max_size=4),
    )


@pytest.fixture(scope="module")
def made(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, what a killed one leaves, one of its checkpoints, and shards of an older text."""
    root = tmp_path_factory.mktemp("made")
    (root / "text.txt").write_text(text_file.read_text()[:3000])
    (root / "older.txt").write_text("an older text " * 50)
    fit(config(root), root / "run")
    shutil.copytree(root / "run", root / "killed", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(root / "killed", root / "logs", ignore=shutil.ignore_patterns("snapshots"))
    shutil.copytree(root / "run" / "checkpoints" / "step-00000002", root / "model")
    prepare(source_from_path(root / "older.txt"), BYTE, ShardsConfig(), root / "shards")
    return root


def config(made: Path, **knobs: Any) -> RunConfig:
    base: dict[str, Any] = {
        "data": str(made / "text.txt"),
        "tokenizer": {"kind": "byte"},
        "model": {"n_layer": 1, "n_head": 1, "n_embd": 8, "mlp_width": 8, "context": 16},
        "sample": {"tokens": 1},
        "train": {"steps": 2, "save_every_steps": 1, "batch_tokens": 64, "dtype": "float32", "device": "cpu"},
    }
    return override(
        RunConfig.model_validate({"train": {"steps": 1}}), merge(base, {"train": {"compile": False}}, knobs)
    )


def prepared(made: Path, place: Path) -> Shards:
    return prepare(source_from_path(made / "text.txt"), BYTE, ShardsConfig(), place)


def at_home(made: Path, place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HORNBOOK_HOME", str(place))
        open_or_prepare(str(made / "text.txt"), BYTE, ShardsConfig())


def report(run: Path, other: Path) -> None:
    draw(run)
    look_back(run)
    write_report(run)
    compare([run, other], run.parent / "comparison.png")
    write_comparison([Told.of(run), Told.of(other)], run.parent / "comparison.html")


@dataclass(frozen=True)
class Command:
    write: Callable[[Path, Path], object]
    likely: tuple[str, ...]
    own: str = ""
    """What of ours it is given to write into, besides what others have put there."""


COMMANDS = {
    "prepare": Command(lambda made, place: prepared(made, place), SHARDS),
    "prepare again": Command(lambda made, place: prepared(made, place), SHARDS, "shards"),
    "prepare to hdf5": Command(
        lambda made, place: write_hdf5(Shards.open(made / "shards"), places_for(place / "pile.h5")),
        ("pile_train.h5", "pile_val.h5", "pile.h5"),
    ),
    "prepare into the cache": Command(lambda made, place: at_home(made, place), CACHE),
    "train": Command(lambda made, place: fit(config(made), place), (*RUN, *STEPS)),
    "train again": Command(lambda made, place: fit(config(made), place), (*RUN, *STEPS), "killed"),
    "resume": Command(lambda made, place: resume(place, {"train": {"steps": 5}}), (*STEPS, *IN_STEPS), "run"),
    "report": Command(lambda made, place: report(place, made / "run"), RUN, "logs"),
    "tokenizer train": Command(
        lambda made, place: main(
            ["tokenizer", "train", str(made / "text.txt"), "--kind", "char", "--out", str(place / "tokenizer.json")]
        ),
        SHARDS,
    ),
    "import": Command(lambda made, place: import_model(str(made / "model"), place), MODEL),
    "average": Command(lambda made, place: average_checkpoints(made / "run", place), MODEL),
    "export to hf": Command(lambda made, place: export_model(made / "model", "hf", place), MODEL),
    "export to gguf": Command(lambda made, place: export_model(made / "model", "gguf", place, dtype="f32"), MODEL),
    "export to pt": Command(lambda made, place: export_model(made / "model", "pt", place), MODEL),
}


def plant(tree: Mapping[str, bytes | str], root: Path, elsewhere: Path) -> None:
    """Where something stands already, nothing is put over it."""
    for name, leaf in tree.items():
        path = root / name
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(path) and elsewhere not in path.resolve().parents:
                path.write_bytes(leaf) if isinstance(leaf, bytes) else path.symlink_to(elsewhere / leaf)


def look(root: Path) -> set[tuple[str, bytes | str]]:
    """Every file and link. What was set aside counts by the name it had: that is told, and nothing is lost."""
    return {
        (
            re.sub(r"\.set-aside(-\d+)?", "", path.relative_to(root).as_posix()),
            os.readlink(path) if path.is_symlink() else path.read_bytes(),
        )
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a picture shows takes time, and does not matter here."""
    end = b"\0\0\0\0IEND\xaeB`\x82"
    picture = b"\x89PNG\r\n\x1a\n" + bytes(50) + end
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: path.write_bytes(picture))


@pytest.mark.parametrize("command", COMMANDS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_file_of_others_is_removed_or_changed(command: str, data: st.DataObject, made: Path, tmp_path: Path) -> None:
    it = COMMANDS[command]
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    (root / "elsewhere" / "folder").mkdir(parents=True)
    for name in ("file", "folder/file"):
        (root / "elsewhere" / name).write_bytes(name.encode())
    place = root / "work" / "place"
    place.parent.mkdir()
    if it.own:
        shutil.copytree(made / it.own, place)
    before = {each for each in look(root) if not each[0].startswith("elsewhere")}
    plant(data.draw(trees(*it.likely)), place.parent, root / "elsewhere")
    theirs = look(root) - before
    with contextlib.suppress(HornbookError):
        try:
            it.write(made, place)
        except OSError as error:
            if error.errno not in PATH_ERRORS:
                raise
    assert theirs - look(root) == set()


NOT_OURS: dict[str, Callable[[Path, Path], object]] = {
    "a folder of documents": lambda place, made: plant({"a/thesis.txt": b"mine"}, place, made),
    "a file": lambda place, made: place.write_bytes(b"mine"),
    "a link to a folder": lambda place, made: place.symlink_to(made),
    "a link to a file": lambda place, made: place.symlink_to(made / "text.txt"),
    "a link to nowhere": lambda place, made: place.symlink_to("nowhere"),
    "a run": lambda place, made: shutil.copytree(made / "run", place),
    "a model": lambda place, made: shutil.copytree(made / "model", place),
    "shards and a file of theirs": lambda place, made: (
        shutil.copytree(made / "shards", place),
        (place / "notes.txt").write_bytes(b"mine"),
    ),
    "shards whose manifest was edited": lambda place, made: (
        shutil.copytree(made / "shards", place),
        (place / "manifest.json").write_text('{"splits": {}}'),
    ),
}


@pytest.mark.parametrize("put", NOT_OURS)
def test_prepare_refuses_a_place_that_is_not_its_own(
    put: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    NOT_OURS[put](tmp_path / "place", made)
    before = look(tmp_path)
    assert main(["prepare", str(made / "text.txt"), "--out", str(tmp_path / "place")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"place: (holds|is a).*; choose another --out, or move it away$", line)
    assert look(tmp_path) == before


def test_prepare_does_not_take_the_place_of_its_text(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (made / "text.txt").read_bytes()
    plant({"thesis/1.txt": text, "thesis/2.txt": text, "thesis.txt": text}, tmp_path, made)
    before = look(tmp_path)
    for name in ("thesis", "thesis.txt", "."):
        assert main(["prepare", name, "--out", name]) == 2
        assert "choose another --out" in capsys.readouterr().err
    assert look(tmp_path) == before


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "older shards", "damaged shards"])
def test_prepare_takes_a_place_that_is_free_or_its_own(there: str, made: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if there == "an empty folder":
        place.mkdir()
    elif there != "nothing":
        shutil.copytree(made / "shards", place)
    if there == "damaged shards":
        os.truncate(place / "train-00000.bin", 1)
    shards = prepared(made, place)
    assert (shards.damage(), shards.manifest["name"]) == (None, "text")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "samples.jsonl", "checkpoints", "snapshots"])
def test_train_refuses_a_folder_where_others_have_what_it_would_write(name: str, made: Path, tmp_path: Path) -> None:
    plant({f"run/{name}" if "." in name else f"run/{name}/a": b"mine"}, tmp_path, made)
    before = look(tmp_path)
    with pytest.raises(UserError, match=rf"{name}: not known to be written by Hornbook; choose another --out"):
        fit(config(made), tmp_path / "run")
    assert look(tmp_path) == before


def test_train_writes_through_no_link(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "killed", tmp_path / "run")
    (run / "metrics.jsonl").rename(tmp_path / "kept")
    (run / "metrics.jsonl").symlink_to(tmp_path / "kept")
    before = look(tmp_path)
    with pytest.raises(UserError, match=r"metrics\.jsonl: not known to be written by Hornbook"):
        fit(config(made), run)
    assert look(tmp_path) == before


def test_train_writes_beside_what_others_have_put_into_its_folder(made: Path, tmp_path: Path) -> None:
    plant({"run/run.toml": b"mine", "run/loss.png": b"drawn by hand", "run/notes/a": b"mine"}, tmp_path, made)
    before = look(tmp_path)
    fit(config(made), tmp_path / "run")
    assert [path.name for path in draw(tmp_path / "run")] == ["loss-2.png", "perplexity.png"]
    assert [path.name for path in draw(tmp_path / "run")] == ["loss-2.png", "perplexity.png"]
    assert look(tmp_path) >= before


def test_names_that_only_look_like_leftovers_stay(made: Path, tmp_path: Path) -> None:
    plant({f"{name}/a": b"mine" for name in LOOKALIKES}, tmp_path, made)
    before = look(tmp_path)
    left = [hidden(kind, "x") for kind in ("discarded", "unfinished")] + [str(Hidden("staged", "x", 2**22 + 1))]
    for name in left:
        plant({f"{name}/a": b"ours"}, tmp_path, made)
    files.remove_leftovers(tmp_path)
    assert look(tmp_path) == before


def test_preparations_at_once_leave_each_others_work_alone(made: Path, tmp_path: Path) -> None:
    """In the folder that all share, one is about to replace shards, another has its folder in the making."""
    replaced, staged = hidden("replaced", "x"), str(Hidden("staged", "y", os.getppid()))
    for name in (replaced, staged):
        plant({f"{name}/a": b"another's"}, tmp_path, made)
    before = look(tmp_path)
    files.remove_leftovers(tmp_path, shared=True)
    assert look(tmp_path) == before
    files.restore_replaced(tmp_path / "x")
    assert {name for name, _ in look(tmp_path)} == {"x/a", f"{staged}/a"}


def test_what_two_processes_delete_at_once_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / hidden("discarded", "x")
    plant({"a": b"", "b": b""}, place, tmp_path)

    def other_is_quicker(kind: str, path: Path, act: Callable[[], Any]) -> Any:
        (path / "a").unlink() if (path / "a").exists() else shutil.rmtree(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(files, "_step", other_is_quicker)
    files.remove_leftovers(tmp_path, shared=True)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_was_touched_is_kept(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made / "run", tmp_path / "run")
    draw(run)
    picture = bytearray((run / "loss.png").read_bytes())
    picture[len(picture) // 2] ^= 1
    (run / "loss.png").write_bytes(picture)
    assert [path.name for path in draw(run)] == ["loss-2.png", "perplexity.png"]
    assert (run / "loss.png").read_bytes() == picture
    assert Shards.open(made / "shards").damage() is None
