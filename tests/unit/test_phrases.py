from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magicportrait.magic.phrases import (
    Token,
    assign_spans,
    hint_of_number,
    named_words,
    numbered,
    occurrences,
    phrases_in,
    places_in_text,
    share_places,
    split_phrases,
    words_of,
)


def prompt_of(*tokens: Token, first: int = 1) -> list[tuple[int, Token]]:
    return list(enumerate(tokens, first))


WORDS = {word: 100 + i for i, word in enumerate(["a", "man", "and", "with", "red", "hat"])}


def tokens(text: str) -> list[Token]:
    return [WORDS[word] for word in text.split()]


def spans(prompt: str, *phrases: str) -> list[tuple[int, ...]]:
    return assign_spans([tokens(phrase) for phrase in phrases], prompt_of(*tokens(prompt)))


@pytest.mark.parametrize(
    ("prompt", "phrases", "expected"),
    [
        ("a man with a hat", ["hat"], [(5,)]),
        ("a man with a red hat", ["red hat", "man"], [(5, 6), (2,)]),
        ("a hat and a hat", ["hat"], [(2, 5)]),  # one concept owns every place
        ("a red hat and a red hat", ["red hat"], [(2, 3, 6, 7)]),
        ("a man and a man", ["man", "man"], [(2,), (5,)]),  # one each
        ("a man and a man", ["man", "hat", "man"], [(2,), (), (5,)]),
        ("a man", ["man", "man"], [(2,), (2,)]),  # what is left over shares the last place
        ("a man and a man", ["man", "man", "man"], [(2,), (5,), (5,)]),
        ("a man and a man and a man", ["man", "man"], [(2,), (5,)]),
        ("a red hat", ["red hat", "hat"], [(2, 3), (3,)]),
        ("red hat", ["hat red", "red red"], [(), ()]),
        ("hat", ["red hat", "hat"], [(), (1,)]),  # longer than the prompt
        ("a hat", ["a hat"], [(1, 2)]),
    ],
)
def test_spans(prompt: str, phrases: list[str], expected: list[tuple[int, ...]]) -> None:
    assert spans(prompt, *phrases) == expected


def test_positions_are_those_of_the_prompt() -> None:
    # Two chunks of 77: special tokens are left out of the list, but not of the count.
    prompt = [(75, 5), (78, 6), (79, 5)]
    assert assign_spans([[5], [6]], prompt) == [(75, 79), (78,)]
    assert assign_spans([[5, 6]], prompt) == [(75, 78)]


def test_vectors_are_compared_by_value() -> None:
    vector = torch.tensor([1.0, 2.0])
    prompt = prompt_of(7, vector, torch.tensor([1.0, 3.0]), 8)
    assert occurrences([vector.clone()], prompt) == [(2,)]
    assert occurrences([torch.tensor([1.0, 3.0]), 8], prompt) == [(3, 4)]
    assert occurrences([torch.tensor([1.0])], prompt) == []
    assert (
        occurrences([7], [(1, torch.tensor(7))]) == occurrences([torch.tensor(7)], [(1, 7)]) == []
    )


def test_concepts_named_by_the_same_vector_take_one_place_each() -> None:
    vector = torch.tensor([1.0, 2.0])
    assert assign_spans([[vector], [vector.clone()]], prompt_of(vector, 3, vector.clone())) == [
        (1,),
        (3,),
    ]


def test_an_empty_phrase_is_nowhere() -> None:
    assert occurrences([], prompt_of(1, 2)) == []
    assert assign_spans([[], []], prompt_of(1, 2)) == [(), ()]
    assert occurrences([1], []) == []


@given(
    st.lists(st.integers(0, 2), max_size=3),
    st.lists(st.integers(0, 2), max_size=9),
    st.integers(0, 100),
)
def test_occurrences_are_all_and_only_the_places_where_the_phrase_stands(
    phrase: Sequence[int], words: list[int], first: int
) -> None:
    text = "".join(map(str, words))
    wanted = "".join(map(str, phrase))
    expected = [
        tuple(range(first + at, first + at + len(phrase)))
        for at in range(len(text))
        if wanted and text[at : at + len(wanted)] == wanted
    ]
    assert occurrences(phrase, prompt_of(*words, first=first)) == expected


def test_a_phrase_inside_a_longer_one_goes_elsewhere_if_it_can():
    prompt = list(enumerate(["a", "red", "hat", "and", "a", "hat"], start=1))
    assert assign_spans([["hat"], ["red", "hat"]], prompt) == [(6,), (2, 3)]
    assert assign_spans([["hat"], ["red", "hat"]], prompt[:3]) == [(3,), (2, 3)]


@pytest.mark.parametrize("separator", [",", "，", "、", ";", "；", "\n", "\r\n", " ,\n, "])
def test_phrases_are_split_at_the_separators_of_any_script(separator: str) -> None:
    assert split_phrases(f" red hat{separator}man {separator}") == ["red hat", "man"]


@pytest.mark.parametrize("text", ["", " ", ",", " ，, ", "、;；", "\r\n,\n"])
def test_commas_alone_hold_no_phrase(text: str) -> None:
    assert phrases_in(text) == []


@pytest.mark.parametrize(
    ("phrase", "others", "different"),
    [
        ("red hat", ["Red  HAT", " red\that ", "(red hat:1.2)"], ["hat", "redhat", "red hat#1"]),
        ("man#2", ["Man #2", "man  ＃2"], ["man", "man#1", "woman#2"]),
        ("straße", ["STRASSE"], ["strase"]),
    ],
)
def test_phrases_are_the_same_in_any_spelling(
    phrase: str, others: list[str], different: list[str]
) -> None:
    assert {named_words(other) for other in others} == {named_words(phrase)}
    assert all(named_words(other) != named_words(phrase) for other in different)


