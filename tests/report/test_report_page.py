"""report.html in a real Chromium, as a file, without a network."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from browsing import SIZES, chromium
from hornbook.infer.looking_back import look_back
from hornbook.report.run_page import write_report
from hornbook.train.config import RunConfig
from hornbook.train.start import fit, resume

pytestmark = pytest.mark.xdist_group("report-page")
Open = Callable[..., Page]
PROMPTS = ["def ", "<script>alert(1)</script>"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a page; at the end nothing may have been wrong in its console, and nothing but itself was asked for."""
    wrong: list[str] = []
    contexts = []

    def open_page(path: Path, size: str = "desktop", scheme: Any = "light") -> Page:
        phone = size == "phone"
        context = browser.new_context(viewport=SIZES[size], color_scheme=scheme, has_touch=phone, is_mobile=phone)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda each: wrong.append(each.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url == path.as_uri() or wrong.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def report(browser: Browser, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that was trained here. Asks for the browser first: without one, nothing need be trained."""
    run = tmp_path_factory.mktemp("reported") / "small & <b>bold"
    knobs: dict[str, Any] = {
        "data": str(text_file),
        "tokenizer": {"kind": "byte"},
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "context": 32},
        "sample": {"prompts": PROMPTS, "tokens": 12},
        "train": {"steps": 60, "batch_tokens": 256, "eval_every_steps": 20, "device": "cpu", "compile": False},
    }
    fit(RunConfig.model_validate(knobs), run, turned={"train": {"steps": 60}, "tokenizer": {"kind": "byte"}})
    resume(run, {"train": {"threads": 1}})
    look_back(run)
    written, _ = write_report(run)
    return written


@pytest.mark.parametrize(("size", "scheme"), [("phone", "dark"), ("desktop", "light")])
def test_it_reads_well_on_a_phone_and_a_desk_by_day_and_by_night(
    open_page: Open, report: Path, size: str, scheme: str
) -> None:
    page = open_page(report, size, scheme)
    expect(page.get_by_role("heading", level=1)).to_have_text("small & <b>bold")
    expect(page.locator(".chart svg path.line")).not_to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size]["width"]
    assert page.locator(".settings tr.turned th").all_text_contents() == ["kind", "steps", "threads"]
    assert (
        page.locator(".settings tr.turned").first.evaluate("row => getComputedStyle(row.cells[1]).fontWeight") == "700"
    )
    found = Axe().run(page).response["violations"]
    assert [f"{each['id']}: {node['target']}" for each in found for node in each["nodes"]] == []


def test_on_the_slider_each_snapshot_answers_the_same_prompts(open_page: Open, report: Path) -> None:
    page = open_page(report)
    answers = json.loads((report.parent / "answers.json").read_text())["answers"]
    assert [each["step"] for each in answers] == [1, 2, 4, 8, 16, 32, 60]
    moved_along(page, {each["step"]: list(zip(PROMPTS, each["texts"], strict=True)) for each in answers})
    expect(page.get_by_text("seed 1, at most 12 tokens, temperature 0.8")).to_be_visible()


def test_where_no_snapshot_was_asked_it_shows_what_was_said_on_the_way(
    open_page: Open, report: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(report.parent, run, ignore=shutil.ignore_patterns("answers.json", "report.html"))
    said: dict[int, list[tuple[str, str]]] = {}
    for each in map(json.loads, (run / "samples.jsonl").read_text().splitlines()):
        said.setdefault(each["step"], []).append((each["prompt"], each["text"]))
    assert len(said) >= 3
    moved_along(open_page(write_report(run)[0]), said)


def moved_along(page: Page, said: dict[int, list[tuple[str, str]]]) -> None:
    slider, steps = page.get_by_label("Step at which it was asked"), sorted(said)
    for step in (steps[-1], steps[0], steps[1]):
        slider.fill(str(steps.index(step)))
        expect(page.locator("#sampled-at")).to_have_text(f"Step {step}")
        told = page.locator("#samples-said blockquote").evaluate_all("all => all.map(each => each.textContent)")
        assert told == [prompt + text for prompt, text in said[step]]


def test_curves_are_walked_zoomed_and_measured_otherwise(open_page: Open, report: Path) -> None:
    page = open_page(report)
    entries = [json.loads(line) for line in (report.parent / "metrics.jsonl").read_text().splitlines()]
    [best] = [each for each in entries if each["step"] == 60 and "val_loss" in each]
    chart, told = page.locator(".chart").first, page.locator(".told-values").first
    expect(told).to_contain_text(f"validation {best['val_loss']:.4g}")
    page.get_by_label("bits per byte").check()
    expect(told).to_contain_text(f"validation {best['val_bits_per_byte']:.4g}")
    page.get_by_label("perplexity").check()
    expect(told).to_contain_text("validation " + f"{math.exp(best['val_loss']):.4g}")
    chart.focus()
    page.keyboard.press("End")
    expect(told).to_contain_text("step 60:")
    page.keyboard.press("+")
    expect(page.get_by_role("button", name="Show all of it")).to_be_visible()
    page.keyboard.press("Home")
    expect(told).to_contain_text("step 1:")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Show all of it")).to_be_hidden()
    box = chart.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 50)
    page.mouse.up()
    page.get_by_role("button", name="Show all of it").click()
    expect(page.get_by_role("button", name="Show all of it")).to_be_hidden()


def test_a_run_of_100_000_steps_is_small_and_opens_at_once(open_page: Open, tmp_path: Path) -> None:
    """And the one wild step in it is still to be seen."""
    run = tmp_path / "long"
    run.mkdir()
    with open(run / "metrics.jsonl", "w") as file:
        for step in range(1, 100_001):
            loss = 99.0 if step == 54_321 else 3 + 2 * math.exp(-step / 9000) + 0.1 * math.sin(step * 1.7)
            entry = {"step": step, "tokens": step * 4096, "epochs": step / 1e5, "loss": loss, "grad_norm": 1 / loss}
            entry |= {"lr": 1e-3, "matrix_lr": 0.02, "lr_factor": 1.0, "seconds": step * 0.1}
            file.write(json.dumps(entry) + "\n")
            if step % 100 == 0:
                evaluated = {"step": step, "tokens": step * 4096, "seconds": step * 0.1, "val_loss": loss}
                evaluated |= {"val_perplexity": 20.0, "val_bits_per_byte": 1.2}
                file.write(json.dumps(evaluated) + "\n")
    written, _ = write_report(run)
    assert written.stat().st_size < 5_000_000
    assert b"[54321,99.0]" in written.read_bytes()
    page = open_page(written)
    expect(page.locator(".chart svg path.line")).not_to_have_count(0)
    shown = page.evaluate("performance.getEntriesByType('navigation')[0].domComplete")
    assert shown < 2000


def test_what_somebody_else_put_there_stays(report: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(report.parent, run)
    (run / "report.html").write_text("mine")
    written, _ = write_report(run)
    again, _ = write_report(run)
    assert written == again == run / "report-2.html"
    assert (run / "report.html").read_text() == "mine"
