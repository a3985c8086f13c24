"""Named runs. A recipe is a function that returns a RunConfig, and its entry in RECIPES.

In: a name, a file, or the text that a user brings, and knobs.  Out: the RunConfig to train.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hornbook.base.console import command, say
from hornbook.base.errors import UserError
from hornbook.base.settings import build, from_file, merge, nearest
from hornbook.recipes import dial, modern, published
from hornbook.recipes.miniature import miniature, what_is_small
from hornbook.shards.format import Shards, is_shards
from hornbook.shards.prepare import PrepareConfig
from hornbook.text.corpora import find_corpus, find_source, is_corpus
from hornbook.text.documents import AS_IT_COMES, TextConfig
from hornbook.text.tokenizer import KINDS
from hornbook.train.config import STOPS, RunConfig, TrainConfig, kept_from_rote, override

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "demo": modern.demo,
    "demo-classic": modern.demo_classic,
    "modern-small": modern.modern_small,
    "modern-medium": modern.modern_medium,
    "modern-large": modern.modern_large,
    "letters": modern.letters,
    "the-verdict": published.the_verdict,
    "julius-caesar": published.julius_caesar,
    "julius-caesar-small": published.julius_caesar_small,
    "wikitext-wordpiece": published.wikitext_wordpiece,
    "pile-13m": published.pile_13m,
    "pile-2b": published.pile_2b,
    "shakespeare-124m": published.shakespeare_124m,
    "gpt2": published.gpt2,
    "gpt2-medium": published.gpt2_medium,
    "gpt2-large": published.gpt2_large,
    "gpt2-xl": published.gpt2_xl,
}
DEFAULT = "demo"
SETTINGS = (".toml", ".json")
# What a run is called that was composed without one.
OF_NONE = "custom"
LEAST_MINUTES_TO_TRY_THREADS = 1.0
MOST_BYTES_TO_FIT = 100_000_000


def compose(
    named: RunConfig | str | None, knobs: Mapping[str, Any], tiny: bool = False, measured: bool = False
) -> RunConfig:
    """The run that is meant: a recipe by name, a .toml or .json file, sizes chosen for a text, or the default; with
    knobs turned. A tiny one is its miniature, to which the knobs that are given here still do what they say. Where
    sizes are chosen by minutes, it is for a plain machine, or for this one, measured."""
    named, knobs = meant(named, knobs)
    whole = _compose(named, knobs, measured and not tiny)
    if not tiny:
        return whole
    if whole.start_from is not None:
        raise UserError("--tiny: a model that a run goes on with keeps its size; leave out --tiny, or --from")
    small = override(miniature(whole), knobs)
    say(what_is_small(small, whole))
    return small


def meant(named: RunConfig | str | None, knobs: Mapping[str, Any]) -> tuple[RunConfig | str | None, Mapping[str, Any]]:
    """A recipe may stand among the knobs, as it does in a file, and a text in the recipe's place."""
    if isinstance(named, RunConfig):
        return named, knobs
    if isinstance(named, str) and named not in RECIPES and not named.endswith(SETTINGS) and _is_text(named):
        if isinstance(data := knobs.get("data"), str) and data != named:
            raise UserError(f"{named}: a text, and --data names another ({data}); name one of them")
        named, knobs = None, {**knobs, "data": named}
    recipe = knobs.get("recipe")
    if not isinstance(recipe, str) or recipe == OF_NONE:
        return named, knobs
    if named is None:
        return recipe, {name: value for name, value in knobs.items() if name != "recipe"}
    if not named.endswith(SETTINGS) and recipe != named:
        raise UserError(
            f"--recipe: {recipe}, but {named} is named as well; name one recipe: {command('train', recipe)}"
        )
    return named, knobs


def _is_text(name: str) -> bool:
    path = Path(name)
    if path.is_dir():
        from hornbook.runs.folder import RunFolder  # with it comes torch

        if RunFolder(path).has_record():
            raise UserError(f"{name}: a run, not a text; go on with it: {command('resume', name)}")
    return is_corpus(name) or path.exists() or (any(sign in name for sign in "*?[") and path.parent.is_dir())


