"""Every knob of a run.

In: a recipe's RunConfig, a file, words from a command line.  Out: one frozen RunConfig, composed from the configs of
the stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from hornbook.base.files import is_utf8
from hornbook.base.settings import Settings, build, merge, spoken
from hornbook.infer.config import SamplerConfig
from hornbook.model.config import ModelConfig
from hornbook.shards.order import OrderConfig
from hornbook.shards.prepare import ShardsConfig
from hornbook.text.documents import TextConfig
from hornbook.text.tokenizer import TokenizerConfig
from hornbook.train.optim_config import OptimConfig as OptimConfig
from hornbook.train.schedule_config import ScheduleConfig as ScheduleConfig

# Of other programs and of papers; what is like a name of ours is found by itself.
ALSO_CALLED = {
    "batch_size": "train.batch_tokens",
    "block_size": "model.context",
    "d_model": "model.n_embd",
    "device_batch_size": "train.micro_batch",
    "grad_clip": "optim.clip",
    "hidden_size": "model.n_embd",
    "learning_rate": "optim.lr",
    "lr_decay": "schedule.kind",
    "max_iters": "train.steps",
    "max_grad_norm": "optim.clip",
    "max_length": "model.context",
    "max_steps": "train.steps",
    "model_dim": "model.n_embd",
    "num_attention_heads": "model.n_head",
    "num_heads": "model.n_head",
    "num_hidden_layers": "model.n_layer",
    "num_layers": "model.n_layer",
    "num_train_epochs": "train.epochs",
    "optimizer": "optim.kind",
    "seq_len": "model.context",
    "sequence_length": "model.context",
}
STOPS = ("steps", "epochs", "tokens", "minutes", "target_loss")
# Another value of these, and the same text makes another model.
LEARNED_BY = ("seed", "order", "model", "optim", "schedule")
LEARNED_BY_IN_TRAIN = (
    *("batch_tokens", "context", "micro_batch", "dtype", "compile", "head_start"),
    *("average", "average_share"),
)


class SampleConfig(Settings):
    prompts: tuple[str, ...] | None = Field(None, strict=False)
    """What the model continues while it trains; words of text that is held back, when not given. The empty prompt
    begins a document."""
    tokens: int = Field(64, ge=1)
    """Length of a sample."""
    rules: SamplerConfig = SamplerConfig()

    def mistakes(self) -> Iterator[tuple[str, str]]:
        for prompt in self.prompts or ():
            if not is_utf8(prompt):
                yield "prompts", f"{prompt[:40]}: not UTF-8, so no text begins with it"


class TrainConfig(Settings):
    steps: int | None = Field(None, ge=1)
    """Stop after so many updates."""
    epochs: float | None = Field(None, gt=0)
    """Stop when the text was read so many times."""
    tokens: int | None = Field(None, ge=1)
    """Stop when so many tokens were read."""
    minutes: float | None = Field(None, gt=0)
    """Stop when so much time has passed since the first step, evaluations and saving included, compiling not."""
    target_loss: float | None = Field(None, gt=0)
    """Stop when a step's training loss is not above this."""
    patience: int | None = Field(None, ge=1)
    """Stop, before the end that is given otherwise, when so many evaluations in a row were no better than the best."""
    batch_tokens: int = Field(16_384, ge=1, le=2**40)
    """Tokens that each update learns from."""
    context: int | None = Field(None, ge=1)
    """Tokens in a training window; model.context, when not given. Positions beyond it are never learned."""
    head_start: bool | None = None
    """Begin with what counted pairs of tokens tell, so that the first guesses are about a table's, and with heads that
    look back; where blocks begin as the identity and the head is the model's own, when not given."""
    average: Literal["ema"] | None = None
    """Evaluate, sample and keep the weights' moving average in place of the newest ones."""
    average_share: float = Field(0.1, gt=0, le=0.5)
    """How far it reaches back: on average this share of the steps so far; 0.5 is the plain mean of them all."""
    micro_batch: int | None = Field(None, ge=1)
    """Sequences that are computed at once; what fits, when not given."""
    eval_every_steps: int | None = Field(None, ge=1)
    """Evaluate every so many steps; when not given, ten times in the run, or as often as a twentieth of it allows."""
    eval_from_step: int | None = Field(None, ge=0)
    """Evaluate before the first step, and count eval_every_steps from this step on."""
    eval_batches: int | None = Field(None, ge=1)
    """Evaluate on at most so many batches, spread over the validation text, and on as many of the training text; when
    not given, on all of the validation text alone, or where eval_every_steps is not given either, on as much of it as a
    twentieth of the run allows, and at the end on all of it."""
    save_every_steps: int | None = Field(None, ge=1)
    """Save every so many steps."""
    save_every_minutes: float | None = Field(None, gt=0)
    """Save every so many minutes; each minute, and a large model each fifth, when save_every_steps is not given either.
    The weights of the best evaluation so far are saved with the next checkpoint."""
    sample_every_steps: int | None = Field(None, ge=1)
    """Sample every so many steps; with each evaluation when not given, or as often as takes little of the run."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints to keep, beside the best one."""
    snapshots: bool = True
    """Keep the weights of steps 1, 2, 4, 8 and so on, for looking back; of a large model 1, 4, 16."""
    dashboards: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field((), strict=False)
    """Show what metrics.jsonl says there too; several with commas. Each is a package of its own, to be installed."""
    device: str | None = None
    """cpu, cuda, cuda:1 or mps; the fastest there is when not given."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Numbers to compute in; when not given, bfloat16 where the machine is fast at it, float16 on GPUs that are fast at
    that alone (T4, V100, P100). Weights are kept in float32."""
    activation_checkpointing: bool | None = None
    """Keep of each block only what it reads, and compute it again backwards: far less memory for a third more
    arithmetic; where one sequence would not fit otherwise, when not given."""
    parallel: Literal["replicated", "sharded"] | Annotated[int, Field(ge=1)] | None = None
    """replicated: every process has the whole model. sharded: its parameters are split (FSDP2) over the processes of a
    host, or over all of them where a host has too little memory; a number: over groups of that many. The least that
    fits, when not given; none of it changes what is learned."""
    compile: bool | None = None
    """Compile the model; where it pays, when not given."""
    threads: int | None = Field(None, ge=1)
    """Processor threads; as torch chooses when not given, or where sizes are chosen by minutes, as make a step the
    quickest."""

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if all(getattr(self, stop) is None for stop in STOPS):
            yield (
                "steps",
                "nothing says when to stop; give --train.minutes, steps, epochs, tokens or target_loss",
            )
        if self.eval_from_step is not None and self.eval_every_steps is None:
            yield "eval_from_step", "counts --train.eval-every-steps from there, so give that as well"


