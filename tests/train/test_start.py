"""How a run begins, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trial import all_of, good_checkpoints, losses, metrics, tiniest

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.base.ours import STAGED, hidden
from hornbook.cli import main
from hornbook.model.gpt import GPT
from hornbook.runs.folder import RunFolder
from hornbook.shards.format import Shards, TokenArray
from hornbook.shards.prepare import ShardsConfig, open_or_prepare, prepare
from hornbook.text import readers
from hornbook.text.readers import source_from_path
from hornbook.text.tokenizer import TokenizerConfig
from hornbook.train import loop, start
from hornbook.train.config import STOPS, RunConfig, override
from hornbook.train.learner import Learner
from hornbook.train.start import fit, free_folder, resume


def test_a_folder_with_a_run_in_it_is_refused(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("run")
    fit(tiniest(short_text), run)
    before = all_of(run)
    with pytest.raises(UserError, match=r"holds a run already; .* go on with it: hornbook resume run$"):
        fit(tiniest(short_text, seed=2), run)
    assert all_of(run) == before


def test_a_text_far_too_small_to_learn_from_is_doubted_where_a_run_begins(
    short_text: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tiniest(short_text), tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"warning: short: only 1,\d+ bytes of text, far too little .* 1 MB, .*", line)
    resume(tmp_path / "run", {"train": {"steps": 5}})
    fit(tiniest(text_file), tmp_path / "other")
    assert not capsys.readouterr().err


def test_a_folder_without_a_finished_checkpoint_is_begun_anew(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run leaves that was killed before its first checkpoint."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save", lambda _: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            fit(tiniest(short_text, seed=2), run)
    (run / "checkpoints" / hidden(STAGED, "step-00000001", by_this_process=True)).mkdir(parents=True)
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"step": 1, "loss": 9.0}\n{"st')
    fit(tiniest(short_text), run)
    fit(tiniest(short_text), tmp_path / "other")
    assert all_of(run) == all_of(tmp_path / "other")
    assert not list(run.rglob(".staged*"))


def test_a_second_process_is_kept_out_while_the_first_is_at_work(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, refused = tmp_path / "run", []

    def second(step: Any) -> Any:
        child = os.fork()
        if child == 0:
            try:
                resume(run) if good_checkpoints(run) else fit(tiniest(short_text), run)
            except UserError as error:
                os._exit(7 if "another process is at work" in str(error) else 1)
            os._exit(0)
        refused.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return save(step)

    save = loop.save
    monkeypatch.setattr(loop, "save", second)
    fit(tiniest(short_text, train={"steps": 2, "save_every_steps": 1}), run)
    assert refused == [7, 7]
    assert resume(run).reason == "nothing left to do"


def test_one_who_finished_in_the_meantime_is_not_overwritten(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look at the folder is before the data are prepared, which can take an hour."""
    monkeypatch.chdir(tmp_path)
    config, run = tiniest(short_text), Path("run")

    def slowly(*words: Any) -> Shards:
        monkeypatch.setattr("hornbook.train.start.open_or_prepare", open_or_prepare)
        fit(config, run)
        return open_or_prepare(*words)

    monkeypatch.setattr("hornbook.train.start.open_or_prepare", slowly)
    with pytest.raises(UserError, match="holds a run already"):
        fit(config.with_(seed=2), run)
    fit(config, Path("other"))
    assert all_of(run) == all_of(Path("other"))


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"model": {"context": 4096}}, r"only 1712 tokens to train on, .*or --model\.context 856"),
        ({"model": {"vocab_size": 500}}, r"--model\.vocab-size: 500, but the tokenizer has 257 entries; leave it out"),
        ({"data": "no/such/text"}, r"no/such/text: no such file or folder"),
        ({"train": {"device": "gpu"}}, r"--train\.device: no device is called gpu; use cpu, cuda"),
    ],
)
def test_a_mistake_is_one_line_with_its_mend(
    knobs: dict[str, Any], told: str, short_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told) as error:
        fit(tiniest(short_text, **knobs), tmp_path / "run")
    assert len(error.value.mistakes) == 1
    assert not (tmp_path / "run").exists()


