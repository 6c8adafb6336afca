"""What is shown of a text that was found: on one line, without the marks that only the beginning of a line has."""

from __future__ import annotations

import pytest

from flaskchat.store.search import AFTER, snippet


def shown(text: str, word: str = "nightjar") -> str:
    found = snippet(text, [word])
    return f"{found['before']}[{found['match']}]{found['after']}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Birds\n\n> Said: a nightjar\n> sleeps.\n## Then\n### #1", "Birds  Said: a [nightjar] sleeps. Then #1"),
        ("Birds\n## Nightjar\nIt sleeps", "Birds [Nightjar] It sleeps"),
        ("> > ## nightjar", "[nightjar]"),
        ("a > nightjar > b\n5 > 3 # c\n#nightjar\n>x", "a > [nightjar] > b 5 > 3 # c #nightjar >x"),
        ("nightjar# C", "[nightjar]# C"),
        ("nightjar\n> quoted", "[nightjar] quoted"),
    ],
)
def test_marks_of_a_line_are_taken_away_and_what_only_looks_like_them_is_not(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_where_a_match_ends_no_line_begins() -> None:
    assert shown("5> 3", "5") == "[5]> 3"


def test_what_is_cut_begins_and_ends_with_dots() -> None:
    words = "word " * 60
    found = shown(f"{words}> nightjar # {words}")
    assert found.startswith("…word word")
    assert "word > [nightjar] # word" in found
    assert found.endswith("word…")
    assert len(found.partition("]")[2]) <= AFTER + 1
