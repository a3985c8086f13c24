"""What is to be told of a text that was prepared.

In: a manifest, or shards.  Out: lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hornbook.base.console import count, duration
from hornbook.shards.format import Shards
from hornbook.shards.twins import Twins

LEAST_TO_LEARN_FROM = 10_000


def report(manifest: dict[str, Any]) -> Iterator[str]:
    """What was prepared, a line each."""
    for name, facts in manifest["splits"].items():
        size = count(float(facts["bytes_of_text"]))
        yield f"{name:6} {facts['documents']:,} documents, {size} bytes, {facts['tokens']:,} tokens"
    facts = manifest["report"]
    yield (
        f"{facts['bytes_per_token']:.2f} bytes per token; {count(facts['bytes_per_second'])} bytes a second, "
        f"{duration(facts['seconds'])} in all, encoded by {facts['encoder']}"
    )
    yield from changed_in_reading(manifest)
    if (twins := Twins.told_in(manifest)).documents:
        yield told_of(twins)


def changed_in_reading(manifest: dict[str, Any]) -> Iterator[str]:
    """Where the tokens are not all of the text as it stood there: one line."""
    reading = manifest.get("reading", {})
    counts = {
        "characters replaced": reading.get("replaced_characters", 0),
        "records passed over": reading.get("skipped_records", 0),
        "attachments passed over": reading.get("attachments", 0),
        "documents dropped whose text is held back": manifest.get("report", {}).get("duplicates", 0),
    }
    if any(counts.values()):
        yield ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)


def told_of(twins: Twins) -> str:
    return (
        f"of {twins.compared:,} validation documents compared, {twins.documents:,} ({twins.share:.0%}) are in the "
        "training text too, but for small changes"
    )


def too_little(shards: Shards) -> str | None:
    """A word on a text from which nothing can be learned but itself."""
    text_bytes = sum(facts["bytes_of_text"] for facts in shards.manifest["splits"].values())
    if text_bytes >= LEAST_TO_LEARN_FROM:
        return None
    return (
        f"{shards.manifest['name']}: only {text_bytes:,} bytes of text, far too little to learn from: 100 kB teach a "
        "model words, and 1 MB, a long novel, is a sensible beginning"
    )
