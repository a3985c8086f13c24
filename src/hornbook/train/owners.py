"""Who learns what, where several processes train one model.

In: the gradients that each of them has of its share of a batch.  Out: weights that all of them have.
Each parameter has one owner, which alone remembers its moments and changes it: the gradients of all are sent there and
added up in a fixed order (sums.py), and the changed weights come back. So an update is the very one that a process
alone makes, of whole matrices, and its work and memory are shared. Alone, everything is one's own and nothing travels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from hornbook.base.world import Ranks, World
from hornbook.train.sums import in_pairs

# Numbers of each owner's that travel at once: what a round holds besides is as many times that as there are ranks.
NUMBERS_AT_ONCE = 1 << 21


class Owners:
    def __init__(
        self,
        groups: Sequence[Mapping[str, torch.nn.Parameter]],
        world: World,
        of_one: Sequence[Sequence[str]] = (),
    ) -> None:
        """`groups`: parameters that are changed by one rule each, since one rule's work is shared evenly. `of_one`:
        names of those that are to have one owner."""
        self._world = world
        self._all = {name: each for group in groups for name, each in group.items()}
        self.owner = dict.fromkeys(self._all, 0)
        held, chosen = [0] * world.size, dict[str, int]()
        first_of = {name: names[0] for names in of_one for name in names}
        for group in groups:
            in_group = [0] * world.size
            for name in sorted(group, key=lambda each: -group[each].numel()):
                rank = min(range(world.size), key=lambda each: (in_group[each], held[each], each))
                rank = chosen.setdefault(first_of.get(name, name), rank)
                self.owner[name] = rank
                in_group[rank] += group[name].numel()
                held[rank] += group[name].numel()

    def is_mine(self, name: str) -> bool:
        return self.owner[name] == self._world.rank

    @property
    def mine(self) -> dict[str, torch.nn.Parameter]:
        return {name: each for name, each in self._all.items() if self.is_mine(name)}

    def mine_have_gradients(self) -> None:
        """Also those for which this process computed none, so that a step can be tried."""
        for each in self.mine.values():
            each.grad = torch.zeros_like(each) if each.grad is None else each.grad

    @torch.no_grad()
    def gather_gradients(self, with_a_share: Sequence[int]) -> None:
        """The gradients of all ranks that had a share of the batch, added up at their owners; nobody else keeps any."""
        if not isinstance(self._world, Ranks):
            return
        world, parts = self._world, self._parts({name: each.grad for name, each in self._all.items()})
        for places in self._rounds():
            sent = [parts.read(rank, *places) for rank in range(world.size)]
            here = sent[world.rank].numel()
            heard = world.exchanged(sent, [here] * world.size).view(world.size, here)
            parts.write(world.rank, *places, in_pairs([heard[rank] for rank in with_a_share]))
        for name, parameter in self._all.items():
            parameter.grad = parts.tensors[name] if self.is_mine(name) else None

    @torch.no_grad()
    def spread_weights(self) -> None:
        """What each owner has changed, to all."""
        if not isinstance(self._world, Ranks):
            return
        world, parts = self._world, self._parts({name: each.data for name, each in self._all.items()})
        for places in self._rounds():
            mine = parts.read(world.rank, *places)
            longest = max(parts.length(rank, *places) for rank in range(world.size))
            heard = world.gathered(torch.nn.functional.pad(mine, (0, longest - mine.numel())))
            for rank in range(world.size):
                if rank != world.rank:
                    parts.write(rank, *places, heard[rank, : parts.length(rank, *places)])

    def grad_norm(self, device: torch.device) -> torch.Tensor:
        """Of all gradients, the same bits as torch.nn.utils.get_total_norm: the norm of their norms."""
        mine = {name: each.grad for name, each in self.mine.items() if each.grad is not None}
        lengths = torch.zeros(len(self._all), device=device)
        places = [place for place, name in enumerate(self._all) if name in mine]
        if mine:
            lengths[places] = torch.stack(torch._foreach_norm(list(mine.values())))
        of_all = self._world.gathered(lengths)
        owners = torch.tensor(list(self.owner.values()), device=device)
        return torch.linalg.vector_norm(of_all[owners, torch.arange(len(owners), device=device)])

    def is_of_another(self, saved: str) -> bool:
        """Whether a tensor that an optimizer has saved, as RULE.PARAMETER or the like, is another rank's to take."""
        parts = saved.split(".")
        names = (".".join(parts[first:]) for first in range(len(parts)))
        return next((not self.is_mine(name) for name in names if name in self.owner), False)

    def _parts(self, tensors: Mapping[str, torch.Tensor | None]) -> _Parts:
        there = {name: torch.zeros_like(self._all[name]) if each is None else each for name, each in tensors.items()}
        return _Parts(there, self.owner, self._world.size)

    def _rounds(self) -> Iterator[tuple[int, int]]:
        most = max(
            sum(each.numel() for name, each in self._all.items() if self.owner[name] == rank)
            for rank in range(self._world.size)
        )
        for first in range(0, most, NUMBERS_AT_ONCE):
            yield first, first + NUMBERS_AT_ONCE


class _Parts:
    """The numbers of each owner's tensors as if they stood in one row, from which stretches are read and written."""

    def __init__(self, tensors: dict[str, torch.Tensor], owner: Mapping[str, int], ranks: int) -> None:
        self.tensors = tensors
        self._rows = [[each.view(-1) for name, each in tensors.items() if owner[name] == rank] for rank in range(ranks)]
        self._like = next(iter(tensors.values()))

    def length(self, rank: int, first: int, last: int) -> int:
        return sum(len(each) for each in self._stretches(rank, first, last))

    def read(self, rank: int, first: int, last: int) -> torch.Tensor:
        stretches = list(self._stretches(rank, first, last))
        return torch.cat(stretches) if stretches else self._like.new_empty(0)

    def write(self, rank: int, first: int, last: int, numbers: torch.Tensor) -> None:
        stretches = list(self._stretches(rank, first, last))
        for stretch, part in zip(stretches, numbers.split([len(each) for each in stretches]), strict=True):
            stretch.copy_(part)

    def _stretches(self, rank: int, first: int, last: int) -> Iterator[torch.Tensor]:
        begin = 0
        for row in self._rows[rank]:
            within = row[max(first - begin, 0) : max(last - begin, 0)]
            if len(within):
                yield within
            begin += len(row)