def test_a_phrase_keeps_its_inner_blanks_and_signs() -> None:
    assert split_phrases("mother-in-law's hat, 帽子 . x") == ["mother-in-law's hat", "帽子 . x"]


@pytest.mark.parametrize("text", ["", " ", ",，;\n"])
def test_no_phrase_at_all_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="phrases is empty: write words of the prompt"):
        split_phrases(text)


@pytest.mark.parametrize(
    ("phrase", "text", "expected"),
    [
        ("hat", "a hat, that hat", ["hat", "hat"]),
        ("hat", "that chats of hats", []),
        ("Red Hat", "a red  hat", ["red", "hat"]),
        ("red hat", "a (red:1.3) hat and a ((red hat):.8)", ["red", "hat", "red", "hat"]),
        ("(red hat:1.2)", "a red hat", ["red", "hat"]),
        ("hat", "(hat:1.2)", ["hat"]),
        ("f(x)", "an f(x)", ["f", "x"]),
        ("3:4", "a 3:4 portrait", ["3:4"]),
        ("帽子", "一个戴红帽子的人，帽子", ["帽子", "帽子"]),
        ("hat", "戴hat的人", ["hat"]),
        ("모자", "빨간 모자를 쓴", ["모자"]),
        ("шляпа", "шляпами, шляпа", ["шляпа"]),
        ("", "a hat", []),
    ],
)
def test_a_phrase_stands_in_a_text_as_whole_words(
    phrase: str, text: str, expected: list[str]
) -> None:
    found = places_in_text(words_of(phrase), text)
    assert [text[start:end] for words in found for start, end in words] == expected


def test_places_are_shared_out_by_length_of_any_kind_of_key() -> None:
    places = {"hat": [(3,), (5,)], "red hat": [(2, 3)]}
    assert share_places(["hat", "red hat"], places) == [(5,), (2, 3)]
    assert share_places(["hat", "hat"], {"hat": [(3,), (5,)]}) == [(3,), (5,)]


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("man#2", ("man", 2)),
        ("old man #12", ("old man", 12)),
        ("人＃2", ("人", 2)),
        ("man", None),
        ("#2", None),
        ("man # 2", ("man", 2)),
        ("人＃２", ("人", 2)),
        ("man#99", ("man", 99)),
        ("man#02", ("man", 2)),
        ("(man:1.2)#2", ("(man:1.2)", 2)),
        ("(man#2:1.2)", ("(man:1.2)", 2)),
        ("[man]#2", ("[man]", 2)),
        ("[man#2]", ("[man]", 2)),
        ("man#x", None),
        # No occurrence, which is said where the prompt is read.
        ("man#0", ("man", 0)),
        ("man#2 hat", None),
    ],
)
def test_a_number_behind_a_phrase_names_an_occurrence(phrase: str, expected: object) -> None:
    assert numbered(phrase) == expected


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        # Written as it should be, or about something else.
        ("man", ""),
        ("man#2", ""),
        ("(man:1.2)#2", ""),
        ("old man #2", ""),
        ("#portrait", ""),
        # Brackets and quotes that are not in the prompt, where they would be found.
        ("[man]#2", "man#2"),
        ("[man#2]", "man#2"),
        ('"old man"#3', "old man#3"),
        # No number, or not at the end.
        ("#2", "man#2"),
        ("man#", "man#1"),
        ("man#x", "man#1"),
        ("man#2nd", "man#2"),
        ("man#-2", "man#2"),
        ("man##2", "man#2"),
        ("man#2 hat", "man#2"),
        ("man#2.", "man#2"),
    ],
)
def test_odd_spellings_of_an_occurrence_are_told_how_to_write_it(
    phrase: str, expected: str
) -> None:
    assert hint_of_number(phrase).endswith(f", such as '{expected}'" if expected else "")
    assert bool(hint_of_number(phrase)) == bool(expected)


@pytest.mark.parametrize(
    ("prompt", "phrases", "numbers", "expected"),
    [
        ("a man and a man", ["man"], [2], [(5,)]),
        ("a man and a man", ["man", "man"], [2, 1], [(5,), (2,)]),
        # What has no number has the rest.
        ("a man and a man", ["man", "man"], [None, 2], [(2,), (5,)]),
        ("a man and a man", ["man", "man"], [1, None], [(2,), (5,)]),
        ("a man and a man and a man", ["man", "man", "man"], [None, 2, None], [(2,), (5,), (8,)]),
        ("a man and a man and a man", ["man", "man"], [None, 2], [(2, 8), (5,)]),
        # Named twice, and more often than it is there.
        ("a man and a man", ["man", "man"], [2, 2], [(5,), (5,)]),
        ("a man", ["man", "man"], [None, 1], [(2,), (2,)]),
        ("a man", ["man"], [2], [()]),
        ("a man and a man", ["man"], [0], [()]),
        # A longer phrase has only the place that it names.
        ("a red hat and a red hat", ["red hat", "hat"], [1, None], [(2, 3), (7,)]),
        ("a red hat and a red hat", ["red hat", "hat"], [1, 2], [(2, 3), (7,)]),
    ],
)
def test_numbered_places(
    prompt: str,
    phrases: list[str],
    numbers: list[int | None],
    expected: list[tuple[int, ...]],
) -> None:
    found = assign_spans(
        [tokens(phrase) for phrase in phrases], prompt_of(*tokens(prompt)), numbers
    )
    assert found == expected
