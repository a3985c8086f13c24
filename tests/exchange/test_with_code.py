"""Models of no shape that transformers has, opened by transformers with the modelling file in their folder."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers.dynamic_module_utils
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hornbook.base.errors import UserError
from hornbook.cli import main
from hornbook.exchange.export import CODE, export_model
from hornbook.model.activations import ACTIVATIONS
from hornbook.model.config import ModelConfig
from hornbook.model.folder import load_model, save_model
from hornbook.model.gpt import GPT
from hornbook.model.init import untrained
from hornbook.model.norms import NORMS
from hornbook.model.positions import POSITIONS
from hornbook.text.tokenizer import Tokenizer
from rounding import rounding_of_logits
from spread import spread

Letters = Callable[[int], Path]
VOCAB = 41
SIZES: dict[str, Any] = {"vocab_size": VOCAB, "context": 20, "n_layer": 3, "n_head": 4, "n_embd": 32}
EVERYTHING: dict[str, Any] = {
    "n_kv_head": 2,
    "norm": "layernorm",
    "embedding_norm": True,
    "activation": "relu2",
    "qk_norm": "after",
    "attention_scale": 0.3,
    "out_projection": False,
    "biases": ("norm", "qkv", "mlp", "head"),
    "tied": True,
    "logit_cap": 3.0,
    "value_embeddings": True,
    "bigram_embeddings": 97,
    "embedding_skip": True,
    "dropout": 0.1,
}
TABLES: dict[str, Any] = {"activation": ACTIVATIONS, "norm": NORMS, "positions": POSITIONS}
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
# The file holds the model's own source, so what is left to go wrong is what a config asks of it.
CASES: dict[str, dict[str, Any]] = {
    **{f"{knob} {name}": {knob: name, "bigram_embeddings": 53} for knob, table in TABLES.items() for name in table},
    "rmsnorm without weights": {"norm_weight": False, "qk_norm": "none", "attention_scale": "width"},
    "every bias": {"norm": "layernorm", "biases": ("norm", "qkv", "out", "mlp", "head")},
    "tied, with a bias": {"tied": True, "biases": ("head",)},
    "one key for all heads": {"n_kv_head": 1, "head_width": 10, "mlp_width": 20, "logit_cap": 2.0},
    "dropout in the mlp": {"dropout": 0.2, "dropout_at": ("embedding", "mlp"), "embedding_skip": True},
    "everything": EVERYTHING,
    "everything, with learned positions": EVERYTHING | {"positions": "learned", "qk_norm": "before", "tied": False},
}


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where transformers puts the code that it runs: not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", folder)
        patch.syspath_prepend(folder)
        (Path(folder) / "__init__.py").touch()
        yield


def saved(folder: Path, letters: Letters, **knobs: Any) -> GPT:
    """A model of random numbers, every tensor among them, so that none could be left out unseen."""
    model = spread(untrained(ModelConfig(**(SIZES | knobs))), std=0.2)
    folder.mkdir()
    save_model(model, Tokenizer.load(letters(VOCAB)), folder)
    return model


def opened(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def some_ids(length: int, rows: int = 3) -> torch.Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


def spoken(model: Any, ids: torch.Tensor, tokens: int, **options: Any) -> torch.Tensor:
    # Without an end, ids of the padding would be taken for such: hence the mask.
    mask = torch.ones_like(ids)
    done: torch.Tensor = model.generate(ids, attention_mask=mask, **GREEDY, max_new_tokens=tokens, **options)
    return done


def continued(model: GPT, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    for _ in range(tokens):
        best = model.logits(ids[:, -model.config.context :])[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat((ids, best), dim=1)
    return ids


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_what_we_do(case: str, letters: Letters, tmp_path: Path) -> None:
    ours = saved(tmp_path / "ours", letters, **CASES[case])
    theirs = opened(export_model(tmp_path / "ours", "hf", tmp_path / "out", with_code=True))
    assert type(theirs).__module__.startswith("transformers_modules.")
    ids = some_ids(20)
    wanted = ours.logits(ids)
    assert wanted.std() > 0.1
    within = rounding_of_logits(wanted, ours.config.n_layer, ours.config.n_embd)
    assert (theirs(ids).logits - wanted).abs().max() < within < 1e-4
    labels = theirs(ids, labels=ids).loss
    assert labels == pytest.approx(
        F.cross_entropy(wanted[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item(), abs=within
    )
    assert torch.equal(spoken(theirs, ids[:, :6], 14), continued(ours, ids[:, :6], 14))


@torch.no_grad()
@pytest.mark.parametrize("case", ["everything", "everything, with learned positions", "positions none"])
def test_beyond_the_context_the_last_tokens_count_and_padding_does_not(
    case: str, letters: Letters, tmp_path: Path
) -> None:
    ours = saved(tmp_path / "ours", letters, **CASES[case])
    theirs = opened(export_model(tmp_path / "ours", "hf", tmp_path / "out", with_code=True))
    ids = some_ids(18, rows=1)
    assert torch.equal(spoken(theirs, ids, 9), continued(ours, ids, 9))
    padded = torch.cat((torch.zeros(1, 2, dtype=torch.long), ids[:, :7]), dim=1)
    mask = torch.tensor([[0, 0] + [1] * 7, [1] * 9])
    wanted = ours.logits(ids[:, :7])
    within = rounding_of_logits(wanted, ours.config.n_layer, ours.config.n_embd)
    assert (theirs(padded, attention_mask=mask[:1]).logits[:, 2:] - wanted).abs().max() < within < 1e-4
    # Texts of unequal length in one batch, each as it is alone.
    together = torch.cat((padded, some_ids(9, rows=1)))
    said = theirs.generate(together, attention_mask=mask, **GREEDY, max_new_tokens=9)
    assert torch.equal(said[0, 2:], continued(ours, ids[:, :7], 9)[0])
    assert torch.equal(said[1], continued(ours, some_ids(9, rows=1), 9)[0])
    with pytest.raises(ValueError, match="21 tokens; the model sees 20"):
        theirs(some_ids(21))


@torch.no_grad()
def test_a_cache_changes_nothing_but_the_time(letters: Letters, tmp_path: Path) -> None:
    ours = saved(tmp_path / "ours", letters, **EVERYTHING)
    theirs = opened(export_model(tmp_path / "ours", "hf", tmp_path / "out", with_code=True))
    ids, wanted = some_ids(18), ours.logits(some_ids(18))
    first = theirs(ids[:, :5], use_cache=True)
    with pytest.raises(ValueError, match="asks for the id before the newest"):
        theirs(ids[:, 5:], past_key_values=first.past_key_values)
    rest = theirs(ids[:, 5:], past_key_values=first.past_key_values, before=ids[:, 4:5])
    within = rounding_of_logits(wanted, ours.config.n_layer, ours.config.n_embd)
    assert (torch.cat((first.logits, rest.logits), dim=1) - wanted).abs().max() < within < 1e-4
    assert rest.past_key_values.get_seq_length() == 18
    seen: list[int] = []
    theirs.embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    spoken(theirs, ids[:, :17], 6)
    assert seen == [17, 1, 1, 1, 20, 20]
    with pytest.raises(ValueError, match="position_ids: a Hornbook model takes"):
        theirs(ids, position_ids=ids)
    with pytest.raises(ValueError, match="takes a DynamicCache"):
        spoken(theirs, ids, 2, cache_implementation="static")


def test_the_folder_is_one_of_ours_and_of_theirs(letters: Letters, tmp_path: Path) -> None:
    ours = saved(tmp_path / "ours", letters, **EVERYTHING)
    out = export_model(tmp_path / "ours", "hf", tmp_path / "out", dtype="bf16", with_code=True)
    again = load_model(out)
    assert again.config == ours.config
    theirs = opened(out)
    assert theirs.dtype == torch.bfloat16
    theirs.save_pretrained(tmp_path / "theirs")
    assert (opened(tmp_path / "theirs")(some_ids(9)).logits == theirs(some_ids(9)).logits).all()
    assert AutoConfig.from_pretrained(out, trust_remote_code=True).hornbook["bigram_embeddings"] == 97
    assert AutoTokenizer.from_pretrained(out)("ABBA").input_ids == Tokenizer.load(out).encode("ABBA")


def test_the_file_imports_torch_and_transformers_only(letters: Letters, tmp_path: Path) -> None:
    saved(tmp_path / "ours", letters, **EVERYTHING)
    out = export_model(tmp_path / "ours", "hf", tmp_path / "out", with_code=True)
    lines = [line for line in (out / CODE).read_text().splitlines() if line.startswith(("import ", "from "))]
    assert {line.split()[1].split(".")[0] for line in lines} - sys.stdlib_module_names == {"torch", "transformers"}
    assert not re.search(r"^\s*(import|from) hornbook", (out / CODE).read_text(), re.MULTILINE)
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(out, trust_remote_code=False)


def test_without_the_flag_it_is_refused_and_the_flag_is_named(letters: Letters, tmp_path: Path) -> None:
    saved(tmp_path / "ours", letters, activation="relu")
    with pytest.raises(UserError, match="--with-code"):
        export_model(tmp_path / "ours", "hf", tmp_path / "out")
    with pytest.raises(UserError, match="--with-code: a modelling file is for transformers"):
        export_model(tmp_path / "ours", "gguf", tmp_path / "out", with_code=True)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_wrote(letters: Letters, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "relu", letters, activation="relu")
    saved(tmp_path / "known", letters)
    words = ["--to", "hf", "--with-code", "--out"]
    assert main(["export", str(tmp_path / "relu"), *words, str(tmp_path / "one")]) == 0
    told = "".join(capsys.readouterr())
    assert "holds code (modeling_hornbook.py)" in told
    assert told.count("trust_remote_code=True") == 2  # the line, and the call to try next
    assert main(["export", str(tmp_path / "known"), *words, str(tmp_path / "two")]) == 0
    assert "no code in it: transformers has this shape" in "".join(capsys.readouterr())
    assert not (tmp_path / "two" / CODE).exists()
    assert "auto_map" not in json.loads((tmp_path / "two" / "config.json").read_text())
