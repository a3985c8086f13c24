"""One place for each idea, proven from outside: a copy of the sources gets one entry more, where CONTRIBUTING says, and
a child process uses it as a user would."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hornbook.model.activations import ACTIVATIONS
from hornbook.train.config import RunConfig
from hornbook.train.optimizers import OPTIMIZERS
from hornbook.train.schedules import SCHEDULES
from hornbook.train.start import fit

SOURCE = Path(__file__).parent.parent / "src"


@pytest.mark.parametrize(
    "knobs",
    [
        *({"model": {"activation": name}} for name in ACTIVATIONS),
        *({"optim": {"kind": name}} for name in OPTIMIZERS),
        *({"schedule": {"kind": name} | ({"drop_step": 1} if name == "drop" else {})} for name in SCHEDULES),
    ],
    ids=str,
)
def test_every_entry_trains(knobs: dict[str, object], tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    assert fit(tiny(**knobs, train={"steps": 2}), tmp_path / "run").step == 2


class Copy:
    """The sources, to which somebody adds."""

    def __init__(self, folder: Path, text: Path) -> None:
        self._folder, self._text = folder, text
        shutil.copytree(SOURCE, folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))

    def add(self, module: str, before: str, entry: str) -> None:
        path = self._folder / "src" / "hornbook" / module
        text = path.read_text()
        assert text.count(before) == 1, f"{before} is where CONTRIBUTING says that an entry goes"
        path.write_text(text.replace(before, entry + before))

    def use(self, *knobs: str, then: str = "") -> str:
        """Plan, train, checkpoint, resume and generate, then what else is to be done; what run.json says."""
        (self._folder / "used.py").write_text(
            f"""
import hornbook
from hornbook.cli import main
sizes = "--model.n-layer 1 --model.n-head 2 --model.n-embd 16 --model.context 16 --tokenizer.kind byte".split()
short = "--train.steps 2 --train.batch-tokens 64 --train.compile false --train.device cpu --out run".split()
assert main(["train", "--data", {str(self._text)!r}, *{knobs!r}, *sizes, *short]) == 0
assert main(["model", "run"]) == 0
assert main(["resume", "run", "--train.steps", "3"]) == 0
assert main(["generate", "run", "--prompt", "def", "--max-tokens", "4"]) == 0
{then}
"""
        )
        done = subprocess.run(
            [sys.executable, "used.py"],
            cwd=self._folder,
            env={
                "PYTHONPATH": str(self._folder / "src"),
                "HORNBOOK_HOME": str(self._folder / "home"),
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return (self._folder / "run" / "run.json").read_text()


@pytest.fixture
def copy(tmp_path: Path, text_file: Path) -> Copy:
    return Copy(tmp_path, text_file)


def test_an_activation_is_one_entry(copy: Copy) -> None:
    copy.add("model/activations.py", '    "relu": ', '    "softplus": Activation(lambda F: F.softplus, kept=2),\n')
    assert '"activation": "softplus"' in copy.use("--model.activation", "softplus")


LION = """
class Lion:
    def __init__(self, named, group, config, compute):
        self._named, self._group, self._config = named, group, config
        self._momenta = {f"lion.{name}": torch.zeros_like(each) for name, each in named.items()}

    @torch.no_grad()
    def step(self, factor, skip):
        lr, decay, keep = self._group.lr * factor, self._group.weight_decay, 1 - skip
        for parameter, momentum in zip(self._named.values(), self._momenta.values(), strict=True):
            ahead = momentum.lerp(parameter.grad, 1 - self._config.beta1).sign()
            parameter.mul_(1 - lr * decay * keep).sub_(lr * keep * ahead)
            momentum.lerp_(parameter.grad, (1 - self._config.beta2) * keep)

    def state(self):
        return dict(self._momenta)

    def restore(self, saved):
        for name, momentum in self._momenta.items():
            fill(momentum, saved.pop(name))

    @staticmethod
    def remembered(shapes):
        numbers = sum(each.numel() for each in shapes)
        return "momentum of Lion, fp32", f"{numbers:,} x 4", 4 * numbers

    @staticmethod
    def workspace(shapes, compute):
        return []


"""


def test_an_optimizer_is_one_entry_and_the_rule_that_it_brings(copy: Copy) -> None:
    entry = '    "lion": lambda name, axes, config: Group("lion", config.lr, config.weight_decay),\n'
    copy.add("train/optimizers.py", '    "muon": _muon_for_matrices,\n', entry)
    copy.add(
        "train/optimizers.py", '    "muon": "hornbook.train.muon:Muon",\n', '    "lion": "hornbook.train.optim:Lion",\n'
    )
    copy.add("train/optim.py", "@torch.no_grad()\ndef clip_gradients", LION)
    record = copy.use("--optim.kind", "lion", then='assert main(["model", "demo", "--optim.kind", "lion"]) == 0')
    assert '"kind": "lion"' in record


def test_a_schedule_is_one_entry(copy: Copy) -> None:
    copy.add("train/schedules.py", '    "cosine": ', '    "root": lambda config, step, done: (1 - done) ** 0.5,\n')
    assert '"kind": "root"' in copy.use("--schedule.kind", "root", "--schedule.warmup-steps", "0")


TOP_A = """
    top_a: float | None = Field(None, ge=0, le=1)
    \'\'\'Only what has this share of the likeliest one's probability.\'\'\'
"""
USES_TOP_A = """
said = [hornbook.load("run").generate("def", max_tokens=8, top_p=None, seed=seed, top_a=1.0) for seed in range(3)]
assert len(set(said)) == 1, said
assert main("generate run --prompt def --max-tokens 8 --top-a 1.0".split()) == 0
from hornbook.serve.completions import CompletionRequest
assert CompletionRequest(prompt="def", top_a=1.0).rules().top_a == 1.0
"""


def test_a_sampler_rule_is_a_knob_and_its_function(copy: Copy) -> None:
    """On the command line, in Python and over HTTP alike."""
    copy.add("infer/config.py", "    repetition_penalty: ", TOP_A)
    entry = '    "top_a": lambda likely, share: likely >= share * likely.max(),\n'
    copy.add("infer/sampler.py", '    "min_p": ', entry)
    record = json.loads(copy.use(then=USES_TOP_A))
    assert record["config"]["sample"]["rules"]["top_a"] is None
