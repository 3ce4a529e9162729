"""Ids inside other texts."""

import json
import time

from hypothesis import given
from hypothesis import strategies as st

from service.slugids import FEW, find_ids, replace_ids
from tests.service.flow.graph_factory import slug


@given(
    names=st.lists(st.integers(0, 10**6), min_size=1, max_size=FEW + 5, unique=True),
    pieces=st.lists(st.one_of(st.integers(0, 5), st.text('aAQ-_/ .\\\n"\u00e9\0', max_size=6)), max_size=12),
)
def test_ids_are_found_wherever_they_stand(names: list[int], pieces: list[int | str]) -> None:
    new_ids = {slug(f"old{name}"): slug(f"new{name}") for name in names}
    old = list(new_ids)
    text = "".join(old[piece % len(old)] if isinstance(piece, int) else piece for piece in pieces)
    expected = "".join(new_ids[old[piece % len(old)]] if isinstance(piece, int) else piece for piece in pieces)
    replaced = replace_ids({"x": [text, 1, None], text: text}, new_ids)
    assert replaced == {"x": [expected, 1, None], expected: expected}
    assert not any(new_id in json.dumps(replaced) for new_id in new_ids)
    assert find_ids(text, new_ids) == {new_id for new_id in new_ids if new_id in text}
    assert find_ids(json.dumps([text, {text: text}]), new_ids) == {new_id for new_id in new_ids if new_id in text}


def test_other_texts_stay_as_they_are() -> None:
    new_ids = {slug("a"): slug("b")}
    for text in ("", "x" * 21, "x" * 22, slug("c"), slug("a")[:-1] + "!", slug("a").lower(), "\ud800" * 30, "é" * 22):
        assert replace_ids(text, new_ids) == text


def test_a_text_of_megabytes_without_an_id_takes_no_time() -> None:
    began = time.process_time()
    text = "x" * 5_000_000
    assert replace_ids(text, {slug(f"old{number}"): slug("new") for number in range(FEW)}) == text
    assert time.process_time() - began < 0.5  # place by place, it takes seconds
