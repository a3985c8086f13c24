"""The words of the field that Hornbook says, each in a few sentences.

Out: WORDS; the same as docs/glossary.md, which `make glossary` writes anew, as a page that `hornbook serve` has under
/glossary, and by `hornbook glossary WORD`. [Another word] in brackets is one that stands here too.
"""

from __future__ import annotations

import html
import re

WORDS = {
    "Attention": "How a [token] takes in what stands before it: each of its [heads][head] gives the token and every "
    "earlier one a weight, all of them 1 in sum, by how well its query fits that token's key, and adds up their values "
    "by these weights. Nobody looks ahead.",
    "Batch": "What one [step] learns from: so many windows of the text, each of the length of the [context].",
    "Bits per byte": "The [loss] of a text in bits, divided by its bytes. It does not depend on how the text was cut "
    "into [tokens][token], so models with other [vocabularies][vocabulary] can be compared by it, and with what gzip "
    "and xz make of the same text: a compressor that guesses as well needs as many bits. Lower is better.",
    "Byte-pair encoding": "How a [vocabulary] is learned: beginning with single bytes, the two neighbours that are met "
    "most often are joined to a new [token], again and again. Also called BPE.",
    "Checkpoint": "A run as it stood at a [step], whole, from which it goes on: the [weights][parameters], the state "
    "of the [optimizer], and its place in the text.",
    "Clipping": "Where the [gradient norm] is larger than a limit, all gradients are made shorter by the same factor, "
    "so that one odd [batch] does not throw the model off.",
    "Context": "How many [tokens][token] the model reads at once. What stands before them it does not see.",
    "Corpus": "A collection of texts to learn from; some are known by name (`hornbook corpora`).",
    "Dropout": "While it trains, so large a share of the numbers inside the model is set to 0 at random, so that it "
    "does not rely on single ones: a remedy against [overfitting].",
    "Embedding": "The row of numbers that stands for a [token] inside the model, learned like everything else.",
    "Epoch": "One reading of the whole training text.",
    "FLOPs": "Multiplications and additions of numbers with a fractional part: how much computing something takes.",
    "Gradient": "For each of the model's [parameters], how the [loss] changes when that grows a little. A [step] goes "
    "against it.",
    "Gradient norm": "The length of all [gradients][gradient] together, as the root of the sum of their squares. Where "
    "it leaps and does not come back, something is wrong, mostly the [learning rate].",
    "Head": "One of several [attentions][attention] that a [layer] computes side by side, each with weights of its "
    "own. The output head, at the end, is another thing: it gives every token of the vocabulary its [logit].",
    "Head start": "Before the first [step], Hornbook counts which [token] follows which in the training text, and sets "
    "[embeddings][embedding] and output [head] so that the model begins with these frequencies, not with nothing. Its "
    "first [heads][head] begin by looking at the tokens just before, and by finding what came next when the text last "
    "stood like this.",
    "Layer": "One of the blocks of which the model is a stack: [attention], which brings in what stands before, and "
    "an [MLP], which works on each place by itself.",
    "Learning rate": "How far a [step] goes. Too small, and little is learned in the time; too large, and the [loss] "
    "grows. Over a run it follows a [schedule].",
    "Logit": "The score that a model gives a [token] of its vocabulary. [Softmax] makes probabilities of them.",
    "Loss": "How wrong a model is: the mean, over [tokens][token], of minus the natural logarithm of the probability "
    "that it gave to the one that came, in [nats][nat] per token. 0 is certain, 0.69 one chance in two. Also called "
    "cross-entropy.",
    "Memory": "Of an accelerator: [parameters], the [optimizer]'s state, and what a [batch] leaves behind on its way "
    "through the [layers][layer], which has to be kept until the [gradients][gradient] are known.",
    "MLP": "Multi-layer perceptron, the second part of a [layer]: two or three matrices, and between them a function "
    "that bends, which work on each place of the text by itself.",
    "Nat": "The unit of [loss]: what natural logarithms are counted in. 1 nat is 1.44 bits.",
    "Optimizer": "The rule by which [gradients][gradient] become changes of the [parameters]: Muon and AdamW keep "
    "averages over past ones.",
    "Overfitting": "A model learns its text by heart: [training loss] goes on falling, [validation loss] rises. More "
    "text helps most, then fewer [epochs][epoch], a smaller model, [dropout].",
    "Parameters": "The numbers of which a model consists and which training changes, also called its weights.",
    "Perplexity": "e to the power of the [loss]: a model of perplexity 25 is, on average, as unsure as one that has to "
    "choose among 25 [tokens][token], all equally likely. It depends on the [vocabulary]; [bits per byte] do not.",
    "Prompt": "The text that a model is asked to go on with.",
    "Sample": "A text that the model writes while it trains, to be read beside the [loss].",
    "Sampling": "Drawing the next [token] by the probabilities that the model gives, as [temperature], [top-k] and "
    "[top-p] change them.",
    "Schedule": "How the [learning rate] changes over a run: it rises ([warm-up]), stays, and falls, as a rule "
    "to nothing.",
    "Seed": "The number from which all that is drawn at random follows. The same seed, with the same settings, gives "
    "the same text, and on a processor the same model.",
    "Shard": "A file of text that was made [tokens][token] already.",
    "Snapshot": "The [weights][parameters] of a run at an early [step], kept to look back at.",
    "Softmax": "Makes probabilities of scores: e to each, divided by the sum of all.",
    "Step": "One change of the [parameters]: [gradients][gradient] of a [batch], and what the [optimizer] makes of "
    "them.",
    "Temperature": "What [logits][logit] are divided by before a [token] is drawn. Below 1 the likely becomes "
    "likelier, and texts become safe and repeat themselves; above 1 they become wild. At 0 always the likeliest is "
    "taken.",
    "Token": "A piece of text, from a fixed list of them, the [vocabulary]: a frequent word is one, a rare one "
    "several. A model reads and writes tokens, as numbers.",
    "Tokenizer": "What cuts text into [tokens][token], and joins them again.",
    "Top-k": "Only the k likeliest [tokens][token] may be drawn.",
    "Top-p": "Only the likeliest [tokens][token] may be drawn, as many as together have this probability: few where "
    "the model is sure, many where it is not.",
    "Training loss": "The [loss] on text that the model learns from.",
    "Validation loss": "The [loss] on text that is held back, from which the model never learns: what counts.",
    "Vocabulary": "All [tokens][token] that a model knows. A larger one makes texts shorter in tokens, and tables "
    "larger.",
    "Warm-up": "The first [steps][step], over which the [learning rate] rises from nothing, while the [optimizer]'s "
    "averages are still of few gradients.",
}
# What else a word is called, and what is told with another.
ALSO = {
    "Adam": "Optimizer",
    "AdamW": "Optimizer",
    "Block": "Layer",
    "BPE": "Byte-pair encoding",
    "Cross-entropy": "Loss",
    "Evaluation": "Validation loss",
    "Feed-forward": "MLP",
    "Held-out": "Validation loss",
    "Key": "Attention",
    "LR": "Learning rate",
    "Muon": "Optimizer",
    "Query": "Attention",
    "Value": "Attention",
    "Weight": "Parameters",
}
_LINK = re.compile(r"\[([^]]+)](?:\[([^]]+)])?")
INTRODUCTION = "The words that Hornbook's summaries, pictures and pages say, as the field means them."


