"""Stop strings against the plainest search, letter by letter; what a script is told of a text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from effort import tries
from hornbook.infer.continuation import StopFinder
from hornbook.infer.speaker import Speaker


def cut_plainly(text: str, stops: Sequence[str]) -> str:
    """Letter by letter, until the text ends with a stop string; of several, the longest is cut off."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(
    pieces=st.lists(st.text("abc", max_size=5), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_before_the_stop_string_wherever_pieces_end(pieces: list[str], stops: list[str]) -> None:
    finder, said, text = StopFinder(stops), "", "".join(pieces)
    whole = cut_plainly(text, stops)
    for piece in pieces:
        said += finder.feed(piece)
        assert whole.startswith(said), "what went out cannot be taken back"
    assert said + finder.end() == whole
    assert (finder.reached is not None) == any(stop in text for stop in stops)


def test_nothing_waits_that_cannot_become_a_stop_string() -> None:
    finder = StopFinder(["\n\nend"])
    assert [finder.feed(piece) for piece in ("a\n", "\n", "b", "\n\nen", "t")] == ["a", "", "\n\nb", "", "\n\nent"]


def test_a_stop_string_over_token_borders_ends_a_text(speaker: Speaker) -> None:
    """Each token is a byte here: every stop string of two letters lies over a border."""
    for seed in range(tries(3, 12)):
        [whole] = speaker.generate_batch(["ab"], seed=seed, max_tokens=60, temperature=1.0, top_p=None)
        place = len(whole.text) // 2
        stop = whole.text[place : place + 2]
        options = {"seed": seed, "max_tokens": 60, "temperature": 1.0, "top_p": None, "stop": [stop, "never said"]}
        [stopped] = speaker.generate_batch(["ab"], **options)
        assert stopped.text == cut_plainly(whole.text, [stop])
        assert stopped.ended == "stop"
        assert [each.id for each in stopped.tokens] == [each.id for each in whole.tokens[: len(stopped.tokens)]]
        assert "".join(speaker.stream("ab", **options)) == stopped.text


def test_of_each_token_it_is_known_where_its_text_begins(speaker: Speaker) -> None:
    """Also of bytes that are parts of a character, and of tokens that a stop string cuts off."""
    for seed in range(tries(3, 12)):
        options = {"seed": seed, "max_tokens": 60, "temperature": 3.0, "top_p": None}
        for stop in ([], [speaker.generate("ab", **options)[5:7]]):
            [text] = speaker.generate_batch(["ab"], **options, stop=stop)
            reader, starts = codecs.getincrementaldecoder("utf-8")("replace"), [0]
            for token in text.tokens:
                starts.append(starts[-1] + len(reader.decode(speaker.tokenizer.piece(token.id))))
            assert text.starts == starts[:-1]


def test_all_prompts_and_seeds_are_answered_in_order(speaker: Speaker) -> None:
    prompts = ["", "ab", "x" * 40, "ab", "é"]
    options = {"max_tokens": 12, "temperature": 1.2, "top_p": None}
    found = speaker.generate_batch(prompts, n=3, seed=4, rows=4, **options)
    assert [(each.prompt, each.seed) for each in found] == [(prompt, seed) for prompt in prompts for seed in (4, 5, 6)]
    for each in found:
        assert each.text == speaker.generate(each.prompt, seed=each.seed, **options)
        assert each.ended in ("length", "end_of_text")
    assert [each.forgotten for each in found[::3]] == [0, 0, 24, 0, 0]  # of 40 in a context of 16, which moves by 8


def test_a_script_is_told_of_every_token(speaker: Speaker) -> None:
    [found] = speaker.generate_batch(["ab"], max_tokens=9, temperature=0.0, logprobs=3)
    facts = found.as_dict()
    assert repr(found.text) in repr(found)
    assert {name: facts[name] for name in ("prompt", "seed", "ended", "forgotten")} == {
        "prompt": "ab",
        "seed": 0,
        "ended": "length",
        "forgotten": 0,
    }
    assert bytes(each["id"] for each in facts["tokens"]).decode(errors="replace") == facts["text"]
    for each in facts["tokens"]:
        assert len(each["alternatives"]) == 3
        assert each["alternatives"][0] == {name: each[name] for name in ("id", "text", "logprob")}, "the likeliest"
    assert "logprob" not in speaker.generate_batch(["ab"], max_tokens=1)[0].as_dict()["tokens"][0]


def test_beams_end_at_stop_strings_too(speaker: Speaker) -> None:
    found = speaker.beam_search("ab", beams=4, n=2, max_tokens=20, length_penalty=0.0)
    assert len(found) == 2
    assert found[0].score >= found[1].score  # type: ignore[operator]
    stop = found[0].text[4:6]
    stopped = speaker.beam_search("ab", beams=4, max_tokens=20, stop=[stop], length_penalty=0.0)
    assert stopped[0].ended == "stop"
    assert stop not in stopped[0].text
