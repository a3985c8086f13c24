"""A model that no device holds whole.

In: what a `Learner` is given, by each of several processes.  Out: the same steps.
Between its uses each parameter lies in slices, some rows with each rank. PyTorch's FSDP2 puts the rows of a block
together just before it computes, and sends its gradients' rows home just after; here they are added up in the fixed
order of sums.py. What learns from them is as it is among replicas: each whole parameter has one owner (owners.py), to
which the rows of its gradient go, and from which the changed rows come. So slices change no bit of what is learned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from hornbook.base.world import Ranks, World
from hornbook.model.folder import load_model
from hornbook.model.gpt import GPT
from hornbook.model.init import outline
from hornbook.train.learner import Learner
from hornbook.train.owners import NUMBERS_AT_ONCE, Owners
from hornbook.train.recorded import Take
from hornbook.train.sums import PairwiseSum, in_pairs


class ShardedLearner(Learner):
    """Its model holds the weights that learn, each with its owner; elsewhere their place is empty."""

    is_sharded = True
    _working: ShardedCopy  # type: ignore[assignment]  # of the same use, not of the same kind

    def _held(self, model: GPT) -> GPT:
        return model  # in main memory, until all is there that it begins with

    def _computing(self) -> ShardedCopy:  # type: ignore[override]
        for each in self._owners.mine.values():
            each.data = each.data.to(self._device)
        return ShardedCopy(self.model, self._owners, self._world, self._device, self._machine.torch_dtype)

    def _averaged(self) -> dict[str, torch.nn.Parameter]:
        return self._owners.mine

    def prepare(self) -> None:
        if self._average is not None:
            self._average.begin()
        for name, each in self.model.named_parameters():
            if not self._owners.is_mine(name):
                each.data = each.data.new_empty(0)

    def _gradients_of_my_share(self, take: Take) -> torch.Tensor:
        """All ranks are needed for each to compute, so in each round all do, a micro-batch each, neighbours of the tree
        of sums. Who has none left computes one again, which counts for nothing."""
        sequences, context = self._config.sequences, self._config.window
        micro_batches, ranks = -(-sequences // self.micro_batch), self._world.size
        self._draw_by(0)
        self._working.refresh()
        tree = PairwiseSum()
        for begin in range(0, micro_batches, ranks):
            count = min(ranks, micro_batches - begin)
            place = begin + min(self._world.rank, count - 1)
            self._draw_by(place)
            first = place * self.micro_batch
            ids, targets = take(first, min(self.micro_batch, sequences - first))
            loss = self._working.model(ids, targets) / (sequences * context)
            gradients = self._working.gradients(partial(loss.backward, self.scaler.scale), count)
            losses = self._world.gathered(loss.detach())
            tree.add([*gradients, in_pairs(list(losses[:count]))])
        *gradients, total = tree.total()
        self._working.to_owners(gradients)
        return total

    def _sum_of_all(self, loss: torch.Tensor) -> torch.Tensor:
        return loss  # it is that already

    def _spread_weights(self) -> None:
        """Whoever computes next fetches them."""

    def tensors(self) -> dict[str, torch.Tensor]:
        return self._world.sent_to_first(self.own_tensors()) | self._spikes.tensors()

    def own_tensors(self) -> dict[str, torch.Tensor]:
        of_all = self._spikes.tensors() if self._world.is_first else {}
        return self.optimizer.tensors() | self._averaged_tensors() | of_all

    def own_weights(self) -> dict[str, torch.Tensor]:
        mine = {name: each.detach() for name, each in self._owners.mine.items()}
        return mine if self._average is None else self._average.of(mine)

    def kept_weights(self) -> dict[str, torch.Tensor]:
        everything = self._world.sent_to_first(self.own_weights())
        if self._config.model.tied and everything:
            everything["head.weight"] = everything["embedding.weight"]
        return everything

    def look_at(self, folder: Path) -> None:
        self._working.fill(load_model(folder).state_dict())

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[GPT]:
        with super().at_rest() as model:
            self._working.unshard_what_is_no_block()
            yield model
            self._working.reshard()


class ShardedCopy:
    """The model that computes, in slices."""

    def __init__(self, master: GPT, owners: Owners, world: World, device: torch.device, dtype: torch.dtype) -> None:
        self._owners, self._world = owners, world
        if not dist.is_initialized():  # one process alone, to see what it costs
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        self.model = outline(master.config)
        mesh = init_device_mesh(device.type, (world.size,))
        policy = MixedPrecisionPolicy(None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32)
        self._sum = SumInPairs()
        for module in (*self.model.blocks, self.model):
            fully_shard(module, mesh=mesh, mp_policy=policy)
            assert isinstance(module, FSDPModule)
            module.set_gradient_divide_factor(1.0)
            if isinstance(world, Ranks):
                module.set_custom_reduce_scatter(self._sum)  # type: ignore[arg-type]
        register_fsdp_forward_method(self.model, "losses")
        self.model.to_empty(device=device)
        self.model.train()
        self._slices = dict(self.model.named_parameters())

    @torch.no_grad()
    def refresh(self) -> None:
        """Fetch the newest rows from their owners, and forget all gradients."""
        owners, ranks = self._owners, range(self._world.size)
        for each in self._slices.values():
            each.grad = None
        for names in self._bunches():
            mine = {name: owners.mine[name] for name in names if owners.is_mine(name)}
            sent = [[each[self._rows(name, rank)] for name, each in mine.items()] for rank in ranks]
            wanted = [[_local(self._slices[name]) for name in names if owners.owner[name] == rank] for rank in ranks]
            self._exchange(sent, wanted)

    @torch.no_grad()
    def fill(self, weights: dict[str, torch.Tensor]) -> None:
        """Take one's own rows of weights that are whole."""
        for name, each in self._slices.items():
            _local(each).copy_(weights[name][self._rows(name, self._world.rank)])

    def gradients(self, backwards: Callable[[], None], count: int) -> list[torch.Tensor]:
        """The rows of them that `backwards` leaves here, summed over the first so many ranks."""
        self._sum.count = count
        backwards()
        found = []
        for each in self._slices.values():
            found.append(torch.zeros_like(_local(each)) if each.grad is None else _local(each.grad))
            each.grad = None
        return found

    @torch.no_grad()
    def to_owners(self, gradients: Sequence[torch.Tensor]) -> None:
        """Put the rows of gradients together where a whole parameter is changed by them."""
        owners, ranks = self._owners, range(self._world.size)
        here = dict(zip(self._slices, gradients, strict=True))
        for each in owners.mine.values():
            each.grad = torch.empty_like(each)
        for names in self._bunches():
            mine = {name: owners.mine[name].grad for name in names if owners.is_mine(name)}
            sent = [[here[name] for name in names if owners.owner[name] == rank] for rank in ranks]
            wanted = [
                [each[self._rows(name, rank)] for name, each in mine.items() if each is not None] for rank in ranks
            ]
            self._exchange(sent, wanted)

    def unshard_what_is_no_block(self) -> None:
        """For who calls a part of the model, rather than the model."""
        assert isinstance(self.model, FSDPModule)
        self.model.unshard()

    def reshard(self) -> None:
        assert isinstance(self.model, FSDPModule)
        self.model.reshard()

    def _exchange(self, sent: Sequence[Sequence[torch.Tensor]], wanted: Sequence[Sequence[torch.Tensor]]) -> None:
        """To each rank what is for it; from each what is wanted of it, put in place."""
        parts = [torch.cat([each.flatten() for each in of] or [self._nothing()]) for of in sent]
        expected = [sum(each.numel() for each in of) for of in wanted]
        world = self._world
        heard = world.exchanged(parts, expected) if isinstance(world, Ranks) else parts[0]
        places = [each for of in wanted for each in of]
        for place, numbers in zip(places, heard.split([each.numel() for each in places]), strict=True):
            place.copy_(numbers.view(place.shape))

    def _nothing(self) -> torch.Tensor:
        return _local(next(iter(self._slices.values()))).new_empty(0)

    def _bunches(self) -> Iterator[list[str]]:
        """Names of parameters that travel together."""
        bunch: list[str] = []
        numbers = 0
        for name, each in self._slices.items():
            bunch.append(name)
            numbers += each.numel()
            if numbers > NUMBERS_AT_ONCE * self._world.size:
                yield bunch
                bunch, numbers = [], 0
        yield bunch

    def _rows(self, name: str, rank: int) -> slice:
        """Those that lie with a rank, as torch.chunk cuts them: the last ranks may have fewer, or none."""
        rows = self._slices[name].shape[0]
        each = -(-rows // self._world.size)
        return slice(min(rank * each, rows), min((rank + 1) * each, rows))


class SumInPairs:
    """In the place of FSDP2's reduce-scatter, whose order of sums follows from the number of ranks."""

    count = 0

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        heard = torch.empty_like(input_tensor)
        dist.all_to_all_single(heard, input_tensor, group=group)
        output_tensor.copy_(in_pairs(list(heard.view(group.size(), -1)[: self.count])))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The slice of it that lies here."""
    local: torch.Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    return local
