"""A model that no device holds whole.

In: what a `Learner` is given, by each of several processes.  Out: the same steps.
Between its uses each parameter lies in slices, some rows with each rank (slices.py). What learns from them is as it is
among replicas: each whole parameter has one owner (owners.py), to which the rows of its gradient go, and from which the
changed rows come. So slices change no bit of what is learned. Of many ranks some in a row may have the model together,
and others beside them another one: then each such replica has a branch of the tree of sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hornbook.base.errors import UserError
from hornbook.base.machine import Machine, free_cache, is_out_of_memory
from hornbook.base.world import World
from hornbook.model.compile import Trunk, compiled_block, use_in_blocks
from hornbook.model.folder import weights_in_turn
from hornbook.model.gpt import GPT
from hornbook.model.init import outline, untrained
from hornbook.train.config import RunConfig
from hornbook.train.cuda_graph import Take
from hornbook.train.exchanges import Attend
from hornbook.train.learner import Learner
from hornbook.train.owners import Owners
from hornbook.train.slices import ShardedCopy
from hornbook.train.sums import PairwiseSum, in_pairs, shares


class ShardedLearner(Learner):
    """Its model has those weights that learn here, on the device; the place of all others is empty."""

    is_sharded = True
    _working: ShardedCopy  # type: ignore[assignment]  # of the same use, not of the same kind

    def __init__(
        self, config: RunConfig, machine: Machine, world: World, *more: Any, slices: int, **named: Any
    ) -> None:
        self.slices = slices
        self._replica = world.in_groups(slices)
        self._replicas = world.size // slices
        self._step_exchanges: Callable[[int], list[Attend]] = lambda rounds: []
        self._block: Trunk | None = None
        self._compiled_for = (0, 0)
        super().__init__(config, machine, world, *more, **named)

    def _build_model(self) -> tuple[GPT, Owners]:
        owners = self._owners_in(outline(self._config.model))
        model = untrained(self._config.model, owners.is_mine)
        owners = self._owners_in(model)
        for each in owners.mine.values():
            each.data = each.data.to(self._device)
        return model, owners

    def _build_working_copy(self) -> ShardedCopy:  # type: ignore[override]
        dtype = self._machine.torch_dtype
        return ShardedCopy(self._config.model, self._owners, self._world, self._replica, self._device, dtype)

    def _parameters_to_average(self) -> dict[str, torch.nn.Parameter]:
        return self._owners.mine

    def prepare(self) -> None:
        """Try, each alone, whether there is memory for a step, and to evaluate: once one waits for another it would be
        too late."""
        if self._average is not None:
            self._average.begin()
        while not self._is_ready():
            self._reduce_memory()
        while not self._all_can(self._rehearse_evaluation):
            self.tokens_at_once //= 2
            self._renew()
            if self.tokens_at_once < self._config.window:
                raise UserError("out of memory in an evaluation; lower --model.context, n-layer or n-embd")

    def _all_can(self, act: Callable[[], None]) -> bool:
        short = False
        try:
            act()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            short = True
        return not self._world.any(short)

    def _rehearse(self) -> None:
        """A step of one micro-batch, of which nothing is kept but what it exchanges."""
        working, rows, kept = self._working, list[torch.Tensor](), list[list[torch.Tensor]]()
        ids = torch.zeros(self.micro_batch, self._config.window, dtype=torch.int64, device=self._device)

        def a_round() -> None:
            rows.extend(self._round(ids, ids, self.slices)[0])

        def go_home() -> None:
            working.to_owners(rows, range(self._replicas))

        before = working.exchanges.rehearsed(working.refresh)
        round_ = working.exchanges.rehearsed(a_round)
        branches = self._rounds().bit_length() if self._sums_in_pairs else 1
        kept.extend(working.no_gradients() for _ in range(branches))
        after = working.exchanges.rehearsed(go_home)
        self._step_exchanges = lambda rounds: [*before, *round_ * rounds, *after]
        self.optimizer.rehearse()
        self._rehearsed = True

    def _is_ready(self) -> bool:
        if self.compiled:
            if not self._all_can(self._compile_block):
                return False
            if not self._world.any(self._block is None):
                assert self._block is not None
                use_in_blocks(self._working.model, self._block, self._compiled_for)
        return self._all_can(self._rehearse)

    def _compile_block(self) -> None:
        """Not the model, which FSDP2 puts together block by block."""
        shape, dtype = (self.micro_batch, self._config.window), self._machine.torch_dtype
        if self._compiled_for != shape:
            self._block, self._compiled_for = compiled_block(self._config.model, shape, self._device, dtype), shape

    def _rehearse_evaluation(self) -> None:
        model, context = self._working.model, self._config.window
        ids = torch.zeros(max(self.tokens_at_once // context, 1), context, dtype=torch.int64, device=self._device)
        model.eval()
        with torch.no_grad():
            self._working.exchanges.rehearsed(lambda: model.losses(ids, ids))
        self._working.reshard()
        model.train()

    def _reduce_memory(self) -> None:
        super()._reduce_memory()
        self._renew()

    def _renew(self) -> None:
        """After memory ran out in the middle of something, FSDP2 may be anywhere."""
        checkpoints_activations = self.checkpoints_activations
        del self._working
        free_cache(self._device)
        self._working = self._build_working_copy()
        self._working.model.checkpoints_activations = checkpoints_activations

    def _my_share(self) -> range:
        micro_batches = -(-self._config.sequences // self.micro_batch)
        return shares(micro_batches, self._replicas)[self._world.rank // self.slices]

    def _rounds(self) -> int:
        return -(-len(self._my_share()) // self.slices)

    def _gradients_of_my_share(self, take: Take) -> torch.Tensor:
        """Whose memory runs out is not missed by the others, who compute to the end of the step."""
        exchanges = self._working.exchanges
        exchanges.begin(self._step_exchanges(self._rounds()))
        try:
            loss = self._gradients_of_replica(take)
            exchanges.end()
            return loss
        except RuntimeError as error:
            if not is_out_of_memory(error) or not exchanges.is_as_rehearsed:
                raise
            why = str(error)  # which holds on to nothing
        free_cache(self._device)
        exchanges.attend_to_the_end()
        raise torch.OutOfMemoryError(why)

    def _gradients_of_replica(self, take: Take) -> torch.Tensor:
        """All ranks of a replica are needed for each to compute, so in each round all do, a micro-batch each,
        neighbours of the tree of sums. Who has none left computes one again, which counts for nothing."""
        share, sequences = self._my_share(), self._config.sequences
        self._draw_by(0)
        self._working.refresh()
        tree = PairwiseSum(in_turn=not self._sums_in_pairs)
        for begin in share[:: self.slices]:
            count = min(self.slices, share.stop - begin)
            place = begin + min(self._replica.rank, count - 1)
            self._draw_by(place)
            first = place * self.micro_batch
            gradients, loss = self._round(*take(first, min(self.micro_batch, sequences - first)), count)
            tree.add([*gradients, loss])
        *gradients, total = tree.total() or [*self._working.no_gradients(), torch.zeros((), device=self._device)]
        self._working.to_owners(gradients, self._replicas_with_a_share())
        return total

    def _round(self, ids: torch.Tensor, targets: torch.Tensor, count: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The rows of gradients, and the loss, of the first so many ranks' micro-batches."""
        loss = self._working.model(ids, targets) / (self._config.sequences * self._config.window)
        gradients = self._working.gradients((loss * self.scaler.scale).backward, count)
        losses = loss.detach().repeat(self.slices)
        own = losses[self._replica.rank : self._replica.rank + 1]
        self._working.exchanges.gather(self._replica, losses, own)
        return gradients, in_pairs(list(losses[:count]))

    def _replicas_with_a_share(self) -> list[int]:
        micro_batches = -(-self._config.sequences // self.micro_batch)
        return [replica for replica, share in enumerate(shares(micro_batches, self._replicas)) if share]

    def _sum_of_all(self, loss: torch.Tensor) -> torch.Tensor:
        losses = self._world.gathered(loss)
        return in_pairs([losses[replica * self.slices] for replica in self._replicas_with_a_share()])

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

    def load_working_weights(self, folder: Path) -> None:
        self._working.fill(weights_in_turn(self._config.model, folder))
        self._working.reshard()  # what is whole for an evaluation has the weights of before
        self._working.unshard_what_is_no_block()

    @contextlib.contextmanager
    def eval_model(self) -> Iterator[GPT]:
        with super().eval_model() as model:
            self._working.unshard_what_is_no_block()
            try:
                yield model
            finally:
                self._working.reshard()
