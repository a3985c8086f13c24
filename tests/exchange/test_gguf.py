"""A model folder becomes the GGUF that others read as the same model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import safetensors.torch
import torch
import transformers
from refusing import refused
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from effort import long
from hornbook.base.errors import UserError
from hornbook.exchange.gguf import export_gguf
from hornbook.model.config import ModelConfig, classic, modern
from hornbook.model.folder import save_model
from hornbook.model.init import untrained
from hornbook.text.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from spread import spread

SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_head": 3, "n_embd": 48, "context": 40},
    "gpt2-untied": {"n_layer": 1, "n_head": 2, "n_embd": 64, "context": 24, "tied": False},
    "qwen3": {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "head_width": 24, "context": 40},
    "qwen3-tied": {"n_layer": 3, "n_head": 2, "n_embd": 32, "context": 24, "tied": True},
}
TEXTS = [
    "class Foo(Bar):\n    def __init__(self, x=1234):\n        self.x = x\n\n\n",
    "It's  the   user's   'café' — 12,345 naïve 日本語 🚀\t\ttabs \r\n and blanks   ",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n'RE you sure? I'LL make it, we'd've",
]


@pytest.fixture(scope="module")
def bpe(some_text: str) -> Tokenizer:
    return train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=600), [some_text], 0)


def folder_of(name: str, tokenizer: Tokenizer, folder: Path) -> Path:
    folder.mkdir()
    if name == "llama":
        return llama_folder(tokenizer, folder)
    preset = classic if name.startswith("gpt2") else modern
    config = preset(vocab_size=tokenizer.vocab_size, **SIZES[name])
    save_model(spread(untrained(config)), tokenizer, folder)
    return folder


def llama_folder(tokenizer: Tokenizer, folder: Path, **knobs: Any) -> Path:
    end = tokenizer.end_of_text
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 80, "max_position_embeddings": 40, "vocab_size": tokenizer.vocab_size}
    config = transformers.LlamaConfig(**(sizes | {"bos_token_id": end, "eos_token_id": end} | knobs))
    spread(transformers.LlamaForCausalLM(config)).save_pretrained(folder)
    tokenizer.save(folder, 40)
    return folder


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """By llama.cpp's own library."""
    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in reader.tensors}
    return metadata, {name: torch.from_numpy(each.copy()) for name, each in tensors.items()}


def changed(folder: Path, name: str = "config.json", **values: Any) -> None:
    path = folder / name
    held = json.loads(path.read_text())
    held.pop("hornbook", None)  # as another program writes it
    path.write_text(json.dumps(held | values))