class GrowConfig(Settings):
    n_layer: int | None = Field(None, ge=1, le=10_000)
    """With --from: go on with so many blocks, of which the new ones begin by adding nothing."""
    n_embd: int | None = Field(None, ge=2, le=1_000_000)
    """With --from: go on with this width, a multiple of the model's."""
    n_head: int | None = Field(None, ge=1, le=1_000_000)
    """With --from: go on with so many heads of the width that they have; as many times more as n_embd when not
    given."""
    mlp_width: int | None = Field(None, ge=1, le=100_000_000)
    """With --from: go on with this width inside the MLP; as follows from n_embd when not given."""

    def asked(self) -> dict[str, int]:
        return {name: size for name, size in self.model_dump().items() if size is not None}


class RunConfig(Settings):
    also_called = ALSO_CALLED
    recipe: str = "custom"
    """The name under which this was composed."""
    data: str = "python-stdlib"
    """A corpus, a data set of the Hugging Face hub (hf:OWNER/NAME), the path of a text, of a folder of texts or of
    shards, a pattern with `*`, or - for standard input."""
    start_from: str | None = None
    """Begin with the weights of this model folder, run, or name on the Hugging Face hub (--from for short), whose sizes
    and tokenizer stay."""
    grow: GrowConfig = GrowConfig()
    seed: int = Field(1, ge=0, lt=2**63)
    """Everything random in a run follows from this."""
    text: TextConfig = TextConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    shards: ShardsConfig = ShardsConfig()
    order: OrderConfig = OrderConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    sample: SampleConfig = SampleConfig()
    train: TrainConfig

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if self.window > self.model.context:
            yield "train.context", f"{self.window}, but the model sees {self.model.context} tokens; take less"
        if self.train.head_start and not self._can_have_head_start:
            yield "train.head_start", "is for models from nothing with --model.tied false and --model.init modern"
        if self.start_from is None:
            for name in self.grow.asked():
                instead = spoken(f"model.{name}")
                yield f"grow.{name}", f"grows a model that was trained, so name it: --from MODEL; else {instead}"

    @property
    def has_head_start(self) -> bool:
        return self._can_have_head_start if self.train.head_start is None else self.train.head_start

    @property
    def _can_have_head_start(self) -> bool:
        return self.start_from is None and not self.model.tied and self.model.init == "modern"

    @property
    def window(self) -> int:
        """Tokens that each sequence of a batch learns from."""
        return self.train.context or self.model.context

    @property
    def sequences(self) -> int:
        """Sequences in a batch."""
        return max(self.train.batch_tokens // self.window, 1)


def kept_from_rote(config: RunConfig, chosen: RunConfig) -> RunConfig:
    """Settings that were chosen for a text bound how often it is read; whoever gives minutes has not said to learn it
    by heart."""
    ends, most = [stop for stop in STOPS if getattr(config.train, stop) is not None], chosen.train.epochs
    if chosen.recipe != "own-text" or ends != ["minutes"] or most is None:
        return config
    return override(config, {"train": {"minutes": config.train.minutes, "epochs": most}})


def learned_by(config: RunConfig) -> dict[str, Any]:
    """By dotted names, what the weights of a run depend on besides its text and its end."""
    tree = config.model_dump(mode="json")
    chosen = {name: tree[name] for name in LEARNED_BY} | {
        "train": {name: tree["train"][name] for name in LEARNED_BY_IN_TRAIN}
    }
    return {
        f"{section}.{name}" if name else section: each
        for section, value in chosen.items()
        for name, each in (value.items() if isinstance(value, dict) else [("", value)])
    }


def override(config: RunConfig, *layers: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> RunConfig:
    """Turn some knobs of a run, the last layer winning. A stop that a layer gives replaces those from before it; so
    does another kind of tokenizer what was chosen for the one before."""
    tree = config.model_dump()
    for layer in layers:
        wanted = layer.get("train")
        if (
            isinstance(tree["train"], dict)
            and isinstance(wanted, Mapping)
            and any(wanted.get(stop) is not None for stop in STOPS)
        ):
            tree["train"] |= dict.fromkeys(STOPS)
        wanted, chosen = layer.get("tokenizer"), tree["tokenizer"]
        if isinstance(chosen, dict) and isinstance(wanted, Mapping):
            kind = chosen.get("kind")
            if wanted.get("kind", kind) != kind:
                tree["tokenizer"] = TokenizerConfig().model_dump() | {"train_bytes": chosen.get("train_bytes")}
        tree = merge(tree, layer)
    return build(RunConfig, tree, origins)
