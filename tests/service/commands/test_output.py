"""Tables that are not cut off, and output that cannot control a terminal."""

import io
import json
import re
import sys

import pytest

from service.commands import output

LONG = "a sentence that is much too long for any terminal " * 10


class Terminal(io.TextIOWrapper):
    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    def isatty(self) -> bool:
        return True

    def content(self) -> str:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode()


def test_a_piped_table_has_a_row_a_line_and_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("NAME", "WHY"), [("mc", LONG), ("try", "two\nlines")], "none")
    head, first, second = capsys.readouterr().out.splitlines()
    assert head == "NAME  WHY"
    assert first == f"mc    {LONG.rstrip()}"
    assert second == "try   two lines"


def test_on_a_narrow_terminal_all_of_it_is_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    output.table(("NAME", "WHY"), [("mc", "x" * 200), ("try", "error")], "none")
    printed = terminal.content()
    assert printed.count("x") >= 200
    assert max(len(line) for line in printed.splitlines() if "\x1b" not in line) <= 40
    assert "\x1b[31merror" in printed  # red


def test_on_eighty_columns_no_id_is_folded_and_a_table_that_fits_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    ids = [f"{letter * 21}A" for letter in "abcd"]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    output.table(("ID", "COPY", "GROUP", "MADE FROM"), [ids, ids], "none")
    output.table(("ID", "STATE"), [(ids[0], "done")], "none")
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in terminal.content().splitlines()]
    output.table(("ID", "WHY", "GROUP", "TASKS"), [(ids[0], "", None, "x" * 60)], "none")
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip() for line in terminal.content().splitlines()]
    assert lines[-2:] == [f"id     {ids[0]}", f"tasks  {'x' * 60}"], "what is empty is left out"
    lines = lines[:-2]
    block = [f"id         {ids[0]}", f"copy       {ids[1]}", f"group      {ids[2]}", f"made from  {ids[3]}"]
    assert lines == [*block, "", *block, "ID                      STATE", f"{ids[0]}  done"]


def test_an_empty_table_says_so_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("NAME",), [], "no pushes")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "no pushes\n")


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain é 😀", "plain é 😀"),
        ("\x1b[2Jcleared", "\\x1b[2Jcleared"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\x00", "a\\rb\\x00"),
        ("half \udce9", "half \\udce9"),
        ("turned \u202e", "turned \\u202e"),
        ("[red]no markup[/red] :smile:", "[red]no markup[/red] :smile:"),
    ],
)
def test_what_comes_from_outside_is_shown_as_it_is_and_does_nothing(
    capsys: pytest.CaptureFixture[str], text: str, printed: str
) -> None:
    output.table(("A",), [(text,)], "none")
    output.fields([("a", text)])
    output.say(text)
    output.warn(text)
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["A", printed, f"a  {printed}", printed]
    assert captured.err == f"{printed}\n"


def test_lists_and_lines_stand_below_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    output.fields([("tasks", ["a", "b"]), ("why", "one\ntwo"), ("none", []), ("yes", True)])
    assert capsys.readouterr().out.splitlines() == [
        "tasks  a",
        "       b",
        "why    one",
        "       two",
        "none   -",
        "yes    yes",
    ]


def test_a_document_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    output.document({"user": "é\udce9"})
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed) == {"user": "é\udce9"}


def test_progress_is_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(output.progress([1, 2], "importing")) == [1, 2]
    with output.waiting("planning"):
        pass
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(output.progress([1, 2], "importing")) == [1, 2]
    assert "importing" in terminal.content()
    assert "2/2" in terminal.content()
