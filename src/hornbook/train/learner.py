"""One training step: forward, backward, clip, update.

In: batches of ids, and a learning-rate factor.  Out: changed weights, the loss, and the gradient norm.
Here are the weights in fp32, the working copy that computes, the optimizer, and how many sequences are computed at
once. Each draw of a random number follows from the run's seed and the step's number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from hornbook.base.console import warn
from hornbook.base.machine import Machine, draw_by, free_cache, is_out_of_memory, mix_seed
from hornbook.base.world import World
from hornbook.infer.score import TOKENS_AT_ONCE
from hornbook.model.compile import compiled_or_eager
from hornbook.model.folder import load_weights, written_together
from hornbook.model.gpt import GPT
from hornbook.model.init import untrained
from hornbook.train.average import Average
from hornbook.train.config import RunConfig
from hornbook.train.cuda_graph import StepRecorder, StepTensors, Take, is_recording
from hornbook.train.guard import smaller_micro_batch
from hornbook.train.optim import Optimizer, clip_grad_norm, grouped
from hornbook.train.owners import Owners
from hornbook.train.precision import LossScaler, WorkingCopy
from hornbook.train.spikes import Spikes
from hornbook.train.sums import PairwiseSum, in_pairs, is_power_of_two, shares
from hornbook.train.update_ratio import UpdateRatio, is_measured

# Where a step can be launched as one (cuda_graph.py).
RECORDED_ON = ("cuda",)


class Learner:
    """Has the whole model, as each of several processes does; where none can, see sharded.py."""

    is_sharded, slices = False, 1

    def __init__(
        self,
        config: RunConfig,
        machine: Machine,
        world: World,
        micro_batch: int,
        compiled: bool,
        checkpoints_activations: bool = False,
    ) -> None:
        self.micro_batch, self.compiled = micro_batch, compiled
        self.weights_are_whole = True  # not in the middle of an update
        self.tokens_at_once = TOKENS_AT_ONCE  # in an evaluation
        self._config, self._machine, self._world = config, machine, world
        self._device = machine.torch_device
        torch.manual_seed(config.seed)
        self.model, self._owners = self._build_model()
        self._working = self._build_working_copy()
        self.optimizer = Optimizer(self.model, config.optim, machine.torch_dtype, only=self._owners.mine)
        self.scaler = LossScaler(machine.torch_dtype, self._device)
        self._rehearsed = False
        self._spikes = Spikes(config.optim.spike, self._device)
        averaged, share = self._parameters_to_average(), config.train.average_share
        self._average = Average(averaged, share, self._device) if config.train.average else None
        self._update_ratio = UpdateRatio(averaged, self._device)
        self._seed = config.seed
        self._take_step: Callable[[Take, float], StepTensors] = self._step
        if self._device.type in RECORDED_ON and world.size == 1 and not self.is_sharded:
            flops = config.sequences * config.window * config.model.flops_per_token(config.window)
            self._take_step = StepRecorder(self._step, config.sequences, flops, self._device)
        if checkpoints_activations:
            self._checkpoint_activations()

    def _build_model(self) -> tuple[GPT, Owners]:
        """The model whose weights learn, and which process owns which of them."""
        model = untrained(self._config.model).to(self._device).train()
        return model, self._owners_in(model)

    def _owners_in(self, model: GPT) -> Owners:
        groups = list(grouped(model, self._config.optim).values())
        return Owners(groups, self._world, written_together(model.config) if self._world.size > 1 else ())

    def _build_working_copy(self) -> WorkingCopy:
        return WorkingCopy(self.model, self._machine.torch_dtype)

    def _parameters_to_average(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.model.named_parameters())

    def prepare(self) -> None:
        """Compile what computes, where that pays; average from where the weights are, if they are averaged."""
        if self._average is not None:
            self._average.begin()
        self._owners.spread_weights()  # what was computed for a beginning may differ from one processor to another
        model = self._working.model
        while self.compiled:
            try:
                shape = (self.micro_batch, self._config.window)
                model.hidden = compiled_or_eager(model, shape)  # type: ignore[method-assign]
                short = False
            except torch.OutOfMemoryError:
                short = True  # the error holds on to what was allocated, so go on only when it is gone
            if not self._world.any(short):
                return
            self._reduce_memory()

    @property
    def checkpoints_activations(self) -> bool:
        return self._working.model.checkpoints_activations

    def learn(self, take: Take, step: int, factor: float) -> StepTensors:
        """One training step. Its loss, the gradient norm before clipping, whether it was left out as a spike, the scale
        of its loss, and every so many steps the update ratio."""
        self._seed = mix_seed(self._config.seed, "step", step)
        draw_by(self._seed, self._device)
        if not is_measured(step):
            return self._take_step(take, factor)
        before = self._update_ratio.snapshot()
        return self._take_step(take, factor)._replace(update=self._update_ratio.since(before))

    def _step(self, take: Take, factor: float | torch.Tensor) -> StepTensors:
        loss = self.gradients(take)
        grad_norm = self._clip()
        # Decided on the device, which the host does not wait for: what is not finite never reaches the weights.
        overflowed, spike = 1 - (loss + grad_norm).isfinite().float(), self._spikes.check(loss, grad_norm)
        skip = torch.maximum(overflowed, spike)
        self.weights_are_whole = is_recording(self._device)
        self.optimizer.step(factor, skip)
        self._spread_weights()
        if self._average is not None:
            self._average.update(skip)
        self.weights_are_whole = True
        scale = self.scaler.scale.clone()
        self.scaler.update(overflowed)
        return StepTensors(loss, grad_norm, spike, scale, self._update_ratio.unmeasured)

    def gradients(self, take: Take) -> torch.Tensor:
        """The loss of a batch; its gradients are left on the model. Out of memory, it tries again with smaller
        micro-batches: each is weighted by its tokens, so their gradients add up to those of the batch however it is
        cut. The first time the optimizer rehearses its step, too, since to run out in the middle of one would be too
        late."""
        while True:
            try:
                loss = self._gradients_of_my_share(take)
                if not self._rehearsed:
                    self._owners.mine_have_gradients()
                    self.optimizer.rehearse()
                    self._rehearsed = True
                short = False
            except RuntimeError as error:
                if not is_out_of_memory(error) or is_recording(self._device):
                    raise
                short = True
            if not self._world.any(short):
                break
            self._reduce_memory()
            self.prepare()
        total = self._sum_of_all(loss)
        self.scaler.unscale(self.model)
        return total

    def _gradients_of_my_share(self, take: Take) -> torch.Tensor:
        """Forward and backward over this process's micro-batches; alone, over all of them."""
        sequences, context = self._config.sequences, self._config.window
        model, total = self._working.model, torch.zeros((), device=self._device)
        self._draw_by(0)
        self._working.refresh()
        tree = PairwiseSum()
        share = self._shares()[self._world.rank]
        for place in share:
            self._draw_by(place)
            first = place * self.micro_batch
            ids, targets = take(first, min(self.micro_batch, sequences - first))
            loss = model(ids, targets) / (sequences * context)
            (loss * self.scaler.scale).backward()  # given as its gradient, torch would import sympy first
            self._working.collect_gradients()
            total = total + loss.detach()
            if self._sums_in_pairs and (place % 2 == 1 or place == share[-1]) and len(share) > 3:
                tree.add([*self._working.take_gradients(), total])
                total = torch.zeros_like(total)
        if branches := tree.total():
            self._working.give_gradients(branches[:-1])
            total = branches[-1]
        return total

    def _sum_of_all(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of the whole batch; its gradients are with their owners afterwards."""
        with_a_share = [rank for rank, share in enumerate(self._shares()) if share]
        self._owners.gather_gradients(with_a_share)
        losses = self._world.gathered(loss)
        return in_pairs([losses[rank] for rank in with_a_share])

    def _spread_weights(self) -> None:
        self._owners.spread_weights()

    @property
    def _sums_in_pairs(self) -> bool:
        """Whether gradients are added up in a tree, which gives the same bits on any number of processes. On an
        accelerator, whose memory is scarce, they are added one after another."""
        return self._device.type == "cpu" and is_power_of_two(self._world.size)

    def _shares(self) -> list[range]:
        return shares(-(-self._config.sequences // self.micro_batch), self._world.size)

    def _draw_by(self, place: int) -> None:
        """Seed by the micro-batch's place in the batch, so that it does not matter which process computes it."""
        if place == 0:
            draw_by(self._seed, self._device)
        elif self._config.model.dropout > 0 and (self._world.size > 1 or self._device.type == "cpu"):
            draw_by(mix_seed(self._seed, place), self._device)

    def _clip(self) -> torch.Tensor:
        mine = list(self._owners.mine.values())
        grad_norm = self._owners.grad_norm(self._device) if self._world.size > 1 else None
        return clip_grad_norm(mine, self._config.optim.clip, grad_norm)

    def _reduce_memory(self) -> None:
        """Halve the micro-batch; where it is one sequence, checkpoint activations."""
        free_cache(self._device)
        if self.micro_batch > 1 or self.checkpoints_activations or self._config.train.activation_checkpointing is False:
            self.micro_batch = smaller_micro_batch(self.micro_batch)
        else:
            warn("out of memory with one sequence at once; going on with activation checkpointing, more slowly")
            self._checkpoint_activations()

    def _checkpoint_activations(self) -> None:
        self._working.model.checkpoints_activations = True
        if self._config.model.dropout > 0:  # a step that looks at random states cannot be recorded
            self._take_step = self._step

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs beside the weights. The first process has all of it: the others send what they
        own."""
        return self._world.sent_to_first(self.optimizer.tensors()) | self._spikes.tensors() | self._averaged_tensors()

    def _averaged_tensors(self) -> dict[str, torch.Tensor]:
        return self._average.tensors() if self._average is not None else {}

    def own_tensors(self) -> dict[str, torch.Tensor]:
        """This process's part of `tensors`, where each saves its own."""
        of_all = self._averaged_tensors() | self._spikes.tensors() if self._world.is_first else {}
        return self.optimizer.tensors() | of_all

    def own_weights(self) -> dict[str, torch.Tensor]:
        """This process's part of `kept_weights`."""
        kept = self.kept_weights()
        return {name: kept[name] for name in self._owners.mine}

    def is_of_another(self, saved: str) -> bool:
        """Whether what was saved under this name is for another process to restore."""
        each_has_it = self._average is not None and self._average.is_its(saved)
        return not each_has_it and self._owners.is_of_another(saved)

    def restore(self, saved: dict[str, torch.Tensor]) -> None:
        self._spikes.restore(saved)
        if self._average is not None:
            self._average.restore(saved)
        self.optimizer.restore({name: each for name, each in saved.items() if not self.is_of_another(name)})

    def kept_weights(self) -> dict[str, torch.Tensor]:
        """The weights of the model that is saved: the newest, or their average."""
        newest = self.model.state_dict()
        return newest if self._average is None else self._average.of(newest)

    def load_working_weights(self, folder: Path) -> None:
        """Overwrite the working copy, until the next step or evaluation refreshes it."""
        load_weights(self._working.model, folder)

    @contextlib.contextmanager
    def eval_model(self) -> Iterator[GPT]:
        """The working copy with the weights that are saved, in evaluation mode."""
        with self._average.in_place() if self._average is not None else contextlib.nullcontext():
            self._working.refresh()
            self._working.model.eval()
            try:
                yield self._working.model
            finally:
                self._working.model.train()
