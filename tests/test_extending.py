"""One place for each idea, proven from outside: a copy of the sources gets one entry more, where CONTRIBUTING says, and
a child process uses it as a user would: it plans, trains, saves, goes on, speaks and exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from extending import Copy
from hornbook.model.activations import ACTIVATIONS
from hornbook.model.norms import NORMS
from hornbook.model.positions import POSITIONS
from hornbook.train.config import RunConfig
from hornbook.train.optim_config import OPTIMIZERS
from hornbook.train.schedule_config import SCHEDULES
from hornbook.train.start import fit


@pytest.mark.parametrize(
    "knobs",
    [
        *({"model": {"activation": name}} for name in ACTIVATIONS),
        *({"model": {"norm": name}} for name in NORMS),
        *({"model": {"positions": name}} for name in POSITIONS),
        *({"optim": {"kind": name}} for name in OPTIMIZERS),
        *({"schedule": {"kind": name} | ({"drop_step": 1} if name == "drop" else {})} for name in SCHEDULES),
    ],
    ids=str,
)
def test_every_entry_trains(knobs: dict[str, object], tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    assert fit(tiny(**knobs, train={"steps": 2}), tmp_path / "run").step == 2


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


PAIRED = """
def _paired(config):
    from torch import nn

    class Paired(nn.Embedding):  # two neighbours share a row
        def forward(self, places):
            return super().forward(places // 2)

    return Paired((config.context + 1) // 2, config.n_embd)


"""
L1_NORM = "lambda F: lambda x, weight, bias, eps: F.normalize(x, p=1, dim=-1, eps=eps) * weight"
SIGNUM = """
class Signum:
    def __init__(self, named, group, config, compute):
        self._named, self._group, self._config = named, group, config
        self._momenta = {f"signum.{name}": torch.zeros_like(each) for name, each in named.items()}

    @torch.no_grad()
    def step(self, factor, skip):
        lr, decay, keep = self._group.lr * factor, self._group.weight_decay, 1 - skip
        for parameter, momentum in zip(self._named.values(), self._momenta.values(), strict=True):
            momentum.lerp_(parameter.grad, (1 - self._config.beta1) * keep)
            parameter.mul_(1 - lr * decay * keep).sub_(lr * keep * momentum.sign())

    def state(self):
        return dict(self._momenta)

    def restore(self, saved):
        for name, momentum in self._momenta.items():
            fill(momentum, saved.pop(name))

    @staticmethod
    def remembered(shapes):
        numbers = sum(each.numel() for each in shapes)
        return "momentum of Signum, fp32", f"{numbers:,} x 4", 4 * numbers

    @staticmethod
    def workspace(shapes, compute):
        return []


"""
TOP_A = """
    top_a: float | None = Field(None, ge=0, le=1)
    '''Only what has this share of the likeliest one's probability.'''
"""
TRAINS = """
import sys
from pathlib import Path

import torch
import transformers

import hornbook
from hornbook.cli import main
from hornbook.model.folder import load_model
from hornbook.runs.folder import resolve
from hornbook.serve.completions import CompletionRequest

shape = "--model.activation softplus --model.norm l1norm --model.positions paired".split()
way = "--optim.kind signum --schedule.kind root --schedule.warmup-steps 0".split()
sizes = "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.context 16 --tokenizer.kind byte".split()
short = "--train.steps 2 --train.batch-tokens 64 --train.compile false --train.device cpu --out run".split()
assert main(["model", "demo", "--json", *shape, *way]) == 0
assert main(["train", "--data", sys.argv[1], *shape, *way, *sizes, *short]) == 0
assert main(["model", "run"]) == 0
assert main(["resume", "run", "--train.steps", "3"]) == 0
assert main("generate run --prompt def --max-tokens 20 --top-a 1.0".split()) == 0
said = [hornbook.load("run").generate("def", max_tokens=8, top_p=None, seed=seed, top_a=1.0) for seed in range(3)]
assert len(set(said)) == 1, said
assert CompletionRequest(prompt="def", top_a=1.0).rules().top_a == 1.0
assert main("export run --to hf --with-code --out out".split()) == 0
ours = load_model(resolve(Path("run")))
theirs = transformers.AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True).eval()
ids = torch.arange(16)[None]
assert sum(each.numel() for each in theirs.parameters()) == ours.config.n_params()
with torch.no_grad():
    assert (theirs(ids).logits - ours.logits(ids)).abs().max() < 1e-5
    assert ours.logits(ids).std() > 1e-4
"""


def test_a_part_of_the_model_or_of_its_training_is_one_entry(copy: Copy, text_file: Path) -> None:
    """An activation, a norm, a position scheme; an optimizer with a rule of its own, a schedule, a sampler's rule."""
    copy.add("model/activations.py", '    "relu": ', '    "softplus": Activation(lambda F: F.softplus, kept=2),\n')
    copy.add("model/norms.py", '    "rmsnorm": ', f'    "l1norm": Normalisation({L1_NORM}),\n')
    rows = "params=lambda config: (config.context + 1) // 2 * config.n_embd"
    copy.add("model/positions.py", '    "rotary": ', f'    "paired": Positions(added=_paired, {rows}),\n')
    copy.add("model/positions.py", "POSITIONS = {", PAIRED)
    entry = '    "signum": lambda name, axes, config: Group("signum", config.lr, config.weight_decay),\n'
    copy.add("train/optim_config.py", '    "muon": _muon_for_matrices,\n', entry)
    copy.add("train/optim_config.py", '    "muon": "hornbook', '    "signum": "hornbook.train.optim:Signum",\n')
    copy.add("train/optim.py", "@torch.no_grad()\ndef clip_grad_norm", SIGNUM)
    copy.add("train/schedule_config.py", '    "cosine": ', '    "root": lambda config, at: (1 - at.done) ** 0.5,\n')
    copy.add("infer/config.py", "    repetition_penalty: ", TOP_A)
    entry = '    "top_a": lambda likely, share: likely >= share * likely.max(),\n'
    copy.add("infer/sampler.py", '    "min_p": ', entry)
    copy.use(TRAINS, str(text_file))
    record = (copy.folder / "run" / "run.json").read_text()
    assert all(f'"{name}"' in record for name in ("softplus", "l1norm", "paired", "signum", "root"))


STANZAS = [f"roses are red, line {number}\nviolets are blue\n" for number in range(200)]
READ_POEM = """
def read_poem(input: Input) -> Iterator[Found]:
    for number, stanza in enumerate(b"".join(input.text_blocks()).split(b"\\n\\n"), start=1):
        yield input.record(f"stanza {number}", input.decode(stanza))


"""
CORPUS = """        Corpus(
            "roses",
            "many stanzas about roses",
            "public domain",
            "this machine",
            local=lambda: source_from_path(Path("poems")),
        ),
"""
READS = """
from hornbook.cli import main
read = "--text.format poem --tokenizer.kind letters".split()
sizes = "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.context 16".split()
short = "--train.steps 2 --train.batch-tokens 64 --train.compile false --train.device cpu --out run".split()
assert main(["prepare", "roses", "--tokenizer.kind", "letters", "--out", "shards"]) == 0
assert main(["train", "--data", "poems", *read, *sizes, *short]) == 0
assert main(["generate", "run", "--prompt", "roses", "--max-tokens", "4"]) == 0
"""
RECIPE = '''def haste() -> RunConfig:
    """Two steps of the demo."""
    return modern.demo().with_(
        recipe="haste",
        data=TEXT,
        tokenizer={"kind": "byte", "vocab_size": None},
        model={"n_layer": 1, "n_embd": 16, "n_head": 2, "head_width": 8, "mlp_width": 32, "context": 16},
        train={"minutes": None, "steps": 2, "batch_tokens": 64, "compile": False, "device": "cpu"},
    )


'''
TO_NPZ = """
def _to_npz(folder: Path, out: Path, dtype: str) -> None:
    import numpy

    with files.staged_file(out) as staging, files.open_to_write(staging, "wb") as file:
        numpy.savez(file, **{name: each.numpy() for name, each in load_model(folder).state_dict().items()})


"""
USE = """
import numpy
assert main(["recipes"]) == 0
assert main(["model", "haste"]) == 0
assert main(["train", "haste"]) == 0
assert main(["export", "runs/haste", "--to", "npz"]) == 0
weights = numpy.load("haste.npz")
assert sum(weights[name].size for name in weights) > 1000
assert main(["export", "runs/haste", "--to", "npz", "--dtype", "f16"]) == 2
"""


def test_a_corpus_a_format_a_tokenizer_a_recipe_and_an_export_format_are_one_entry_each(
    copy: Copy, text_file: Path
) -> None:
    (copy.folder / "poems").mkdir()
    (copy.folder / "poems" / "roses.poem").write_text("\n".join(STANZAS))
    letters = '    "letters": Kind(lambda *_: Tokenizer(characters(["abcdefghijklmnopqrstuvwxyz ,"]))),\n'
    copy.add("text/tokenizer.py", '    "file": Kind(', letters)
    copy.add("text/formats.py", "FORMATS = {", READ_POEM)
    copy.add("text/formats.py", '        Format("hdf5"', '        Format("poem", (".poem",), read_poem),\n')
    copy.add("text/corpora.py", '        _wikitext_corpus("2", ', CORPUS)
    copy.add("recipes/__init__.py", "RECIPES: dict", RECIPE.replace("TEXT", repr(str(text_file))))
    copy.add("recipes/__init__.py", '    "demo": modern.demo,\n', '    "haste": haste,\n')
    copy.add("exchange/export.py", "FORMATS = {", TO_NPZ)
    next_command = 'lambda out, _: shell("python", "-m", "zipfile", "-l", out)'
    copy.add(
        "exchange/export.py", '    "gguf": ', f'    "npz": ExportFormat(_to_npz, ".npz", ("f32",), {next_command}),\n'
    )
    told = copy.use(READS + USE)
    manifest = json.loads((copy.folder / "shards" / "manifest.json").read_text())
    assert (manifest["tokenizer"], manifest["vocab_size"]) == ("letters", 30)
    assert manifest["report"]["documents"] == len(STANZAS)
    assert "Two steps of the demo." in told
    assert "python -m zipfile -l haste.npz" in told
    assert "--dtype f16: npz is written as f32" in told
