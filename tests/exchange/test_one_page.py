"""A model in one page, in a real Chromium without a network, against the model that it was made of."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tokenizers
import torch
from playwright.sync_api import Browser, Page, expect
from tokenizers import pre_tokenizers

from browsing import SIZES, chromium, violations
from effort import long
from hornbook.base import files
from hornbook.base.errors import UserError
from hornbook.cli import main
from hornbook.exchange.export import export_model
from hornbook.exchange.one_page import COMPUTED, SCRIPTS
from hornbook.exchange.page_tokenizer import tokenizer_facts
from hornbook.infer.config import SamplerConfig
from hornbook.infer.decode import generate
from hornbook.model.config import ModelConfig, classic, modern
from hornbook.model.folder import load_model, save_model
from hornbook.model.gpt import GPT
from hornbook.runs.folder import resolve
from hornbook.text.encodings import ENCODINGS
from hornbook.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

pytestmark = pytest.mark.xdist_group("one_page")  # one browser, one training
PROMPT = "def über_x(self):\n    return"
WITH = {"temperature": 0.9, "top_k": 12, "top_p": 0.9, "seed": 7}
GREEDY: dict[str, Any] = {"temperature": 0}
# Asks a worker of its own as the page does, so that many models need one page alone.
ASK = """async ({ script, begin, weights, requests }) => {
    const worker = new Worker(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
    const next = () => new Promise((resolve, reject) => {
        worker.onmessage = ({ data }) => (data.failed ? reject(new Error(data.failed)) : resolve(data));
        worker.onerror = (event) => reject(new Error(event.message));
    });
    const ready = next();
    worker.postMessage({ begin });
    for (const each of weights) worker.postMessage({ weights: each });
    await ready;
    const answers = [];
    for (const [ask, request] of requests.entries()) {
        const pieces = [];
        const done = new Promise((resolve, reject) => {
            worker.onmessage = ({ data }) => {
                if (data.failed) reject(new Error(data.failed));
                else if (data.piece) pieces.push(data.piece);
                else resolve(data.ended);
            };
        });
        worker.postMessage({ ask, request });
        answers.push({ ...(await done), pieces });
    }
    worker.terminate();
    return answers;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def blank(browser: Browser) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


@pytest.fixture(scope="module")
def run(browser: Browser, tiny: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "a <b>& small one"
    knobs = {"n_embd": 48, "context": 48}
    how = {"steps": 60, "batch_tokens": 512, "eval_every_steps": 20}
    sample = {"prompts": ["def <i>"], "tokens": 12}
    fit(tiny(model=knobs, tokenizer={"kind": "bpe", "vocab_size": 400}, sample=sample, train=how), run)
    return run


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(run, "html", tmp_path_factory.mktemp("out") / "small.html")


def parts_of(page: Path) -> dict[str, Any]:
    html = page.read_text()
    return {
        "begin": json.loads(re.findall(r'<script id="model-facts" [^>]*>(.*?)</script>', html)[0])["begin"],
        "script": re.findall(r'<script id="model-script" [^>]*>(.*?)</script>', html, flags=re.DOTALL)[0],
        "weights": re.findall(r'<script class="weights" [^>]*>(.*?)</script>', html),
    }


def asked(page: Page, exported: Path, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    usual = {"prompt": PROMPT, "max_tokens": 200, "logprobs": 3, "top_p": 1, "seed": 0}
    return page.evaluate(ASK, parts_of(exported) | {"requests": [usual | each for each in requests]})


def told(answer: dict[str, Any]) -> str:
    return "".join(each["text"] for each in answer["pieces"])


def as_in(exported: Path, folder: Path) -> GPT:
    """The model with the numbers that its page has."""
    held = safetensors.torch.load(b"".join(base64.b64decode(each) for each in parts_of(exported)["weights"]))
    scales = {name: held.pop(f"{name}.scales")[:, None] for name in list(held) if f"{name}.scales" in held}
    model = load_model(folder)
    missing = model.load_state_dict({name: each.float() * scales.get(name, 1) for name, each in held.items()}, False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= ({"head.weight"} if model.config.tied else set())
    return model


def ours(exported: Path, folder: Path, **rules: Any) -> list[int]:
    """What we generate with the numbers that the page has."""
    model, tokenizer = as_in(exported, folder), Tokenizer.load(folder)
    how = {"seed": rules.pop("seed", 0), "max_tokens": rules.pop("max_tokens", 200)}
    sampler, ids = SamplerConfig(**({"top_p": 1.0} | rules)), tokenizer.encode_prompt(PROMPT)
    return list(generate(model, ids, sampler, end_of_text=tokenizer.stop, known_ids=tokenizer.vocab_size, **how))


def text_of(folder: Path, ids: list[int]) -> str:
    return Tokenizer.load(folder).decode(ids)


@pytest.fixture(scope="module")
def untrained(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, ModelConfig], Path]:
    """A model folder with random weights, far from ties: its logits are spread wide."""
    known: dict[str, Tokenizer] = {}

    def build(kind: str, config: ModelConfig) -> Path:
        if kind not in known:
            chosen = TokenizerConfig(kind=kind, vocab_size=400 if kind == "bpe" else None)
            known[kind] = train_tokenizer(chosen, [text_file.read_text()], 100_000)
        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(1)
        model = GPT(config.with_(vocab_size=known[kind].vocab_size))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(0, 1.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.1)
                if name.endswith("norm.weight"):
                    parameter.add_(1)
            if config.tied:  # or each token would say itself again
                model.embedding.weight.mul_(0.2)
            model.head.weight[known[kind].end_of_text] = 0  # so that it is not among the likeliest, and texts go on
        with files.staged_folder(folder / "model") as staging:
            save_model(model, known[kind], staging)
        return folder / "model"

    return build


SMALL: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "context": 40}
PRESETS: dict[str, Callable[..., ModelConfig]] = {"modern": modern, "classic": classic}
SHAPES = {
    **{f"activation-{name}": {"activation": name} for name in COMPUTED["activation"]},
    **{f"positions-{name}": {"positions": name} for name in COMPUTED["positions"]},
    "layernorm": {"norm": "layernorm", "biases": ("norm", "qkv", "out", "mlp", "head")},
    "groups": {"n_kv_head": 2, "head_width": 12, "tied": True, "logit_cap": 3.0, "attention_scale": "width"},
    "weightless": {"norm_weight": False, "embedding_norm": True, "qk_norm": "after", "out_projection": False},
    "beyond": {"value_embeddings": True, "bigram_embeddings": 64, "embedding_skip": True, "qk_norm": "none"},
}


@pytest.mark.parametrize(("preset", "kind"), [("modern", "byte"), ("classic", "char"), ("modern", "bpe")])
def test_its_text_is_ours_token_for_token(
    preset: str, kind: str, untrained: Callable[..., Path], blank: Page, tmp_path: Path
) -> None:
    """Over 200 tokens: five windows, of which each begins anew. Drawn ones too, by the same seed."""
    folder = untrained(kind, PRESETS[preset](**SMALL))
    exported = export_model(folder, "html", tmp_path / "page.html")
    greedy, drawn = asked(blank, exported, GREEDY, WITH)
    assert told(greedy) == text_of(folder, ours(exported, folder, **GREEDY))
    wanted = ours(exported, folder, **WITH)
    assert len(wanted) == 200
    assert len(set(wanted)) > 10
    assert told(drawn) == text_of(folder, wanted)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_computes_every_shape(shape: str, untrained: Callable[..., Path], blank: Page, tmp_path: Path) -> None:
    folder = untrained("byte", modern(**(SMALL | SHAPES[shape])))
    exported = export_model(folder, "html", tmp_path / "page.html", dtype="int8")
    two_windows = WITH | {"max_tokens": 60}
    [drawn] = asked(blank, exported, two_windows)
    assert told(drawn) == text_of(folder, ours(exported, folder, **two_windows))


def test_each_token_tells_what_else_was_likely(exported: Path, run: Path, blank: Page) -> None:
    folder = resolve(run)
    [answer] = asked(blank, exported, WITH | {"max_tokens": 20, "prompt": "def "})
    model, tokenizer = as_in(exported, folder), Tokenizer.load(folder)
    tokens = [each for piece in answer["pieces"] for each in piece["tokens"]]
    ids = tokenizer.encode_prompt("def ")
    for each in tokens:
        likely = model.logits(torch.tensor([ids[-48:]]))[0, -1].softmax(-1)
        [chosen] = [i for i in range(len(likely)) if tokenizer.piece(i).decode(errors="ignore") == each["text"]][:1]
        assert each["p"] == pytest.approx(likely[chosen].item(), rel=1e-3)
        best = likely.topk(3)
        assert [p for _, p in each["considered"]] == pytest.approx(best.values.tolist(), rel=1e-3)
        ids.append(chosen)


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        ("phone", "dark"),
        *(pytest.param(*each, marks=long) for each in [("desktop", "light"), ("desktop", "dark"), ("phone", "light")]),
    ],
)
def test_it_speaks_from_a_file_with_the_network_off(
    size: str, scheme: Any, browser: Browser, exported: Path, run: Path
) -> None:
    wrong: list[str] = []
    phone = size == "phone"
    context = browser.new_context(
        offline=True, viewport=SIZES[size], color_scheme=scheme, is_mobile=phone, has_touch=phone
    )
    page = context.new_page()
    page.on("console", lambda each: wrong.append(each.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda each: each.url == exported.as_uri() or each.url.startswith("blob:") or wrong.append(each.url)
    )
    page.goto(exported.as_uri() + "#temperature=0&max_tokens=200")
    expect(page.locator("#write")).to_be_enabled()
    assert violations(page) == []
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.evaluate(
        """() => {
            window.counts = new Set();
            const answer = document.querySelector("#answer");
            const look = () => counts.add(answer.childElementCount) && requestAnimationFrame(look);
            look();
        }"""
    )
    page.get_by_role("button", name="Write").click()
    expect(page.locator("#said")).to_contain_text("Done, 200 tokens")
    folder = resolve(run)
    said = page.locator("#answer").evaluate("each => each.textContent")
    assert said == text_of(folder, ours(exported, folder, **GREEDY))
    assert page.evaluate("counts.size") > 5, "the tokens came in a few lumps"
    if phone:
        page.get_by_role("button", name="Settings").click()
    expect(page.locator("#card")).to_contain_text(f"{load_model(folder).config.n_params():,}")
    expect(page.locator("#curve svg")).to_be_visible()
    expect(page.locator("#samples-list")).to_contain_text("def <i>")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.title().startswith("a <b>& small one")
    context.close()
    assert wrong == []


def test_stopping_ends_the_computing_and_the_next_text_is_whole(browser: Browser, exported: Path, run: Path) -> None:
    page = browser.new_page()
    page.goto(exported.as_uri() + "#temperature=0&max_tokens=4000")
    expect(page.locator("#write")).to_be_enabled()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Write").click()
    expect(page.locator("#answer > span").nth(20)).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#state")).to_contain_text("Stopped after")
    held = page.locator("#answer > span").count()
    page.locator("#max_tokens-number").fill("200")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#said")).to_contain_text("Done, 200 tokens")
    said = page.locator("#answer").evaluate("each => each.textContent")
    assert said == text_of(resolve(run), ours(exported, resolve(run), **GREEDY))
    assert held < 4000
    page.close()


TEXTS = [
    "",
    "The don't we'LL\t\n\n  x  ",
    "Ünïcödé 東京 1234567 ½ ²",
    "a\u0085b\ufeffc\u00a0d\u2028e",
    "🙂🏳️‍🌈 e\u0301",
    "x" * 300,
]


@pytest.mark.parametrize("kind", ["byte", "char", "bpe", "cl100k_base", "o200k_base"])
def test_it_cuts_text_as_the_tokenizer_does(kind: str, some_text: str, text_file: Path, blank: Page) -> None:
    vocab_size = 600 if kind not in ("byte", "char") else None
    chosen = TokenizerConfig(kind=kind if kind in ("byte", "char") else "bpe", vocab_size=vocab_size)
    tokenizer = train_tokenizer(chosen, [some_text], 100_000)
    if kind in ENCODINGS and (pattern := ENCODINGS[kind].pieces):  # cut as these do, with merges of our own
        inner = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        cut = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
        inner.model.ignore_merges = True
        tokenizer = Tokenizer(inner)
    script, texts = (SCRIPTS / "tokenizer.js").read_text(), [*TEXTS, some_text[:5000]]
    made = blank.evaluate(
        f"({{ facts, texts }}) => {{ {script}; const made = new Tokenizer(facts); "
        "return texts.map((each) => made.encodePrompt(each)); }",
        {"facts": tokenizer_facts(text_file, tokenizer), "texts": texts},
    )
    for text, ids in zip(texts, made, strict=True):
        assert ids == tokenizer.encode_prompt(text), text


def test_what_it_cannot_do_is_refused_in_one_line(
    tmp_path: Path, untrained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = untrained("wordpiece", modern(**SMALL))
    assert main(["export", str(folder), "--to", "html", "--out", str(tmp_path / "a.html")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "WordPiece, not BPE" in line
    assert "--tokenizer.kind bpe" in line
    folder = untrained("byte", modern(**SMALL))
    monkeypatch.setattr("hornbook.exchange.one_page.COMPUTED", {"activation": ("relu",)})
    with pytest.raises(UserError, match="cannot compute activation swiglu, only relu"):
        export_model(folder, "html", tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_a_half_that_cannot_hold_a_weight_is_refused(untrained: Callable[..., Path], tmp_path: Path) -> None:
    folder = untrained("byte", modern(**SMALL))
    model = load_model(folder)
    with torch.no_grad():
        model.head.weight[0, 0] = 1e6
    with files.staged_folder(tmp_path / "large") as staging:
        save_model(model, Tokenizer.load(folder), staging)
    with pytest.raises(UserError, match=r"head\.weight holds numbers that f16 cannot hold; --dtype int8"):
        export_model(tmp_path / "large", "html", tmp_path / "a.html")
    export_model(tmp_path / "large", "html", tmp_path / "a.html", dtype="int8")
