"""Judged by transformers, which is given nothing but the path of a saved model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from hornbook.base.console import Progress
from hornbook.infer.config import SamplerConfig
from hornbook.infer.decode import generate
from hornbook.model.config import ModelConfig, classic, modern
from hornbook.model.folder import load_model
from hornbook.model.gpt import GPT
from hornbook.model.init import untrained
from hornbook.runs.folder import resolve
from hornbook.text.tokenizer import Tokenizer
from hornbook.train.config import RunConfig
from hornbook.train.start import fit

GREEDY = SamplerConfig(temperature=0.0, top_p=None)

TOLERANCE = 1e-4
ODD_SIZES = [
    classic(vocab_size=257, context=24, n_layer=2, n_head=3, n_embd=48),
    classic(vocab_size=100, context=9, n_layer=1, n_head=1, n_embd=10, mlp_width=7),
    classic(vocab_size=65, context=16, n_layer=2, n_head=2, n_embd=32, tied=False, norm_eps=1e-3),
    modern(vocab_size=257, context=24, n_layer=2, n_head=3, n_embd=48),
    modern(vocab_size=100, context=9, n_layer=1, n_head=1, n_embd=10, mlp_width=7),
    modern(vocab_size=65, context=16, n_layer=2, n_head=6, n_kv_head=2, n_embd=36),
    modern(vocab_size=65, context=16, n_layer=2, n_head=4, n_kv_head=1, n_embd=32, tied=True, norm_eps=1e-3),
    modern(vocab_size=131, context=20, n_layer=2, n_head=3, head_width=14, n_embd=32, rope_theta=500.0),
]


def sizes(config: ModelConfig) -> str:
    heads = f"{config.n_head}-{config.kv_heads}x{config.width_of_head}"
    return f"{config.norm} {heads} vocabulary {config.vocab_size}{' tied' if config.tied else ''}"


def some_ids(vocab_size: int, *shape: int) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(1))


def their_model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def their_continuation(model: Any, ids: list[int], new: int) -> list[int]:
    prompt = torch.tensor([ids])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, do_sample=False)
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("config", ODD_SIZES, ids=sizes)
def test_transformers_computes_the_same_logits(
    config: ModelConfig, random_model: Callable[..., GPT], saved: Callable[[GPT], Path]
) -> None:
    model = random_model(config)
    ids = some_ids(config.known_vocab_size, 3, config.context)
    with torch.no_grad():
        ours, theirs = model.logits(ids), their_model(saved(model))(ids).logits
    assert ours.std() > 0.1, "logits that are all alike would agree with anything"
    assert torch.allclose(ours, theirs, rtol=0, atol=TOLERANCE)


THEIR_NAMES = {
    "gpt2": {
        "embedding.weight": "transformer.wte.weight",
        "blocks.0.attention_norm.weight": "transformer.h.0.ln_1.weight",
        "blocks.0.attention.out.bias": "transformer.h.0.attn.c_proj.bias",
        "blocks.1.mlp.up.bias": "transformer.h.1.mlp.c_fc.bias",
        "norm.bias": "transformer.ln_f.bias",
    },
    "qwen3": {
        "embedding.weight": "model.embed_tokens.weight",
        "blocks.0.attention_norm.weight": "model.layers.0.input_layernorm.weight",
        "blocks.0.attention.query_norm.weight": "model.layers.0.self_attn.q_norm.weight",
        "blocks.0.attention.key.weight": "model.layers.0.self_attn.k_proj.weight",
        "blocks.1.mlp.gate.weight": "model.layers.1.mlp.gate_proj.weight",
        "head.weight": "lm_head.weight",
    },
}


def gradients(model: torch.nn.Module, logits: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten()).backward()
    return {name: parameter.grad.float() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("config", [ODD_SIZES[0], ODD_SIZES[2], ODD_SIZES[5], ODD_SIZES[7]], ids=sizes)
def test_transformers_computes_the_same_gradients(
    config: ModelConfig, random_model: Callable[..., GPT], saved: Callable[[GPT], Path]
) -> None:
    model = random_model(config)
    ids = some_ids(config.known_vocab_size, 3, config.context)
    their = their_model(saved(model))
    ours, theirs = gradients(model, model.logits(ids), ids), gradients(their, their(ids).logits, ids)
    for our_name, their_name in THEIR_NAMES[their.config.model_type].items():
        one, other = ours[our_name], theirs[their_name]
        assert (one - other).norm() < 1e-4 * other.norm(), our_name


@pytest.mark.parametrize(
    "config",
    [
        classic(vocab_size=50, context=32, n_layer=2, n_head=2, n_embd=32),
        modern(vocab_size=50, context=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=32),
        modern(vocab_size=50, context=300, n_layer=1, n_head=2, n_embd=32),
    ],
    ids=["classic", "modern, shared heads", "modern, long"],
)
def test_training_in_bf16_stays_near_fp32(config: ModelConfig, random_model: Callable[..., GPT]) -> None:
    exact = random_model(config).train()
    half = copy.deepcopy(exact).bfloat16()
    ids = some_ids(50, 2, config.context)
    ours, theirs = gradients(half, half.logits(ids), ids), gradients(exact, exact.logits(ids), ids)
    for name, other in theirs.items():
        if name.endswith("key.bias"):  # moves all scores of a query alike, so that its gradient is nothing but noise
            continue
        likeness = F.cosine_similarity(ours[name].flatten(), other.flatten(), dim=0)
        assert likeness > 0.99, name
        assert ours[name].norm().item() == pytest.approx(other.norm().item(), rel=0.1), name


@pytest.mark.parametrize(("preset", "kind"), [(classic, "char"), (modern, "byte"), (modern, "bpe")])
def test_a_trained_model_opens_in_transformers_by_its_path_alone(
    preset: Callable[..., ModelConfig],
    kind: str,
    tiny: Callable[..., RunConfig],
    some_text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shape = preset(n_layer=2, n_head=2, n_embd=32, context=48).model_dump()
    tokenizer_knobs = {"kind": kind, "vocab_size": 300 if kind == "bpe" else None}
    fit(tiny(model=shape, tokenizer=tokenizer_knobs, train={"steps": 20}), tmp_path / "run", Progress())
    folder = resolve(tmp_path / "run")
    model, tokenizer = load_model(folder), Tokenizer.load(folder)
    theirs, their_tokenizer = their_model(folder), transformers.AutoTokenizer.from_pretrained(folder)

    for text in (some_text[:2000], "naïve 🎈\r\n\tx  = 1", "<|endoftext|>", ""):
        assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text)

    ids = tokenizer.encode(some_text)[: 4 * 48]
    batch = torch.tensor(ids).view(4, 48)
    with torch.no_grad():
        assert torch.allclose(model.logits(batch), theirs(batch).logits, rtol=0, atol=TOLERANCE)

    end = tokenizer.end_of_text
    for prompt in (ids[:5], ids[50:70], [end]):
        ours = list(generate(model, prompt, GREEDY, max_tokens=24, end_of_text=end))
        expected = their_continuation(theirs, prompt, 24)
        assert ours == (expected[: expected.index(end)] if end in expected else expected)
    said = their_tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert said == tokenizer.decode(ids)


@pytest.mark.parametrize("preset", ["classic", "modern"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_later_token_changes_nothing_before_it(
    preset: str, dtype: torch.dtype, random_model: Callable[..., GPT]
) -> None:
    model = random_model(preset, vocab_size=50, context=12, n_layer=2, n_head=2, n_embd=16).to(dtype)
    ids = some_ids(50, 1, 12)
    before = model.logits(ids)
    for place in range(1, 12):
        changed = ids.clone()
        changed[0, place] = (ids[0, place] + 1) % 50
        after = model.logits(changed)
        assert torch.allclose(after[:, :place], before[:, :place], rtol=0, atol=1e-6)
        assert not torch.allclose(after[:, place], before[:, place], rtol=0, atol=1e-3)


def test_dropout_drops_in_training_alone(random_model: Callable[..., GPT]) -> None:
    model = random_model("classic", vocab_size=50, context=12, n_layer=1, n_head=2, n_embd=16, dropout=0.3)
    same = random_model(model.config.with_(dropout=0.0))
    ids = some_ids(50, 2, 12)
    assert torch.equal(model.logits(ids), same.logits(ids))
    model.train()
    assert not torch.equal(model.logits(ids), model.logits(ids))
    torch.manual_seed(5)
    first = model.logits(ids)
    torch.manual_seed(5)
    assert torch.equal(model.logits(ids), first)


def test_dropout_keeps_the_mean(random_model: Callable[..., GPT]) -> None:
    """Averaged over many drops, the embeddings that enter the first block are those without dropout."""
    model = random_model("modern", vocab_size=4, context=4, n_layer=1, n_head=1, n_embd=8, dropout=0.3).train()
    entering: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: entering.append(given[0]))
    model.hidden(torch.zeros(4000, 2, dtype=torch.long))
    whole = model.embedding.weight[0].detach()
    assert (entering[0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert torch.allclose(entering[0].detach().mean(dim=(0, 1)), whole, atol=0.05 * float(whole.abs().max()))


@pytest.mark.parametrize("preset", [classic, modern])
def test_an_untrained_model_finds_all_tokens_about_equally_likely(preset: Callable[..., ModelConfig]) -> None:
    torch.manual_seed(0)
    model = untrained(preset(vocab_size=1000, context=32, n_layer=3, n_head=4, n_embd=64))
    ids = some_ids(1000, 8, 33)
    loss = F.cross_entropy(model.logits(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(1000), abs=0.03)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("init", ["torch", "gpt2", "modern"])
@pytest.mark.parametrize("preset", [classic, modern])
def test_of_an_untrained_model_some_parameters_are_drawn_as_in_the_whole(
    preset: Callable[..., ModelConfig], init: str, tied: bool
) -> None:
    config = preset(vocab_size=65, context=16, n_layer=2, n_head=2, n_embd=16).with_(init=init, tied=tied)
    names = [name for name, _ in untrained(config).named_parameters()]
    for wanted in (set(names[::2]), set(names[1::2])):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            whole, drawn = dict(untrained(config).named_parameters()), torch.get_rng_state()
            torch.manual_seed(1)
            part = untrained(config, wanted.__contains__)
            assert torch.equal(torch.get_rng_state(), drawn)
        for name, parameter in part.named_parameters():
            assert parameter.is_meta == (name not in wanted)
            assert parameter.is_meta or torch.equal(parameter, whole[name])
        assert (part.head.weight is part.embedding.weight) == tied


def test_gpt2_begins_as_the_paper_says() -> None:
    torch.manual_seed(0)
    model = untrained(classic(vocab_size=500, context=64, n_layer=8, n_head=4, n_embd=64))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if name.endswith("bias") else 1.0))
        else:
            writes_to_the_stream = name.endswith(("attention.out.weight", "mlp.down.weight"))
            expected = 0.02 / math.sqrt(2 * 8) if writes_to_the_stream else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.06), name
            assert abs(parameter.mean().item()) < 0.05 * expected + 1e-4, name


def test_blocks_of_modern_begin_as_the_identity() -> None:
    torch.manual_seed(0)
    model = untrained(modern(vocab_size=500, context=16, n_layer=3, n_head=4, n_embd=64))
    stream = torch.randn(2, 16, 64)
    for block in model.blocks:
        assert torch.equal(block(stream, stream, None, model.rotation(torch.arange(16), stream), None), stream)