def anchor(word: str) -> str:
    """Where a word stands, on each page of them."""
    return re.sub(r"[^a-z0-9-]", "", word.lower().replace(" ", "-"))


def find(word: str) -> str | None:
    """The word under which it is told: capitals, hyphens and a plural's s do not count."""
    by_letters = {_letters(each): word for each, word in [*zip(WORDS, WORDS, strict=True), *ALSO.items()]}
    return by_letters.get(_letters(word)) or by_letters.get(_letters(word).removesuffix("s"))


def _letters(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())


def plain(word: str) -> str:
    """What a word means, for a terminal."""
    return _LINK.sub(r"\1", WORDS[word])


def markdown() -> str:
    lines = [f"# Glossary\n\n{INTRODUCTION} `hornbook glossary WORD` tells one."]
    for word, about in WORDS.items():
        lines.append(f"## {word}\n\n" + _LINK.sub(lambda found: f"[{found[1]}](#{_target(found)})", about))
    return "\n\n".join(lines) + "\n"


def page() -> str:
    """HTML. Its style is that of the page, which has elements of its own called `prompt` and so on."""
    entries = []
    for word, about in WORDS.items():
        text = _LINK.sub(
            lambda found: f'<a href="#word-{_target(found)}">{found[1]}</a>', html.escape(about, quote=False)
        )
        text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
        entries.append(f'<dt id="word-{anchor(word)}">{html.escape(word)}</dt>\n<dd>{text}</dd>')
    return PAGE.format(introduction=INTRODUCTION, entries="\n".join(entries))


def _target(found: re.Match[str]) -> str:
    return anchor(found[2] or found[1])


PAGE = """\
<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>Glossary &ndash; Hornbook</title>
  <link rel="icon" type="image/svg+xml" href="/page/icon.svg">
  <link rel="stylesheet" href="/page/page.css">
</head>
<body class="glossary">
  <header><h1>Glossary</h1> <a href="/">To the page</a></header>
  <main>
    <p>{introduction}</p>
    <dl>
{entries}
    </dl>
  </main>
</body>
</html>
"""
