"""Damaged and hostile files of each program: one line that names the file, soon, with nothing run, written or taken."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tensorflow_files
import torch
from references import SYSTEMS, Sizes, Weights, weights
from refusing import refused
from system_files import KEPT_IN, written

from hornbook.base.errors import UserError
from hornbook.exchange.imports import import_model
from hornbook.exchange.programs import PROGRAMS
from hornbook.exchange.tensorflow import read_checkpoint
from hornbook.model.folder import load_model

SIZES = Sizes()
Letters = Callable[[int], Path]
Damage = Callable[[Weights], None]


def at_layer_1(state: Weights, ends: str = ".weight") -> str:
    """A matrix in the second block."""
    blocks = ("h.1.", "trf_blocks.1.", "decoder_stack.1.", "attn_blocks.1.")
    return next(
        name
        for name, each in state.items()
        if any(block in name for block in blocks) and name.endswith(ends) and each.ndim == 2 and "tril" not in name
    )


def embedding(state: Weights) -> str:
    return next(
        name for name in state if name.endswith(("tok_emb.weight", "wte.weight", "shared.weight", "embed.weight"))
    )


def missing(state: Weights) -> None:
    del state[at_layer_1(state)]


def no_embedding(state: Weights) -> None:
    name = embedding(state)
    state["embedding_of_another_program.weight"] = state.pop(name)
    state.pop("lm_head.weight", None)


def extra(state: Weights) -> None:
    state["more.weight"] = np.ones((2, 2), np.float32)


def misshapen(state: Weights) -> None:
    state[at_layer_1(state)] = state[at_layer_1(state)][:-1]


def with_an_axis_more(state: Weights) -> None:
    state[at_layer_1(state)] = state[at_layer_1(state)][None]


def of_integers(state: Weights) -> None:
    state[at_layer_1(state)] = np.ones_like(state[at_layer_1(state)], np.int64)


def flat_embedding(state: Weights) -> None:
    state[embedding(state)] = state[embedding(state)].reshape(-1)
    state.pop("lm_head.weight", None)


def of_a_layer_far_away(state: Weights) -> None:
    name = at_layer_1(state)
    state[name.replace(".1.", ".99999999.", 1)] = state.pop(name)


def two_conventions(state: Weights) -> None:
    block = at_layer_1(state).partition(".1.")[0]
    state[f"{block}.1.attention.qkv.weight"] = np.ones((72, 24), np.float32)


def of_two_programs(state: Weights) -> None:
    marks = [program.layout.name("embedding") for program in PROGRAMS]
    state[next(mark for mark in marks if mark not in state)] = np.ones((61, 24), np.float32)


def nothing(state: Weights) -> None:
    state.clear()


def empty_embedding(state: Weights) -> None:
    state[embedding(state)] = state[embedding(state)][:, :0]
    state.pop("lm_head.weight", None)


DAMAGES: dict[str, Damage] = {
    name: act for name, act in list(globals().items()) if callable(act) and name in (
        "missing", "no_embedding", "extra", "misshapen", "with_an_axis_more", "of_integers", "flat_embedding",
        "of_a_layer_far_away", "two_conventions", "of_two_programs", "nothing", "empty_embedding",
    )
}  # fmt: skip
SAYS = {
    "missing": "is missing",
    "extra": "tensor more.weight is not of this model",
    "misshapen": "the model has",
    "of_integers": "holds torch.int64",
    "two_conventions": "qkv.weight is not of this model",
}


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory, letters: Letters) -> None:
    """What is loaded once is loaded before memory and time are looked at."""
    folder = tmp_path_factory.mktemp("warm")
    for form in ("nanogpt", "shakespeare-124m openai", "shakespeare-124m huggingface"):
        state = weights(SYSTEMS[form.partition(" ")[0]], SIZES, 1)
        path, _ = written(form, state, SIZES, folder / form)
        import_model(str(path), folder / f"{form} out", tokenizer=letters(61))


def refused_on_import(path: Path, letters: Letters, **knobs: Any) -> str:
    out = path.parent / "out"
    return refused(lambda: import_model(str(path), out, knobs=knobs, tokenizer=letters(61)), path)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("form", KEPT_IN)
def test_a_state_dict_that_is_not_the_program_s_is_refused(
    form: str, damage: str, letters: Letters, tmp_path: Path
) -> None:
    state = weights(SYSTEMS[form], SIZES, 1)
    DAMAGES[damage](state)
    path, knobs = written(form, state, SIZES, tmp_path / "a")
    assert SAYS.get(damage, "") in refused_on_import(path, letters, **knobs)


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", KEPT_IN)
def test_code_in_a_file_does_not_run_and_a_cut_file_is_refused(form: str, letters: Letters, tmp_path: Path) -> None:
    state = weights(SYSTEMS[form], SIZES, 1)
    path, knobs = written(form, state, SIZES, tmp_path / "a")
    whole = path.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        refused_on_import(path, letters, **knobs)
    tree = KEPT_IN[form][1](state, SIZES)
    torch.save(dict(tree) | {"attack": Attack(tmp_path / "ran")}, path)
    assert "holds more than weights" in refused_on_import(path, letters, **knobs)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"n_head": 5}, "n-head"),
        ({"n_head": "3"}, "n-head"),
        ({"n_head": -3}, "n-head"),
        ({"n_head": 10**30}, "n-head"),
        ({"n_layer": 9_999}, "claims 9,999 layers"),
        ({"n_layer": 1}, "not of this model"),
        ({"vocab_size": 10**12}, "vocab-size"),
        ({"vocab_size": 60}, "the model has"),
        ({"block_size": 12}, "the model has"),
        ({"n_embd": [24]}, "n-embd"),
        ({"dropout": 2.0}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
    ],
)
def test_arguments_that_lie_about_the_tensors_are_refused(
    said: dict[str, Any], says: str, letters: Letters, tmp_path: Path
) -> None:
    state = weights(SYSTEMS["nanogpt"], SIZES, 1)
    tree = KEPT_IN["nanogpt"][1](state, SIZES)
    tree["model_args"] |= said
    path = tmp_path / "a" / "ckpt.pt"
    path.parent.mkdir()
    torch.save(tree, path)
    with pytest.raises(UserError) as caught:
        import_model(str(path), tmp_path / "a" / "out", tokenizer=letters(61))
    assert says in str(caught.value)
    assert all(len(line) <= 200 and "ckpt.pt" in line for line in caught.value.mistakes)
    assert not (tmp_path / "a" / "out").exists()


def test_what_the_file_cannot_tell_is_asked_for(letters: Letters, tmp_path: Path) -> None:
    for form in ("the-verdict", "wikitext-wordpiece", "julius-caesar-small"):
        path, _ = written(form, weights(SYSTEMS[form], SIZES, 1), SIZES, tmp_path / form)
        assert "name it: --n-head" in refused_on_import(path, letters)


def test_what_the_file_tells_is_not_to_be_told(letters: Letters, tmp_path: Path) -> None:
    for form in ("nanogpt", "pile", "shakespeare-124m huggingface"):
        state = weights(SYSTEMS[form.partition(" ")[0]], SIZES, 1)
        path, _ = written(form, state, SIZES, tmp_path / form)
        with pytest.raises(UserError, match="leave --n-head out"):
            import_model(str(path), tmp_path / "out", knobs={"n_head": 4}, tokenizer=letters(61))


def test_heads_are_found_in_the_config_beside(letters: Letters, tmp_path: Path) -> None:
    """Its trainer writes checkpoints/ beside config/config.json."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(json.dumps({"model": {"n_heads": 3}}))
    path, _ = written("wikitext-wordpiece", weights(SYSTEMS["wikitext-wordpiece"], SIZES, 1), SIZES, tmp_path / "at")
    found = import_model(str(path), tmp_path / "out", tokenizer=letters(61))
    assert found.config.n_head == 3
    assert "config.json" in found.notes[0]


