"""The copy of a model that computes, in slices.

In: weights, each whole with its owner.  Out: the same with whoever computes, some rows of each with each rank of a
replica; and the gradients' rows put together at the owners, those of all replicas added up.
PyTorch's FSDP2 puts the rows of a block together just before it computes, and sends its gradients' rows home just
after. Ranks that have the model together stand in a row: 0 and 1 are the first of two slices each, 2 and 3 the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from hornbook.base.world import Ranks, World
from hornbook.model.config import ModelConfig
from hornbook.model.gpt import GPT
from hornbook.model.init import outline
from hornbook.train.exchanges import Exchanges, Gather, SumInPairs
from hornbook.train.owners import NUMBERS_AT_ONCE, Owners
from hornbook.train.sums import in_pairs


class ShardedCopy:
    def __init__(
        self,
        config: ModelConfig,
        owners: Owners,
        world: World,
        replica: World,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`replica`: the ranks that have the model together."""
        self._owners, self._world, self._slices = owners, world, replica.size
        if not dist.is_initialized():  # one process alone, to see what it costs
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        self.model, self.exchanges = outline(config), Exchanges()
        group = (replica.group if isinstance(replica, Ranks) else None) or dist.group.WORLD
        assert group is not None
        mesh = DeviceMesh.from_group(group, device.type)
        policy = MixedPrecisionPolicy(None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32)
        self._sum = SumInPairs(self.exchanges, replica)
        for module in (*self.model.blocks, self.model):
            fully_shard(module, mesh=mesh, mp_policy=policy)
            assert isinstance(module, FSDPModule)
            module.set_gradient_divide_factor(1.0)
            module.set_custom_all_gather(Gather(self.exchanges, replica))  # type: ignore[arg-type]
            module.set_custom_reduce_scatter(self._sum)  # type: ignore[arg-type]
        _fetch_backwards(self.model)
        register_fsdp_forward_method(self.model, "losses")
        self.model.to_empty(device=device)
        self.model.train()
        self._rows_here = dict(self.model.named_parameters())

    @torch.no_grad()
    def refresh(self) -> None:
        """Fetch the newest rows from their owners, and forget all gradients."""
        owners, ranks = self._owners, range(self._world.size)
        for each in self._rows_here.values():
            each.grad = None
        for names in self._bunches():
            mine = {name: owners.mine[name] for name in names if owners.is_mine(name)}
            sent = [[each[self._rows(name, rank)] for name, each in mine.items()] for rank in ranks]
            wanted = [[_local(self._rows_here[name]) for name in names if owners.owner[name] == rank] for rank in ranks]
            for heard, places in zip(self._exchanged(sent, wanted), wanted, strict=True):
                _put(heard, places)

    @torch.no_grad()
    def fill(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take one's own rows of weights that are whole."""
        for name, each in weights:
            _local(self._rows_here[name]).copy_(each[self._rows(name, self._world.rank)])

    def gradients(self, backwards: Callable[[], None], count: int) -> list[torch.Tensor]:
        """The rows of them that `backwards` leaves here, summed over the first so many ranks of the replica."""
        self._sum.count = count
        backwards()
        found = []
        for each in self._rows_here.values():
            found.append(torch.zeros_like(_local(each)) if each.grad is None else _local(each.grad))
            each.grad = None
        return found

    def no_gradients(self) -> list[torch.Tensor]:
        return [torch.zeros_like(_local(each)) for each in self._rows_here.values()]

    @torch.no_grad()
    def to_owners(self, gradients: Sequence[torch.Tensor], replicas: Sequence[int]) -> None:
        """Put the rows of gradients together where a whole parameter is changed by them, added up over these
        replicas."""
        owners, ranks = self._owners, range(self._world.size)
        here = dict(zip(self._rows_here, gradients, strict=True))
        for each in owners.mine.values():
            each.grad = torch.empty_like(each)
        for names in self._bunches():
            mine = {name: owners.mine[name].grad for name in names if owners.is_mine(name)}
            sent = [[here[name] for name in names if owners.owner[name] == rank] for rank in ranks]
            wanted = [
                [each[self._rows(name, rank)] for name, each in mine.items() if each is not None] for rank in ranks
            ]
            heard = self._exchanged(sent, wanted)
            for slice_ in range(self._slices):
                of_all = [heard[replica * self._slices + slice_] for replica in replicas]
                _put(in_pairs(of_all), wanted[slice_])

    def unshard_what_is_no_block(self) -> None:
        """For who calls a part of the model, rather than the model."""
        assert isinstance(self.model, FSDPModule)
        self.model.unshard()

    def reshard(self) -> None:
        assert isinstance(self.model, FSDPModule)
        self.model.reshard()

    def _exchanged(
        self, sent: Sequence[Sequence[torch.Tensor]], wanted: Sequence[Sequence[torch.Tensor]]
    ) -> Sequence[torch.Tensor]:
        """To each rank what is for it; from each as many numbers as are wanted of it."""
        parts = [torch.cat([each.flatten() for each in of] or [self._nothing()]) for of in sent]
        expected = [sum(each.numel() for each in of) for of in wanted]
        return self.exchanges.exchange(self._world, parts, expected).split(expected)

    def _nothing(self) -> torch.Tensor:
        return _local(next(iter(self._rows_here.values()))).new_empty(0)

    def _bunches(self) -> Iterator[list[str]]:
        """Names of parameters that travel together."""
        bunch: list[str] = []
        numbers = 0
        for name, each in self._rows_here.items():
            bunch.append(name)
            numbers += each.numel()
            if numbers > NUMBERS_AT_ONCE * self._slices:
                yield bunch
                bunch, numbers = [], 0
        yield bunch

    def _rows(self, name: str, rank: int) -> slice:
        """Those that lie with a rank, as torch.chunk cuts them: the last ranks may have fewer, or none."""
        rows, place = self._rows_here[name].shape[0], rank % self._slices
        each = -(-rows // self._slices)
        return slice(min(place * each, rows), min((place + 1) * each, rows))


def _fetch_backwards(model: GPT) -> None:
    """Each block the one before it, the first nothing more: by itself FSDP2 goes by the order of all forwards since the
    last backwards, evaluations among them."""
    blocks = list(model.blocks)
    for module, before in zip([model, *blocks[::-1]], [*blocks[::-1], blocks[0]], strict=True):
        assert isinstance(module, FSDPModule)
        module.set_modules_to_backward_prefetch([before])  # type: ignore[list-item]


def _put(numbers: torch.Tensor, places: Sequence[torch.Tensor]) -> None:
    for place, of_it in zip(places, numbers.split([each.numel() for each in places]), strict=True):
        place.copy_(of_it.view(place.shape))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The slice of it that lies here."""
    local: torch.Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return local
