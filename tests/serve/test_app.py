from __future__ import annotations

import concurrent.futures
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import openai
import psutil
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Endless, Running, Slow, read_metrics

from effort import LONG, long, tries
from hornbook.infer.config import SamplerConfig
from hornbook.infer.speaker import Speaker
from hornbook.serve import completions, connection, server
from hornbook.serve.completions import CompletionRequest

COMPLETIONS = "/v1/completions"
PLAIN = {"temperature": 1.0, "top_p": None}


def events(lines: Any) -> list[dict[str, Any]]:
    """The chunks of a stream that ended as it should."""
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data[-1] == "[DONE]"
    return [json.loads(each) for each in data[:-1]]


@pytest.fixture(scope="module")
def official(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def test_the_official_client_completes(official: openai.OpenAI, toy_speaker: Speaker) -> None:
    answer = official.completions.create(
        model="toy", prompt=["ab", "Once"], max_tokens=12, temperature=0.7, n=2, seed=5, stop=["\x01"], logprobs=3
    )
    alone = toy_speaker.generate_batch(
        ["ab", "Once"], max_tokens=12, temperature=0.7, top_p=None, n=2, seed=5, stop=["\x01"], logprobs=3
    )
    assert [choice.text for choice in answer.choices] == [each.text for each in alone]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice, each in zip(answer.choices, alone, strict=True):
        assert choice.finish_reason == {"length": "length"}.get(str(each.ended), "stop")
        assert choice.logprobs is not None
        assert choice.logprobs.tokens is not None
        told = len(choice.logprobs.tokens)
        assert choice.logprobs.token_logprobs == pytest.approx(
            [token.logprob for token in each.tokens[:told]], abs=1e-5
        )
        assert choice.logprobs.text_offset == sorted(choice.logprobs.text_offset or [])
        assert all(len(top) == 3 for top in choice.logprobs.top_logprobs or [])
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("ab") + len("Once")
    assert answer.usage.completion_tokens == sum(len(each.tokens) for each in alone)
    assert (answer.object, answer.model) == ("text_completion", "toy")


def test_the_official_client_streams_what_it_completes(official: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "toy", "prompt": "ab", "max_tokens": 30, "n": 2, "seed": 5, "logprobs": 2}
    whole = official.completions.create(**asked)
    chunks = list(official.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].choices == []
    for choice in whole.choices:
        own = [each.choices[0] for each in chunks[:-1] if each.choices[0].index == choice.index]
        assert "".join(each.text for each in own) == choice.text
        assert [each.finish_reason for each in own] == [None] * (len(own) - 1) + [choice.finish_reason]
        assert len(own) > 2
        streamed = [token for each in own if each.logprobs for token in each.logprobs.tokens or []]
        assert choice.logprobs is not None
        assert streamed == choice.logprobs.tokens
        offsets = [offset for each in own if each.logprobs for offset in each.logprobs.text_offset or []]
        assert offsets == choice.logprobs.text_offset


def test_the_official_client_lists_models(official: openai.OpenAI) -> None:
    assert [each.id for each in official.models.list()] == ["toy"]
    assert official.models.retrieve("toy").owned_by == "hornbook"


def test_errors_are_the_official_clients_exceptions(start: Callable[..., Running], toy: Path) -> None:
    slow = start(toy, load=Endless, rows=1, queue=0, key="letmein")
    wrong = openai.OpenAI(base_url=f"{slow.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="wants its key"):
        wrong.models.list()
    client = openai.OpenAI(base_url=f"{slow.url}/v1", api_key="letmein", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.BadRequestError, match=r"temperature: .*max_tokens: ") as bad:
        client.completions.create(model="toy", prompt="a", max_tokens=0, temperature=-1)
    assert bad.value.param == "temperature"
    with client.completions.create(model="toy", prompt="a", max_tokens=4096, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="queue is full") as full:
            client.completions.create(model="toy", prompt="a")
        assert 1 <= int(full.value.response.headers["retry-after"]) <= 60
    assert slow.settles(lambda: slow.models.engines[0].is_idle)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [257]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a" * 70_000}, "prompt"),
        ({"max_tokens": 4097}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"n": 33}, "n"),
        ({"prompt": ["a"] * 20, "n": 2}, "n"),
        ({"temperature": 1e-300}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"top_k": 0}, "top_k"),
        ({"logprobs": 21}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"suffix": "end"}, "suffix"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"seed": 1 << 70}, "seed"),
        ({"promt": "a"}, "promt"),
    ],
)
def test_a_wrong_field_is_named(running: Running, body: dict[str, Any], param: str) -> None:
    with running.client() as client:
        answer = client.post(COMPLETIONS, content=json.dumps(body), headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert param in error["message"]
    assert len(error["message"]) < 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"prompt": NaN}',
        b'{"\\ud800": 1}',
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
        b"[" * 100_000,
        b'{"prompt":' * 50_000,
        b'{"max_tokens": ' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_not_the_right_json_is_refused(running: Running, content: bytes) -> None:
    with running.client() as client:
        answer = client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"prompt": [[]] * 300_000}, marks=long),
        pytest.param({"prompt": [True] * 150_000}, marks=long),
        pytest.param({"prompt": ["a"] * 240_000}, marks=long),
        {"prompt": [[1]] * 150_000},
        {"stop": [1] * 400_000},
        {str(number): 1 for number in range(80_000)},
        pytest.param({"logit_bias": {str(number): 1 for number in range(80_000)}}, marks=long),
        pytest.param({"stream_options": {str(number): 1 for number in range(80_000)}}, marks=long),
    ],
)
def test_a_million_mistakes_are_told_as_soon_as_a_few(running: Running, body: dict[str, Any]) -> None:
    """To find and to word them takes no longer than to parse the body did."""
    with running.client() as client:
        answer = client.post(COMPLETIONS, json=body)
    assert answer.status_code == 400
    assert len(answer.content) < 5000
    content, validating, parsing = json.dumps(body), [], []
    for _ in range(3):
        began = time.thread_time()
        fields = json.loads(content)
        parsed = time.thread_time()
        with pytest.raises(pydantic.ValidationError) as wrong:
            CompletionRequest.model_validate(fields)
        assert wrong.value.errors()
        validating.append(time.thread_time() - parsed)
        parsing.append(parsed - began)
    assert min(validating) < max(min(parsing), 0.005)


