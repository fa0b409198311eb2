"""Text for people fits 80 columns and keeps whole what is copied."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mdmf_deploy.cli.layout import WIDTH, joined, wrapped


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.text("abc-/", min_size=1, max_size=60), min_size=1, max_size=30), st.integers(0, 15))
def test_lines_fit_and_lose_nothing(words: list[str], indent: int) -> None:
    lines = wrapped(" ".join(words), "name  ", indent)
    assert all(len(line) <= WIDTH for line in lines)
    assert all(line.startswith(" " * indent) for line in lines[1:])
    assert " ".join(lines).split() == ["name", *words]


def test_a_line_is_filled_to_its_last_column() -> None:
    words = "a " * (WIDTH // 2 - 2)
    assert [len(wrapped(words + "b" * length)) for length in (4, 5)] == [1, 2]


def test_a_command_is_never_split() -> None:
    for length in range(90):
        lines = wrapped(f"{'x ' * length}`mdmf bank build mine.mdmf` y")
        assert any("`mdmf bank build mine.mdmf`" in line for line in lines)


def test_a_path_stays_whole_and_nothing_is_a_bare_name() -> None:
    assert wrapped("/p" * 60, "bundle  ") == ["bundle  " + "/p" * 60]
    assert wrapped("", "name  ") == ["name"]


def test_names_are_joined_as_in_a_sentence() -> None:
    assert [joined("abc"[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
