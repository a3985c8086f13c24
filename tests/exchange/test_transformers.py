"""Models of transformers' come in, learn a step, and go out again; transformers judges all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hornbook.exchange.export import export_model
from hornbook.exchange.imports import import_model
from hornbook.model.folder import load_model, save_model
from hornbook.text.tokenizer import Tokenizer
from spread import spread

GPT2: list[dict[str, Any]] = [
    {"n_layer": 2, "n_head": 3, "n_embd": 24, "n_positions": 19, "vocab_size": 67},
    {"n_layer": 1, "n_head": 1, "n_embd": 10, "n_positions": 33, "vocab_size": 131, "n_inner": 30},
    {"n_layer": 3, "n_head": 4, "n_embd": 20, "n_positions": 21, "vocab_size": 35, "activation_function": "gelu"},
]
ROTARY: list[dict[str, Any]] = [
    {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2},
    {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 1, "num_hidden_layers": 1},
    {"hidden_size": 20, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 3},
]
OTHER = {"intermediate_size": 36, "max_position_embeddings": 24, "vocab_size": 71}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", sizes | {"tie_word_embeddings": tied}) for sizes in GPT2 for tied in (True, False)
]
CASES += [
    (kind, sizes | OTHER | {"tie_word_embeddings": tied} | ({"head_dim": 12} if kind == "qwen3" else {}))
    for kind in ("qwen3", "llama", "nanochat")
    for sizes in ROTARY
    for tied in (True, False)
    if not (kind == "nanochat" and tied)
]
CASES.append(("llama", ROTARY[0] | OTHER | {"attention_bias": True, "mlp_bias": True, "rope_theta": 5000.0}))
RATE = 1e-2
Letters = Callable[[int], Path]


def theirs_of(kind: str, sizes: dict[str, Any]) -> Any:
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    quiet = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0} if kind == "gpt2" else {}
    config = AutoConfig.for_model(kind, **(sizes | ids | quiet))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return spread(model)


def some_ids(vocab_size: int) -> torch.Tensor:
    return torch.randint(0, vocab_size, (3, 18), generator=torch.Generator().manual_seed(1))


def loss_of(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def learn(model: torch.nn.Module, logits: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor) -> list[float]:
    """The losses before, between and after two steps of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=1e-3)
    losses = []
    for _ in range(2):
        loss = loss_of(logits(ids), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return [*losses, loss_of(logits(ids), ids).item()]


@pytest.mark.parametrize(("kind", "sizes"), CASES, ids=lambda each: each if isinstance(each, str) else "")
def test_a_model_goes_in_learns_and_goes_out(
    kind: str, sizes: dict[str, Any], letters: Letters, tmp_path: Path
) -> None:
    theirs = theirs_of(kind, sizes)
    theirs.save_pretrained(tmp_path / "theirs")
    vocab_size = int(sizes["vocab_size"])
    import_model(str(tmp_path / "theirs"), tmp_path / "ours", tokenizer=letters(vocab_size))
    ours = load_model(tmp_path / "ours")
    ids = some_ids(vocab_size)
    with torch.no_grad():
        wanted = theirs(ids).logits
        assert wanted.std() > 0.1
        assert (ours.logits(ids) - wanted).abs().max() < 1e-4
    one, other = learn(ours, ours.logits, ids), learn(theirs, lambda ids: theirs(ids).logits, ids)
    assert one == pytest.approx(other, abs=1e-4)
    assert one[2] < one[1] < one[0]
    tokenizer = Tokenizer.load(tmp_path / "ours")
    (tmp_path / "trained").mkdir()
    save_model(ours, tokenizer, tmp_path / "trained")
    out = export_model(tmp_path / "trained", "hf", tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(out).eval()
    assert read.config.model_type == kind
    with torch.no_grad():
        assert (read(ids).logits - ours.logits(ids)).abs().max() < 1e-4
        assert (read(ids).logits - theirs(ids).logits).abs().max() < 1e-3  # after two steps on each side
    assert AutoTokenizer.from_pretrained(out)("ABBA").input_ids == tokenizer.encode("ABBA")


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_weights_in_several_files_are_one_model(kind: str, letters: Letters, tmp_path: Path) -> None:
    sizes = GPT2[0] if kind == "gpt2" else ROTARY[0] | OTHER
    theirs = theirs_of(kind, sizes)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    assert not (tmp_path / "theirs" / "model.safetensors").exists()
    import_model(str(tmp_path / "theirs"), tmp_path / "ours", tokenizer=letters(int(sizes["vocab_size"])))
    ids = some_ids(int(sizes["vocab_size"]))
    with torch.no_grad():
        difference = (load_model(tmp_path / "ours").logits(ids) - theirs(ids).logits).abs().max()
    assert difference < 1e-4


def test_an_older_folder_with_its_weights_from_torch_save(letters: Letters, tmp_path: Path) -> None:
    theirs = theirs_of("gpt2", GPT2[0])
    theirs.config.save_pretrained(tmp_path / "theirs")
    torch.save(theirs.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    import_model(str(tmp_path / "theirs"), tmp_path / "ours", tokenizer=letters(67))
    ids = some_ids(67)
    with torch.no_grad():
        assert (load_model(tmp_path / "ours").logits(ids) - theirs(ids).logits).abs().max() < 1e-4


def test_the_tokenizer_of_an_older_folder_is_read(some_text: str, tmp_path: Path) -> None:
    """vocab.json and merges.txt, as GPT-2 was first on the hub."""
    import tokenizers

    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator([some_text], vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    theirs = theirs_of("gpt2", GPT2[0] | {"vocab_size": 400})
    theirs.save_pretrained(tmp_path / "theirs")
    trained.save_model(str(tmp_path / "theirs"))
    judge = transformers.GPT2Tokenizer.from_pretrained(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), tmp_path / "ours")
    tokenizer = Tokenizer.load(tmp_path / "ours")
    text = some_text[:3000] + "naïve 日本語 🚀"
    assert tokenizer.encode(text) == judge(text).input_ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.end_of_text == judge.eos_token_id


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("to", ["hf", "pt"])
def test_what_goes_out_comes_back(to: str, dtype: str, letters: Letters, tmp_path: Path) -> None:
    theirs_of("gpt2", GPT2[0]).save_pretrained(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), tmp_path / "ours", tokenizer=letters(67))
    out = export_model(tmp_path / "ours", to, tmp_path / f"out.{to}", dtype=dtype)
    import_model(str(out), tmp_path / "again", tokenizer=letters(67))
    ours, again = load_model(tmp_path / "ours"), load_model(tmp_path / "again")
    assert again.config == ours.config
    kept = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for (name, one), (same, other) in zip(ours.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == same
        assert torch.equal(one.to(kept).float(), other)
    if to == "hf":
        assert json.loads((out / "config.json").read_text())["dtype"] == str(kept).removeprefix("torch.")
        stored = safetensors.torch.load_file(out / "model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {kept}
