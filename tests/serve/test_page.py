"""The page in a real Chromium, against the real server of a run that was trained here in a second."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from page_at_hand import (
    Open,
    answer,
    complete,
    event,
    refused,
    requests_of,
    rows_in_use,
    until,
    violations,
    wait,
    write,
)
from playwright.sync_api import Browser, Page, Route, expect

from browsing import SIZES, chromium
from effort import long
from hornbook.base import files
from hornbook.runs.logs import Log
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

pytestmark = pytest.mark.xdist_group("page")  # one browser, one server, one training
SERVED = ["grown", "young", "plain"]
PROMPT = "def f(x):\n"
LOOKS_AGAIN_MS = 3000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def runs(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """grown, a run; young, the same, for what changes it; plain, its model alone."""
    runs = tmp_path_factory.mktemp("runs")
    knobs: dict[str, Any] = {
        "data": str(text_file),
        "tokenizer": {"kind": "byte"},
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 64, "context": 64},
        "sample": {"prompts": ["def "], "tokens": 24},
        "train": {"steps": 48, "batch_tokens": 1024, "eval_every_steps": 8, "save_every_steps": 16, "device": "cpu"},
    }
    knobs["train"]["head_start"] = False  # a model that is often wrong has more to show
    fit(RunConfig.model_validate(knobs), runs / "grown")
    shutil.copytree(runs / "grown", runs / "young")
    shutil.copytree(runs / "grown" / "checkpoints" / "step-00000048", runs / "plain")
    return runs


@pytest.fixture(scope="module")
def site(browser: Browser, runs: Path) -> Iterator[str]:
    """The address of a server of all three. Asks for the browser first: without one, nothing need be trained."""
    command = [sys.executable, "-m", "hornbook", "serve", "--port", "0", *(str(runs / name) for name in SERVED)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if address := re.match(r"page +(http://\S+)/", line):
                yield address[1]
                break
        else:
            pytest.fail("".join(said))
        server.terminate()
        assert server.wait(timeout=30) == 0


@pytest.fixture
def open_page(browser: Browser, site: str) -> Iterator[Open]:
    """Opens the page; at the end nothing may have been wrong in its console, and nobody else asked for anything."""
    wrong: list[str] = []
    contexts = []

    def open_page(size: str = "desktop", scheme: Any = "light", address: str = "/", clock: bool = False) -> Page:
        phone = size == "phone"
        context = browser.new_context(
            base_url=site, viewport=SIZES[size], color_scheme=scheme, has_touch=phone, is_mobile=phone,
            permissions=["clipboard-read", "clipboard-write"],
        )  # fmt: skip
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        if clock:
            page.clock.install()
        page.on("console", lambda each: each.type == "log" or refused(each) or wrong.append(each.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith(site + "/") or wrong.append(request.url))
        page.goto(address)
        expect(page.locator("#write")).to_be_enabled()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        ("phone", "dark"),
        *(
            pytest.param(size, scheme, marks=long)
            for size, scheme in [("desktop", "light"), ("desktop", "dark"), ("phone", "light")]
        ),
    ],
)
def test_a_prompt_is_answered_token_by_token(size: str, scheme: str, site: str, open_page: Open) -> None:
    page = open_page(size, scheme, "/#max_tokens=150")
    slowly = {"offline": False, "latency": 0, "downloadThroughput": 150_000, "uploadThroughput": -1}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slowly)
    assert violations(page) == []
    asked = requests_of(page)
    page.evaluate(
        """() => {
            window.counts = [], window.shifts = 0, window.said = [];
            const status = document.querySelector("#said");
            new MutationObserver(() => said.push(status.textContent)).observe(status, { childList: true });
            const answer = document.querySelector("#answer");
            const look = () => counts.push(answer.childElementCount) && requestAnimationFrame(look);
            look();
            new PerformanceObserver((list) => list.getEntries().forEach((each) => (shifts += each.value)))
                .observe({ type: "layout-shift" });
        }"""
    )
    text = write(page, PROMPT)
    counts = page.evaluate("counts")
    assert len(set(counts)) > 10, "the tokens came in a few lumps"
    assert page.evaluate("shifts") < 0.05
    told = page.evaluate("said")  # by a screen reader: that it began, and the whole, not every token
    assert len(told) == 2
    assert told[1].endswith(text)
    assert text == complete(site, **asked[0])["text"]
    assert violations(page) == []

    token = page.locator("#answer > span").nth(5)
    token.tap() if size == "phone" else token.hover()
    expect(page.get_by_role("tooltip")).to_contain_text("likely")
    assert violations(page) == []
    box, room = page.get_by_role("tooltip").bounding_box(), SIZES[size]
    assert box is not None
    assert box["x"] >= 0
    assert box["y"] >= 0
    assert box["x"] + box["width"] <= room["width"]
    assert box["y"] + box["height"] <= room["height"]
    page.keyboard.press("Escape")
    expect(page.get_by_role("tooltip")).to_be_hidden()

    if size == "phone":
        expect(page.get_by_label("Temperature", exact=False).first).to_be_hidden()
        page.get_by_role("button", name="Settings").click()
        expect(page.locator("#temperature")).to_be_visible()
        assert violations(page) == []
        page.keyboard.press("Escape")
        expect(page.locator("#temperature")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_request_carries_what_the_sliders_say(open_page: Open) -> None:
    page = open_page()
    asked = requests_of(page)
    for name, keys in {
        "temperature": ["Home", "ArrowRight"],
        "top_k": ["Home", "ArrowRight", "ArrowRight"],
        "top_p": ["End", "ArrowLeft"],
        "max_tokens": ["Home", "ArrowRight"],
        "seed": ["End"],
    }.items():
        slider = page.locator(f"#{name}")
        slider.focus()
        for key in keys:
            page.keyboard.press(key)
        expect(page.locator(f"#{name}-number")).to_have_value(slider.input_value())
    page.keyboard.press("Control+Enter")
    wait(page)
    wanted = {"temperature": 0.05, "top_k": 2, "top_p": 0.99, "max_tokens": 10, "seed": 999, "prompt": ""}
    assert asked[0] | wanted == asked[0]

    page.locator("#max_tokens-number").fill("7")
    page.locator("#top_k-number").fill("0")
    page.get_by_role("button", name="New seed").click()  # writes again
    wait(page)
    assert asked[1]["max_tokens"] == 7
    assert asked[1]["seed"] != 999
    assert "top_k" not in asked[1]


def test_each_press_of_write_draws_a_new_seed_and_shows_it_unless_it_is_pinned(site: str, open_page: Open) -> None:
    page = open_page(address="/#model=grown&max_tokens=30&seed=5&temperature=1")
    asked = requests_of(page)
    texts = [write(page, PROMPT), write(page)]
    expect(page.locator("#state")).to_contain_text(f"seed {asked[1]['seed']}")
    assert asked[0]["seed"] == 5 != asked[1]["seed"]  # that of the address is for its first text
    page.get_by_role("button", name="Pin").click()
    texts += [write(page), write(page)]
    assert texts[1] == texts[2] == texts[3]
    page.wait_for_url(f"**seed={asked[1]['seed']}&pinned=true")
    expect(open_page(address=page.url).get_by_role("button", name="Pin")).to_have_attribute("aria-pressed", "true")

    # Another model is asked for the same seed; the text stays in sight meanwhile.
    page.get_by_role("button", name="Pin").click()
    page.get_by_label("Model", exact=True).select_option("plain")
    assert answer(page) == texts[3]
    expect(page.locator("#answer")).to_have_class(re.compile("stale"))
    write(page)
    assert asked[-1]["seed"] == asked[-2]["seed"]
    assert asked[-1]["model"] == "plain"


@pytest.mark.parametrize("size", SIZES)
def test_what_a_thing_is_can_be_asked(size: str, open_page: Open) -> None:
    page = open_page(size)
    if size == "phone":
        page.get_by_role("button", name="Settings").click()
    page.get_by_label("Show what a token looked at").check()
    for name, words in {
        "Temperature": "How bold",
        "Top-k": "k likeliest",
        "Top-p": "together have this probability",
        "Seed": "draws a new one",
        "Length": "How many tokens",
        "attention": "1 in sum",
        "loss": "natural logarithm",
        "a snapshot": "as they were",
    }.items():
        button, told = page.get_by_role("button", name=f"What is {name}?"), page.get_by_text(words)
        expect(told).to_be_hidden()
        button.click()
        expect(told).to_be_visible()
        expect(button).to_have_attribute("aria-expanded", "true")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    links = page.locator("a[href^='/glossary#']").evaluate_all("all => all.map((each) => each.hash.slice(1))")
    assert len(links) == 8 + 2 + 3  # a "?" each, the curve's lines, and the facts
    page.goto("/glossary#word-prompt")
    expect(page.locator("dt:target")).to_be_in_viewport()
    assert set(links) <= set(page.locator("dt").evaluate_all("all => all.map((each) => each.id)"))
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_point_lies_where_it_was_measured_or_on_the_training_curve(site: str, open_page: Open) -> None:
    run = httpx2.get(f"{site}/api/models").json()[0]
    page = open_page()
    page.locator("#curve .point").first.wait_for()
    drawn = dict(httpx2.get(f"{site}/api/runs/{run['name']}/curve").json()["train"])
    measured = [(each["val_loss"] or drawn[each["step"]]) for each in run["points"]]
    assert None in [each["val_loss"] for each in run["points"]]
    heights = page.locator("#curve .point").evaluate_all("all => all.map((each) => Number(each.getAttribute('cy')))")
    by_loss = [height for _, height in sorted(zip(measured, heights, strict=True), reverse=True)]
    assert by_loss == sorted(heights)
    ends = sorted(zip(measured, heights, strict=True))
    (least, low), (most, high) = ends[0], ends[-1]
    for loss, height in ends:
        assert height == pytest.approx(low + (high - low) * (loss - least) / (most - least), abs=0.5)


def test_a_token_tells_what_else_the_model_considered(site: str, open_page: Open) -> None:
    page = open_page()
    asked = requests_of(page)
    write(page, PROMPT)
    logprobs = complete(site, **asked[0])["logprobs"]
    place = 3
    page.locator("#answer > span").nth(place).hover()
    rows = page.get_by_role("tooltip").locator("li")
    considered = logprobs["top_logprobs"][place]
    expect(rows).to_have_count(len(considered))
    shown = [float(each.rstrip("%").replace("<0.1", "0")) for each in rows.locator("em").all_inner_texts()]
    wanted = sorted((100 * math.exp(each) for each in considered.values()), reverse=True)
    assert shown == pytest.approx(wanted, abs=0.51)
    expect(rows.locator("xpath=self::*[contains(@class, 'taken')]")).to_have_count(1)

    unlikely = page.locator("#answer .t3, #answer .t4").first
    expect(unlikely).to_have_css("text-decoration-line", "underline")
    page.get_by_label("Mark surprising tokens").uncheck()
    expect(unlikely).to_have_css("text-decoration-line", "none")
    expect(unlikely).to_have_css("background-color", "rgba(0, 0, 0, 0)")


@pytest.mark.parametrize("size", SIZES)
def test_a_token_tells_what_it_looked_at_where_that_is_asked_for(size: str, site: str, open_page: Open) -> None:
    page = open_page(size)
    looked = requests_of(page, "/api/attention")
    write(page, PROMPT)
    spans = page.locator("#answer > span")

    def point_at(place: int) -> None:
        spans.nth(place).tap() if size == "phone" else spans.nth(place).hover()

    def told(asked: dict[str, Any]) -> Any:
        return httpx2.post(f"{site}/api/attention", json=asked, timeout=30, verify=False).json()

    def expect_shown(weights: list[float]) -> None:
        most = sorted((100 * each for each in weights), reverse=True)[:5]
        rows = page.locator("#looked-most em")
        expect(rows).to_have_count(5)
        shown = [float(each.rstrip("%").replace("<0.1", "0")) for each in rows.all_inner_texts()]
        assert shown == pytest.approx(most, abs=0.51)

    point_at(2)
    expect(page.get_by_role("tooltip")).to_be_visible()
    if size == "phone":
        page.get_by_role("button", name="Settings").click()
    assert looked == []  # ordinary reading costs the server nothing
    page.get_by_label("Show what a token looked at").check()
    with page.expect_request_finished(lambda each: each.url.endswith("/api/attention") and len(looked) == 2):
        point_at(9)
    assert (looked[1]["prompt"], len(looked[1]["ids"])) == (PROMPT, 9)
    answer = told(looked[1])
    before = "".join("▯" if each.startswith("bytes:") else each for each in answer["tokens"])
    expect(page.locator("#looked-text b")).to_have_text(spans.nth(9).inner_text())
    assert page.locator("#looked-text").evaluate("each => each.textContent").startswith(before)
    expect_shown([sum(each) / len(answer["weights"]) for each in zip(*answer["weights"], strict=True)])
    assert violations(page) == []

    # Nothing of it lies under the popover: in a phone's sheet, what was considered is told below.
    for shown in ("#layer", "#looked-text", "#looked-most li >> nth=4"):
        expect(page.locator(shown)).to_be_in_viewport()
    if size == "phone":
        expect(page.get_by_role("tooltip")).to_be_hidden()
        expect(page.locator("#looked-considered li.taken")).to_be_visible()
    else:
        expect(page.locator("#looked-considered")).to_be_hidden()
        page.keyboard.press("Escape")
    with page.expect_request_finished(lambda each: each.url.endswith("/api/attention")):
        page.get_by_label("Layer").select_option(label="2")
    page.get_by_label("Head").select_option(label="1")
    assert looked[2] == looked[1] | {"layer": 1}
    expect_shown(told(looked[2])["weights"][0])
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_keyboard_walks_over_the_tokens(open_page: Open) -> None:
    page = open_page()
    write(page, PROMPT)
    tooltip, spans = page.get_by_role("tooltip"), page.locator("#answer > span")
    assert page.locator("#answer [tabindex='0']").count() == 1
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.press("Tab")
    expect(spans.first).to_be_focused()
    expect(tooltip).to_be_visible()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    expect(spans.nth(3)).to_be_focused()
    assert page.locator("#answer [tabindex='0']").count() == 1
    assert spans.nth(3).get_attribute("aria-describedby") == "popover"
    page.keyboard.press("End")
    expect(spans.last).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(spans.last).not_to_be_focused()
    page.keyboard.press("Escape")
    expect(tooltip).to_be_hidden()
    page.keyboard.press("Enter")
    expect(tooltip).to_be_visible()
    page.keyboard.press("Tab")
    expect(tooltip).to_be_hidden()


@long
def test_the_slider_lets_the_model_answer_as_it_was(site: str, open_page: Open) -> None:
    page = open_page()
    points = httpx2.get(f"{site}/api/models").json()[0]["points"]
    assert len(points) > 4
    assert points[0]["kind"] == "snapshot"
    asked = requests_of(page)
    grown = write(page, PROMPT)
    slider = page.get_by_label("Snapshot of the run")
    slider.focus()
    page.keyboard.press("Home")
    young = wait(page)
    assert young != grown
    assert asked[-1]["model"] == points[0]["id"]
    assert young == complete(site, **asked[-1])["text"]
    expect(page.locator("#point-text")).to_contain_text(f"Step {points[0]['step']}")
    assert "loss" in (slider.get_attribute("aria-valuetext") or "")

    box = slider.bounding_box()  # the mouse: shown while it drags, asked for when it lets go
    assert box is not None
    page.mouse.move(box["x"] + 9, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)
    before = len(asked)
    assert before == 2
    page.mouse.up()
    middle = wait(page)
    assert len(asked) == before + 1
    assert middle == complete(site, **asked[-1])["text"]
    slider.focus()
    page.keyboard.press("Home")
    assert wait(page) == young
    assert len(asked) == before + 1, "an answer that the page has was asked for again"


@long
def test_play_walks_from_the_first_snapshot_to_the_last(site: str, open_page: Open) -> None:
    points = httpx2.get(f"{site}/api/models").json()[0]["points"]
    page = open_page(address="/#max_tokens=10")
    asked = requests_of(page)
    page.clock.install()
    page.get_by_role("button", name="Play").click()
    for place in range(len(points)):
        expect(page.get_by_label("Snapshot of the run")).to_have_value(str(place))
        expect(page.locator("#said")).to_contain_text("Done, ")
        page.clock.fast_forward(1000)
    wait(page)
    assert [each["model"] for each in asked] == [each["id"] for each in points]


@long
def test_the_curve_tells_itself_to_the_eye_the_pointer_and_the_reader(site: str, open_page: Open) -> None:
    run = httpx2.get(f"{site}/api/models").json()[0]
    drawn = httpx2.get(f"{site}/api/runs/{run['name']}/curve").json()
    page = open_page()
    image = page.get_by_role("img")
    expect(image).to_have_accessible_name(re.compile(rf"to {drawn['val'][-1][1]:.2f} at step {drawn['val'][-1][0]:,}"))
    assert page.locator("#curve .point").count() == len(run["points"])
    box = image.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] - 8, box["y"] + 40)
    expect(page.locator("#curve-text")).to_contain_text(f"training {drawn['train'][-1][1]:.2f}")
    page.get_by_text("The curve as a table").click()
    expect(page.get_by_role("row").last).to_contain_text(f"{drawn['val'][-1][1]:.3f}")
    assert violations(page) == []
    page.mouse.click(box["x"] + 30, box["y"] + 40)  # the first point of all
    expect(page.get_by_label("Snapshot of the run")).to_have_value("0")
    wait(page)


def test_stop_ends_the_request_on_the_server(site: str, open_page: Open) -> None:
    page = open_page(address="/#max_tokens=4000")
    for stop in ("Escape", "button"):
        page.keyboard.press("Control+Enter")
        expect(page.locator("#answer > span").nth(5)).to_be_attached()
        assert rows_in_use(site)
        page.keyboard.press("Escape") if stop == "Escape" else page.get_by_role("button", name="Stop").click()
        expect(page.locator("#state")).to_contain_text("Stopped after")
        count = page.locator("#answer > span").count()
        expect(page.get_by_role("button", name="Write")).to_be_visible()
        until(lambda: not rows_in_use(site))
        assert page.locator("#answer > span").count() == count


@long
def test_the_page_follows_the_text_unless_its_reader_has_scrolled_up(open_page: Open) -> None:
    page = open_page("phone", address="/#max_tokens=4000")
    page.evaluate("window.main = document.querySelector('main')")
    page.keyboard.press("Control+Enter")
    until(lambda: page.evaluate("main.scrollTop") > 300)
    until(lambda: page.evaluate("main.scrollHeight - main.scrollTop - main.clientHeight") < 60)
    page.evaluate("main.scrollTop = 100")
    until(lambda: page.evaluate("main.scrollHeight - main.clientHeight") > 1000)
    assert page.evaluate("main.scrollTop") == 100
    page.keyboard.press("Escape")


def test_continue_goes_on_from_the_text_so_far_and_copy_takes_all(open_page: Open) -> None:
    page = open_page(address="/#max_tokens=20")
    asked = requests_of(page)
    first = write(page, PROMPT)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT + first)
    second = wait(page)
    assert asked[1]["prompt"] == PROMPT + first
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == PROMPT + first + second
    page.get_by_label("Prompt", exact=True).fill("else")
    expect(page.get_by_role("button", name="Continue")).to_be_disabled()


@long
def test_the_address_holds_the_settings_and_never_the_text(site: str, open_page: Open) -> None:
    page = open_page()
    points = httpx2.get(f"{site}/api/models").json()[0]["points"]
    page.locator("#temperature-number").fill("1.35")
    page.locator("#seed-number").fill("123456")
    page.get_by_label("Snapshot of the run").fill("1")
    write(page, "a secret")
    page.get_by_role("button", name="Share").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    address = page.evaluate("navigator.clipboard.readText()")
    assert address == page.url
    assert "secret" not in address
    assert points[1]["id"] in address

    other = open_page(address=address)
    asked = requests_of(other)
    expect(other.locator("#seed-number")).to_have_value("123456")
    expect(other.get_by_label("Snapshot of the run")).to_have_value("1")
    write(other, "a secret")
    assert asked[0]["temperature"] == 1.35
    assert asked[0]["model"] == points[1]["id"]
    assert answer(other) == answer(page)


def test_two_models_answer_the_same_prompt_beside_one_another(site: str, open_page: Open) -> None:
    page = open_page(address="/#model=grown&max_tokens=40&seed=5&temperature=1")
    other = page.get_by_label("Another model that answers the same prompt")
    assert other.locator("option").all_text_contents() == ["alone", "beside young", "beside plain"]
    expect(page.locator("#other")).to_be_hidden()
    other.select_option("plain")
    asked = requests_of(page)
    first = write(page, PROMPT)
    expect(page.locator("#other-state")).to_have_text("40 tokens")
    assert [each["model"].partition("@")[0] for each in asked] in (["grown", "plain"], ["plain", "grown"])
    asked.sort(key=lambda each: each["model"])
    one, two = ({**each, "model": "", "logprobs": 0} for each in asked)
    assert one == two
    expected = complete(site, **asked[1])["text"]
    assert page.locator("#other-text").evaluate("element => element.textContent") == PROMPT + expected
    assert first == complete(site, **asked[0])["text"]
    stack, beside = page.locator("#stack").bounding_box(), page.locator("#other").bounding_box()
    assert stack is not None
    assert beside is not None
    assert stack["x"] + stack["width"] <= beside["x"]
    assert abs(stack["y"] - beside["y"]) < 2
    assert violations(page) == []
    page.wait_for_url("**beside=plain**")
    page.set_viewport_size(SIZES["phone"])
    stack, beside = page.locator("#stack").bounding_box(), page.locator("#other").bounding_box()
    assert stack is not None
    assert beside is not None
    assert stack["y"] + stack["height"] <= beside["y"]
    page.get_by_label("Prompt", exact=True).fill(f"{PROMPT}    return")
    expect(page.locator("#other")).to_have_class("stale")
    other.select_option("")
    expect(page.locator("#other")).to_be_hidden()


def test_an_address_that_makes_no_sense_still_opens(open_page: Open) -> None:
    page = open_page(address="/#temperature=hot&seed=-5&top_p=9&max_tokens=0.5&model=nobody@3&x=%ff")
    expect(page.get_by_role("alert")).to_contain_text("has no model “nobody@3”")
    for name, value in {"temperature": "0.8", "seed": "0", "top_p": "1", "max_tokens": "1"}.items():
        expect(page.locator(f"#{name}-number")).to_have_value(value)
    assert len(write(page)) > 0


TROUBLES = {
    401: "wants its key",
    429: "Try again in 7 seconds",
    503: "shutting down",
    404: "no longer has this model",
    400: "the server's own words",
    "gone": "No answer from the server",
    "cut": "broke off",
    "inside": "the engine's own words",
}


def test_trouble_is_told_in_plain_words_and_can_be_tried_again(open_page: Open) -> None:
    page = open_page(address="/#max_tokens=10")
    kind: int | str = ""

    def refuse(route: Route) -> None:
        if kind == "gone":
            route.abort()
        elif kind == "cut":
            route.fulfill(content_type="text/event-stream", body=event("half"))
        elif kind == "inside":
            body = event("half") + 'data: {"error": {"message": "the engine\'s own words"}}\n\n'
            route.fulfill(content_type="text/event-stream", body=body)
        else:
            error = {"error": {"message": "the server's own words", "type": "", "param": None, "code": None}}
            route.fulfill(status=int(kind), headers={"Retry-After": "7"}, json=error)

    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill(PROMPT)
    for kind, told in TROUBLES.items():
        page.route("**/v1/completions", refuse)
        prompt.press("Control+Enter")
        expect(page.get_by_role("alert")).to_contain_text(told)
        expect(prompt).to_have_value(PROMPT)
        if kind == 429:
            assert violations(page) == []
        page.unroute("**/v1/completions")
        if kind in (429, "cut"):
            page.get_by_role("button", name="Try again").click()
            wait(page)
            expect(page.get_by_role("alert")).to_be_hidden()


def test_a_server_that_is_away_at_first_leaves_no_blank_page(open_page: Open) -> None:
    page = open_page()
    page.route("**/api/models", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("No answer from the server")
    expect(page.get_by_role("button", name="Write")).to_be_disabled()
    page.unroute("**/api/models")
    page.get_by_role("button", name="Try again").click()
    write(page)


def test_whatever_is_generated_is_shown_as_text(open_page: Open) -> None:
    page = open_page()
    pieces = ["<script>document.title = 1</script>", "\n", "\t", "  ", "<b>", "&amp;", "\u202e", "\r", "'\"", "🦉"]
    owl = event("🦉", ["bytes:\\xf0\\x9f", "bytes:\\xa6", "bytes:\\x89"])
    body = "".join([*map(event, pieces[:-1]), owl, event("", [], "stop"), "data: [DONE]\n\n"])
    page.route("**/v1/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    assert write(page) == "".join(pieces)
    assert page.locator("#answer > span").count() == len(pieces)
    assert page.locator("#answer script, #answer b").count() == 0
    expect(page.locator("#state")).to_contain_text("the text ends here")
    page.locator("#answer > span").first.focus()
    for _ in pieces:
        expect(page.get_by_role("tooltip")).to_contain_text("likely")
        assert page.get_by_role("tooltip").locator("script").count() == 0
        page.keyboard.press("ArrowRight")
    assert page.get_by_role("tooltip").locator("ol").count() == 3
    assert violations(page) == []


def test_a_model_without_a_run_has_no_youth_to_show(site: str, open_page: Open) -> None:
    page = open_page()
    chooser = page.get_by_label("Model", exact=True)
    names = [each["name"] for each in httpx2.get(f"{site}/api/models").json()]
    assert chooser.locator("option").all_inner_texts() == names
    asked = requests_of(page)
    chooser.select_option("plain")
    expect(page.locator("#growth")).to_be_hidden()
    expect(page.locator("#learned")).to_be_hidden()
    assert len(write(page)) > 0
    assert asked[0]["model"] == "plain"
    chooser.select_option("grown")
    expect(page.locator("#growth")).to_be_visible()
    expect(page.locator("#curve svg")).to_be_visible()


def test_a_run_that_has_kept_nothing_yet_says_so(site: str, open_page: Open) -> None:
    page = open_page(clock=True)
    begun = httpx2.get(f"{site}/api/models").json()[0] | {
        "training": True,
        "points": [],
        "silent": "it has no checkpoint yet",
    }
    page.route("**/api/models", lambda route: route.fulfill(json=[begun]))
    page.reload()
    expect(page.locator("#state")).to_contain_text("no checkpoint yet")
    expect(page.get_by_role("button", name="Write")).to_be_disabled()
    expect(page.locator("#live")).to_be_visible()
    assert violations(page) == []
    page.unroute("**/api/models")
    page.clock.fast_forward(LOOKS_AGAIN_MS)  # and finds some
    expect(page.get_by_role("button", name="Write")).to_be_enabled(timeout=60_000)
    expect(page.locator("#state")).to_be_empty()
    write(page)


def test_a_run_that_trains_is_shown_as_it_is_now(runs: Path, open_page: Open) -> None:
    young = runs / "young"
    logs = [young / "metrics.jsonl", young / "samples.jsonl"]
    metrics, samples = (Log(path, keep_bytes=path.stat().st_size) for path in logs)
    with files.locked(young):
        page = open_page(address="/#model=young", clock=True)
        expect(page.locator("#live")).to_contain_text("training, step 48 of 48")
        expect(page.get_by_role("button", name="Newest")).to_have_attribute("aria-pressed", "true")
        metrics.write({"step": 49, "loss": 1.25, "tokens": 49 * 1024})
        metrics.write({"step": 49, "val_loss": 1.5})
        samples.write({"step": 49, "prompt": "so it", "text": " goes on"})
        shutil.copytree(young / "snapshots" / "step-00000008", young / "snapshots" / "step-00000049")
        page.clock.fast_forward(LOOKS_AGAIN_MS)
        expect(page.locator("#live")).to_contain_text("training, step 49", timeout=60_000)
        expect(page.locator("#curve-text")).to_contain_text("validation loss 1.5")
        expect(page.get_by_text("so it goes on")).to_be_visible()
        expect(page.locator("#point-text")).to_contain_text("Step 49")
        asked = requests_of(page)
        write(page, PROMPT)
        assert asked[0]["model"] == "young@newest"
        assert violations(page) == []
        page.get_by_label("Snapshot of the run").fill("0")  # leaves the newest
        wait(page)
        assert asked[1]["model"] == "young@1"
    page.clock.fast_forward(LOOKS_AGAIN_MS)
    expect(page.locator("#live")).to_be_hidden(timeout=60_000)
    for log in (metrics, samples):
        log.close()