def _compose(named: RunConfig | str | None, knobs: Mapping[str, Any], measured: bool) -> RunConfig:
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if isinstance(named, str) and named.endswith(SETTINGS):
        tree, origins = from_file(Path(named))
        origins = {knob: line for knob, line in origins.items() if not _is_given(knobs, knob)}
        tree, based_on = tree | {"recipe": Path(named).stem}, knobs.get("recipe", tree.get("recipe"))
        knobs = {name: value for name, value in knobs.items() if name != "recipe"}
    else:
        based_on = named
    start_from = merge({"start_from": getattr(named, "start_from", None)}, tree, knobs)["start_from"]
    if isinstance(start_from, str):
        return _from_weights(start_from, based_on, tree, knobs, origins)
    data, text, train = knobs.get("data", tree.get("data")), _how_to_read(tree, knobs), _how_to_train(tree, knobs)
    tokenizer = merge({"tokenizer": {}}, tree, knobs)["tokenizer"]
    kind = tokenizer.get("kind") if isinstance(tokenizer, Mapping) else None
    base = _base(based_on, data, text, kind, train.get("minutes"))
    config = _overridden(base, tree, knobs, origins)
    if measured and not isinstance(named, RunConfig) and base.recipe in dial.MADE_BY_IT and _ends_by_minutes(train):
        base = _base(based_on, data, text, kind, train.get("minutes"), _pace(train))
        config = _on_threads_that_pay(_overridden(base, tree, knobs, origins))
    return kept_from_rote(config, base)


def _overridden(
    base: RunConfig, tree: Mapping[str, Any], knobs: Mapping[str, Any], origins: dict[str, str]
) -> RunConfig:
    return override(base, dial.of_another_width(base, merge(tree, knobs)), tree, knobs, origins=origins)


def _how_to_read(*trees: Mapping[str, Any]) -> TextConfig:
    """The knobs of reading, by which it is known how much text there is. What is wrong with them is told with all the
    others."""
    with contextlib.suppress(UserError):
        return build(PrepareConfig, {"text": merge({"text": {}}, *trees)["text"]}).text
    return AS_IT_COMES


def _how_to_train(*trees: Mapping[str, Any]) -> Mapping[str, Any]:
    """The knobs of training that are given, by which it is known how long it may take, and where."""
    given = merge({"train": {}}, *trees)["train"]
    if not isinstance(given, Mapping):
        return {}
    with contextlib.suppress(UserError):
        train = build(TrainConfig, {"steps": 1, **given})
        return {knob: getattr(train, knob) for knob in given}
    return {}


def _base(
    named: Any,
    data: Any,
    text: TextConfig,
    kind: Any = None,
    minutes: float | None = None,
    pace: dial.Pace = dial.PLAIN_CPU,
) -> RunConfig:
    if isinstance(named, RunConfig):
        return named
    if named is not None and named != DEFAULT:
        return _recipe(str(named))
    if named is None and isinstance(data, str) and (text_bytes := _bytes_to_fit(data, text)) is not None:
        return dial.own_text(data, text_bytes, minutes, pace, kind if kind in KINDS else None)
    return modern.demo(modern.DEMO_MINUTES if minutes is None else minutes, pace)


def _from_weights(
    start_from: str, named: Any, tree: Mapping[str, Any], knobs: Mapping[str, Any], origins: Mapping[str, str]
) -> RunConfig:
    """A run that goes on with a model: its sizes and its tokenizer, and the rest from a recipe, or for the text."""
    from hornbook.train.origin import MAY_DIFFER, Origin  # with it comes torch

    origin, data = Origin.find(start_from), knobs.get("data", tree.get("data"))
    text = _how_to_read(tree, knobs)
    if named is not None:
        base = _base(named, data, text)
    elif isinstance(data, str):
        there = Shards.open(Path(data)).bytes_of_text("train") if is_shards(Path(data)) else _bytes_to_fit(data, text)
        base = modern.continued(data, there, origin.model.context)
    else:
        raise UserError("--from: name the text to go on with as well: --data PATH")
    learning = base.model.model_dump(include=MAY_DIFFER) if named is not None else {}
    goes_on = origin.learned_with() if named is None else {}
    config = override(base, origin.taken_over(), {"model": learning}, goes_on, tree, knobs, origins=origins)
    if (grown := origin.grown(config.grow)) is not origin:
        origin = grown
        config = override(base, origin.taken_over(), {"model": learning}, tree, knobs, origins=origins)
    origin.check(config)
    return config.with_(start_from=str(origin.folder))  # a run's best checkpoint may be another one tomorrow


