from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serving import Running

from hornbook.serve import access, connection
from hornbook.serve.access import is_loopback

KEY = "a key of ours"
BODY: dict[str, Any] = {"prompt": "ab", "max_tokens": 2, "temperature": 0}
LOOKED_AT: dict[str, Any] = {"prompt": "ab", "ids": [3]}
ROUTES = [
    ("POST", "/api/attention"),
    ("GET", "/glossary"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/toy"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/"),
    ("GET", "/page/index.html"),
    ("GET", "/api/models"),
    ("GET", "/health"),
    ("GET", "/api/runs/toy/curve"),
    ("GET", "/api/runs/toy/samples"),
    ("GET", "/no/such/path"),
]
NOT_THERE = {"/no/such/path", "/api/runs/toy/curve", "/api/runs/toy/samples"}  # toy is no run


@pytest.fixture(scope="module")
def locked(start: Callable[..., Running], toy: Path) -> Running:
    return start(toy, key=KEY)


def ask(client: httpx2.Client, method: str, path: str, **headers: str) -> httpx2.Response:
    return client.request(
        method,
        path,
        json=(LOOKED_AT if path == "/api/attention" else BODY) if method == "POST" else None,
        headers=headers,
    )


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_only_health_is_open_without_the_key(locked: Running, method: str, path: str) -> None:
    found = 404 if path in NOT_THERE else 200
    with locked.client() as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"cookie": "hornbook=1"}):
            answer = ask(client, method, path, **headers)
            assert answer.status_code == (200 if path == "/health" else 401)
            if path != "/health":
                assert answer.json()["error"]["code"] == "invalid_api_key"
        for kind in ("Bearer", "bearer"):
            assert ask(client, method, path, authorization=f"{kind} {KEY}").status_code == found


def test_every_route_is_in_the_table_above(locked: Running) -> None:
    app = locked.server.config.app.app  # type: ignore[union-attr]
    served = {
        (method, re.sub(r"\{.*?\}", "index.html" if "page" in route.path else "toy", route.path))
        for route in app.routes
        for method in route.methods - {"HEAD"}
    }
    assert served <= set(ROUTES)


def test_a_browser_comes_in_by_the_key_in_the_address(locked: Running) -> None:
    with locked.client() as browser:
        assert browser.get("/?key=wrong").status_code == 401
        assert not browser.cookies
        entered = browser.get("/", params={"key": KEY})
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert KEY not in entered.headers["set-cookie"]
        assert browser.get("/").status_code == browser.get("/v1/models").status_code == 200
        assert ask(browser, "POST", "/v1/completions").status_code == 200
        other = f"hornbook-{locked.port}=" + "0" * 64
    with locked.client() as stranger:
        assert stranger.get("/v1/models", headers={"cookie": other}).status_code == 401
        assert stranger.get("/v1/models", params={"key": KEY}).status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:{port}", 200),
        ("[::1]:{port}", 200),
        ("rebound.example", 403),
        ("localhost.rebound.example", 403),
        ("127.0.0.1.rebound.example:{port}", 403),
        ("192.168.1.7", 403),
        ("[::", 403),
        ("", 403),
        ("user@rebound.example", 403),
        ("\xe9", 403),
    ],
)
def test_another_name_than_its_own_is_refused(running: Running, host: str, status: int) -> None:
    lines = f"GET /health HTTP/1.1\r\nHost: {host.format(port=running.port)}\r\nConnection: close\r\n\r\n"
    assert status_of(running.port, lines.encode("latin-1")) == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:{port}", 200),
        ("http://localhost:1", 403),
        ("http://127.0.0.1:{port}", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
        ("", 403),
    ],
)
def test_another_sites_page_is_refused(running: Running, origin: str, status: int) -> None:
    headers = {"host": f"localhost:{running.port}", "origin": origin.format(port=running.port)}
    with running.client() as client:
        answer = ask(client, "POST", "/v1/completions", **headers)
        assert answer.status_code == status
        assert "access-control-allow-origin" not in answer.headers
        assert client.options("/v1/completions", headers=headers).status_code in (403, 405)


def test_every_answer_says_what_a_browser_may_do_with_it(running: Running) -> None:
    with running.client() as client:
        for method, path in ROUTES:
            headers = ask(client, method, path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert "default-src 'self'" in headers["content-security-policy"]
            assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/passwd", "index.html%00", "app.py"]
)
def test_no_name_leads_out_of_the_pages_folder(running: Running, name: str) -> None:
    lines = f"GET /page/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert status_of(running.port, lines.encode()) == 404