def test_data_without_text_for_validation_are_refused(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = Shards.split
    monkeypatch.setattr(Shards, "split", lambda self, name: TokenArray([]) if name == "val" else split(self, name))
    with pytest.raises(UserError, match=r"no text left for validation; .*raise --shards\.val-fraction"):
        fit(tiniest(short_text), tmp_path / "run")


def test_the_mend_for_a_short_text_works(short_text: Path, tmp_path: Path) -> None:
    fit(tiniest(short_text, model={"context": 856}, train={"steps": 1}), tmp_path / "run")


def edited(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((run / "run.json").read_text())
    change(record)
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("run_id"),
        lambda record: record.pop("config"),
        lambda record: record.pop("data"),
        lambda record: record["data"].pop("folder"),
        lambda record: record["data"].update(folder=5),
        lambda record: record["data"].update(fingerprint="other"),
        lambda record: record.update(config=[]),
        lambda record: record.update(data=None),
        lambda record: record["config"]["train"].update(steps="many"),
        lambda record: record["config"].update(model=3),
        lambda record: record["config"]["model"].update(depth=3),
    ],
)
def test_a_run_whose_record_was_edited_is_refused_with_exit_code_2(
    change: Callable[[dict[str, Any]], object], short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    fit(tiniest(short_text, train={"steps": 1}), run)
    edited(run, change)
    capsys.readouterr()
    assert main(["resume", str(run)]) == 2
    assert capsys.readouterr().err.count("error: ") == 1


@pytest.mark.parametrize("text", ["", "[]", "{", "\0"])
def test_a_record_that_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json"):
        resume(tmp_path)


def test_resuming_nothing_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="begin one: hornbook train --out"):
        resume(tmp_path / "run")


