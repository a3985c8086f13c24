"""Rules of the text: how much there is, how it is cut, and what of it stands where it should not.

In: `Observed`.  Out: a `Finding`, or None. The thresholds lie where none of our own recipes comes to; each says what is
usual.
"""

from __future__ import annotations

from hornbook.base.console import command, count
from hornbook.report.finding import Finding
from hornbook.report.observed import Observed
from hornbook.text.corpora import is_corpus

# Of parameters, for each byte of text. Sizes that are chosen for a text have 20 at most; nanoGPT's for 1 MB, 10.
MOST_PARAMETERS_A_BYTE = 40
SMALL_MODEL = 500_000
# A vocabulary that is learned from a text meets each of its entries some hundred times.
LEAST_TOKENS_AN_ENTRY, LARGE_VOCABULARY = 15, 2_000
# Such a large one cuts text that it was made for into pieces of three to five bytes.
LEAST_BYTES_A_TOKEN = 2.0
MOST_UNKNOWN = 0.01
# Of the documents that were compared, and of all passages.
MOST_TWINS, MOST_PASSAGES = 0.05, 0.2
# Fewer may be there to be talked about.
LEAST_MARKS, LEAST_ENDS = 3, 8
# Of what the best compressor needs; good models need half of it.
TOO_GOOD, TOO_GOOD_ALONE = 0.25, 0.1


def too_little_text(run: Observed) -> Finding | None:
    text = run.text
    if text is None or run.knob("start_from") or run.parameters <= MOST_PARAMETERS_A_BYTE * text.bytes_of_text:
        return None
    wanted = run.parameters / MOST_PARAMETERS_A_BYTE * 2
    if run.parameters > SMALL_MODEL:
        smaller = command("train", run.knob("data") or "TEXT")
        action = (
            f"Train a smaller model on it: `{smaller}` chooses the sizes by the text; or bring {count(wanted)}B of "
            "text or more"
        )
    else:
        action = "Bring more text: 100 kB teach a model words, and 1 MB, a long novel, is a sensible beginning"
    return Finding(
        "Too little text for a model of this size",
        f"{count(float(run.parameters))} parameters, the numbers that it learns, beside "
        f"{count(float(text.bytes_of_text))}B of text are {run.parameters / max(text.bytes_of_text, 1):,.0f} for each "
        "byte: enough to learn it by heart, and not how to write",
        action,
    )


def vocabulary(run: Observed) -> Finding | None:
    text = run.text
    if text is None or not text.looked_at:
        return None
    if text.unknown > MOST_UNKNOWN * text.looked_at:
        evidence = f"{text.unknown / text.looked_at:.0%} of its tokens stand for what the vocabulary does not have"
    elif run.knob("start_from"):
        return None  # which came with the model, and was learned with it
    elif text.vocab_size >= LARGE_VOCABULARY and text.tokens < LEAST_TOKENS_AN_ENTRY * text.vocab_size:
        evidence = (
            f"it has {text.vocab_size:,} entries, and the text only {text.tokens:,} tokens, with {text.used:,} "
            "different ones among them; the others are never learned"
        )
    elif text.vocab_size >= LARGE_VOCABULARY and text.bytes_per_token < LEAST_BYTES_A_TOKEN:
        evidence = (
            f"it cuts the text into pieces of {text.bytes_per_token:.1f} bytes, where {text.vocab_size:,} entries that "
            "were made for it would come to three or more; so the model sees less of it at once"
        )
    else:
        return None
    return Finding(
        "The vocabulary does not suit the text",
        evidence,
        "Train again with --tokenizer.kind bpe, which learns a vocabulary from the text itself",
    )


def validation_in_training(run: Observed) -> Finding | None:
    twins = run.text.twins if run.text is not None else {}
    compared, documents = twins.get("compared", 0), twins.get("documents", 0)
    passages = twins.get("passages", 0.0)
    if not compared or (documents <= MOST_TWINS * compared and passages <= MOST_PASSAGES):
        return None
    if documents > MOST_TWINS * compared:
        evidence = f"of {compared:,} validation documents compared, {documents:,} are in it but for small changes"
    else:
        evidence = f"{passages:.0%} of the passages of the validation text are in it word for word"
    return Finding(
        "Validation text stands in the training text",
        f"{evidence}; so the validation loss is better than the model is",
        "Compare it with runs of the same corpus alone, which is so"
        if is_corpus(str(run.knob("data")))
        else "Leave the copies out of the text, and train again",
    )


def document_boundary(run: Observed) -> Finding | None:
    text = run.text
    if text is None:
        return None
    if text.marks:
        mark, times = max(text.marks.items(), key=lambda each: each[1])
        if times >= LEAST_MARKS:
            return Finding(
                "Where documents end looks wrong",
                f"{mark} stands in the text as {len(mark)} characters, {times:,} times in a part of it; the model "
                "learns to write it, and documents run into one another",
                "Give each document a file, or a line of a .jsonl file, in place of the sign",
            )
    expected = text.documents * text.looked_at / max(text.tokens, 1)
    if expected >= LEAST_ENDS and not text.ends:
        return Finding(
            "Where documents end looks wrong",
            f"{text.documents:,} documents, but none of {text.looked_at:,} tokens of them ends one; the model never "
            "learns to stop, and documents run into one another",
            "Prepare the text again, with a tokenizer.json that names its end of text",
        )
    return None


def sees_ahead(run: Observed) -> Finding | None:
    text, bits = run.text, run.evaluations[-1].get("val_bits_per_byte") if run.evaluations else None
    if text is None or bits is None or validation_in_training(run) is not None:
        return None
    packer, least = min(text.yardsticks.items(), key=lambda each: each[1], default=("", None))
    if bits >= (TOO_GOOD * least if least is not None else TOO_GOOD_ALONE):
        return None
    beside = f", where {packer} needs {least:.2f}" if least is not None else ""
    return Finding(
        "Too good to be true",
        f"{bits:.3f} bits for each byte of text that it has not seen{beside}; a model comes to this only if it sees "
        "the token that it is to predict, or the text repeats itself",
        "If you changed the attention, its mask or the targets, look there first; else at what the text repeats",
    )
