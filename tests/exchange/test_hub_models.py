"""Models from the Hugging Face hub, by a server on loopback that answers as it does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from references import SYSTEMS, Sizes, weights
from system_files import written

import hostile
from hornbook.base import download
from hornbook.base.errors import MachineError, UserError
from hornbook.exchange.imports import import_model, is_hub_name
from hornbook.model.folder import load_model
from hornbook.train.origin import Origin

SIZES, WIDER = Sizes(), Sizes(n_embd=48)
Letters = Callable[[int], Path]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hostile.Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HORNBOOK_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "_pause", lambda seconds: None)
    with hostile.Server() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url(""))
        yield running


COMMIT, LATER = "a" * 40, "b" * 40


def publish(hub: hostile.Server, name: str, folder: Path, commit: str = COMMIT, branch: str = "main") -> None:
    """As it is at a commit, to which a branch then points."""
    for path in folder.iterdir():
        body = path.read_bytes()
        tag = {"X-Linked-Etag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Linked-Size": str(len(body))}
        for revision in (commit, branch):
            at = f"/{name}/resolve/{revision}/{path.name}"
            hub.heads[at] = tag | {"X-Repo-Commit": commit}
        hub.contents[f"/{name}/resolve/{commit}/{path.name}"] = body


def published(hub: hostile.Server, name: str, letters: Letters, folder: Path) -> Path:
    written("shakespeare-124m huggingface", weights(SYSTEMS["shakespeare-124m"], SIZES, 1), SIZES, folder)
    (folder / "tokenizer.json").write_bytes((letters(61) / "tokenizer.json").read_bytes())
    publish(hub, name, folder)
    return folder


@pytest.mark.parametrize(("source", "name"), [("gpt2", "openai-community/gpt2"), ("me/tiny-gpt", "me/tiny-gpt")])
def test_a_name_brings_the_model_and_its_tokenizer(
    source: str, name: str, hub: hostile.Server, letters: Letters, tmp_path: Path
) -> None:
    folder = published(hub, name, letters, tmp_path / "there")
    import_model(source, tmp_path / "out")
    import_model(str(folder), tmp_path / "same")
    one, other = load_model(tmp_path / "out").state_dict(), load_model(tmp_path / "same").state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    fetched = [asked.path for asked in hub.asked]
    import_model(source, tmp_path / "again")
    weights_asked = [asked.path for asked in hub.asked[len(fetched) :] if "safetensors" in asked.path]
    assert weights_asked == []


def test_weights_in_several_files_are_fetched(hub: hostile.Server, letters: Letters, tmp_path: Path) -> None:
    sizes = {"n_layer": 2, "n_head": 3, "n_embd": 24, "n_positions": 19, "vocab_size": 61}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    theirs.save_pretrained(tmp_path / "there", max_shard_size="10KB")
    publish(hub, "me/large", tmp_path / "there")
    import_model("me/large", tmp_path / "out", tokenizer=letters(61))
    ids = torch.arange(15)[None]
    with torch.no_grad():
        assert (load_model(tmp_path / "out").logits(ids) - theirs(ids).logits).abs().max() < 1e-4


def test_what_is_not_read_here_is_told_before_gigabytes_are_fetched(hub: hostile.Server, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    publish(hub, "me/other", tmp_path)
    with pytest.raises(UserError, match="it reads gpt2, qwen3"):
        import_model("me/other", tmp_path / "out")
    assert {Path(asked.path).name for asked in hub.asked} == {"config.json"}


def test_wrong_bytes_and_absent_models_are_one_line(hub: hostile.Server, letters: Letters, tmp_path: Path) -> None:
    published(hub, "me/tiny", letters, tmp_path / "there")
    at = f"/me/tiny/resolve/{COMMIT}/model.safetensors"
    hub.contents[at] = hub.contents[at][::-1]
    with pytest.raises(MachineError, match="does not send the right file"):
        import_model("me/tiny", tmp_path / "out")
    with pytest.raises(UserError, match="404"):
        import_model("me/nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def push(hub: hostile.Server, name: str, letters: Letters, folder: Path) -> Path:
    """Other weights of another size, under the same branch."""
    written("shakespeare-124m huggingface", weights(SYSTEMS["shakespeare-124m"], WIDER, 2), WIDER, folder)
    (folder / "tokenizer.json").write_bytes((letters(61) / "tokenizer.json").read_bytes())
    publish(hub, name, folder, LATER)
    return folder


def same(one: Path, other: Path) -> bool:
    left, right = load_model(one).state_dict(), load_model(other).state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_an_import_that_was_cut_off_never_mixes_two_commits(
    hub: hostile.Server, letters: Letters, tmp_path: Path
) -> None:
    published(hub, "me/tiny", letters, tmp_path / "there")
    weights_at = f"/me/tiny/resolve/{COMMIT}/model.safetensors"
    body = hub.contents.pop(weights_at)
    with pytest.raises(UserError):  # after its config had come
        import_model("me/tiny", tmp_path / "out")
    hub.contents[weights_at] = body
    later = push(hub, "me/tiny", letters, tmp_path / "later")
    import_model("me/tiny", tmp_path / "out")
    import_model(str(later), tmp_path / "same")
    assert same(tmp_path / "out", tmp_path / "same")
    import_model(f"me/tiny@{COMMIT}", tmp_path / "older")
    assert load_model(tmp_path / "older").config.n_embd == SIZES.n_embd


def test_a_branch_is_looked_up_again_and_without_a_network_is_what_it_was(
    hub: hostile.Server,
    letters: Letters,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    published(hub, "me/tiny", letters, tmp_path / "there")
    import_model("me/tiny", tmp_path / "one")
    import_model(f"me/tiny@{COMMIT}", tmp_path / "pinned")
    with monkeypatch.context() as offline:
        for name, value in (("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", "1")):
            offline.setenv(name, value)
            capsys.readouterr()
            import_model("me/tiny", tmp_path / name)
            said = capsys.readouterr()
            assert f"taken as it was when it was fetched, at commit {COMMIT[:8]}" in said.out + said.err
            assert same(tmp_path / name, tmp_path / "one")
            import_model(f"me/tiny@{COMMIT}", tmp_path / f"pinned {name}")
            with pytest.raises(MachineError, match=r"name a folder that is here|HF_HUB_OFFLINE") as caught:
                import_model("me/another", tmp_path / "out")
            assert "--data" not in str(caught.value)
    push(hub, "me/tiny", letters, tmp_path / "later")
    import_model("me/tiny", tmp_path / "two")
    assert not same(tmp_path / "two", tmp_path / "one")


def test_a_model_that_was_renamed_is_found_and_proven(hub: hostile.Server, letters: Letters, tmp_path: Path) -> None:
    published(hub, "me/new", letters, tmp_path / "there")
    for at in list(hub.heads):
        hub.heads[at.replace("/me/new/", "/me/old/")] = {"Location": at}
    at = f"/me/old/resolve/{COMMIT}/model.safetensors"
    for path in (tmp_path / "there").iterdir():
        hub.contents[f"/me/old/resolve/{COMMIT}/{path.name}"] = path.read_bytes()
    hub.contents[at] = hub.contents[at][::-1]
    with pytest.raises(MachineError, match="does not send the right file"):
        import_model("me/old", tmp_path / "out")


def test_a_failed_fetch_of_a_model_does_not_advise_to_train_on_text(
    hub: hostile.Server, letters: Letters, tmp_path: Path
) -> None:
    published(hub, "me/tiny", letters, tmp_path / "there")
    hub.tricks = [hostile.busy] * 20
    with pytest.raises(MachineError, match=r"503.*name a folder that is here"):
        import_model("me/tiny", tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "is_one"),
    [
        ("gpt2-xl", True),
        ("Qwen/Qwen3-0.6B", True),
        ("hub:me/a@v1.0", True),
        ("models/ckpt.pt", False),
        ("../a", False),
        ("./a/b", False),
        ("/a/b", False),
        ("a/../b", False),
        ("a/b/c", False),
        ("nothing", False),
        ("me/a b", False),
    ],
)
def test_a_name_is_told_from_a_path(source: str, is_one: bool) -> None:
    assert is_hub_name(source) is is_one


@pytest.mark.parametrize("revision", ["../../x", "a/b", ".hidden", "-x"])
def test_a_revision_does_not_lead_elsewhere(revision: str, hub: hostile.Server, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        import_model(f"me/a@{revision}", tmp_path / "out")
    assert hub.asked == []


def test_a_run_can_begin_with_a_name_on_the_hub(hub: hostile.Server, letters: Letters, tmp_path: Path) -> None:
    folder = published(hub, "me/tiny-gpt", letters, tmp_path / "there")
    origin = Origin.find("me/tiny-gpt")
    ours, theirs = load_model(origin.folder).state_dict(), load_model(folder).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    hub.asked.clear()
    assert Origin.find("me/tiny-gpt").folder == origin.folder
    assert [asked.path for asked in hub.asked] == ["HEAD /me/tiny-gpt/resolve/main/config.json"], "it is kept"
    (origin.folder / "model.safetensors").write_bytes(b"damaged")
    assert Origin.find("me/tiny-gpt").folder == origin.folder
    assert load_model(origin.folder).config == origin.model
