"""A run that starts from what another has learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from trial import all_of, losses, metrics, tiniest

from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.base.settings import merge
from hornbook.infer.evaluate import evaluate
from hornbook.model.folder import load_model
from hornbook.recipes import compose
from hornbook.runs.folder import RunFolder, resolve
from hornbook.shards.format import Shards
from hornbook.shards.prepare import default_folder, open_or_prepare
from hornbook.text.corpora import find_source
from hornbook.text.encoder import has_gigatoken
from hornbook.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from hornbook.train.config import RunConfig
from hornbook.train.start import fit, resume

pytestmark = pytest.mark.xdist_group("origin")  # one training
TEN_STEPS = {"train": {"steps": 10, "batch_tokens": 64, "device": "cpu", "threads": 1, "dtype": "float32"}}
OFTEN = {"train": {"save_every_steps": 1, "eval_every_steps": 2, "keep_checkpoints": 20}, "sample": {"tokens": 2}}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """A run whose tokenizer was learned, so that no other text would give the same."""
    folder = tmp_path_factory.mktemp("taught") / "run"
    fit(tiniest(text_file, tokenizer={"kind": "bpe", "vocab_size": 300}, train={"steps": 20}), folder)
    return folder


@pytest.fixture(scope="module")
def other_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "other.txt"
    path.write_text("two dogs ran to an old red hut and slept. " * 80)
    return path


def on_with(origin: Path, text: Path, **knobs: Any) -> RunConfig:
    return compose(None, merge({"start_from": str(origin), "data": str(text)}, TEN_STEPS, OFTEN, knobs))


def test_it_starts_at_the_loss_of_the_model_that_was_named(taught: Path, other_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(on_with(taught, other_text), run)
    first = metrics(run)[0]
    shards = Shards.open(Path(files.read_json(run / "run.json")["data"]["folder"]))
    assert first["step"] == 0
    assert first["val_loss"] == pytest.approx(evaluate(taught, str(shards.folder), device="cpu")["loss"], rel=1e-6)
    assert metrics(run)[-1]["val_loss"] < first["val_loss"]
    from_nothing = tmp_path / "nothing"
    fit(on_with(taught, other_text).model_copy(update={"start_from": None}), from_nothing)
    assert losses(run)[0] != pytest.approx(losses(from_nothing)[0], abs=1e-4)


def test_it_grows_and_starts_at_the_loss_of_the_small_model(taught: Path, other_text: Path, tmp_path: Path) -> None:
    config = on_with(taught, other_text, grow={"n_layer": 3, "n_embd": 16})
    assert (config.model.n_layer, config.model.n_embd, config.model.n_head, config.model.mlp_width) == (3, 16, 2, 16)
    fit(config, tmp_path / "whole")
    first = metrics(tmp_path / "whole")[0]
    shards = Shards.open(Path(files.read_json(tmp_path / "whole" / "run.json")["data"]["folder"]))
    small = evaluate(taught, str(shards.folder), device="cpu")
    assert first["step"] == 0
    assert first["val_loss"] == pytest.approx(small["loss"], abs=1e-4)
    assert metrics(tmp_path / "whole")[-1]["val_loss"] < first["val_loss"]
    fit(config, tmp_path / "cut")
    for folder in RunFolder(tmp_path / "cut").checkpoints()[:6]:
        shutil.rmtree(folder)
    resume(tmp_path / "cut")
    assert all_of(tmp_path / "cut") == all_of(tmp_path / "whole")


def test_nothing_grows_from_nothing() -> None:
    with pytest.raises(UserError, match=r"--grow.n-layer: .* name it: --from MODEL; else --model.n-layer"):
        compose("demo", {"grow": {"n_layer": 8}})


def test_what_it_came_from_is_written_down(taught: Path, other_text: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(on_with(taught, other_text), run)
    record = files.read_json(run / "run.json")
    folder = resolve(taught)
    assert record["from"] == {
        "folder": str(folder.resolve()),
        "weights": {"model.safetensors": files.sha256(folder / "model.safetensors")},
        "tokenizer_fingerprint": Tokenizer.load(folder).fingerprint,
    }
    assert record["config"]["start_from"] == str(folder)


def test_resumed_it_is_the_uninterrupted_run_bit_for_bit(taught: Path, other_text: Path, tmp_path: Path) -> None:
    config = on_with(taught, other_text, model={"dropout": 0.2})
    fit(config, tmp_path / "whole")
    fit(config, tmp_path / "cut")
    for folder in RunFolder(tmp_path / "cut").checkpoints()[:6]:
        shutil.rmtree(folder)
    resume(tmp_path / "cut")
    assert all_of(tmp_path / "cut") == all_of(tmp_path / "whole")


def test_it_is_resumed_though_its_origin_and_its_shards_are_gone(
    taught: Path, other_text: Path, tmp_path: Path
) -> None:
    origin, run = tmp_path / "origin", tmp_path / "run"
    shutil.copytree(resolve(taught), origin)
    fit(on_with(origin, other_text), run)
    shutil.rmtree(origin)
    shutil.rmtree(files.read_json(run / "run.json")["data"]["folder"])
    assert resume(run, {"train": {"steps": 12}}).step == 12


@pytest.mark.parametrize(
    ("knobs", "mistake"),
    [
        ({"model": {"n_layer": 2}}, "--model.n-layer: 2, but .* has 1; leave it out, .* grow: --grow.n-layer"),
        ({"grow": {"n_embd": 12}}, "--grow.n-embd: a norm needs every feature equally often"),
        ({"model": {"vocab_size": 999}}, "--model.vocab-size: 999, but .* has 300"),
        ({"model": {"positions": "none"}}, "--model.positions: none, but .* has rotary"),
        ({"tokenizer": {"kind": "byte"}}, "--tokenizer.kind: byte, but .* keeps its own; leave it out"),
        ({"tokenizer": {"vocab_size": 400}}, "--tokenizer.vocab-size: "),
        ({"start_from": "nowhere"}, "nowhere: no such model or run"),
    ],
)
def test_knobs_that_contradict_it_are_refused_in_one_line(
    taught: Path, other_text: Path, knobs: dict[str, Any], mistake: str
) -> None:
    with pytest.raises(UserError, match=mistake) as caught:
        on_with(taught, other_text, **knobs)
    assert len(caught.value.mistakes) == 1


def test_ids_of_another_tokenizer_are_refused(taught: Path, other_text: Path, tmp_path: Path) -> None:
    others = open_or_prepare(str(other_text), TokenizerConfig(vocab_size=300), on_with(taught, other_text).shards)
    with pytest.raises(UserError, match="encoded by another tokenizer than the model"):
        fit(on_with(taught, others.folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_text_and_a_size_must_be_said(taught: Path) -> None:
    with pytest.raises(UserError, match="--from: name the text to go on with as well: --data PATH"):
        compose(None, {"start_from": str(taught)})
    with pytest.raises(UserError, match="keeps its size; leave out --tiny"):
        compose("demo", {"start_from": str(taught)}, tiny=True)


def test_a_recipe_tells_how_to_learn_and_the_model_what_it_is(taught: Path) -> None:
    config, recipe = compose("the-verdict", {"start_from": str(taught)}), compose("the-verdict", {})
    model = load_model(resolve(taught)).config
    assert config.model == model.with_(dropout=recipe.model.dropout, dropout_at=recipe.model.dropout_at)
    assert (config.optim, config.schedule, config.data) == (recipe.optim, recipe.schedule, recipe.data)
    assert config.tokenizer.kind == "file"


def test_a_short_text_is_read_in_shorter_windows(taught: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("two dogs ran to an old red hut. " * 8)
    config = compose(None, {"start_from": str(taught), "data": str(short)})
    assert config.window < config.model.context
    fit(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"or --train\.context "):
        fit(config.with_(train={"context": 16}, shards={"val_fraction": 0.95}), tmp_path / "other")


def test_a_model_of_transformers_is_gone_on_with(other_text: Path, tmp_path: Path) -> None:
    """Its loss there is the loss that the run starts at."""
    tokenizer = train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=320), [other_text.read_text()], 1000)
    with files.staged_folder(tmp_path / "theirs", {}) as staging:
        tokenizer.save(staging)
        torch.manual_seed(1)
        shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": tokenizer.vocab_size}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
        model.save_pretrained(staging)
    run = tmp_path / "run"
    fit(on_with(tmp_path / "theirs", other_text, train={"eval_batches": 1000}), run)
    shards = Shards.open(Path(files.read_json(run / "run.json")["data"]["folder"]))
    tokens = shards.split("val")
    windows = torch.from_numpy(tokens.windows(range(0, (len(tokens) - 1) // 32 * 32, 32), 33))  # type: ignore[arg-type]
    logits = model(windows[:, :-1]).logits.flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten()).item()
    assert metrics(run)[0]["val_loss"] == pytest.approx(expected, abs=1e-5)


def test_a_given_tokenizer_is_as_fast_as_its_kind_and_known_by_what_is_in_it(
    taught: Path, other_text: Path, tmp_path: Path
) -> None:
    shutil.copytree(resolve(taught), tmp_path / "copy")
    source, knobs = find_source(str(other_text)), on_with(taught, other_text).shards
    one, same = (TokenizerConfig(kind="file", file=str(folder)) for folder in (resolve(taught), tmp_path / "copy"))
    shards = open_or_prepare(str(other_text), one, knobs)
    assert shards.manifest["report"]["encoder"] == ("gigatoken" if has_gigatoken() else "tokenizers")
    assert shards.folder == default_folder(source, same, knobs)
    pairs = train_tokenizer(TokenizerConfig(vocab_size=280), [other_text.read_text()], 1000)
    with files.staged_folder(tmp_path / "pairs", {}) as staging:
        pairs.save(staging)
    assert shards.folder != default_folder(source, one.with_(file=str(tmp_path / "pairs" / "tokenizer.json")), knobs)


def test_tokenizers_are_alike_that_make_the_same_ids(taught: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(resolve(taught))
    whole = json.loads(tokenizer.to_json())
    for name, changes, alike in [
        ("other-decoder", {"post_processor": whole["decoder"]}, True),
        ("other-cuts", {"pre_tokenizer": {"type": "Whitespace"}}, False),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(whole | changes))
        changed = Tokenizer.load(tmp_path / name)
        assert changed.fingerprint != tokenizer.fingerprint
        assert tokenizer.encodes_like(changed) is alike


@pytest.mark.parametrize("content", [None, "{", "[]", '{"version": "1.0"}'])
def test_what_is_no_tokenizer_is_refused_in_one_line(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"has no tokenizer\.json" if content is None else "not a tokenizer") as caught:
        train_tokenizer(TokenizerConfig(kind="file", file=str(path)), [], 0)
    assert len(caught.value.mistakes) == 1


def test_letters_are_taught_to_a_model_and_held_out_mail_is_scored_before_and_after(
    taught: Path, tmp_path: Path
) -> None:
    letters = "".join(
        f"From anna\nSubject: Plan {number}\n\nDear Ben,\n\nplan {number} is good.\n\n> is it?\n-- \nAnna\n\n"
        for number in range(400)
    )
    (tmp_path / "mail.mbox").write_text(letters)
    knobs = {"start_from": str(taught), "data": str(tmp_path / "mail.mbox"), **TEN_STEPS}
    config = compose("letters", merge(knobs, {"train": {"steps": 60}, "sample": {"tokens": 8}}))
    assert (config.optim.kind, config.optim.lr, config.sample.prompts) == ("adamw", 1e-4, ("Subject: ",))
    fit(config, tmp_path / "run")
    shards = Shards.open(RunFolder(tmp_path / "run").record().shards)
    assert shards.tokenizer.decode(shards.split("train").read(0, 60).tolist()).startswith("Subject: Plan ")
    assert shards.split_facts("val")["documents"] > 0
    scored = [each["val_loss"] for each in metrics(tmp_path / "run") if "val_loss" in each]
    assert scored[-1] < scored[0]
    said = (tmp_path / "run" / "samples.jsonl").read_text()
    assert '"prompt": "Subject: "' in said
