"""A model split over the GPUs of a cluster: what each of them holds, what goes over the wire, how long a step takes.

In: a run's settings, a cluster, how many shards the parameters are cut into.  Out: a `Split`. The GPUs are a grid of
shards x replicas; neighbours are shards, so that up to a host's number of them never leave it. A GPU keeps its shard of
weights, gradients and optimizer in fp32, and gathers a block in the numbers that it computes in when it is due (FSDP2).
In one shard each keeps all weights, but of the optimizer only what it owns: a parameter is changed by one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hornbook.plan.cluster import LATENCY, Cluster, tree_hops
from hornbook.plan.counted import Counted, cut, share
from hornbook.train.memory import (
    FP32,
    NAMES,
    Moment,
    TrainingMemory,
    activations,
    evaluation_logits,
    loss_pieces,
    what_blocks_read,
)

# Backwards costs twice as much as forwards, which is done again with activation checkpointing.
DONE_AGAIN, BACKWARDS = 4 / 3, 2 / 3


@dataclass(frozen=True)
class Split:
    model: Counted
    cluster: Cluster
    shards: int
    at_once: int
    """Sequences in a micro-batch."""
    gathers_again: bool = True
    """Blocks are given back after forwards, and gathered again backwards."""
    checkpoints_activations: bool = False

    @property
    def replicas(self) -> int:
        return self.cluster.gpus // self.shards

    @property
    def owners(self) -> int:
        """Among how many the optimizer's state and work are shared out."""
        return self.shards if self.shards > 1 else self.replicas

    @property
    def sequences(self) -> int:
        """Of a step, on a GPU."""
        return -(-self.model.run.sequences // self.cluster.gpus)

    @property
    def rounds(self) -> int:
        return -(-self.sequences // self.at_once)

    @cached_property
    def memory(self) -> TrainingMemory:
        return sharded_memory(self)

    @property
    def wire(self) -> tuple[float, float, float]:
        """Bytes that a GPU sends in a step: blocks gathered and gradients summed among shards; those summed among
        replicas; Muon's, to the owners of its matrices and back."""
        shards, replicas, parameters = self.shards, self.replicas, self.model.parameters
        gathered = self.times_gathered * self.model.dtype.itemsize
        among_shards = self.rounds * (gathered + FP32) * parameters * (shards - 1) / shards
        among_replicas = 2 * FP32 * parameters / shards * (replicas - 1) / replicas
        owners = 2 * FP32 * self.model.in_matrices / shards if shards > 1 else 0.0
        return among_shards, among_replicas, owners

    @property
    def times_gathered(self) -> int:
        return 2 if self.gathers_again else 1

    @property
    def bandwidth(self) -> float:
        """Among shards."""
        return self.cluster.among(self.shards)

    @property
    def flops(self) -> float:
        """That a GPU is asked for in a step, but for Muon's."""
        run = self.model.run
        again = DONE_AGAIN if self.checkpoints_activations else 1.0
        return again * self.sequences * run.window * run.model.flops_per_token(run.window)

    @property
    def speed(self) -> float:
        """FLOPs a second that a GPU reaches."""
        return self.cluster.share_of_peak * self.peak

    @property
    def peak(self) -> float:
        return self.cluster.gpu.peak(str(self.model.dtype).removeprefix("torch."))

    @property
    def compute(self) -> float:
        """Seconds of a step."""
        return self.flops / self.speed

    @cached_property
    def among_shards(self) -> float:
        """Seconds of a step in which blocks are gathered, and their gradients summed."""
        if self.shards == 1:
            return 0.0
        collectives = self.rounds * (self.times_gathered + 1) * self.model.layers
        return self.wire[0] / self.bandwidth + collectives * (self.shards - 1) * LATENCY

    @cached_property
    def among_replicas(self) -> float:
        """Seconds of a step in which the sums of shards are summed, backwards through the last micro-batch."""
        if self.replicas == 1:
            return 0.0
        hops = 2 * self.model.layers * tree_hops(self.replicas)
        return self.wire[1] / self.cluster.throughout + hops * LATENCY

    @property
    def communication(self) -> float:
        """Seconds of a step, most of which go on while blocks are computed."""
        return self.among_shards + self.among_replicas

    @property
    def late(self) -> float:
        """Seconds of sums among replicas for which the backwards of the last micro-batch is too short."""
        return max(self.among_replicas - BACKWARDS * self.compute / self.rounds, 0.0)

    @property
    def exposed(self) -> float:
        """Seconds for which nothing is computed: the first block is waited for, and the last gradient."""
        return (self.among_shards / self.rounds + self.among_replicas) / self.model.layers

    @property
    def muon(self) -> float:
        """Seconds: the exchange, then the products, each matrix at its owner."""
        whole, largest = self.model.muon_flops
        return self.wire[2] / self.bandwidth + max(whole / self.owners, largest) / self.speed

    @cached_property
    def seconds(self) -> float:
        return max(self.compute + self.late, self.communication) + self.exposed + self.muon

    @property
    def tokens(self) -> int:
        """Of a step, on all GPUs."""
        return self.model.run.sequences * self.model.run.window

    @property
    def tokens_a_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """The share of the peak that the model's own products are: none for what is computed again, or by Muon."""
        run = self.model.run
        return self.tokens_a_second * run.model.flops_per_token(run.window) / (self.cluster.gpus * self.peak)


def sharded_memory(split: Split) -> TrainingMemory:
    """What one of the GPUs holds, each part with its arithmetic."""
    counted, run, dtype, shards = split.model, split.model.run, split.model.dtype, split.shards
    config, size, name, tokens = run.model, dtype.itemsize, NAMES[dtype], split.at_once * run.window
    held = [cut(share("weights, fp32", counted.parameters, FP32), shards)]
    held += [cut(part, split.owners) for part in counted.remembered]
    if run.train.average:
        held.append(cut(share("averaged weights, fp32", counted.parameters, FP32), shards))
    gradients = cut(share("gradients, fp32", counted.parameters, FP32), shards)
    root = share(f"embedding and head, {name}", counted.root, size)
    due = min(2, counted.layers) if split.gathers_again else counted.layers
    gathered = share(f"blocks gathered, {name}", due, counted.block, size)
    leaving = share("a block's gradients summed", counted.block, size + FP32)
    last = share("the embedding's gradients summed", counted.root, size + FP32)
    head = loss_pieces(config, tokens, dtype, "cuda")
    copies = (root, gathered) if split.cluster.gpus > 1 or dtype.itemsize < FP32 else ()  # alone, fp32 needs none
    there = (gradients, *copies)
    if split.checkpoints_activations:
        read = what_blocks_read(config, tokens, dtype)
        one = activations(config.with_(n_layer=1), tokens, run.window, dtype, "cuda")
        moments = [Moment("loss", (*there, read, head)), Moment("backwards", (*there, leaving, read, one))]
    else:
        kept = activations(config, tokens, run.window, dtype, "cuda")
        moments = [Moment("forwards and backwards", (*there, leaving, kept, head))]
    moments.append(Moment("end of backwards", (gradients, *copies[:1], last)))
    moments.append(Moment("weights changed", (gradients, *counted.workspace(split.owners))))
    moments.append(Moment("evaluation", (*copies, evaluation_logits(run, dtype, "cuda"))))
    return TrainingMemory(tuple(held), tuple(moments))