def test_a_run_without_a_checkpoint_says_how_to_begin_anew(short_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(tiniest(short_text), run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=r"no checkpoint yet; begin it anew: hornbook train --out \S*run$"):
        resume(run)


def test_that_advice_trains_with_the_settings_of_the_run(
    short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    fit(tiniest(short_text), run)
    before = files.read_json(run / "run.json")
    weights = (RunFolder(run).checkpoints()[0] / "model.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints")
    assert main(["train", "--out", str(run)]) == 0
    assert "begun anew with the settings in its run.json" in capsys.readouterr().out
    after = files.read_json(run / "run.json")
    assert after["config"] == before["config"]
    assert after["run_id"] != before["run_id"]
    assert (RunFolder(run).checkpoints()[0] / "model.safetensors").read_bytes() == weights


def test_with_other_settings_it_is_another_run(short_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiniest(short_text)
    fit(config, run)
    shutil.rmtree(run / "checkpoints")
    (tmp_path / "other.json").write_text(
        json.dumps(config.with_(seed=5, train={"steps": 2}).model_dump(exclude={"recipe"}))
    )
    assert main(["train", str(tmp_path / "other.json"), "--out", str(run)]) == 0
    assert files.read_json(run / "run.json")["config"]["seed"] == 5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": {"n_layer": 3}}, "model"),
        ({"seed": 2}, "seed"),
        ({"train": {"batch_tokens": 32}}, "batch_tokens"),
        ({"train": {"micro_batch": 1, "steps": 9}}, "micro_batch"),
    ],
)
def test_a_run_keeps_the_settings_it_began_with(
    changes: dict[str, Any], named: str, short_text: Path, tmp_path: Path
) -> None:
    fit(tiniest(short_text, train={"steps": 1}), tmp_path / "run")
    with pytest.raises(UserError, match=f"{named}: a run keeps the settings"):
        resume(tmp_path / "run", changes)


@pytest.mark.parametrize("words", [["--train", "5"], ["--train.steps", "none"], ["--train.steps=0"]])
def test_a_mistake_on_resumes_command_line_is_the_users(words: list[str], short_text: Path, tmp_path: Path) -> None:
    fit(tiniest(short_text, train={"steps": 1}), tmp_path / "run")
    assert main(["resume", str(tmp_path / "run"), *words]) == 2


@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_that_is_given_replaces_those_there_were(stop: str) -> None:
    everything = RunConfig.model_validate({"train": {"steps": 5, "epochs": 2.0, "minutes": 3.0, "tokens": 10}})
    changed = override(everything, {"train": {stop: 7}})
    assert {name: getattr(changed.train, name) for name in STOPS if getattr(changed.train, name) is not None} == {
        stop: 7
    }


def test_other_knobs_leave_the_stops_as_they_were() -> None:
    config = override(RunConfig.model_validate({"train": {"steps": 5}}), {"train": {"batch_tokens": 64}, "seed": 9})
    assert (config.train.steps, config.train.batch_tokens, config.seed) == (5, 64, 9)


def test_two_stops_given_together_both_count() -> None:
    config = override(RunConfig.model_validate({"train": {"minutes": 3.0}}), {"train": {"steps": 5, "epochs": 1.0}})
    assert (config.train.steps, config.train.epochs, config.train.minutes) == (5, 1.0, None)


def test_a_run_without_a_stop_is_refused() -> None:
    config = RunConfig.model_validate({"train": {"steps": 5}})
    with pytest.raises(UserError, match="nothing says when to stop"):
        override(config, {"train": {"steps": None}})


def test_a_run_without_a_name_finds_a_free_one(
    short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiniest(short_text, train={"steps": 1})
    for expected in ("custom", "custom-2", "custom-3"):
        folder = free_folder(config, tmp_path)
        assert folder.name == expected
        fit(config, folder)
    assert "custom is there already (to go on with it: " in capsys.readouterr().out
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "run.json").write_text("{}")
    assert free_folder(config.with_(recipe="theirs"), tmp_path).name == "theirs-2"
    assert "theirs is there already (none of Hornbook's)" in capsys.readouterr().out
    assert free_folder(config.with_(recipe="own-text"), tmp_path).name == "short"
    assert free_folder(config.with_(recipe="../.."), tmp_path).name == "_"


def test_an_end_that_is_moved_makes_the_same_run_wherever_it_is_cut(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before its first step, when nothing but run.json knows of the new end; and after some."""
    config = tiniest(short_text, schedule={"warmup_steps": 3}, train={"steps": 6})
    for name in ("peace", "cut"):
        fit(config, tmp_path / name)
    longer = {"train": {"steps": 40}}
    capsys.readouterr()
    resume(tmp_path / "peace", longer)
    assert "the end was moved: the learning rate goes from 0% of its height to 100%" in capsys.readouterr().out
    cross_entropy, calls = GPT.loss, iter(range(100))

    def fails(*words: Any) -> torch.Tensor:
        if next(calls) in (0, 5):
            raise RuntimeError("the device is gone")
        return cross_entropy(*words)

    with monkeypatch.context() as patched:
        patched.setattr(GPT, "loss", fails)
        for changes, saved in ((longer, 6), ({}, 10)):
            with pytest.raises(RuntimeError, match="the device is gone"):
                resume(tmp_path / "cut", changes)
            assert good_checkpoints(tmp_path / "cut")[0] == saved
    resume(tmp_path / "cut")
    assert all_of(tmp_path / "cut") == all_of(tmp_path / "peace")
    factors = [each["lr"] / config.optim.lr for each in metrics(tmp_path / "peace") if "lr" in each]
    assert factors[6:10] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert factors[-1] < 0.1


def test_what_reading_changed_in_a_text_is_told_whenever_it_is_trained_on(
    short_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(short_text.read_bytes() + b" \xff\xfe")
    for name in ("first", "again"):
        fit(tiniest(text, train={"steps": 1}).with_(text={"errors": "replace"}), tmp_path / name)
        assert "2 characters replaced" in capsys.readouterr().out


def test_compiling_takes_nothing_from_the_minutes(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "prepare", lambda _: time.sleep(1.5))
    fit(tiniest(short_text, train={"steps": 2}), tmp_path / "run")
    assert metrics(tmp_path / "run")[0]["seconds"] < 1.5


def test_a_notebook_finds_its_process_as_it_was(short_text: Path, tmp_path: Path) -> None:
    """Threads, and memory: a tensor that is freed afterwards goes back to the system."""
    threads = torch.get_num_threads()
    fit(tiniest(short_text, train={"steps": 1, "threads": threads + 1}), tmp_path / "run")
    assert torch.get_num_threads() == threads
    if sys.platform == "linux":
        before = resident_bytes()
        large = torch.ones(1 << 26)
        assert resident_bytes() - before > 200 << 20
        del large
        assert resident_bytes() - before < 50 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_run_works_outside_the_main_thread(short_text: Path, tmp_path: Path) -> None:
    """Where Python hands out no signals: in a notebook's helper or a server."""
    thread = threading.Thread(target=fit, args=(tiniest(short_text), tmp_path / "run"))
    thread.start()
    thread.join()
    fit(tiniest(short_text), tmp_path / "main")
    assert losses(tmp_path / "run") == losses(tmp_path / "main")


def test_a_model_that_does_not_compile_trains_all_the_same(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(*_: Any, **__: Any) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", no_compiler)
    fit(tiniest(short_text, train={"compile": True}), tmp_path / "run")
    assert "torch.compile does not work here, going on without" in capsys.readouterr().err
    fit(tiniest(short_text), tmp_path / "eager")
    assert losses(tmp_path / "run") == losses(tmp_path / "eager")


def test_without_more_to_say_a_short_run_is_not_compiled(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling takes longer than it does."""
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    fit(tiniest(short_text, train={"compile": None}), tmp_path / "run")
    assert good_checkpoints(tmp_path / "run")


def test_data_cleared_away_are_prepared_again_unless_the_text_has_changed(short_text: Path, tmp_path: Path) -> None:
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(short_text.read_text())
    fit(tiniest(text, train={"steps": 2}), run)

    def clear() -> None:
        shutil.rmtree(files.read_json(run / "run.json")["data"]["folder"])

    clear()
    assert resume(run, {"train": {"steps": 3}}).step == 3
    clear()
    text.write_text(text.read_text() + " and another cat")
    with pytest.raises(UserError, match="not the data that this run began with"):
        resume(run, {"train": {"steps": 4}})


def test_a_run_from_standard_input_whose_data_were_cleared_away_asks_for_the_text_again(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pipe(text: bytes) -> None:
        readers._standard_input.cache_clear()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))

    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path / "home"))
    run, text = tmp_path / "run", short_text.read_bytes()
    pipe(text)
    fit(override(tiniest(short_text), {"data": "-"}), run)
    shutil.rmtree(tmp_path / "home")
    pipe(b"")
    with pytest.raises(UserError, match=r"gone from the cache; pipe it in again: cat TEXT \| hornbook resume RUN \("):
        resume(run, {"train": {"steps": 4}})
    pipe(b"other " * 1000)
    with pytest.raises(UserError, match="not the data that this run began with"):
        resume(run, {"train": {"steps": 4}})
    pipe(text)
    assert resume(run, {"train": {"steps": 4}}).step == 4
    readers._standard_input.cache_clear()


@pytest.mark.parametrize("name", ["train-00000.bin", "val-00000.bin", "tokenizer.json"])
def test_a_cache_that_was_damaged_is_mended_by_resuming_and_by_a_new_run(
    name: str, short_text: Path, tmp_path: Path
) -> None:
    """By another id of the vocabulary, which no reading would notice."""
    text, run = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(short_text.read_text())
    level = {"kind": "constant", "warmup_steps": 0}  # or an end that is moved would be planned anew
    fit(tiniest(text, schedule=level, train={"steps": 2}), run)
    path = Path(files.read_json(run / "run.json")["data"]["folder"]) / name
    whole = path.read_bytes()
    again = (lambda: resume(run, {"train": {"steps": 4}}), lambda: fit(tiniest(text, schedule=level), tmp_path / "new"))
    for go_on in again:
        path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
        go_on()
        assert path.read_bytes() == whole
    assert losses(run) == losses(tmp_path / "new")


def test_a_run_on_damaged_shards_without_their_text_is_refused(short_text: Path, tmp_path: Path) -> None:
    shards = prepare(source_from_path(short_text), TokenizerConfig(kind="byte"), ShardsConfig(), tmp_path / "shards")
    fit(tiniest(shards.folder, train={"steps": 2}), tmp_path / "run")
    path = shards.folder / "train-00000.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    mend = r"shards: train-00000\.bin has changed since it was written; .*hornbook prepare TEXT --out FOLDER"
    with pytest.raises(UserError, match=mend):
        resume(tmp_path / "run", {"train": {"steps": 4}})
    with pytest.raises(UserError, match=mend):
        fit(tiniest(shards.folder), tmp_path / "new")
    prepare(source_from_path(short_text), TokenizerConfig(kind="byte"), ShardsConfig(), shards.folder)
    assert resume(tmp_path / "run", {"train": {"steps": 4}}).step == 4


def test_a_resumed_run_is_compiled_when_it_was_and_only_then(
    short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("hornbook.train.learner.compiled_or_eager", lambda model, _: asked.append(True) or model.hidden)
    monkeypatch.setattr("hornbook.train.sizing._compiling_pays", lambda *_: False)
    config = override(tiniest(short_text), {"train": {"compile": None, "steps": 1}})
    fit(config, tmp_path / "eager")
    monkeypatch.setattr("hornbook.train.sizing._compiling_pays", lambda *_: True)
    resume(tmp_path / "eager", {"train": {"steps": 2}})
    assert not asked


@pytest.mark.parametrize(("read", "bound"), [(3, 40.0), (40, None)])
def test_more_minutes_alone_do_not_learn_a_text_by_heart(read: int, bound: float | None) -> None:
    """Unless it was read as often as was thought good, and somebody insists."""
    before = RunConfig.model_validate({"recipe": "own-text", "train": {"epochs": 40, "minutes": 10}})
    longer = override(before, {"train": {"minutes": 20}})
    assert longer.train.epochs is None
    kept = start._bounded_as_before(longer, before, read).train
    assert (kept.minutes, kept.epochs) == (20, bound)
    other = override(before, {"train": {"steps": 9}})
    assert start._bounded_as_before(other, before, read) == other
