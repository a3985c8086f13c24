"""Every table of names leads there and back, to the bit, and names what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hornbook.base.errors import UserError
from hornbook.exchange.gguf import ARCHITECTURES
from hornbook.exchange.programs import PROGRAMS, program_of
from hornbook.model.config import ModelConfig, classic, modern
from hornbook.model.init import untrained
from hornbook.model.layouts import Layout, to_ours, to_theirs
from hornbook.model.shapes import SHAPES

SIZES: dict[str, Any] = {"vocab_size": 33, "context": 8, "n_layer": 2, "n_head": 2, "n_embd": 8}
CONFIGS = {
    "gpt2": classic(**SIZES),
    "qwen3": modern(**SIZES, n_kv_head=1),
    "llama": modern(**SIZES, qk_norm="none", tied=True),
    "nanochat": modern(**SIZES, qk_norm="after", norm_weight=False, embedding_norm=True, activation="relu2"),
}
TABLES: dict[str, tuple[Layout, ModelConfig]] = {
    **{f"transformers {kind}": (SHAPES[kind].layout, config) for kind, config in CONFIGS.items()},
    **{f"llama.cpp {kind}": (layout, CONFIGS[kind]) for kind, layout in ARCHITECTURES.items()},
    **{each.name: (each.layout, classic(**SIZES, tied=False)) for each in PROGRAMS},
}


def state_of(config: ModelConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn_like(each) for name, each in untrained(config).state_dict().items()}


@pytest.mark.parametrize("table", TABLES)
def test_tensors_go_there_and_back(table: str) -> None:
    layout, config = TABLES[table]
    state = state_of(config)
    theirs = to_theirs(layout, config, state)
    ours = to_ours(layout, config, theirs)
    assert all(torch.equal(ours[name], each) for name, each in state.items() if not (config.tied and "head" in name))
    assert sum(each.numel() for each in theirs.values()) == sum(each.numel() for each in ours.values())
    missing = sorted(theirs)[-1]
    theirs["more"] = theirs.pop(missing)
    with pytest.raises(UserError) as caught:
        to_ours(layout, config, theirs)
    assert caught.value.mistakes == [f"tensor {missing} is missing", "tensor more is not of this model"]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda each: each.name)
def test_a_program_is_known_by_its_names(program: Any) -> None:
    layout, config = TABLES[program.name]
    theirs = to_theirs(layout, config, state_of(config))
    assert program_of(theirs) is program
    assert program_of({name.removeprefix(layout.body): each for name, each in theirs.items()}) is program
