"""Many GPUs: how they are joined, how often one of them fails, and what is lost by it.

In: how many of which, in how many hosts, and rates in words such as 400Gb.  Out: a `Cluster`, which tells how fast
bytes go from GPU to GPU, and a `Keeping`: how long a checkpoint takes, how often one should be written, and the share
of the time in which the run gets on. What is taken for granted stands here, and is printed with every plan.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hornbook.base.errors import UserError
from hornbook.plan.gpus import GB, SECONDS_OF_A_DAY, SHARE_OF_PEAK, Gpu, gpu_named

GPUS_A_HOST = 8
# Of 16,384 H100s in 54 days ("The Llama 3 Herd of Models", 2024): a failure a GPU in 5.8 years.
FAILED, FAILED_OF, FAILED_IN_DAYS = 419, 16_384, 54
# From a failure to the next step: it is noticed, a host takes the place of another, the checkpoint is read.
RESTART_MINUTES = 15.0
# What collectives reach of what a link is sold for, and the seconds that each hop takes besides.
SHARE_OF_LINK, LATENCY = 0.8, 8e-6
# Bytes a second: of the store, for each host (Llama 3's has 2 TB/s for 2,048); from a GPU into main memory.
STORE_A_HOST, COPY = 1 * GB, 10 * GB
# Of its memory, what a run fills: a micro-batch is chosen so that there is room for fragments and buffers.
FILLED = 0.85
RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(b|bits?|bytes?)(?:/s|ps)?", re.IGNORECASE)
THOUSANDS = ("", "k", "m", "g", "t", "p")


def bytes_a_second(words: str, option: str) -> float:
    """400Gb, 400 Gbit/s and 400Gbps are bits; 50GB, 50 GB/s and 50 Gbyte/s are bytes."""
    found = RATE.fullmatch(words.strip())
    if found is None or not float(found[1]):
        raise UserError(f"{option} {words}: should be a rate, in bits or in bytes a second: 400Gb, or 50GB")
    in_bytes = found[3] == "B" or found[3].lower().startswith("byte")
    return float(found[1]) * 1000 ** THOUSANDS.index(found[2].lower()) / (1 if in_bytes else 8)


@dataclass(frozen=True)
class Cluster:
    gpus: int
    gpu: Gpu
    hosts: int
    network: float | None
    """Bytes a second from a GPU to another host; None where there is one host."""
    store: float
    """Bytes a second of all hosts together into the file system that keeps checkpoints."""
    restart_minutes: float = RESTART_MINUTES
    share_of_peak: float = SHARE_OF_PEAK
    """That products reach, with all that is beside them in a step."""

    @property
    def gpus_a_host(self) -> int:
        return self.gpus // self.hosts

    @property
    def inside(self) -> float:
        """Bytes a second that a GPU sends to the others of its host."""
        return SHARE_OF_LINK * GB * self.gpu.link

    @property
    def across(self) -> float:
        """To another host. A ring over hosts goes from GPU to GPU inside them as well."""
        assert self.network is not None, "there is one host"
        return min(SHARE_OF_LINK * self.network, self.inside)

    def among(self, neighbours: int) -> float:
        """Bytes a second in a ring of so many GPUs that are neighbours: inside a host as long as it holds them."""
        return self.inside if neighbours <= self.gpus_a_host else self.across

    @property
    def throughout(self) -> float:
        """In rings from host to host."""
        return self.among(self.gpus)

    @property
    def failures_a_day(self) -> float:
        return self.gpus * FAILED / FAILED_OF / FAILED_IN_DAYS

    @property
    def seconds_between_failures(self) -> float:
        return SECONDS_OF_A_DAY / self.failures_a_day


def cluster_of(
    gpus: int,
    gpu: str,
    hosts: int | None = None,
    network: str | None = None,
    store: str | None = None,
    restart_minutes: float = RESTART_MINUTES,
    share_of_peak: float = SHARE_OF_PEAK,
) -> Cluster:
    """As a user says it. Hosts have eight GPUs when it is not said how many there are, or as many below that as there
    are alike."""
    if gpus < 1:
        raise UserError(f"--gpus {gpus}: should be 1 or more")
    if hosts is None:
        hosts = gpus // max(each for each in range(1, GPUS_A_HOST + 1) if gpus % each == 0)
    if hosts < 1 or gpus % hosts:
        raise UserError(f"--hosts {hosts}: {gpus} GPUs are not the same number in each; give --gpus for all of them")
    if hosts > 1 and network is None:
        raise UserError(
            f"--gpus {gpus}: in {hosts} hosts of {gpus // hosts}; say how fast each GPU reaches the other hosts: "
            "--network 400Gb"
        )
    if not 0 < share_of_peak <= 1:
        raise UserError(f"--share-of-peak {share_of_peak:g}: should be above 0, and at most 1")
    if restart_minutes < 0:
        raise UserError(f"--restart-minutes {restart_minutes:g}: should be 0 or more")
    return Cluster(
        gpus,
        gpu_named(gpu),
        hosts,
        bytes_a_second(network, "--network") if network is not None and hosts > 1 else None,
        bytes_a_second(store, "--store") if store is not None else STORE_A_HOST * hosts,
        restart_minutes,
        share_of_peak,
    )


def tree_hops(ranks: int) -> int:
    """Of a sum over so many, one way; what is gathered goes around a ring, ranks - 1 hops, where trees do not help."""
    return math.ceil(math.log2(ranks))


@dataclass(frozen=True)
class Keeping:
    """Checkpoints of so many bytes, written by all GPUs beside training, and what failures leave of the time."""

    cluster: Cluster
    bytes: int

    @property
    def stall(self) -> float:
        """Seconds that training waits: each GPU copies its part into main memory."""
        return self.bytes / self.cluster.gpus / COPY

    @property
    def seconds(self) -> float:
        """Until one is written."""
        return self.bytes / self.cluster.store

    @property
    def interval(self) -> float:
        """At which the stalls and the steps that are lost cost least together; not before the last one is written."""
        return max(math.sqrt(2 * self.stall * self.cluster.seconds_between_failures), self.seconds)

    @property
    def goodput(self) -> float:
        """The share of the time in which steps are taken that count. A failure costs half an interval, the writing
        that it cuts off, and the restart."""
        lost = self.interval / 2 + self.seconds + 60 * self.cluster.restart_minutes
        return max(1 - self.stall / self.interval - lost / self.cluster.seconds_between_failures, 0.0)