def test_a_body_too_large_is_refused_and_the_reason_is_read(running: Running) -> None:
    large = b'{"prompt": "' + b"a" * 10_000_000 + b'"}'

    def pieces() -> Any:
        yield from (large[start : start + 65536] for start in range(0, len(large), 65536))

    with running.client(headers={"content-type": "application/json"}) as client:
        for content in (large, pieces()):
            answer = client.post("/v1/completions", content=content)
            assert (answer.status_code, answer.json()["error"]["type"]) == (413, "invalid_request_error")
        assert ask(client, "POST", "/v1/completions").status_code == 200
    lines = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n"
    assert status_of(running.port, lines + b"Expect: 100-continue\r\nConnection: close\r\n\r\n") == 413


def status_of(port: int, content: bytes, seconds: float = 10.0) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(content)
        return int(connection.recv(1000).split(b" ")[1])


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(10)
    try:
        while data := connection.recv(10_000):
            if b" 408 " in data:
                return True
    except ConnectionError:
        pass
    return True


def test_slow_and_abusive_clients_hurt_no_good_ones(
    start: Callable[..., Running], toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 with slow headers, and meanwhile large bodies, wrong names, other sites, and what is no HTTP at all."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", 2.0)
    monkeypatch.setattr(access, "BODY_SECONDS", 1.0)
    monkeypatch.setattr(connection, "MOST", 150)
    server = start(toy)
    stop, took = threading.Event(), []

    def abuse(number: int) -> None:
        while not stop.is_set():
            try:
                with server.client() as client:
                    if number == 0:
                        client.post("/v1/completions", content=b"a" * 10_000_000)
                    elif number == 1:
                        client.get("/v1/models", headers={"host": "rebound.example"})
                    elif number == 2:
                        client.get("/v1/models", headers={"origin": "https://evil.example"})
                    else:
                        status_of(server.port, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
            except (httpx2.HTTPError, OSError, IndexError):
                time.sleep(0.01)

    def asking() -> float:
        asked = time.monotonic()
        with server.client() as client:
            assert ask(client, "POST", "/v1/completions").status_code == 200
        return time.monotonic() - asked

    alone = max(asking() for _ in range(5))
    abusers = [threading.Thread(target=abuse, args=(number,)) for number in range(4)]
    for each in abusers:
        each.start()
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    began = time.monotonic()
    while time.monotonic() - began < 3.5:
        for each in slow:
            try:
                each.sendall(b"X" if time.monotonic() - began > 0.5 else b"GET / HTTP/1.1\r\n")
            except OSError:
                continue
        took.append(asking())
    stop.set()
    for each in abusers:
        each.join()
    for each in slow:
        assert is_closed(each)
        each.close()
    # Not as long as a slow client may take for its headers: nobody waited for one to be given up.
    assert sorted(took)[len(took) // 2] < max(1, 10 * alone), (alone, took)
    assert max(took) < max(5, 50 * alone), (alone, took)
    assert server.settles(lambda: not server.server.server_state.connections)


def test_a_body_that_does_not_come_is_not_waited_for(
    start: Callable[..., Running], toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "BODY_SECONDS", 0.5)
    server = start(toy)
    lines = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{"
    assert status_of(server.port, lines) == 408


def test_a_second_request_may_not_be_slow_either(
    start: Callable[..., Running], toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.5)
    server = start(toy)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as held:
        held.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in held.recv(10_000)
        held.sendall(b"GET /hea")
        assert is_closed(held)


def test_connections_at_rest_make_room_for_new_ones(
    start: Callable[..., Running], toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there may be, each after an answer, or in the middle of a body that was refused."""
    monkeypatch.setattr(connection, "MOST", 10)
    monkeypatch.setattr(connection, "HEADER_SECONDS", 1.0)
    server = start(toy, key="k")
    at_rest = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    refused = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000000\r\n\r\n"
    for lines in (at_rest, refused):
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
        for each in held:
            each.sendall(lines)
            assert each.recv(10)
            each.sendall(lines[:1])
        for _ in range(5):
            with server.client() as client:
                assert client.get("/health").status_code == 200
        for each in held:
            assert is_closed(each)
            each.close()


@pytest.mark.parametrize(
    ("host", "so"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_is_told_from_the_rest(host: str, so: bool) -> None:
    assert is_loopback(host) is so
    assert not is_loopback("example.org")