def _recipe(name: str) -> RunConfig:
    if name not in RECIPES:
        near = nearest(name, list(RECIPES))
        mend = f"did you mean {near}?" if near else "see: hornbook recipes; or name a text that is there, or a corpus"
        raise UserError(f"{name}: no such recipe; {mend}")
    return RECIPES[name]()


def vocabulary_of(config: RunConfig) -> int | None:
    """How many entries a run's vocabulary will have, where that is known before its text is read."""
    return config.model.vocab_size or config.tokenizer.vocab_size or dial.KNOWN_VOCABULARIES.get(config.tokenizer.kind)


def _is_given(knobs: Mapping[str, Any], dotted: str) -> bool:
    first, _, rest = dotted.partition(".")
    return first in knobs and (not rest or (isinstance(knobs[first], Mapping) and _is_given(knobs[first], rest)))


def _bytes_to_fit(data: str, text: TextConfig) -> int | None:
    """The amount of text that sizes are chosen for. The default recipe is for its own corpus; and for those that are
    too much to read in one sitting, until somebody says how long to train."""
    if is_shards(Path(data)) or data == RECIPES[DEFAULT]().data:
        return None
    if not is_corpus(data):
        return find_source(data, text).likely_bytes_of_text()
    corpus, choice = find_corpus(data)
    likely = corpus.likely_bytes_of_text(choice)
    return likely if likely <= MOST_BYTES_TO_FIT else None


def _ends_by_minutes(train: Mapping[str, Any]) -> bool:
    """What something else than time brings to an end must not depend on how fast a machine is."""
    return train.get("minutes") is not None or all(train.get(stop) is None for stop in STOPS)


def _on_threads_that_pay(config: RunConfig) -> RunConfig:
    """Where a run is long enough to find out: a small model on a large machine is quicker on some of its cores."""
    from hornbook.base.machine import choose_machine
    from hornbook.base.world import world
    from hornbook.train import probe

    train, entries = config.train, vocabulary_of(config) or dial.CHARACTERS
    machine = choose_machine(train.device, train.dtype, train.threads)
    is_short = train.minutes is not None and train.minutes < LEAST_MINUTES_TO_TRY_THREADS
    if train.threads is not None or machine.device != "cpu" or machine.threads <= 2 or is_short or world().size > 1:
        return config
    sized = config.with_(model=config.model.with_(vocab_size=entries).model_dump())
    best = probe.threads_that_pay(sized, machine)
    return config if best == machine.threads else override(config, {"train": {"threads": best}})


def _pace(train: Mapping[str, Any]) -> dial.Pace:
    """Of this machine. Of a CPU its products tell; on an accelerator small steps take ten times as long as theirs, so
    each size for which there could be time is tried."""
    from hornbook.base.machine import choose_machine
    from hornbook.train import probe

    machine = choose_machine(*(train.get(knob) for knob in ("device", "dtype", "threads")))
    flops, seconds = probe.flops(machine), 60 * (train.get("minutes") or dial.MINUTES)
    if machine.device == "cpu":
        return dial.as_fast_as_products(flops)

    def tried(size: dial.Size, vocabulary: int) -> float:
        at_best = dial.flops_of_step(size, vocabulary) / flops
        hopeless = dial.LEAST_STEPS * at_best > seconds
        return at_best if hopeless else probe.seconds_a_step(dial.a_step_of(size, vocabulary), machine).seconds

    return tried