# A Hugging Face folder.


def folder_with(tmp_path: Path, **said: Any) -> Path:
    """A sound folder, but for what its config says."""
    folder, _ = written(
        "shakespeare-124m huggingface", weights(SYSTEMS["shakespeare-124m"], SIZES, 1), SIZES, tmp_path / "a"
    )
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | said))
    return folder


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"n_layer": 9_999}, "claims 9,999 layers"),
        ({"n_layer": 10**400}, "n-layer"),
        ({"vocab_size": 10**12}, "vocab-size"),
        ({"n_positions": 10**13}, "context"),
        ({"n_embd": 10**12 + 1, "n_head": 7 * 10**11}, "n-head"),
        ({"n_embd": 10**12, "n_head": 1}, "n-embd"),
        ({"n_layer": "2"}, "n-layer"),
        ({"n_embd": -24}, "n-embd"),
        ({"n_head": 5}, "n-head"),
        ({"n_head": 2.5}, "n-head"),
        ({"model_type": "bert"}, "it reads gpt2"),
        ({"model_type": ["gpt2"]}, "it reads gpt2"),
        ({"activation_function": ["gelu"]}, "activation_function"),
        ({"resid_pdrop": "a"}, "resid_pdrop"),
        ({"layer_norm_epsilon": "x"}, "norm-eps"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"hornbook": {"n_layer": -1}}, "n-layer"),
        (
            {"model_type": "hornbook", "hornbook": {"vocab_size": 61, "n_layer": 9_999, "n_embd": 24, "n_head": 3}},
            "claims 9,999 layers",
        ),
        (
            {"hornbook": {"vocab_size": 61, "n_layer": 2, "n_embd": 24, "n_head": 3, "context": 10**15}},
            "context",
        ),
    ],
)
def test_a_config_that_lies_is_refused(said: dict[str, Any], says: str, letters: Letters, tmp_path: Path) -> None:
    folder = folder_with(tmp_path, **said)
    path = folder / "config.json"
    out = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        import_model(str(folder), out, tokenizer=letters(61))
    assert says in str(caught.value)
    for line in caught.value.mistakes:
        assert len(line) <= 200
        assert path.name in line or "model.safetensors" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type"),
        ({"rope_scaling": "linear"}, "rope_parameters"),
        ({"rope_theta": "many"}, "rope-theta"),
        ({"max_position_embeddings": 10**15}, "context"),
        ({"num_key_value_heads": 3}, "n-kv-head"),
        ({"num_key_value_heads": 0}, "n-kv-head"),
        ({"head_dim": 10**12}, "head-width"),
        ({"intermediate_size": True}, "mlp-width"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_sliding_window": True}, "use_sliding_window"),
    ],
)
def test_a_rotary_config_that_lies_is_refused(
    said: dict[str, Any], says: str, letters: Letters, tmp_path: Path
) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    sound = {"model_type": "llama", "hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 1}
    sound |= {"intermediate_size": 36, "max_position_embeddings": 24, "vocab_size": 61}
    (folder / "config.json").write_text(json.dumps(sound | said))
    state = {"model.embed_tokens.weight": np.ones((61, 24), np.float32)}
    state |= {f"model.layers.0.more.{each}": np.ones((30, 24), np.float32) for each in range(9)}
    safetensors.numpy.save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError) as caught:
        import_model(str(folder), tmp_path / "out", tokenizer=letters(61))
    assert says in str(caught.value)
    assert all(len(line) <= 200 for line in caught.value.mistakes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "extra", "misshapen", "of_integers", "with_an_axis_more"])
