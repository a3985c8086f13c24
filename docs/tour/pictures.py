"""Draws the tour's pictures of tokens, bits, attention, a step and sampling, from a run.

In: a run, and a folder.  Out: a PNG for each of PICTURES there.

    python docs/tour/pictures.py runs/NAME [FOLDER]
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch

import hornbook
from hornbook.base import files
from hornbook.infer.speaker import Speaker
from hornbook.model.folder import load_model
from hornbook.report.curves import DROP, TRAIN, TRAIN_EVALUATED, VALIDATION, figure_of

TEXT = "To be, or not to be: that is the question"
PROMPT = "I will not be"
TOP_K = 4
TEMPERATURES = {0.5: TRAIN_EVALUATED, 1.0: TRAIN, 1.5: VALIDATION}
DOTS_PER_INCH = 100
LINE = 46  # letters that a line of tokens has room for
SHADES = ("#dbe6f3", "#f6dcd8", "#e6e6e6")


def main(words: list[str]) -> None:
    draw(Path(words[0]), Path(words[1]) if len(words) > 1 else Path(__file__).parent)


def draw(run: Path, folder: Path) -> list[Path]:
    model = hornbook.load(run)
    drawn = []
    for name, figure_of_model in PICTURES.items():
        with files.staged_file(folder / name, replace=True) as staging:
            figure_of_model(model).savefig(staging, dpi=DOTS_PER_INCH, format="png")
        drawn.append(folder / name)
    return drawn


def pieces(model: Speaker, ids: list[int]) -> list[str]:
    """The tokens' texts, with blanks that can be seen."""
    return [model.decode([each]).replace(" ", "␣").replace("\n", "↵") for each in ids]


def tokens_figure(model: Speaker) -> Any:
    """Each token as a box, its id below it."""
    figure, [axes] = figure_of()
    ids = model.encode(TEXT)
    across, line = 0.0, 0
    for number, (token, text) in enumerate(zip(ids, pieces(model, ids), strict=True)):
        width = max(len(text), len(str(token)) * 0.75) + 0.8
        if across + width > LINE:
            across, line = 0.0, line + 1
        axes.add_patch(_box(across, -line * 2.6, width - 0.3, SHADES[number % len(SHADES)]))
        middle = across + (width - 0.3) / 2
        axes.text(middle, 0.5 - line * 2.6, text, ha="center", va="center", fontsize=12, family="monospace")
        axes.text(middle, -0.45 - line * 2.6, str(token), ha="center", va="center", fontsize=8, color=DROP)
        across += width
    axes.set(xlim=(-0.5, LINE), ylim=(-line * 2.6 - 1.0, 1.4))
    axes.set_axis_off()
    figure.set_size_inches(7.2, 0.6 + 0.62 * (line + 1))
    return figure


def _box(left: float, below: float, width: float, color: str) -> Any:
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch((left, below), width, 1, boxstyle="round,pad=0.02,rounding_size=0.2", fc=color, ec="none")


def bits_figure(model: Speaker) -> Any:
    """What each token of a sentence costs, and the mean."""
    figure, [axes] = figure_of()
    ids = [*(model.tokenizer.opening or [model.tokenizer.end_of_text]), *model.encode(TEXT)]
    with torch.inference_mode():
        ways = model.model.logits(torch.tensor([ids]))[0].float().log_softmax(dim=-1)
    bits = [-float(ways[place, token]) / math.log(2) for place, token in enumerate(ids[1:])]
    places = range(len(bits))
    mean = sum(bits) / len(bits)
    axes.bar(places, bits, color=TRAIN)
    axes.axhline(mean, color=VALIDATION, linewidth=1.5)
    axes.annotate(
        f"mean {mean:.2f} bits per token: perplexity {2**mean:.1f}\n"
        f"{sum(bits):.0f} bits for {len(TEXT.encode())} bytes: {sum(bits) / len(TEXT.encode()):.2f} bits per byte",
        (0.99, 0.97),
        xycoords="axes fraction",
        ha="right",
        va="top",
        color=VALIDATION,
    )
    axes.set_xticks(places, pieces(model, ids[1:]), rotation=60, ha="right", family="monospace")
    axes.set_ylabel("loss of the token (bits)")
    axes.set_ylim(0, max(bits) * 1.25)
    return figure


