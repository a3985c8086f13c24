from __future__ import annotations

import torch
from hypothesis import given
from test_model_config import configs

from effort import examples
from hornbook.model.config import ModelConfig, classic, modern
from hornbook.model.gpt import GPT
from hornbook.model.init import outline
from hornbook.model.tree import tree_of
from yardstick import within


@examples(600)
@given(configs())
def test_the_tree_counts_every_parameter_of_the_built_model_once(config: ModelConfig) -> None:
    built = GPT(config)
    tree = tree_of(built)
    assert tree.parameters == sum(parameter.numel() for parameter in built.parameters()) == config.n_params()
    without = outline(config)
    assert tree == tree_of(without)
    assert without.state_dict().keys() == built.state_dict().keys()
    assert all(tensor.is_meta for tensor in without.state_dict().values())


def test_equal_blocks_are_one_line() -> None:
    tree = tree_of(outline(modern(vocab_size=50, n_layer=12, n_head=2, n_embd=16)))
    (blocks,) = [part for part in tree.inside if part.kind == "Block"]
    assert (blocks.name, blocks.times) == ("blocks.0-11", 12)
    query = next(part for _, part in blocks.walk() if part.name == "query")
    assert query.shapes == ((16, 16),)


def test_blocks_that_differ_are_two_lines() -> None:
    tree = tree_of(outline(modern(vocab_size=50, n_layer=5, n_head=2, n_embd=16, value_embeddings=True)))
    names = [part.name for part in tree.inside if part.kind in ("Block", "Embedding")]
    assert names == ["embedding", "values.0,2,4", "blocks.0,2,4", "blocks.1,3"]
    tree = tree_of(outline(modern(vocab_size=50, n_layer=64, n_head=2, n_embd=16, value_embeddings=True)))
    assert [part.name for part in tree.inside if part.kind == "Block"] == ["blocks.0,2,...,62", "blocks.1,3,...,63"]


def test_a_tied_head_has_no_parameters_of_its_own() -> None:
    config = classic(vocab_size=50, n_layer=1, n_head=2, n_embd=16)
    of = {part.name: part.parameters for part in tree_of(outline(config)).inside}
    assert (of["embedding"], of["head"]) == (50 * 16, 0)
    assert {part.name: part.parameters for part in tree_of(outline(config.with_(tied=False))).inside}["head"] == 50 * 16


def test_three_billion_parameters_are_outlined_in_less_than_a_second() -> None:
    config = classic(vocab_size=50_304, context=512, n_layer=64, n_head=16, n_embd=2048, tied=False)
    with within(1):
        tree = tree_of(outline(config))
    assert tree.parameters == config.n_params() > 3e9


def test_an_outline_leaves_the_random_numbers_as_they_were() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    outline(modern(vocab_size=50, n_layer=1, n_head=2, n_embd=16))
    assert torch.equal(torch.get_rng_state(), before)
