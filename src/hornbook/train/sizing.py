"""Does a run fit its text and its machine?

In: a RunConfig, shards, a machine.  Out: the config with what only these can tell, how many sequences to compute at
once, whether compiling pays; or a line that says what to take less of.
"""

from __future__ import annotations

from hornbook.base.console import count
from hornbook.base.errors import UserError
from hornbook.base.machine import Machine
from hornbook.base.world import World
from hornbook.model.init import outline
from hornbook.shards.format import Shards
from hornbook.shards.openings import openings
from hornbook.train.config import RunConfig, override
from hornbook.train.memory import bytes_in_slices, training_memory

# Weight, gradient, and what Muon remembers of it.
LEAST_BYTES_OF_A_PARAMETER = 12
# On a CPU few sequences are computed at once, for its caches' sake.
CPU_TOKENS = 8192
# Compiling takes about a minute, which a run must be long enough to win back: on CUDA half as long, for steps that then
# take two thirds of the time.
LEAST_SECONDS_TO_COMPILE = {"cuda": 300}
ELSEWHERE = 600


def fitted_to(shards: Shards, config: RunConfig) -> RunConfig:
    """The config with the vocabulary and the prompts of its data, or a UserError where the two do not go together."""
    context, there = config.window, len(shards.split("train"))
    if there <= context:
        smaller, knob = max(there // 2, 2), "model" if config.start_from is None else "train"
        raise UserError(
            f"{config.data}: only {there} tokens to train on, a context of {context} needs more than that; "
            f"take a longer text, or --{knob}.context {smaller}"
        )
    if shards.tokenizer.vocab_size != shards.vocab_size:
        raise UserError(f"{shards.folder}: its tokenizer.json and manifest.json differ; prepare the text again")
    if len(shards.split("val")) < 2:
        raise UserError(
            f"{config.data}: no text left for validation; take a longer text, or raise --shards.val-fraction"
        )
    asked = config.model.vocab_size
    if asked is not None and not config.model.fits_vocabulary(shards.vocab_size):
        raise UserError(
            f"--model.vocab-size: {asked}, but the tokenizer has {shards.vocab_size} entries; "
            "leave it out, or set --tokenizer.vocab-size"
        )
    prompts = openings(shards, 1) if config.sample.prompts is None else config.sample.prompts
    return override(config, {"model": {"vocab_size": asked or shards.vocab_size}, "sample": {"prompts": prompts}})


def refuse_without_room(config: RunConfig, machine: Machine, world: World, slices: int | None) -> None:
    """Said at once, rather than after minutes of building what cannot be held. What has the model in slices needs no
    more of each GPU than its share; processes on a CPU share its memory, too."""
    share = 1 if slices is None else world.size // (world.size_of_host if machine.device == "cpu" else 1)
    needed = LEAST_BYTES_OF_A_PARAMETER * config.model.n_params() // share
    if needed > machine.memory_bytes:
        each = "" if share == 1 else f" on each of {share}"
        more = "" if slices is None else ", or take more --processes or --hosts"
        raise UserError(
            f"--model.n-embd: {count(float(config.model.n_params()))} parameters need {needed >> 30:,} GB to train"
            f"{each}, {machine.name} has {machine.memory_bytes >> 30:,}; lower it, or --model.n-layer{more}"
        )


def is_to_checkpoint_activations(
    config: RunConfig, machine: Machine, before: bool | None = None, slices: int | None = None, ranks: int = 1
) -> bool:
    """As the user says, or as the run did before, or where not even one sequence should fit otherwise."""
    if config.train.activation_checkpointing is not None:
        return config.train.activation_checkpointing
    if before is not None:
        return before
    return config.train.micro_batch is None and not _fits(config, machine, 1, False, slices, ranks)


def first_micro_batch(
    config: RunConfig,
    machine: Machine,
    checkpoints_activations: bool = False,
    ranks: int = 1,
    before: int = 0,
    slices: int | None = None,
) -> int:
    """How many sequences to compute at once: what the user says, or the run did before, or as many as should fit;
    where they do not, the learner halves it. Never so many that one of several processes would have none."""
    most = -(-config.sequences // ranks)
    if asked := before or config.train.micro_batch:
        return min(asked, most)
    if machine.device == "cpu":
        most = min(most, max(CPU_TOKENS // config.window, 1))
    at_once = config.sequences
    while at_once > 1 and (
        at_once > most or not _fits(config, machine, at_once, checkpoints_activations, slices, ranks)
    ):
        at_once = (at_once + 1) // 2
    return at_once


def slices_of_model(config: RunConfig, machine: Machine, ranks: int, on_host: int) -> int | None:
    """How many processes have the model together; None where each has all of it. As the user says, but so that the
    processes can be divided so; or as few as have room for it: those of a host, between which more can travel, or
    all."""
    asked = config.train.parallel
    if asked in ("replicated", 1) or (asked != "sharded" and ranks == 1):
        return None
    if isinstance(asked, int):
        return next(each for each in range(min(asked, ranks), ranks + 1) if ranks % each == 0)
    if asked is None and _fits(config, machine, 1, True):
        return None
    host = on_host > 1 and ranks % on_host == 0 and _fits(config, machine, 1, True, on_host, ranks)
    return on_host if host else ranks


def refuse_idle(config: RunConfig, ranks: int) -> None:
    """Each of several processes wants something to do."""
    if config.sequences < ranks:
        raise UserError(
            f"--train.batch-tokens: {config.sequences} sequences of {config.window} tokens a step are too few for "
            f"{ranks} processes; give {config.window * ranks} or more, or start fewer"
        )


def _fits(
    config: RunConfig,
    machine: Machine,
    at_once: int,
    checkpoints_activations: bool,
    slices: int | None = None,
    ranks: int = 1,
) -> bool:
    model, device = outline(config.model), machine.torch_device.type
    needed = training_memory(config, model, at_once, machine.torch_dtype, device, checkpoints_activations)
    bytes_ = needed.bytes if slices is None else bytes_in_slices(needed, model, machine.torch_dtype, slices, ranks)
    return bytes_ <= 0.8 * machine.memory_bytes


def is_to_be_compiled(config: RunConfig, machine: Machine, samples_per_epoch: int, before: bool | None) -> bool:
    """As the user says, or as the run did before, which is part of being exact, or where it pays."""
    if config.train.compile is not None:
        return config.train.compile
    return machine.can_compile and (_compiling_pays(config, machine, samples_per_epoch) if before is None else before)


def _compiling_pays(config: RunConfig, machine: Machine, samples_per_epoch: int) -> bool:
    knobs, least = config.train, LEAST_SECONDS_TO_COMPILE.get(machine.torch_device.type, ELSEWHERE)
    if knobs.minutes is not None and knobs.minutes * 60 < least:
        return False
    ends = [samples_per_epoch * knobs.epochs * config.window] if knobs.epochs else []
    ends += [knobs.steps * knobs.batch_tokens] if knobs.steps else []
    ends += [knobs.tokens] if knobs.tokens else []
    if not ends:
        return True
    seconds = min(ends) * config.model.flops_per_token() / (machine.peak_flops or 5e11) / 0.4
    return seconds > least
