"""A model made larger, which at first computes what it did.

In: a trained model, and what is to grow.  Out: the larger model's config, and its weights. Exact but for rounding:

- Deeper: a new block adds nothing to the stream, as what it writes with is zero. It learns from the first step on.
- Wider: every feature of the stream stands in it several times, equally often, so that a norm sees the same mean and
  the same mean square. What writes a feature is copied; what reads it is divided among the copies, by shares drawn at
  random that sum to 1, so that the copies part when they learn. So it is with heads and with the inside of the MLP,
  which need not grow by a whole factor, since no norm looks at them.
- A tied head reads with what writes, undivided; the last norm takes that back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from hornbook.base.errors import UserError
from hornbook.model.config import ModelConfig
from hornbook.model.gpt import GPT, Block

# Embeddings, of which a row is looked up; of other matrices the second axis reads, and all else writes.
TABLES = ("embedding.", "positions.", "bigrams.", "values.")


def grown_config(small: ModelConfig, asked: Mapping[str, int | None]) -> ModelConfig:
    """With n_layer, n_embd, n_head and mlp_width as asked for, the rest as these imply; or what speaks against it."""
    if mistakes := list(_mistakes(small, asked)):
        raise UserError(*(f"--grow.{name.replace('_', '-')}: {what}" for name, what in mistakes))
    times = (asked.get("n_embd") or small.n_embd) // small.n_embd
    heads, width = asked.get("n_head") or small.n_head * times, small.n_embd * times
    inside = asked.get("mlp_width") or (small.mlp_width and small.mlp_width * times)
    fills = heads * small.width_of_head == width and small.head_width is None
    return small.with_(
        n_layer=asked.get("n_layer") or small.n_layer,
        n_embd=width,
        n_head=heads,
        n_kv_head=small.n_kv_head and small.n_kv_head * heads // small.n_head,
        head_width=None if fills else small.width_of_head,
        mlp_width=inside,
    )


def _mistakes(small: ModelConfig, asked: Mapping[str, int | None]) -> Iterator[tuple[str, str]]:
    sizes = {name: getattr(small, name) for name in ("n_layer", "n_embd", "n_head")} | {"mlp_width": small.width_of_mlp}
    for name, before in sizes.items():
        if (size := asked.get(name)) is not None and size < before:
            yield name, f"{size}, but the model has {before}; it can only grow"
    width, group = asked.get("n_embd") or small.n_embd, small.n_head // small.kv_heads
    times = width // small.n_embd
    if width % small.n_embd:
        near = small.n_embd * (times + 1)
        yield "n_embd", f"a norm needs every feature equally often, so a multiple of {small.n_embd}; take {near}"
        return
    heads = asked.get("n_head") or small.n_head * times
    if heads % group:
        yield (
            "n_head",
            f"{group} heads share keys and values, so a multiple of {group}; take {-(-heads // group) * group}",
        )
    if not small.out_projection and heads * small.width_of_head != width:
        whole = width // small.width_of_head
        yield "n_head", f"without a projection heads of width {small.width_of_head} make up the stream; take {whole}"
    if times == 1:
        return
    if small.tied and not small.norm_weight:
        yield "n_embd", "a tied head sees each feature several times, and a norm without weights cannot take that back"
    if small.attention_scale == "width" and small.qk_norm != "none" and not small.norm_weight:
        yield "n_embd", "attention is scaled by the width, and norms without weights cannot take that back"


def places_of_layers(small: ModelConfig, large: ModelConfig) -> list[int]:
    """Where each layer stands in the larger model: the new ones are spread among them; before all of them where every
    second layer, counted from the last, has a table of values."""
    new = large.n_layer - small.n_layer
    return [layer + (new if small.value_embeddings else layer * new // small.n_layer) for layer in range(small.n_layer)]


@torch.no_grad()
def grow_into(large: GPT, small: GPT) -> None:
    """Let an untrained model compute what a smaller one does; both on the same device or not."""
    old, new = small.config, large.config
    chance, weights = torch.Generator().manual_seed(0), small.state_dict()
    places = places_of_layers(old, new)
    for number in set(range(new.n_layer)) - set(places):
        _silence(large, number)
    renamed = {f"blocks.{place}.": f"blocks.{layer}." for layer, place in enumerate(places)}
    renamed |= {f"values.{place}.": f"values.{layer}." for layer, place in enumerate(places)}
    for name, parameter in large.named_parameters():  # a tied head is not named twice
        prefix = ".".join(name.split(".")[:2]) + "." if name.startswith(("blocks.", "values.")) else ""
        if prefix and prefix not in renamed:
            continue
        from_name = renamed.get(prefix, "") + name.removeprefix(prefix)
        grown = _grown(name, weights[from_name].float().cpu(), tuple(parameter.shape), chance)
        parameter.copy_(grown * _correction(name, old, new))


def _silence(model: GPT, number: int) -> None:
    """What a block writes to the stream becomes nothing; without a projection, values do the writing."""
    block = model.blocks[number]
    assert isinstance(block, Block)
    attention = block.attention
    writers = [attention.value if attention.out is None else attention.out, block.mlp.down]
    for parameter in (each for writer in writers for each in writer.parameters()):
        parameter.zero_()
    if attention.out is None and attention.value_share is not None:
        attention.value_share.zero_()


def _correction(name: str, old: ModelConfig, new: ModelConfig) -> float:
    times = new.n_embd / old.n_embd
    if old.tied and name in ("norm.weight", "norm.bias"):
        return 1 / times
    scaled = "attention.query." if old.qk_norm == "none" else "attention.query_norm."
    if old.attention_scale == "width" and scaled in name:
        return float(times**0.5)
    return 1.0


def _grown(name: str, weight: torch.Tensor, shape: tuple[int, ...], chance: torch.Generator) -> torch.Tensor:
    """A weight repeated along the axes that grew, and divided where it reads."""
    for axis, size in enumerate(shape):
        before = weight.shape[axis]
        if size == before:
            continue
        copies = torch.arange(size) % before
        weight = weight.index_select(axis, copies)
        if axis == 1 and not name.startswith(TABLES):
            weight = weight * _shares(weight, axis, copies, before, chance)
    return weight


def _shares(
    weight: torch.Tensor, axis: int, copies: torch.Tensor, before: int, chance: torch.Generator
) -> torch.Tensor:
    """Random shares in the shape of a weight, which over the copies of each feature sum to 1."""
    drawn = torch.rand(weight.shape, generator=chance) + 0.5
    size = list(weight.shape)
    size[axis] = before
    sums = torch.zeros(size).index_add_(axis, copies, drawn)
    return drawn / sums.index_select(axis, copies)
