"""The optimizer of a file from elsewhere: what torch's own does when it goes on, ours does with what was imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from references import SYSTEMS, Sizes, weights
from system_files import both, nanogpt
from torch import nn

from hornbook import cli
from hornbook.base import files
from hornbook.exchange.imports import import_model
from hornbook.exchange.moments import remembered
from hornbook.exchange.programs import BOOK, NANOGPT
from hornbook.model.folder import load_model, read_tensors
from hornbook.model.layouts import to_ours
from hornbook.runs.folder import OPTIMIZER, OPTIMIZER_KNOBS, RunFolder
from hornbook.runs.logs import read_log
from hornbook.train.optim import Optimizer
from hornbook.train.optim_config import OptimConfig

SIZES = Sizes(n_head=2)
Tree = dict[str, Any]


class Named(nn.Module):
    """A model whose parts bear the names, and lie in the order, of a program's. It learns by a loss that each of its
    numbers has a part in: here only the optimizer counts."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.by_name: dict[str, nn.Parameter] = {}
        for name, tensor in state.items():
            self.by_name[name] = nn.Parameter(tensor.clone())
            self.register_parameter(name.replace(".", "/"), self.by_name[name])


def gradients(state: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(step)
    return {name: torch.randn(tensor.shape, generator=chance) for name, tensor in state.items()}


def as_the_book(parameters: dict[str, nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters.values(), lr=4e-4, weight_decay=0.1)


def as_nanogpt(parameters: dict[str, nn.Parameter]) -> torch.optim.AdamW:
    matrices = [each for each in parameters.values() if each.dim() >= 2]
    others = [each for each in parameters.values() if each.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95))


PROGRAMS: dict[str, tuple[Any, Callable[[dict[str, nn.Parameter]], torch.optim.AdamW], Any, dict[str, Any]]] = {
    "the-verdict": (BOOK, as_the_book, both, {"n_head": 2}),
    "nanogpt": (NANOGPT, as_nanogpt, nanogpt, {}),
}


@pytest.mark.parametrize("system", PROGRAMS)
def test_ours_goes_on_as_torchs_own(system: str, letters: Callable[[int], Path], tmp_path: Path) -> None:
    program, optimizer_of, tree_of, knobs = PROGRAMS[system]
    held = weights(SYSTEMS[system], SIZES, 1)
    tied = SYSTEMS[system].tied
    again = tied[0] if tied else None
    learned = {name: torch.from_numpy(each) for name, each in held.items() if name in SYSTEMS[system].shapes(SIZES)}
    theirs = Named(learned).by_name
    optimizer = optimizer_of(theirs)

    def theirs_after(steps: range) -> None:
        for step in steps:
            for name, gradient in gradients(learned, step).items():
                theirs[name].grad = gradient
            optimizer.step()

    theirs_after(range(5))
    tree = tree_of({**held, **{name: each.detach().numpy() for name, each in theirs.items()}}, SIZES)
    if again:
        tree["model"][f"_orig_mod.{again}"] = tree["model"][f"_orig_mod.{tied[1]}"]
    tree["optimizer" if "optimizer" in tree else "optimizer_state_dict"] = optimizer.state_dict()
    torch.save(tree, tmp_path / "theirs.pt")
    tokenizer = letters(SIZES.vocab_size)
    found = import_model(str(tmp_path / "theirs.pt"), tmp_path / "ours", knobs=knobs, tokenizer=tokenizer)
    assert any("AdamW after 5 updates" in note for note in found.notes)

    def ours_after(steps: range, moments: bool) -> dict[str, torch.Tensor]:
        model = load_model(tmp_path / "ours")
        config = OptimConfig(**files.read_json(tmp_path / "ours" / OPTIMIZER_KNOBS)["optim"])
        own = Optimizer(model, config)
        named = dict(model.named_parameters())
        if moments:
            own.restore(remembered(tmp_path / "ours", named))
        for step in steps:
            for name, gradient in to_ours(program.layout, model.config, gradients(learned, step)).items():
                named[name].grad = gradient
            own.step(1.0, torch.zeros(()))
        return {name: each.detach() for name, each in named.items()}

    begun = ours_after(range(0), True)
    theirs_after(range(5, 10))
    expected = to_ours(program.layout, found.config, {name: each.detach() for name, each in theirs.items()})
    goes_on, forgets = ours_after(range(5, 10), True), ours_after(range(5, 10), False)
    for name, wanted in expected.items():
        moved = (wanted - begun[name]).abs().max()
        torch.testing.assert_close(goes_on[name], wanted, rtol=0, atol=1e-3 * float(moved))
        assert (forgets[name] - wanted).abs().max() > 0.1 * moved


def test_a_run_goes_on_with_it_and_its_knobs(
    letters: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = weights(SYSTEMS["the-verdict"], SIZES, 1)
    tree = both(state, SIZES)
    learned = {name: nn.Parameter(torch.from_numpy(state[name])) for name in SYSTEMS["the-verdict"].shapes(SIZES)}
    optimizer = as_the_book(learned)
    for step in range(3):
        for name, gradient in gradients(learned, step).items():
            learned[name].grad = gradient
        optimizer.step()
    torch.save(tree | {"optimizer_state_dict": optimizer.state_dict()}, "model_and_optimizer.pth")
    words = ["import", "model_and_optimizer.pth", "model", "--n-head", "2", "--tokenizer"]
    assert cli.main([*words, str(letters(SIZES.vocab_size))]) == 0
    assert "AdamW after 3 updates, learning rate 0.0004" in capsys.readouterr().out
    Path("text.txt").write_text("ABCDEFGH IJK" * 200)
    train = ["train", "--from", "model", "--data", "text.txt", "--train.steps", "2", "--train.device", "cpu"]
    assert cli.main([*train, "--out", "on"]) == 0
    assert "optimizer after 3 updates" in capsys.readouterr().out
    config = RunFolder(Path("on")).record().config
    wanted = {
        "kind": "adamw",
        "lr": 4e-4,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "decay": "all",
        "clip": None,
    }
    assert {name: config["optim"][name] for name in wanted} == wanted
    newest = RunFolder(Path("on")).checkpoints()[0]
    steps = {float(each) for name, each in read_tensors(newest / OPTIMIZER).items() if ".step." in name}
    assert steps == {5.0}
    rates = [each["lr"] for each in read_log(RunFolder(Path("on")).metrics) if "lr" in each]
    assert set(rates) <= {4e-4}
    assert cli.main([*train, "--out", "anew", "--optim.kind", "muon"]) == 0
    assert "optimizer after" not in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["of another model", "different rates", "not AdamW", "a stranger"])
def test_an_optimizer_that_does_not_fit_is_left_out_and_said(
    damage: str, letters: Callable[[int], Path], tmp_path: Path
) -> None:
    state = weights(SYSTEMS["nanogpt"], SIZES, 1)
    learned = {name: nn.Parameter(torch.from_numpy(state[name])) for name in SYSTEMS["nanogpt"].shapes(SIZES)}
    optimizer = as_nanogpt(learned)
    for name, gradient in gradients(learned, 1).items():
        learned[name].grad = gradient
    optimizer.step()
    tree = nanogpt(state, SIZES)
    held = optimizer.state_dict()
    if damage == "of another model":
        held = tree["optimizer"]
    elif damage == "different rates":
        held["param_groups"][1]["lr"] = 1.0
    elif damage == "not AdamW":
        held["state"] = {number: {"momentum_buffer": each["exp_avg"]} for number, each in held["state"].items()}
    else:
        held = {"state": [1], "param_groups": "abc"}
    torch.save(tree | {"optimizer": held}, tmp_path / "ckpt.pt")
    found = import_model(str(tmp_path / "ckpt.pt"), tmp_path / "ours", tokenizer=letters(SIZES.vocab_size))
    assert any(note.startswith("not the optimizer: ") for note in found.notes)
    assert not (tmp_path / "ours" / OPTIMIZER).exists()
