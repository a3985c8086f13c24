"""Letters: a message in a file, in a maildir, or many in an mbox.

In: messages as they were sent.  Out: each as one document: the headers that are chosen, a blank line, and what its
writer wrote. Quoted replies and signatures are cut, attachments passed over and counted, and of a message in several
forms the plain text is taken, else the words of the page. Python's email package reads them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

from hornbook.text.markup import words_of_page
from hornbook.text.records import TOO_LONG, Found, Input, read_whole
from hornbook.text.streams import (
    LARGEST_RECORD,
    Trouble,
    brief,
    decode,
    read_lines,
    with_plain_line_ends,
    without_lone_surrogates,
)

MAILDIR = {"cur", "new", "tmp"}
SIGNATURE, LOOSE_SIGNATURE = "-- ", "--"  # as it should be; and where a program has taken the blank away
LONGEST_LOOSE_SIGNATURE = 10  # lines
LONGEST_HEADER = 10_000  # bytes; to take one to pieces takes the square of its length
_FROM_LINE = re.compile(rb"From \S")
_ESCAPED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)
# Before a quotation stands who wrote it, in one line or two.
_WROTE = re.compile(
    r"(wrote|writes|schrieb|schreibt|a écrit|escribió|escreveu|ha scritto|schreef|skrev|napisał).*:\s*$"
)
_DATED = re.compile(r"\d.*:\s*$")
_QUOTED_WHOLE = re.compile(
    r"^\s*-{2,}\s*(Original Message|Ursprüngliche Nachricht|Message d'origine)\s*-{2,}\s*$", re.I
)


def is_in_maildir(path: Path) -> bool:
    return path.parent.name in ("cur", "new") and _is_maildir(path.parent.parent)


@functools.cache
def _is_maildir(folder: Path) -> bool:
    return sum((folder / name).is_dir() for name in MAILDIR) > 1


def read_message(input: Input) -> Iterator[Found]:
    """A file that is one message."""
    yield input.record("", _letter(read_whole(input.blocks()), input))


def read_mbox(input: Input) -> Iterator[Found]:
    """Messages one after another, each below a line `From ...` that comes first or after a blank line."""
    lines: list[bytes] = []
    number, size, begun, after_blank = 0, 0, False, True

    def message() -> Iterator[Found]:
        try:
            if size > LARGEST_RECORD:
                raise Trouble(TOO_LONG)
            data = _ESCAPED_FROM.sub(rb"\1", b"\n".join(lines))
            yield input.record(f"message {number}", _letter(data, input))
        except Trouble as trouble:
            yield trouble.at(f"message {number}")

    for _, line in read_lines(input.blocks()):
        if after_blank and line is not None and _FROM_LINE.match(line):
            if begun:
                yield from message()
            lines, size, begun = [], 0, True
            number += 1
        elif not begun and line != b"":
            raise Trouble("not an mbox: should begin with a line From ...")
        else:
            size += LARGEST_RECORD + 1 if line is None else len(line) + 1
            if size <= LARGEST_RECORD and line is not None:
                lines.append(line)
        after_blank = line is not None and line.strip() == b""
    if begun:
        yield from message()


def _letter(data: bytes, input: Input) -> str:
    """The text of a message."""
    try:
        _refuse_long_headers(data, input.headers)
        message = message_from_bytes(data, policy=policy.default)
        assert isinstance(message, EmailMessage)
        headers = [(name, str(message[name])) for name in input.headers if message[name] is not None]
        body = message.get_body(("plain", "html"))
        input.tally.attachments += sum(1 for _ in message.iter_attachments())
        text = _body(body, input) if isinstance(body, EmailMessage) else ""
    except Trouble:
        raise
    except Exception as error:  # of which a broken message can bring any
        raise Trouble(f"not a sound message ({brief(error)})") from None
    written = _written(with_plain_line_ends(text))
    if not written:
        return ""
    told = "".join(f"{name}: {' '.join(value.split())}\n" for name, value in headers)
    told = without_lone_surrogates(told, input.errors, input.tally)
    return f"{told}\n{written}\n" if told else f"{written}\n"


def _refuse_long_headers(data: bytes, chosen: tuple[str, ...]) -> None:
    """Of those that are read, at the head of the message or of a part."""
    names = "|".join(["content-[a-z-]+", *map(re.escape, chosen)]).encode()
    for found in re.finditer(rb"^(?:%b):[^\n]*(?:\n[ \t][^\n]*)*" % names, data, re.MULTILINE | re.IGNORECASE):
        if len(found[0]) > LONGEST_HEADER:
            raise Trouble(f"a header of {len(found[0]):,} bytes")


def _body(part: EmailMessage, input: Input) -> str:
    data = part.get_payload(decode=True)
    assert isinstance(data, bytes)
    charset = part.get_content_charset("utf-8")
    if charset in ("us-ascii", "ascii", "utf-8", "unknown-8bit"):
        text = decode(data, input.errors, input.tally)
    else:
        try:
            text = data.decode(charset)
        except LookupError:
            text = decode(data, input.errors, input.tally)
        except UnicodeDecodeError:
            if input.errors == "strict":
                raise Trouble(
                    f"is not {charset[:30]}, as it says; --text.errors replace reads it all the same"
                ) from None
            text = data.decode(charset, errors="replace")
            input.tally.replaced += text.count("\ufffd")
    if part.get_content_type() == "text/html":
        return words_of_page(text)
    return _flowed(text) if part.get_param("format") == "flowed" else text


def _flowed(text: str) -> str:
    """Lines that end with a blank go on in the next (RFC 3676)."""
    out = ""
    for line in with_plain_line_ends(text).split("\n"):
        goes_on = line.endswith(" ") and line != SIGNATURE and not line.startswith(">")
        plain = line[1:] if line.startswith(" ") else line  # which was put before it, to keep it from being a quotation
        out += plain if goes_on else plain + "\n"
    return out


def _written(text: str) -> str:
    """Without what others wrote, and without the signature."""
    kept: list[str] = []
    lines = text.split("\n")
    for place, line in enumerate(lines):
        rest = len(lines) - place
        if line == SIGNATURE or (line == LOOSE_SIGNATURE and rest <= LONGEST_LOOSE_SIGNATURE + 1):
            break
        if _QUOTED_WHOLE.fullmatch(line):
            break
        if not line.startswith(">"):
            kept.append(line.rstrip())
        elif place == 0 or not lines[place - 1].startswith(">"):
            _drop_who_wrote(kept)
    joined = "\n".join(kept)
    return re.sub(r"\n{3,}", "\n\n", joined).strip("\n")


def _drop_who_wrote(kept: list[str]) -> None:
    """`On Monday, 3 June 2024, Anna wrote:`, of which the end may stand in a second line."""
    while kept and not kept[-1]:
        kept.pop()
    for lines in (1, 2):
        told = " ".join(kept[-lines:]) if len(kept) >= lines and all(kept[-lines:]) else ""
        if _WROTE.search(told) and _DATED.search(told):
            del kept[-lines:]
            break
    else:
        if kept and _WROTE.search(kept[-1]):
            kept.pop()
    kept.append("")
