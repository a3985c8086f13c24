"""To go on with a run takes no longer at its hundred thousandth step than at its hundredth."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from trial import metrics, tiniest

from hornbook.base import files, ours
from hornbook.runs.folder import RunFolder
from hornbook.train.start import fit, resume


def made_late(run: Path, step: int) -> None:
    """Its newest checkpoint is of that step, and its log has a line for each before."""
    (newest, *_) = RunFolder(run).checkpoints()
    state, manifest = (files.read_json(newest / name) for name in ("state.json", files.MANIFEST))
    line = next(each for each in metrics(run) if "loss" in each)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line | {"step": each + 1}) + "\n" for each in range(step)))
    per_step = {name: state[name] // state["step"] for name in ("sample", "tokens")}
    state |= {"step": step, "best_step": step, **{name: each * step for name, each in per_step.items()}}
    state["logs"]["metrics.jsonl"] = (run / "metrics.jsonl").stat().st_size
    (newest / "state.json").write_text(json.dumps(state))
    facts = {"bytes": (newest / "state.json").stat().st_size, "sha256": files.sha256(newest / "state.json")}
    manifest["files"]["state.json"], manifest["notes"]["step"] = facts, step
    (newest / files.MANIFEST).write_text(json.dumps(ours.with_own_hash(manifest)))
    newest.rename(RunFolder(run).checkpoint(step))


def cost(run: Path, step: int) -> tuple[int, int]:
    """Bytes that are read, and calls that are made, to take one step more."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    sys.setprofile(count)
    try:
        resume(run, {"train": {"steps": step + 1}})
    finally:
        sys.setprofile(None)
    return bytes_read() - before, calls


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="this system does not tell what a process reads")
def test_to_resume_late_costs_what_it_costs_early(short_text: Path, tmp_path: Path) -> None:
    costs = []
    for step in (100, 100, 100_000):  # the first time something may be read once and for all
        run = tmp_path / f"{step}-{len(costs)}"
        fit(tiniest(short_text, train={"steps": 1, "snapshots": False, "eval_every_steps": 10**6}), run)
        made_late(run, step)
        costs.append(cost(run, step))
        assert metrics(run)[-2]["step"] == step + 1
    _, early, late = costs
    assert (run / "metrics.jsonl").stat().st_size > 10_000_000
    assert all(there <= 1.1 * before for there, before in zip(late, early, strict=True))
