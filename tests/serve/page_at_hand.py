"""Ways to ask the page, and the server behind it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ConsoleMessage, Page, expect

Open = Callable[..., Page]


def refused(told: ConsoleMessage) -> bool:
    """The browser itself tells of a request that was refused."""
    return told.text.startswith("Failed to load resource")


def requests_of(page: Page, path: str = "/v1/completions") -> list[dict[str, Any]]:
    """What the page asks the model from here on."""
    asked: list[dict[str, Any]] = []
    page.on("request", lambda each: each.url.endswith(path) and asked.append(each.post_data_json))
    return asked


def write(page: Page, prompt: str | None = None) -> str:
    if prompt is not None:
        page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Write").click()
    return wait(page)


def wait(page: Page) -> str:
    """The whole answer, when it has come."""
    expect(page.locator("#said")).to_contain_text("Done, ", timeout=60_000)
    expect(page.get_by_role("button", name="Write")).to_be_visible()
    return answer(page)


def answer(page: Page) -> str:
    return page.locator("#answer").evaluate("element => element.textContent")


def complete(site: str, **request: Any) -> dict[str, Any]:
    response = httpx2.post(f"{site}/v1/completions", json=request | {"stream": False}, timeout=30, verify=False)
    response.raise_for_status()
    return response.json()["choices"][0]


def until(true: Callable[[], bool]) -> None:
    for _ in range(1200):
        if true():
            return
        time.sleep(0.05)
    pytest.fail("it never came to be")


def rows_in_use(site: str) -> list[str]:
    """The server's own lines about rows that are not free."""
    lines = httpx2.get(f"{site}/metrics", verify=False).text.splitlines()
    return [line for line in lines if line.startswith("hornbook_rows_in_use") and not line.endswith(" 0.0")]


def violations(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['target']} {node['failureSummary']}" for each in found for node in each["nodes"]]


def event(text: str, tokens: list[str] | None = None, finish: str | None = None) -> str:
    tokens = [text] if tokens is None else tokens
    top = [{each: -0.5} for each in tokens]
    logprobs = {"tokens": tokens, "token_logprobs": [-0.5] * len(tokens), "top_logprobs": top}
    choice = {"text": text, "index": 0, "finish_reason": finish, "logprobs": logprobs}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"
