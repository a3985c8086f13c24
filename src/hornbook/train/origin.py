"""Where a run's weights come from, when not from chance.

In: the path of a model folder, or of a run, whose best checkpoint is meant, or a name on the Hugging Face hub.
Out: an `Origin`: what the run takes over from it, what it may not change, and what is written down about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.base.settings import spoken
from hornbook.exchange.imports import imported_from_hub, is_hub_name
from hornbook.exchange.moments import knobs_beside, remembered
from hornbook.model.config import INDEX, WEIGHTS, ModelConfig
from hornbook.model.folder import load_config, load_model, load_weights
from hornbook.model.gpt import GPT
from hornbook.model.growth import grow_into, grown_config
from hornbook.runs.folder import OPTIMIZER, resolve
from hornbook.shards.format import Shards
from hornbook.text.tokenizer import TOKENIZER_FILES, Tokenizer
from hornbook.train.config import GrowConfig, RunConfig
from hornbook.train.learner import Learner

# What of a model is not in its weights, but in how it learns.
MAY_DIFFER = {"dropout", "dropout_at"}


@dataclass(frozen=True)
class Origin:
    folder: Path
    model: ModelConfig
    """As the run is to have it: the folder's, or larger."""
    tokenizer: Tokenizer
    grows: bool = False

    @classmethod
    def asked_for(cls, config: RunConfig) -> Origin | None:
        return cls.find(config.start_from).grown(config.grow) if config.start_from is not None else None

    @classmethod
    def find(cls, start_from: str) -> Origin:
        path = Path(start_from).expanduser()
        named = not path.exists() and is_hub_name(start_from)
        folder = imported_from_hub(start_from) if named else resolve(path)
        return cls(folder, load_config(folder), Tokenizer.load(folder))

    def grown(self, grow: GrowConfig) -> Origin:
        """To begin with a larger model that computes the same."""
        asked = grow.asked()
        return replace(self, model=grown_config(self.model, asked), grows=True) if asked else self

    def give(self, model: GPT) -> None:
        """Put the weights into the run's model."""
        if self.grows:
            grow_into(model, load_model(self.folder))
        else:
            load_weights(model, self.folder)

    def taken_over(self) -> dict[str, Any]:
        """Knobs of the run."""
        tokenizer = {"kind": "file", "file": str(self.folder / TOKENIZER_FILES[0])}
        return {"model": self.model.model_dump(), "tokenizer": tokenizer}

    def learned_with(self) -> dict[str, Any]:
        """Knobs with which an optimizer that came with it goes on as it stood."""
        if (knobs := knobs_beside(self.folder)) is None:
            return {}
        return {"optim": knobs, "schedule": {"kind": "constant", "warmup_steps": 0}}

    def goes_on_with_optimizer(self, config: RunConfig) -> bool:
        return not self.grows and config.optim.kind == "adamw" and knobs_beside(self.folder) is not None

    def restore(self, learner: Learner, config: RunConfig) -> None:
        """Its weights, and its optimizer where the run has one like it."""
        self.give(learner.model)
        if self.goes_on_with_optimizer(config):
            try:
                names = [name for name, _ in learner.model.named_parameters()]
                saved = remembered(self.folder, names)
                learner.optimizer.restore({name: saved[name] for name in saved if not learner.is_of_another(name)})
            except (KeyError, ValueError, TypeError) as error:
                raise UserError(f"{self.folder / OPTIMIZER}: not of this model ({error}); import it again") from None

    def check(self, config: RunConfig) -> None:
        """Refuse knobs that contradict what is taken over, all of them at once."""
        mistakes = [*self._other_model(config)]
        for name, taken in self.taken_over()["tokenizer"].items():
            if (asked := getattr(config.tokenizer, name)) not in (taken, None):
                mistakes.append(f"--tokenizer.{name}: {asked}, but {self.folder} keeps its own; leave it out")
        if mistakes:
            raise UserError(*mistakes)

    def check_tokenizer(self, shards: Shards) -> None:
        """Refuse ids that mean something else to the model than they were made to mean."""
        if not self.tokenizer.encodes_like(shards.tokenizer):
            raise UserError(
                f"{shards.folder}: encoded by another tokenizer than the model's; give the text itself: --data TEXT, "
                f"or prepare it with --tokenizer.kind file --tokenizer.file {self.folder}"
            )

    def record(self) -> dict[str, Any]:
        names = sorted({each.name for each in self.folder.glob("*.safetensors")} - {OPTIMIZER})
        names += [OPTIMIZER] if knobs_beside(self.folder) is not None else []
        named = [name for name in [*names, INDEX] if (self.folder / name).is_file()]
        return {
            "folder": str(self.folder.resolve()),
            "weights": {name: files.sha256(self.folder / name) for name in named or [WEIGHTS]},
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
        }

    def _other_model(self, config: RunConfig) -> Iterator[str]:
        for name in [each for each in ModelConfig.model_fields if each not in MAY_DIFFER]:
            asked, there = getattr(config.model, name), getattr(self.model, name)
            if asked != there and (name, asked) != ("vocab_size", None):  # a run finds out by itself
                yield (
                    f"{spoken('model.' + name)}: {asked}, but {self.folder} has {there}; leave it out, or start from "
                    f"nothing, without --from{_grown_by(name)}"
                )


def _grown_by(name: str) -> str:
    return f", or let it grow: {spoken('grow.' + name)}" if name in GrowConfig.model_fields else ""