def test_fields_that_openai_has_not(running: Running, toy_speaker: Speaker) -> None:
    rules = {"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.3, "presence_penalty": 0.5, "temperature": 1.4}
    with running.client() as client:
        answer = client.post(COMPLETIONS, json={"prompt": "ab", "max_tokens": 40, "seed": 2, **rules}).json()
    assert answer["choices"][0]["text"] == toy_speaker.generate("ab", max_tokens=40, seed=2, top_p=None, **rules)


def test_the_samplers_knobs_are_fields_and_null_stands_for_a_default(running: Running, toy_speaker: Speaker) -> None:
    assert SamplerConfig.model_fields.keys() <= CompletionRequest.model_fields.keys()
    nulls: dict[str, Any] = dict.fromkeys(CompletionRequest.model_fields.keys() - {"prompt", "seed"})
    with running.client() as client:
        answer = client.post(COMPLETIONS, json={"prompt": "ab", "seed": 3, **nulls}).json()
    assert answer["choices"][0]["text"] == toy_speaker.generate("ab", max_tokens=16, seed=3, **PLAIN)


def test_a_drawn_seed_is_told_and_gives_the_same_text(running: Running) -> None:
    with running.client() as client:
        first, other = (client.post(COMPLETIONS, json={"prompt": "ab", "max_tokens": 40}).json() for _ in range(2))
        seed = first["hornbook"]["seed"]
        again = client.post(COMPLETIONS, json={"prompt": "ab", "max_tokens": 40, "seed": seed}).json()
    assert first["choices"][0]["text"] == again["choices"][0]["text"] != other["choices"][0]["text"]


def test_ids_echo_and_a_prompt_beyond_the_window(running: Running, toy_speaker: Speaker) -> None:
    long = "a long story " * 10
    with running.client() as client:
        by_text = client.post(COMPLETIONS, json={"prompt": long, "seed": 1, "echo": True}).json()
        by_ids = client.post(COMPLETIONS, json={"prompt": list(long.encode()), "seed": 1}).json()
        streamed = events(
            client.post(COMPLETIONS, json={"prompt": long, "seed": 1, "echo": True, "stream": True}).iter_lines()
        )
    alone = toy_speaker.generate_batch([long], seed=1, max_tokens=16, **PLAIN)[0]
    assert by_text["choices"][0]["text"] == long + by_ids["choices"][0]["text"] == long + alone.text
    assert "".join(each["choices"][0]["text"] for each in streamed) == long + alone.text
    assert by_text["hornbook"]["forgotten"] == alone.forgotten > 0


@long
def test_a_stream_tells_of_the_tokens_that_a_whole_answer_tells_of(running: Running, toy_speaker: Speaker) -> None:
    """Also where a stop string cuts off tokens that came before it was complete."""
    with running.client() as client:
        for seed in range(40):
            text = toy_speaker.generate("ab", seed=seed, max_tokens=30, temperature=3.0, top_p=None)
            start = random.Random(seed).randrange(2, 20)
            body = {"prompt": "ab", "seed": seed, "max_tokens": 30, "temperature": 3.0, "logprobs": 2}
            body |= {"stop": [text[start : start + 3] or "\n"]}
            whole = client.post(COMPLETIONS, json=body).json()["choices"][0]
            parts = [
                each["choices"][0]
                for each in events(client.post(COMPLETIONS, json=body | {"stream": True}).iter_lines())
            ]
            assert "".join(each["text"] for each in parts) == whole["text"]
            for kind in ("tokens", "token_logprobs", "text_offset"):
                assert [one for each in parts for one in (each["logprobs"] or {kind: []})[kind]] == whole["logprobs"][
                    kind
                ]


def test_no_request_asks_for_more_than_a_server_can_hold(running: Running) -> None:
    with running.client() as client:
        for body, param in (
            ({"repetition_penalty": 1e-40}, "repetition_penalty"),
            ({"n": 32, "max_tokens": 4096, "logprobs": 20}, "logprobs"),
        ):
            answer = client.post(COMPLETIONS, json={"prompt": "ab"} | body)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert client.get("/health").status_code == 200


def test_metrics_count_what_was_done(start: Callable[..., Running], toy: Path) -> None:
    fresh = start(toy)
    with fresh.client() as client:
        for _ in range(3):
            client.post(COMPLETIONS, json={"prompt": "abcd", "max_tokens": 7, "temperature": 0})
        assert fresh.every_request_ended_once()
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    told = {name.removeprefix("hornbook_"): value for name, value in read_metrics(answer.text).items()}
    assert told['requests_total{outcome="complete"}'] == told["requests_begun_total"] == 3
    assert told['requests_total{outcome="full"}'] == told["engine_failures_total"] == 0
    assert told['responses_total{code="200"}'] == 3
    assert told["prompt_tokens_total"] == 12
    assert 3 <= told["generated_tokens_total"] <= 21
    assert told["step_seconds_count"] == told['step_seconds_bucket{le="+Inf"}'] == told["generated_tokens_total"]
    assert told["first_token_seconds_count"] == 3
    assert (told["models_loaded"], told["rows"], told["rows_in_use"], told["queue_length"]) == (1, 16, 0, 0)


def test_the_pages_files_are_sent_again_only_where_they_changed(running: Running) -> None:
    with running.client() as client:
        for path, kind in (("/", "text/html"), ("/page/page.js", "javascript"), ("/page/icon.svg", "image/svg+xml")):
            first = client.get(path)
            assert kind in first.headers["content-type"]
            assert first.headers["cache-control"] == "no-cache"
            head = client.head(path)
            assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", first.headers["etag"])
            assert client.get(path, headers={"if-none-match": first.headers["etag"]}).status_code == 304


def test_what_the_description_says_is_what_comes(running: Running) -> None:
    with running.client() as client:
        described = client.get("/openapi.json").json()
        assert {COMPLETIONS, "/v1/models", "/v1/models/{id}", "/health", "/metrics"} <= set(described["paths"])
        assert "422" not in json.dumps(described)
        assert "HTTPValidationError" not in json.dumps(described)
        answers = described["paths"][COMPLETIONS]["post"]["responses"]
        assert {"200", "400", "401", "404", "413", "429", "503"} <= answers.keys()

        def check(answer: Any, path: str, method: str = "get", status: str = "200") -> None:
            schema = described["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"]
            jsonschema.validate(answer, schema | {"components": described["components"]})

        body = {"prompt": "ab", "logprobs": 2, "n": 2}
        check(client.post(COMPLETIONS, json=body).json(), COMPLETIONS, "post")
        options = {"stream": True, "stream_options": {"include_usage": True}}
        for chunk in events(client.post(COMPLETIONS, json=body | options).iter_lines()):
            check(chunk, COMPLETIONS, "post")
        check(client.post(COMPLETIONS, json={"n": 0}).json(), COMPLETIONS, "post", "400")
        check(client.get("/v1/models").json(), "/v1/models")
        check(client.get("/v1/models/toy").json(), "/v1/models/{id}")
        check(client.get("/v1/models/gpt").json(), "/v1/models/{id}", status="404")
        check(client.get("/health").json(), "/health")
        with pytest.raises(jsonschema.ValidationError):
            check({"status": "well"}, "/health")
        for example in described["components"]["schemas"]["CompletionRequest"]["examples"]:
            assert client.post(COMPLETIONS, json=example).status_code == 200


def anything_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema allows, nearly."""
    if "anyOf" in schema:
        return st.one_of([anything_of(each) for each in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    low, high = schema.get("minimum", -5), schema.get("maximum", 100)
    return {
        "integer": st.integers(max(low, -100), min(high, 100)),
        "number": st.floats(low, high, allow_nan=False) | st.integers(int(low), int(high)),
        "string": st.text(max_size=80),
        "boolean": st.booleans(),
        "null": st.none(),
        "array": st.lists(anything_of(schema["items"]), max_size=4) if "items" in schema else st.nothing(),
        "object": st.dictionaries(st.text(max_size=3), st.integers(-3, 3), max_size=2),
    }.get(schema.get("type", "string"), st.text(max_size=3))


def test_no_body_makes_the_server_fail(running: Running) -> None:
    with running.client() as client:
        described = client.get("/openapi.json").json()
        fields = described["components"]["schemas"]["CompletionRequest"]["properties"]
        junk = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        )
        near = {name: anything_of(schema) for name, schema in fields.items()}
        near |= {"model": st.sampled_from(["toy", "toy@1", "toy@newest", "@", ""]), "max_tokens": st.integers(0, 9)}
        near["n"] = st.integers(-1, 3)
        bodies = st.fixed_dictionaries({}, optional={name: each | each | each | junk for name, each in near.items()})
        seen: Counter[int] = Counter()

        @settings(max_examples=tries(30, 80), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(bodies, st.randoms(), st.integers(0, 6))
        def ask(body: dict[str, Any], draw: random.Random, spoken: int) -> None:
            # With many fields, one is always wrong.
            body = dict(draw.sample(list(body.items()), min(spoken, len(body))))
            content = json.dumps(body).encode("utf-8", "surrogatepass")
            answer = client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
            seen[answer.status_code] += 1
            assert answer.status_code in (200, 400, 404), (body, answer.text)
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]
            elif body.get("stream"):
                events(answer.iter_lines())

        ask()
    assert min(seen[200], seen[400]) > 5
    assert running.outcomes()["failed"] == 0
    assert running.every_request_ended_once()


def post_and_vanish(port: int, body: dict[str, Any], after: Callable[[socket.socket], None]) -> None:
    content = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
        )
        after(connection)


def test_whoever_leaves_frees_row_and_place(start: Callable[..., Running], toy: Path) -> None:
    slow = start(toy, load=Endless, rows=2, queue=2)
    engine = slow.models.engines[0]
    endless = {"prompt": "ab", "max_tokens": 4096, "temperature": 0, "repetition_penalty": 2.0}

    def is_running(connection: socket.socket) -> None:
        assert slow.settles(lambda: engine.rows_in_use == 1)

    def is_reading(connection: socket.socket) -> None:
        assert b"data: " in connection.recv(10_000) + connection.recv(10_000)

    for number in range(leaving := tries(6, 20)):
        for body, until in ((endless, is_running), (endless | {"stream": True}, is_reading)):
            post_and_vanish(slow.port, body, until)
            assert slow.settles(lambda: engine.is_idle), number
    occupied = [threading.Event() for _ in range(2)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        leave = threading.Event()
        for each in occupied:
            pool.submit(post_and_vanish, slow.port, endless, lambda _: (each.set(), leave.wait(300)))  # noqa: B023
        assert slow.settles(lambda: engine.rows_in_use == 2)
        for _ in range(10):
            post_and_vanish(slow.port, endless, lambda _: slow.settles(lambda: engine.waiting == 1))
            assert slow.settles(lambda: engine.waiting == 0)
        leave.set()
    assert slow.settles(lambda: engine.is_idle)
    assert slow.every_request_ended_once()
    assert {name: number for name, number in slow.outcomes().items() if number} == {"cancelled": 2 * leaving + 12}


def test_a_client_that_does_not_read_hurts_nobody(
    start: Callable[..., Running], toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completions, "MAX_TOKENS", 100_000)
    monkeypatch.setattr(completions, "NUMBERS", 10**7)
    monkeypatch.setattr(connection, "READER_SECONDS", 1.0)
    hasty = start(toy, load=lambda folder: Endless(folder, 0.0), unread_bytes=4096, rows=4)
    body = {"prompt": "ab", "max_tokens": 100_000, "stream": True, "logprobs": 20, "repetition_penalty": 5.0}
    content = json.dumps(body).encode()
    with socket.socket() as silent, hasty.client() as client:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect(("127.0.0.1", hasty.port))
        silent.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
        )
        engine = hasty.models.engines[0]
        assert hasty.settles(lambda: engine.rows_in_use == 1)
        answered_meanwhile = 0
        while engine.rows_in_use:
            assert client.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 5}).status_code == 200
            answered_meanwhile += engine.rows_in_use
        assert answered_meanwhile, "they waited until the silent one was given up"
        assert hasty.settles(lambda: hasty.outcomes()["cancelled"] == 1)


def test_the_end_of_the_server_ends_what_does_not_finish_in_time(
    start: Callable[..., Running], toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ENDING_SECONDS", 0.5)
    ending = start(toy, load=Endless, rows=2, queue=2)
    engine = ending.models.engines[0]
    endless = {"prompt": "ab", "max_tokens": 4096, "temperature": 0, "repetition_penalty": 2.0}
    bodies = [endless, endless | {"stream": True}, endless, endless | {"stream": True}]  # two run, two wait

    def ask(body: dict[str, Any]) -> httpx2.Response:
        with ending.client() as client:
            return client.post(COMPLETIONS, json=body)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = []
        for number, body in enumerate(bodies, 1):
            asked.append(pool.submit(ask, body))
            assert ending.settles(lambda: engine.rows_in_use + engine.waiting == number)  # noqa: B023
        ending.stop()
        answers = [each.result() for each in asked]
    assert [each.status_code for each in answers] == [503, 200, 503, 503]
    assert all(int(each.headers["retry-after"]) > 0 for each in answers if each.status_code == 503)
    last = [line for line in answers[1].iter_lines() if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert ending.outcomes()["closing"] == 4
    assert ending.every_request_ended_once()


def one_of_many(port: int, seed: int, draw: random.Random) -> tuple[str, dict[str, Any] | None]:
    """Ask for a text, and read it, or leave before its end. What the client saw, and the answer."""
    body = {"prompt": draw.choice(["", "ab", "Once upon a time " * 9]), "seed": seed, "temperature": 0.8}
    body |= {"max_tokens": draw.choice([1, 16, 60]), "stream": draw.random() < 0.5}
    leaves = draw.random() < 0.3
    timeout = httpx2.Timeout(60, read=draw.random() * 0.2 if leaves else 60)
    try:
        with (
            httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=timeout, verify=False) as client,
            client.stream("POST", COMPLETIONS, json=body) as answer,
        ):
            if answer.status_code != 200:
                assert int(answer.headers["retry-after"]) >= 1
                return str(answer.status_code), None
            if leaves and body["stream"]:
                next(answer.iter_lines())
                return "left", None
            if body["stream"]:
                text = "".join(each["choices"][0]["text"] for each in events(answer.iter_lines()))
            else:
                text = json.loads(answer.read())["choices"][0]["text"]
            return "200", body | {"text": text}
    except httpx2.TimeoutException:
        assert leaves
        return "left", None


def test_64_clients_of_whom_a_third_vanish(start: Callable[..., Running], toy: Path, toy_speaker: Speaker) -> None:
    """Until each of what may become of a request has become of some, or for a minute."""
    busy = start(toy, load=lambda folder: Slow(folder, 0.004), rows=8, queue=32)
    process = psutil.Process()
    seen: list[tuple[str, dict[str, Any] | None]] = []
    sizes: list[tuple[int, int]] = []
    last = time.monotonic() + 60

    def goes_on() -> bool:
        counts = Counter(status for status, _ in seen)
        enough = not LONG and min(counts["200"], counts["429"], counts["left"]) > 11
        return time.monotonic() < last and not enough

    def client(number: int) -> None:
        draw, own = random.Random(number), 0
        while goes_on():
            seen.append(one_of_many(busy.port, number * 1000 + own, draw))
            own += 1

    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        clients = [pool.submit(client, number) for number in range(64)]
        while not all(each.done() for each in clients):
            sizes.append((process.memory_info().rss, process.num_fds()))
            time.sleep(0.5)
        for each in clients:
            each.result()

    assert busy.settles(lambda: busy.models.engines[0].is_idle)
    assert busy.every_request_ended_once()
    counts, outcomes = Counter(status for status, _ in seen), busy.outcomes()
    assert min(counts["200"], counts["429"], counts["left"]) > 10, counts
    assert outcomes["full"] >= counts["429"]  # one that left may have been refused before
    assert outcomes["complete"] >= counts["200"]
    assert outcomes["failed"] == outcomes["closing"] == 0
    assert sum(outcomes.values()) <= len(seen)  # who left while connecting never came
    assert sum(outcomes.values()) >= len(seen) - counts["left"]
    for answer in [each for _, each in seen if each][:: max(counts["200"] // tries(20, 200), 1)]:
        options = {name: answer[name] for name in ("seed", "max_tokens", "temperature")}
        assert answer["text"] == toy_speaker.generate(answer["prompt"], top_p=None, **options)
    late = sizes[len(sizes) // 2 :]
    assert max(rss for rss, _ in late) - late[0][0] < 20e6
    assert process.num_fds() <= sizes[0][1] + 8
    assert os.getpid() == process.pid
