"""The model card, read by the hub's own reader, and held against what the run's files say."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM, AutoTokenizer

from hornbook.cli import main
from hornbook.exchange.card import letters
from hornbook.exchange.export import export_model
from hornbook.model.folder import load_model
from hornbook.report.curves import draw
from hornbook.runs.folder import resolve
from hornbook.runs.logs import read_log
from hornbook.shards.format import Shards
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

pytestmark = pytest.mark.xdist_group("card")  # one training


@pytest.fixture(scope="module")
def run(tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("carded") / "small"
    how = {"steps": 30, "batch_tokens": 512, "eval_every_steps": 10}
    fit(tiny(model={"n_embd": 16}, sample={"prompts": ["import"], "tokens": 8}, train=how), run)
    draw(run)
    return run


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(run, "hf", tmp_path_factory.mktemp("out") / "small-hf")


def rows(card: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (\w.*?) \| (.+) \|$", card, flags=re.MULTILINE))


def test_the_hub_reads_what_kind_of_model_it_is_and_how_good(exported: Path, run: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["hornbook", "trained-from-scratch"]
    assert card.data.license is None
    assert card.data.model_name == "small"
    best = min(
        (each for each in read_log(run / "metrics.jsonl") if "val_loss" in each), key=lambda each: each["val_loss"]
    )
    told = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert told == pytest.approx(
        {"loss": best["val_loss"], "perplexity": best["val_perplexity"], "bits_per_byte": best["val_bits_per_byte"]},
        abs=1e-3,
    )
    assert {each.dataset_name for each in card.data.eval_results} == {"some"}


def test_every_figure_is_the_runs_own(exported: Path, run: Path) -> None:
    card = (exported / "README.md").read_text()
    told = rows(card)
    model, record = load_model(resolve(run)), json.loads((run / "run.json").read_text())
    splits = Shards.open(Path(record["data"]["folder"])).manifest["splits"]
    assert told["parameters"].startswith(f"{sum(each.numel() for each in model.parameters()):,}, ")
    assert told["context"] == "32 tokens"
    assert told["shape"] == "`qwen3` of transformers"
    assert f"{splits['train']['tokens']:,} tokens" in told["to train on"]
    read = 512 * int(resolve(run).name[5:])
    assert told["tokens read"] == f"{read:,}, {read / splits['train']['tokens']:.1f} times its text"
    assert letters(record["machine"]["name"]) in told["time"]
    assert told["optimizer"].startswith("muon, learning rate 0.003")
    said = [each for each in read_log(run / "samples.jsonl") if each["step"] == int(resolve(run).name[5:])]
    assert all(line in card for each in said for line in f"{each['prompt']}{each['text']}".splitlines())
    assert str(run) not in card
    assert str(Path.home()) not in card


def test_the_picture_is_the_runs(exported: Path, run: Path) -> None:
    assert "](loss.png)" in (exported / "README.md").read_text()
    assert (exported / "loss.png").read_bytes() == (run / "loss.png").read_bytes()


def test_a_text_that_was_read_many_times_is_told_to_be_recited(run: Path, tmp_path: Path) -> None:
    words = "may recite from it word for word"
    out = export_model(run, "hf", tmp_path / "little")
    assert words not in (out / "README.md").read_text()
    copy = shutil.copytree(run, tmp_path / "copy")
    log = (copy / "metrics.jsonl").read_text()
    (copy / "metrics.jsonl").write_text(re.sub(r'"tokens": (\d+)', r'"tokens": \g<1>00', log))
    assert words in (export_model(copy, "hf", tmp_path / "much") / "README.md").read_text()


def test_the_folder_still_opens_in_transformers(exported: Path, run: Path) -> None:
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    ids = torch.tensor([tokenizer.encode("import os")])
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, load_model(resolve(run)).logits(ids), atol=1e-4)
    assert main(["verify", str(exported)]) == 0


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "![x](http:evil) [y]", "a|b*c*_d_`e`", "www.evil.com a@b.org", "C# &amp; $x$"]
)
def test_a_name_in_the_card_is_its_letters_and_nothing_else(name: str, run: Path, tmp_path: Path) -> None:
    """By a reader of Markdown, with tables and links as the hub has them."""
    copy = shutil.copytree(run, tmp_path / name.replace("/", "_"))
    name = copy.name
    record = json.loads((copy / "run.json").read_text())
    record["config"] |= {"recipe": name, "start_from": name}
    record["machine"]["name"] = name
    record["data"]["folder"] = "nowhere"
    record["config"]["data"] = str(tmp_path / "texts" / f"{name}.txt")
    (copy / "run.json").write_text(json.dumps(record))
    card = (export_model(copy, "hf", tmp_path / "out") / "README.md").read_text()
    assert ModelCard(card).data.model_name == name
    page = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(card.split("---\n", 2)[2])
    shown = html.unescape(re.sub(r"<[^>]*>", "", page))
    assert f"\n{name}\n" in f"\n{shown}"  # the heading
    assert shown.count(name) >= 4  # with the model it began with, the recipe and the machine; its text is called less
    assert not set(re.findall(r"<(\w+)", page)) & {"script", "a", "em", "strong", "s"}
    assert page.count("<img") == 1
    assert "://" not in shown.replace("https://", "")


@pytest.mark.parametrize("at", ["newest", "4"])
def test_of_another_checkpoint_its_own_figures_are_told(at: str, run: Path, tmp_path: Path) -> None:
    card = (export_model(run, "hf", tmp_path / "out", at) / "README.md").read_text()
    step = 30 if at == "newest" else 4
    assert rows(card)["steps"] == str(step)
    assert ("bits per byte" in rows(card)) == (at == "newest")  # step 4 was never evaluated


def test_a_folder_without_a_run_is_told_by_what_it_holds(run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(resolve(run), tmp_path / "alone")
    out = export_model(alone, "hf", tmp_path / "out", dtype="bf16")
    text, card = (out / "README.md").read_text(), ModelCard.load(out / "README.md")
    assert "How it was trained is not known here." in text
    assert rows(text).keys() == {
        "parameters", "layers", "heads", "width", "context", "vocabulary", "shape", "weights stored as"
    }  # fmt: skip
    assert rows(text)["weights stored as"] == "bf16"
    assert card.data.eval_results is None
    assert "All that it knows" not in text
    assert not (out / "loss.png").exists()


@pytest.mark.parametrize("lost", ["the data", "the logs", "the config"])
def test_what_is_lost_of_a_run_is_left_out(
    lost: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    record = json.loads((copy / "run.json").read_text())
    if lost == "the data":
        record["data"] |= {"folder": str(tmp_path / "gone"), "from_run": "gone"}
    elif lost == "the logs":
        (copy / "metrics.jsonl").unlink()
        (copy / "samples.jsonl").write_text('{"step": 30}\n[]\n')
    else:
        record["config"]["optim"] = 7
    (copy / "run.json").write_text(json.dumps(record))
    text = (export_model(copy, "hf", tmp_path / "out", "newest") / "README.md").read_text()
    if lost == "the data":
        assert "to train on" not in rows(text)
        assert rows(text)["tokens read"] == f"{512 * 30:,}"
    elif lost == "the logs":
        assert "tokens read" not in rows(text)
    else:
        assert "says nothing of it" in capsys.readouterr().err
        assert "optimizer" not in rows(text)
    assert "## What it cannot do" in text


def test_a_page_says_nothing_of_a_run_whose_log_is_damaged(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "metrics.jsonl").write_text('{"loss": 3.5}\n')
    page = export_model(copy, "html", tmp_path / "page.html", "newest").read_text()
    assert "says nothing of it" in capsys.readouterr().err
    assert '"points":[]' in page
