"""Letters, written and judged by Python's email and mailbox packages."""

from __future__ import annotations

import contextlib
import json
import mailbox
from email.message import EmailMessage
from pathlib import Path

import pytest
from formats_at_hand import texts_of

from hornbook import cli
from hornbook.base.errors import UserError
from hornbook.text import mail
from hornbook.text.formats import format_of
from hornbook.text.streams import Tally
from yardstick import within


def letter(body: str, subject: str = "A plan", **how: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = "anna@example.org", "ben@example.org"
    message["Subject"] = subject
    message.set_content(body, **how)
    return message


LETTERS = [
    letter("Dear Ben,\n\nhow are you?\n", "Greetings"),
    letter(
        "Die Küste ist schön.\nFrom now on I write more.\n\nFrom Anna\n",
        "Grüße von der Küste, und noch vieles mehr",
    ),
    letter("Naïve, déjà vu\n", charset="iso-8859-1", cte="quoted-printable"),
    letter("日本語\n" * 30, "日本", charset="utf-8", cte="base64"),
]


def as_said(message: EmailMessage) -> str:
    body = message.get_body(("plain",))
    assert body is not None
    return f"Subject: {message['Subject']}\n\n{body.get_content()}"


def test_a_message_a_mailbox_and_a_maildir_hold_the_same_letters(tmp_path: Path) -> None:
    box, folder = mailbox.mbox(str(tmp_path / "all.mbox")), mailbox.Maildir(str(tmp_path / "mine"))
    expected = [as_said(message) for message in LETTERS]  # beforehand: a mailbox changes what is put into it
    for number, message in enumerate(LETTERS):
        (tmp_path / f"{number}.eml").write_bytes(message.as_bytes())
        read = mailbox.MaildirMessage(message)
        read.set_subdir("cur" if number % 2 else "new")
        read.set_flags("S")
        folder.add(read)
        box.add(message)
    box.flush()
    assert [texts_of(tmp_path / f"{number}.eml") for number in range(4)] == [[each] for each in expected]
    assert texts_of(tmp_path / "all.mbox") == expected
    assert sorted(texts_of(tmp_path / "mine")) == sorted(expected)
    judged = mailbox.mbox(str(tmp_path / "all.mbox"))
    assert len(judged) == len(expected)


def test_headers_are_chosen(tmp_path: Path) -> None:
    path = tmp_path / "one.eml"
    path.write_bytes(LETTERS[0].as_bytes())
    assert texts_of(path, headers=()) == ["Dear Ben,\n\nhow are you?\n"]
    assert texts_of(path, headers=("From", "subject", "X-None")) == [
        "From: anna@example.org\nsubject: Greetings\n\nDear Ben,\n\nhow are you?\n"
    ]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("Yes.\n\nOn Mon, 3 Jun 2024 at 10:00, Ben wrote:\n> Is it?\n>> Was it?\n", "Yes."),
        ("Yes.\n\nOn Mon, 3 Jun 2024 at 10:00, Ben Longname\n<ben@example.org> wrote:\n\n> Is it?\n", "Yes."),
        ("Am 3. Juni 2024 schrieb Ben:\n> Ist es so?\nJa.\n> Und so?\nNein.\n", "Ja.\n\nNein."),
        ("The list:\n> not mine\nmine\n", "The list:\n\nmine"),
        ("Yes.\n-- \nAnna\n+49 1234\n", "Yes."),
        ("Yes.\n--\nAnna\n", "Yes."),
        ("One\n--\n" + "two\n" * 30, "One\n--\n" + "two\n" * 29 + "two"),
        ("Yes.\n\n-----Original Message-----\nFrom: Ben\n\nIs it?\n", "Yes."),
        ("a > b, and c\n", "a > b, and c"),
    ],
)
def test_quoted_replies_and_signatures_are_cut(body: str, left: str, tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(letter(body).as_bytes())
    assert texts_of(tmp_path / "a.eml", headers=()) == [left + "\n"]


def test_a_letter_of_nothing_but_quotes_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(letter("> all of it\n> by others\n").as_bytes())
    with pytest.raises(UserError, match="empty"):
        texts_of(tmp_path / "a.eml")


def test_of_several_forms_the_plain_one_is_taken_and_a_page_where_there_is_none(tmp_path: Path) -> None:
    both, page = letter("plain words\n"), EmailMessage()
    both.add_alternative("<p>other words</p>", subtype="html")
    page.set_content("<html><head><style>p {}</style></head><p>Words of <b>a</b> page</p><p>and more", subtype="html")
    for name, message, expected in (("both", both, "plain words\n"), ("page", page, "Words of a page\n\nand more\n")):
        (tmp_path / f"{name}.eml").write_bytes(message.as_bytes())
        assert texts_of(tmp_path / f"{name}.eml", headers=()) == [expected]


def test_lines_that_flow_are_joined(tmp_path: Path) -> None:
    message = letter("one \ntwo\n From here\n")
    message.set_param("format", "flowed")
    (tmp_path / "a.eml").write_bytes(message.as_bytes())
    assert texts_of(tmp_path / "a.eml", headers=()) == ["one two\nFrom here\n"]


def test_attachments_are_passed_over_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = mailbox.mbox(str(tmp_path / "all.mbox"))
    for number in range(3):
        message = letter(f"Letter {number}, with a picture. " * 30)
        message.add_attachment(b"not words", maintype="image", subtype="png", filename="a.png")
        message.add_attachment("nor these", filename="notes.txt")
        box.add(message)
    box.flush()
    tally = Tally()
    assert all("words" not in text and "these" not in text for text in texts_of(tmp_path / "all.mbox", tally))
    assert tally.attachments == sum(len(list(message.iter_attachments())) for message in judged(tmp_path / "all.mbox"))
    words = ["prepare", str(tmp_path / "all.mbox"), "--tokenizer.kind", "byte", "--out", str(tmp_path / "shards")]
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reading"]["attachments"] == 6
    assert cli.main(words) == 0
    assert "6 attachments passed over" in capsys.readouterr().out


def judged(path: Path) -> list[EmailMessage]:
    from email import message_from_bytes, policy

    return [message_from_bytes(each.as_bytes(), policy=policy.default) for each in mailbox.mbox(str(path))]  # type: ignore[misc]


def test_bytes_that_are_not_what_the_letter_says(tmp_path: Path) -> None:
    head = b"Subject: x\nContent-Type: text/plain; charset="
    (tmp_path / "a.eml").write_bytes(head + b"koi8-nowhere\n\nna\xc3\xafve\n")
    assert texts_of(tmp_path / "a.eml", headers=()) == ["naïve\n"]
    (tmp_path / "b.eml").write_bytes(head + b"shift_jis\n\na\xff\xff\n")
    with pytest.raises(UserError, match=r"b\.eml: is not shift_jis"):
        texts_of(tmp_path / "b.eml")
    tally = Tally()
    assert texts_of(tmp_path / "b.eml", tally, headers=(), errors="replace")[0].startswith("a\ufffd")
    assert tally.replaced > 0


def deep(levels: int) -> bytes:
    parts = [b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (level, level) for level in range(levels)]
    return b"Subject: deep\n" + b"".join(parts) + b"Content-Type: text/plain\n\ninside\n"


HOSTILE = {
    "deep": deep(3000),
    "a long header": b"Subject: " + b"=?utf-8?q?a?= " * 100_000 + b"\n\nx\n",
    "a long type": b"Content-Type: multipart/mixed; " + b"a=b; " * 100_000 + b"\n\nx\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_message_that_is_made_to_harm_is_one_line_soon(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(HOSTILE[name])
    with within(5), pytest.raises(UserError, match=r"a\.eml") as caught:
        texts_of(tmp_path / "a.eml")
    assert len(caught.value.mistakes) == 1


@pytest.mark.parametrize("data", [b"\0\xff" * 50, b"A", b"Content-Type: multipart/mixed\n\nx", b"\n\n", b": \n:\n\n\n"])
def test_what_is_hardly_a_message_does_no_harm(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.eml").write_bytes(data)
    with contextlib.suppress(UserError):
        assert len(texts_of(tmp_path / "a.eml")) == 1


def test_a_bad_message_in_a_mailbox_is_passed_over_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "LARGEST_RECORD", 2000)
    box = mailbox.mbox(str(tmp_path / "all.mbox"))
    for body in ("first\n", "word " * 2000, "last\n"):
        box.add(letter(body))
    box.flush()
    with pytest.raises(UserError, match=r"all\.mbox message 2: longer than"):
        texts_of(tmp_path / "all.mbox")
    tally = Tally()
    kept = texts_of(tmp_path / "all.mbox", tally, headers=(), bad_records="skip")
    assert (kept, tally.skipped) == (["first\n", "last\n"], 1)
    (tmp_path / "no.mbox").write_bytes(b"just a text\n")
    with pytest.raises(UserError, match="not an mbox"):
        texts_of(tmp_path / "no.mbox")


def test_only_the_folders_of_a_maildir_make_any_file_a_letter(tmp_path: Path) -> None:
    mailbox.Maildir(str(tmp_path / "mine"))
    (tmp_path / "other" / "new").mkdir(parents=True)
    for path, name in (("mine/cur/1.host:2,S", "mail"), ("mine/new/1.txt", "mail"), ("other/new/1.txt", "text")):
        chosen = format_of(tmp_path / path)
        assert chosen is not None
        assert chosen.name == name
