"""What a run comes to on a cluster, on paper.

In: a recipe, a file or a text, with knobs, and a cluster.  Out: an `AtScale`: all splits of the model that its GPUs
hold, what comes of the cheapest, and the largest model of this shape that they would hold; told.py makes it words.
Nothing is timed or written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hornbook.base.errors import UserError
from hornbook.model.config import ModelConfig
from hornbook.plan.cluster import FILLED, Cluster, Keeping
from hornbook.plan.counted import Counted
from hornbook.plan.forecast import with_likely_vocabulary
from hornbook.plan.gpus import GB
from hornbook.plan.sizes import TORCH_TYPES
from hornbook.plan.split import Split
from hornbook.recipes import compose
from hornbook.train.config import RunConfig

# Of splits whose steps are as long, but for this much, the cheapest is the one that communicates for the least time.
AS_QUICK = 1.01
# As far as settings go.
MOST_LAYERS, MOST_WIDTH = 10_000, 1_000_000


def at_scale(named: RunConfig | str | None, knobs: Mapping[str, Any], cluster: Cluster, tiny: bool = False) -> AtScale:
    run = with_likely_vocabulary(compose(named, knobs, tiny))
    asked = run.sequences
    if asked < cluster.gpus:
        run = run.with_(train={"batch_tokens": cluster.gpus * run.window})
    return AtScale(Counted(run, TORCH_TYPES[run.train.dtype or cluster.gpu.numbers]), cluster, asked)


@dataclass(frozen=True)
class AtScale:
    model: Counted
    cluster: Cluster
    sequences_asked: int
    """Of a step, by the run; each GPU is planned with one at least."""

    @cached_property
    def fitting(self) -> list[Split]:
        """For each number of shards that the GPUs hold, the best split."""
        best: dict[int, list[Split]] = {}
        for split in splits(self.model, self.cluster):
            if fits(split):
                best.setdefault(split.shards, []).append(split)
        if not best:
            gpus, needed = self.cluster.gpus, least(self.model, self.cluster).memory.bytes
            held = f"{needed / GB:,.0f} GB of each {self.cluster.gpu.name}" + (f" in {gpus} shards" if gpus > 1 else "")
            raise UserError(
                f"--gpus {gpus}: training takes at least {held}, and a run fills {room(self.cluster) / GB:,.0f}; "
                f"{self._mend()}"
            )
        return [cheapest(found) for found in best.values()]

    def _mend(self) -> str:
        """More GPUs, as long as that helps."""
        for times in (2**power for power in range(1, 15)):
            network = self.cluster.network or GB  # which memory does not ask for
            more = replace(
                self.cluster, gpus=times * self.cluster.gpus, hosts=times * self.cluster.hosts, network=network
            )
            if fits(least(self.model, more)):
                return f"{more.gpus:,} hold it"
        return "a smaller model, a shorter --train.context or larger GPUs"

    @cached_property
    def split(self) -> Split:
        """The cheapest."""
        return cheapest(self.fitting)

    @property
    def keeping(self) -> Keeping:
        return Keeping(self.cluster, self.model.saved_bytes)

    @property
    def tokens(self) -> int | None:
        """Of the whole run, where its settings tell."""
        train = self.model.run.train
        ends = [train.tokens] if train.tokens else []
        ends += [train.steps * self.split.tokens] if train.steps else []
        return min(ends) if ends else None

    @property
    def seconds(self) -> float | None:
        """Of the whole run, with what failures cost."""
        if self.tokens is None or not self.keeping.goodput:
            return None
        return self.tokens / self.split.tokens_a_second / self.keeping.goodput

    @cached_property
    def largest(self) -> ModelConfig | None:
        """The largest model of this shape that the GPUs hold, a sequence at once; None where they hold none."""
        few, many = 0, 1
        while self._holds(many):
            few, many = many, 2 * many
        while many - few > 1:
            between = (few + many) // 2
            few, many = (between, many) if self._holds(between) else (few, between)
        return grown(self.model.run.model, few) if few else None

    def _holds(self, times: int) -> bool:
        larger = grown(self.model.run.model, times)
        if larger is None:
            return False
        run = self.model.run.with_(model=larger.model_dump())
        return fits(least(replace(self.model, run=run), self.cluster))


def splits(model: Counted, cluster: Cluster) -> Iterator[Split]:
    """All there are, whatever they hold: a part of a host to a replica, a host, or several."""
    inside = cluster.gpus_a_host
    for shards in range(1, cluster.gpus + 1):
        if cluster.gpus % shards == 0 and (inside % shards == 0 or shards % inside == 0):
            yield from _splits_of(model, cluster, shards)


def _splits_of(model: Counted, cluster: Cluster, shards: int) -> Iterator[Split]:
    micro_batch, sequences = model.run.train.micro_batch, -(-model.run.sequences // cluster.gpus)
    halves = {-(-sequences // 2**times) for times in range(sequences.bit_length() + 1)}
    for at_once in {min(micro_batch, sequences)} if micro_batch else halves:
        for gathers_again in (False, True) if shards > 1 else (False,):
            for checkpoints in _may_checkpoint_activations(model.run):
                yield Split(model, cluster, shards, at_once, gathers_again, checkpoints)


def _may_checkpoint_activations(run: RunConfig) -> tuple[bool, ...]:
    asked = run.train.activation_checkpointing
    return (False, True) if asked is None else (asked,)


def room(cluster: Cluster) -> float:
    """Bytes of a GPU that a run fills."""
    return FILLED * cluster.gpu.bytes


def fits(split: Split) -> bool:
    return split.memory.bytes <= room(split.cluster)


def cheapest(found: list[Split]) -> Split:
    """The quickest; of those that are as quick, the one that communicates and computes least, in the fewest rounds."""
    quickest = min(split.seconds for split in found)
    quick = [split for split in found if split.seconds <= AS_QUICK * quickest]
    return min(quick, key=lambda split: (split.communication, split.flops, split.rounds, split.memory.bytes))


def least(model: Counted, cluster: Cluster) -> Split:
    """What takes the least memory."""
    at_once = min(model.run.train.micro_batch or 1, -(-model.run.sequences // cluster.gpus))
    may = [
        Split(model, cluster, cluster.gpus, at_once, cluster.gpus > 1, checkpoints)
        for checkpoints in _may_checkpoint_activations(model.run)
    ]
    return min(may, key=lambda split: split.memory.bytes)


def grown(config: ModelConfig, times: int) -> ModelConfig | None:
    """So many times the heads of keys and values that are the fewest for this shape, and layers and widths in
    proportion; None beyond what settings allow."""
    group = config.n_head // config.kv_heads
    heads = group * times

    def in_proportion(size: int) -> int:
        return max(round(size * heads / config.n_head), 1)

    layers, width = in_proportion(config.n_layer), config.width_of_head * heads
    if config.head_width is not None:
        width = 2 * in_proportion(config.n_embd // 2)
    if layers > MOST_LAYERS or width > MOST_WIDTH:
        return None
    sizes = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_kv_head": times if config.n_kv_head else None}
    if config.mlp_width is not None:
        sizes["mlp_width"] = in_proportion(config.mlp_width)
    return config.with_(**sizes)