def attention_figure(model: Speaker) -> Any:
    """Of some heads, how much each token, a row, takes of each before it."""
    found = model.attention(TEXT)
    names = pieces(model, found.ids)
    layers, heads = found.weights.shape[:2]
    shown = [(layer, head) for layer in sorted({0, layers - 1}) for head in range(min(heads, 2))]
    figure, panels = figure_of(len(shown), columns=2)
    for axes, (layer, head) in zip(panels, shown, strict=True):
        axes.imshow(found.weights[layer, head], cmap="Blues", vmin=0, vmax=1, aspect="equal")
        axes.set_title(f"layer {layer + 1}, head {head + 1}", loc="left", fontsize=10)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6, family="monospace")
        axes.set_yticks(range(len(names)), names, fontsize=6, family="monospace")
        axes.grid(visible=False)
    figure.set_size_inches(7.2, 7.4 if len(shown) > 2 else 4.0)
    return figure


def step_figure(model: Speaker) -> Any:
    """The loss of a few lines along the gradient: what its slope promises, and what comes of steps of many lengths."""
    learner = load_model(model.folder).train()
    text = torch.tensor([model.encode(f"{TEXT}\n{PROMPT}")])
    ids, targets = text[:, :-1], text[:, 1:]
    begun = {name: each.detach().clone() for name, each in learner.named_parameters()}
    start = learner(ids, targets) / targets.numel()
    start.backward()
    gradients = {name: each.grad for name, each in learner.named_parameters() if each.grad is not None}
    slope = sum(float(each.square().sum()) for each in gradients.values())

    def loss_after(length: float) -> float:
        with torch.no_grad():
            for name, each in learner.named_parameters():
                each.copy_(begun[name] - length * gradients.get(name, 0))
            return float(learner(ids, targets)) / targets.numel()

    most = 0.25 * start.item() / slope
    while loss_after(most) < start.item() and most < 1e6:
        most *= 1.25
    lengths = [most * each / 60 for each in range(61)]
    losses = [loss_after(each) for each in lengths]
    figure, [axes] = figure_of()
    axes.plot(lengths, losses, color=TRAIN_EVALUATED, linewidth=1.8, label="loss after a step")
    axes.plot(lengths, [start.item() - slope * each for each in lengths], color=DROP, linestyle="--", label="slope")
    axes.plot([0], [start.item()], marker="o", color=VALIDATION, linestyle="none", label="before")
    axes.set_ylim(min(losses) - 0.12 * (max(losses) - min(losses)), max(losses) * 1.02)
    axes.set_xlabel("learning rate (length of the step in gradients)")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(loc="best", frameon=False)
    return figure


def sampling_figure(model: Speaker) -> Any:
    """What may come next, at three temperatures."""
    ids = model.tokenizer.encode_prompt(PROMPT)
    with torch.inference_mode():
        logits = model.model.logits(torch.tensor([ids]))[0, -1].float()
    likeliest = logits.topk(12).indices
    figure, [axes] = figure_of()
    for number, (temperature, color) in enumerate(TEMPERATURES.items()):
        chances = (logits / temperature).softmax(dim=-1)[likeliest]
        places = [place + 0.27 * (number - 1) for place in range(len(likeliest))]
        axes.bar(places, chances.tolist(), width=0.25, color=color, label=f"temperature {temperature}")
    axes.axvline(TOP_K - 0.5, color=DROP, linestyle=":")
    axes.text(TOP_K - 0.6, 0.5, f"top-k {TOP_K}: these alone", rotation=90, ha="right", va="center", color=DROP,
              transform=axes.get_xaxis_transform())  # fmt: skip
    names = pieces(model, likeliest.tolist())
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", family="monospace")
    axes.set_ylabel(f"probability after “{PROMPT}”")
    axes.legend(loc="best", frameon=False)
    return figure


PICTURES = {
    "tokens.png": tokens_figure,
    "bits.png": bits_figure,
    "attention.png": attention_figure,
    "step.png": step_figure,
    "sampling.png": sampling_figure,
}
if __name__ == "__main__":
    main(sys.argv[1:])