def read_by_transformers(folder: Path, path: Path) -> torch.nn.Module:
    """The sizes come from the folder, for transformers' reader of GGUF passes over some; the weights from the file."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).eval()
    found = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unknown = model.load_state_dict({name: value.float() for name, value in found.items()}, strict=False)
    assert unknown == []
    assert missing in ([], ["lm_head.weight"])
    model.tie_weights()
    return model


@pytest.mark.parametrize(("dtype", "within"), [("f32", 0.0), ("f16", 0.02), ("bf16", 0.15), ("q8_0", 0.3)])
@pytest.mark.parametrize("name", [*SIZES, "llama"])
def test_transformers_reads_the_same_model_from_it(
    name: str, dtype: str, within: float, bpe: Tokenizer, tmp_path: Path
) -> None:
    folder, path = folder_of(name, bpe, tmp_path / "model"), tmp_path / "a.gguf"
    export_gguf(folder, path, dtype)
    wanted, read = AutoModelForCausalLM.from_pretrained(folder).eval(), read_by_transformers(folder, path)
    ids = torch.tensor([bpe.encode(TEXTS[0])[:20]])
    with torch.no_grad():
        one, other = wanted(ids).logits, read(ids).logits
    assert one.std() > 0.5
    assert (one - other).abs().max() <= within
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) == 2}
    positions = {"F32"} if name.startswith("gpt2") else set()
    uneven = {"F16"} if dtype == "q8_0" and name in ("gpt2", "llama") else set()
    assert kinds == {dtype.upper()} | positions | uneven


@pytest.mark.parametrize("name", [*SIZES, "llama"])
def test_names_and_keys_are_those_of_llama_cpp(name: str, bpe: Tokenizer, tmp_path: Path) -> None:
    folder, path = folder_of(name, bpe, tmp_path / "model"), tmp_path / "a.gguf"
    export_gguf(folder, path, "f32")
    metadata, tensors = read_gguf(path)
    config = AutoConfig.from_pretrained(folder)
    kind, layers = config.model_type, config.num_hidden_layers
    architecture = gguf.MODEL_ARCH[kind.upper()]
    names = gguf.get_tensor_name_map(architecture, layers)
    theirs = safetensors.torch.load_file(folder / "model.safetensors")
    assert set(tensors) == {names.get_name(each, try_suffixes=(".weight", ".bias")) for each in theirs}
    keys = gguf.Keys
    known = {
        key.replace("{arch}", kind)
        for group in (keys.General, keys.LLM, keys.Attention, keys.Rope, keys.Tokenizer)
        for label, key in vars(group).items()
        if label.isupper()
    }
    assert set(metadata) <= known
    wanted = {
        keys.General.ARCHITECTURE: kind,
        keys.General.FILE_TYPE: gguf.LlamaFileType.ALL_F32,
        keys.LLM.CONTEXT_LENGTH: config.max_position_embeddings,
        keys.LLM.EMBEDDING_LENGTH: config.hidden_size,
        keys.LLM.BLOCK_COUNT: layers,
        keys.LLM.VOCAB_SIZE: config.vocab_size,
        keys.Attention.HEAD_COUNT: config.num_attention_heads,
        keys.Tokenizer.BOS_ID: bpe.end_of_text,
        keys.Tokenizer.EOS_ID: bpe.end_of_text,
        keys.Tokenizer.ADD_BOS: False,
    }
    if kind == "gpt2":
        wanted |= {keys.LLM.FEED_FORWARD_LENGTH: 4 * config.n_embd, keys.Attention.LAYERNORM_EPS: 1e-5}
    else:
        wanted |= {
            keys.LLM.FEED_FORWARD_LENGTH: config.intermediate_size,
            keys.Attention.HEAD_COUNT_KV: config.num_key_value_heads,
            keys.Attention.KEY_LENGTH: config.head_dim,
            keys.Attention.VALUE_LENGTH: config.head_dim,
            keys.Attention.LAYERNORM_RMS_EPS: config.rms_norm_eps,
            keys.Rope.FREQ_BASE: config.rope_parameters["rope_theta"],
            keys.Rope.DIMENSION_COUNT: config.head_dim,
        }
    for key, value in wanted.items():
        found = metadata[key.format(arch=kind)]
        assert found == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key


def test_llama_s_rows_are_rotated_side_by_side(bpe: Tokenizer, tmp_path: Path) -> None:
    """As ggml rotates: numbers 2i and 2i + 1 of a head by the angle of i. Scores must be as transformers has them."""
    folder, path = folder_of("llama", bpe, tmp_path / "model"), tmp_path / "a.gguf"
    export_gguf(folder, path, "f32")
    _, tensors = read_gguf(path)
    theirs = safetensors.torch.load_file(folder / "model.safetensors")
    x = torch.randn(6, 32)
    angles = torch.outer(torch.arange(6.0), 10000.0 ** (-torch.arange(4) / 4))

    def halves(rows: torch.Tensor) -> torch.Tensor:
        one, other = rows[..., :4], rows[..., 4:]
        return torch.cat([one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()], -1)

    def pairs(rows: torch.Tensor) -> torch.Tensor:
        one, other = rows[..., 0::2], rows[..., 1::2]
        turned = [one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()]
        return torch.stack(turned, -1).flatten(-2)

    def scores(query: torch.Tensor, key: torch.Tensor, rotate: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        q, k = ((x @ each.T).unflatten(-1, (-1, 8)).transpose(0, 1) for each in (query, key))
        return rotate(q) @ rotate(k.repeat_interleave(2, 0)).mT

    layer = "model.layers.1.self_attn"
    wanted = scores(theirs[f"{layer}.q_proj.weight"], theirs[f"{layer}.k_proj.weight"], halves)
    found = scores(tensors["blk.1.attn_q.weight"], tensors["blk.1.attn_k.weight"], pairs)
    assert torch.allclose(wanted, found, atol=1e-4)


@pytest.mark.parametrize("kind", ["bpe", "byte"])
def test_the_vocabulary_cuts_text_into_the_same_ids(kind: str, bpe: Tokenizer, some_text: str, tmp_path: Path) -> None:
    tokenizer = bpe if kind == "bpe" else train_tokenizer(TokenizerConfig(kind="byte"), [], 0)
    export_gguf(folder_of("gpt2", tokenizer, tmp_path / "model"), tmp_path / "a.gguf")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    for text in [*TEXTS, some_text[:20_000]]:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    metadata, _ = read_gguf(tmp_path / "a.gguf")
    assert metadata["tokenizer.ggml.tokens"] == [tokenizer.name(token) for token in range(tokenizer.vocab_size)]
    kinds = metadata["tokenizer.ggml.token_type"]
    assert {token for token, each in enumerate(kinds) if each == gguf.TokenType.CONTROL} == {tokenizer.end_of_text}
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"


@long
def test_gpt2_s_own_vocabulary_is_carried(test_data: Path, tmp_path: Path) -> None:
    ranks = next(test_data.rglob("r50k_base.tiktoken"), None)
    if ranks is None:
        pytest.skip("no r50k_base.tiktoken in the test data")
    tokenizer = train_tokenizer(TokenizerConfig(kind="gpt2", ranks_file=str(ranks)), [], 0)
    export_gguf(folder_of("qwen3-tied", tokenizer, tmp_path / "model"), tmp_path / "a.gguf", "q8_0")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    for text in TEXTS:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)


def test_rows_without_a_token_are_filled_up(bpe: Tokenizer, tmp_path: Path) -> None:
    folder = llama_folder(bpe, (tmp_path / "model"), vocab_size=608)
    export_gguf(folder, tmp_path / "a.gguf")
    metadata, _ = read_gguf(tmp_path / "a.gguf")
    assert metadata["tokenizer.ggml.tokens"][-2:] == ["[PAD606]", "[PAD607]"]
    assert metadata["tokenizer.ggml.token_type"][-2:] == [gguf.TokenType.UNUSED] * 2


@pytest.fixture
def model(bpe: Tokenizer, tmp_path: Path) -> Path:
    return folder_of("gpt2", bpe, tmp_path / "model")


@pytest.mark.parametrize("kind", ["char", "wordpiece"])
def test_a_vocabulary_that_llama_cpp_lacks_is_refused(kind: str, some_text: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TokenizerConfig.model_validate({"kind": kind}), [some_text[:5000]], 0)
    folder = folder_of("gpt2", tokenizer, tmp_path / "model")
    line = refused(lambda: export_gguf(folder, tmp_path / "a.gguf"), folder / "tokenizer.json")
    assert "llama.cpp has no tokenizer like this one" in line
    assert "--tokenizer.kind bpe, gpt2 or byte" in line


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+"
SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [SPLIT, BYTES]}, "cuts text in another way"),
        ("pre_tokenizer", BYTES, "cuts text in another way"),
        ("pre_tokenizer", BYTES | {"add_prefix_space": True, "use_regex": True}, "a blank of its own"),
        ("pre_tokenizer", {"type": "Whitespace"}, "not bytes"),
        ("pre_tokenizer", None, "not a tokenizer"),
        ("normalizer", {"type": "NFC"}, "changes text by NFC"),
        ("decoder", {"type": "Fuse"}, "not bytes"),
        ("post_processor", {"type": "TemplateProcessing"}, "adds tokens by TemplateProcessing"),
        ("model", {"type": "Unigram", "vocab": []}, "not BPE"),
        ("model", {"type": "BPE", "vocab": 3}, "not a tokenizer"),
        ("model", {}, "not a tokenizer"),
        ("added_tokens", None, "not a tokenizer"),
        ("added_tokens", [{"id": 10**6, "content": "a", "special": True}], "not of one folder"),
        ("added_tokens", [{"id": 0, "content": "a", "special": True}], "two ids for one token"),
    ],
)
def test_a_tokenizer_that_would_give_other_ids_is_refused(part: str, value: Any, told: str, model: Path) -> None:
    changed(model, "tokenizer.json", **{part: value})
    assert told in refused(lambda: export_gguf(model, model.parent / "a.gguf"), model / "tokenizer.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"unk_token": "a"}, "it has unk_token"),
        ({"dropout": 0.1}, "it has dropout"),
        ({"byte_fallback": True}, "it has byte_fallback"),
        ({"ignore_merges": True}, "it has ignore_merges"),
        ({"merges": [["a", "\ufffd"]]}, "merges tokens that are not in its vocabulary"),
        ({"merges": ["a b c"]}, "merges tokens that are not"),
        ({"merges": [3]}, "not a tokenizer"),
        ({"vocab": {"a": 0, "b": 1}, "merges": []}, "of the 256 bytes have no token"),
        ({"vocab": {"a": "b"}}, "not of one folder"),
    ],
)
def test_a_damaged_vocabulary_is_refused(change: dict[str, Any], told: str, model: Path) -> None:
    inner = json.loads((model / "tokenizer.json").read_text())["model"] | change
    changed(model, "tokenizer.json", model=inner)
    assert told in refused(lambda: export_gguf(model, model.parent / "a.gguf"), model / "tokenizer.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n_layer": 3}, "tensor transformer.h.2.attn.c_attn.bias is missing"),
        ({"activation_function": "gelu"}, "the activation is gelu"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"eos_token_id": 600}, "eos_token_id should be the id of a token"),
        ({"bos_token_id": [1]}, "bos_token_id should be the id of a token"),
        ({"vocab_size": 601}, "transformer.wte.weight is (600, 48), the model has (601, 48)"),
    ],
)
def test_a_config_that_llama_cpp_cannot_follow_is_refused(change: dict[str, Any], told: str, model: Path) -> None:
    changed(model, **change)
    with pytest.raises(UserError, match=re.escape(told)):
        export_gguf(model, model.parent / "a.gguf")
    assert [each.name for each in model.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "q_proj.bias is missing"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        ({"head_dim": 16}, "the model has"),
    ],
)
def test_a_rotary_config_that_llama_cpp_cannot_follow_is_refused(
    change: dict[str, Any], told: str, bpe: Tokenizer, tmp_path: Path
) -> None:
    folder = folder_of("qwen3", bpe, tmp_path / "model")
    changed(folder, **change)
    with pytest.raises(UserError, match=re.escape(told)):
        export_gguf(folder, tmp_path / "a.gguf")


def test_a_damaged_folder_is_refused(model: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:4], b"", b"\xff" * 100):
        weights.write_bytes(data)
        assert "not a whole safetensors file" in refused(lambda: export_gguf(model, model.parent / "a.gguf"), weights)
    weights.unlink()
    assert "no such file" in refused(lambda: export_gguf(model, model.parent / "a.gguf"), weights)
    weights.write_bytes(whole)
    for name in ("tokenizer.json", "config.json"):
        (model / name).write_text("{")
        assert "not readable as JSON" in refused(lambda: export_gguf(model, model.parent / "a.gguf"), model / name)


def test_an_unknown_kind_is_told(model: Path) -> None:
    with pytest.raises(UserError, match="as f16, f32, q8_0, bf16, not as q4_k"):
        export_gguf(model, model.parent / "a.gguf", "q4_k")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (modern(activation="relu"), "knows no model of type hornbook"),
        (classic(activation="gelu"), "the activation is gelu"),
        (modern(biases=("qkv",)), "has biases (qkv)"),
    ],
)
def test_a_shape_that_llama_cpp_lacks_is_refused(
    config: ModelConfig, told: str, bpe: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    save_model(untrained(config.with_(vocab_size=bpe.vocab_size, **SIZES["gpt2-untied"])), bpe, tmp_path / "model")
    with pytest.raises(UserError, match=re.escape(told)):
        export_gguf(tmp_path / "model", tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("dtype", "number"), [("f16", 65520.0), ("q8_0", 1e7), ("bf16", 3.4e38), ("f32", math.inf), ("f32", math.nan)]
)
def test_numbers_that_a_kind_cannot_hold_are_told(dtype: str, number: float, bpe: Tokenizer, tmp_path: Path) -> None:
    folder = folder_of("qwen3", bpe, tmp_path / "model")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 7] = number
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up\.weight holds"):
        export_gguf(folder, tmp_path / "a.gguf", dtype)
    assert [each.name for each in tmp_path.iterdir()] == ["model"]