def test_a_folder_s_wrong_tensor_is_named(damage: str, letters: Letters, tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    path = folder / "model.safetensors"
    state = safetensors.numpy.load_file(path)
    DAMAGES[damage](state)
    safetensors.numpy.save_file(state, path)
    out = tmp_path / "a" / "out"
    refused(lambda: import_model(str(folder), out, tokenizer=letters(61)), path)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"wte.weight": "../x.safetensors"}}, "outside its folder"),
        ({"weight_map": {"wte.weight": "/etc/passwd"}}, "outside its folder"),
        ({"weight_map": {"wte.weight": "config.json"}}, "none of weights"),
        ({"weight_map": {"wte.weight": "a.safetensors"}}, "a.safetensors: no such file"),
        ({"weight_map": {"wte.weight": 3}}, "no weight_map"),
        ({"weight_map": ["a"]}, "no weight_map"),
        ({}, "no weight_map"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(
    index: dict[str, Any], says: str, letters: Letters, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path)
    (folder / "model.safetensors").rename(tmp_path / "x.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=says) as caught:
        import_model(str(folder), tmp_path / "out", tokenizer=letters(61))
    assert len(caught.value.mistakes) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 8, b"\xff" * 16, (2**40).to_bytes(8, "little") + b"{}", b"\x02\0\0\0\0\0\0\0{}", b"PK\x03\x04more"],
)
def test_what_is_no_safetensors_file_is_refused(data: bytes, letters: Letters, tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(data)
    refused(lambda: import_model(str(folder), folder / "out", tokenizer=letters(61)), path)


# OpenAI's files.


@pytest.mark.parametrize("damage", ["missing", "extra", "misshapen", "of_integers"])
def test_openai_s_wrong_tensor_is_named(damage: str, letters: Letters, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    written("shakespeare-124m openai", weights(SYSTEMS["shakespeare-124m"], SIZES, 1), SIZES, folder)
    held = {name: each.numpy() for name, each in read_checkpoint(folder).items()}
    name = "model/h1/attn/c_attn/w"
    if damage == "missing":
        del held[name]
    elif damage == "extra":
        held["model/more"] = np.ones(3, np.float32)
    else:
        held[name] = held[name][:, :-1] if damage == "misshapen" else np.ones_like(held[name], np.int64)
    rows, data = tensorflow_files.rows_and_data(held)
    tensorflow_files.write(folder / "model.ckpt", tensorflow_files.table(rows), data)
    line = refused(lambda: import_model(str(folder), folder / "out", tokenizer=letters(61)), folder)
    assert ("model/more" if damage == "extra" else name) in line


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"n_head": 5}, "n-head"),
        ({"n_head": "3"}, "n-head"),
        ({"n_layer": 9_999}, "claims 9,999 layers"),
        ({"n_layer": -1}, "n-layer"),
        ({"n_vocab": 10**12}, "vocab-size"),
        ({"n_ctx": None}, "context"),
        ({"n_embd": 25, "n_head": 1}, "the model has"),
    ],
)
def test_hparams_that_lie_are_refused(said: dict[str, Any], says: str, letters: Letters, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    written("shakespeare-124m openai", weights(SYSTEMS["shakespeare-124m"], SIZES, 1), SIZES, folder)
    path = folder / "hparams.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    with pytest.raises(UserError) as caught:
        import_model(str(folder), tmp_path / "out", tokenizer=letters(61))
    assert says in str(caught.value)
    assert all(len(line) <= 200 for line in caught.value.mistakes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["no index", "no data", "cut", "flipped", "not json", "a list", "no heads"])
def test_openai_s_damaged_files_are_refused(damage: str, letters: Letters, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    written("shakespeare-124m openai", weights(SYSTEMS["shakespeare-124m"], SIZES, 1), SIZES, folder)
    data, hparams = folder / "model.ckpt.data-00000-of-00001", folder / "hparams.json"
    if damage in ("no index", "no data"):
        (folder / "model.ckpt.index" if damage == "no index" else data).unlink()
    elif damage == "cut":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "flipped":
        whole = bytearray(data.read_bytes())
        whole[len(whole) // 2] ^= 4
        data.write_bytes(whole)
    else:
        hparams.write_text({"not json": "{", "a list": "[]", "no heads": '{"n_layer": 2}'}[damage])
    line = refused(lambda: import_model(str(folder), folder / "out", tokenizer=letters(61)), folder)
    assert str(folder.name) in line


# Tokenizers, and where the result goes.


@pytest.mark.parametrize(
    ("vocabulary", "merges", "says"),
    [
        ("{}", "", "<|endoftext|>"),
        ("[]", "", "JSON object"),
        ('{"a": 5}', "", "without a gap"),
        ('{"a": "0"}', "", "without a gap"),
        ('{"a": 0, "b": 1}', "", "<|endoftext|>"),
        ('{"a": 0, "<|endoftext|>": 1}', "a c\n", "line 1"),
        ('{"a": 0, "<|endoftext|>": 1}', "#version: 0.2\na\n", "line 2"),
        ('{"a": 0, "\\u4e00": 1, "<|endoftext|>": 2}', "", "no token of GPT-2"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(vocabulary: str, merges: str, says: str, tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "vocab.json").write_text(vocabulary)
    (folder / "merges.txt").write_text(merges)
    with pytest.raises(UserError) as caught:
        import_model(str(folder), tmp_path / "out")
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_does_not_fit_is_refused(letters: Letters, tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    with pytest.raises(UserError, match="has 62 entries, the model 61"):
        import_model(str(folder), tmp_path / "out", tokenizer=letters(62))
    with pytest.raises(UserError, match="--tokenizer FOLDER"):
        import_model(str(folder), tmp_path / "out")
    with pytest.raises(UserError, match=r"no tokenizer\.json there"):
        import_model(str(folder), tmp_path / "out", tokenizer=folder)
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_never_replaced(letters: Letters, tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        import_model(str(folder), tmp_path / "out", tokenizer=letters(61))
    assert (tmp_path / "out" / "precious").read_text() == "mine"


def test_a_state_dict_of_ours_needs_its_config(letters: Letters, tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    import_model(str(folder), tmp_path / "ours", tokenizer=letters(61))
    path = tmp_path / "b" / "a.pt"
    path.parent.mkdir()
    state = load_model(tmp_path / "ours").state_dict()
    for tree, says in (
        (dict(state), "without their config"),
        ({"model_state_dict": state, "config": {"n_layers": 2}}, "did you mean"),
        ({"model_state_dict": state, "config": {"n_layer": 9_999, "vocab_size": 61}}, "claims 9,999 layers"),
    ):
        torch.save(tree, path)
        assert says in refused_on_import(path, letters)
