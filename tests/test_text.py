"""Text from outside is safe to show, and what spreadsheets get can be turned back."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mdmf_deploy
from mdmf_deploy.text import cell, from_cell, one_line, printable, printable_json

ANY = st.text(st.characters(codec=None))
# Characters that hypothesis alone would seldom put where they matter.
CELLS = st.text(st.sampled_from("=+-@＝＋－＠'; \t\r\n\x0b\"a1") | st.characters(), max_size=20)
ODD = ["\x1b[2J", "\x9b2J", "\u202e", "\u200b", "\u200d", "\ufeff", "\u00ad", "\U000e0041", "\x7f", "\u2028", "\udce9"]


def shows(text: str) -> bool:
    return not any(unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") for one in text)


@settings(deadline=None, derandomize=True)
@given(ANY | st.lists(st.sampled_from(ODD) | ANY).map("".join))
def test_nothing_unprintable_is_left(text: str) -> None:
    assert shows(one_line(text))
    assert len(one_line(text).splitlines()) <= 1
    assert shows(printable(text).replace("\n", "").replace("\t", ""))
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize("odd", ODD)
def test_each_is_written_as_its_bytes(odd: str) -> None:
    written = "".join(
        one if shows(one) else "".join(f"\\x{byte:02x}" for byte in one.encode("utf-8", "surrogateescape"))
        for one in odd
    )
    assert printable(f"a{odd}b\n\tc") == f"a{written}b\n\tc"


def test_ordinary_text_stays() -> None:
    for text in ("é 日本 🙂 \u3000 \u00a0", "a\\b", "two\nlines\t"):
        assert printable(text) == text
    assert one_line("two\r\nlines\n") == "two lines"
    assert one_line("half\ud800") == "half\\xed\\xa0\\x80"


@settings(deadline=None, derandomize=True)
@given(
    st.dictionaries(ANY, ANY | st.integers() | st.none()).filter(
        lambda d: not any("Cs" in map(unicodedata.category, t) for t in map(str, [*d, *d.values()]))
    )
)
def test_json_says_the_same_and_shows_it(value: dict[str, object]) -> None:
    document = msgspec.json.format(msgspec.json.encode(value), indent=2)
    shown = printable_json(document)
    assert json.loads(shown) == value
    assert shows(shown.decode().replace("\n", ""))


def test_json_of_ordinary_names_is_not_touched() -> None:
    document = '{"a": "é 日本 🙂"}\n'.encode()
    assert printable_json(document) == document


@settings(deadline=None, derandomize=True, max_examples=400)
@given(CELLS)
def test_a_cell_is_no_formula_and_gives_its_text_back(text: str) -> None:
    written = cell(text)
    assert isinstance(written, str)
    assert from_cell(written) == text
    # Also where a spreadsheet divides at semicolons.
    for part in written.split(";"):
        assert not part.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        assert not part.strip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠"))


def test_ordinary_cells_stay() -> None:
    for text in ("", "a.jpg", "a=b", "photos/-1.jpg", "it's", "a; b", "grid 2x2"):
        assert cell(text) == text
    for value in (-0.5, 3, None, float("-inf"), True):
        assert cell(value) is value


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=1+1", "'=1+1"),
        ("'a", "''a"),
        ("'=a", "''=a"),
        ("@x.jpg", "'@x.jpg"),
        ("-", "'-"),
        (" +1", "' +1"),
        ("\tx", "'\tx"),
        ("a;=1;b;'c", "a;'=1;b;''c"),
    ],
)
def test_cells_as_documented(text: str, written: str) -> None:
    assert cell(text) == written


def test_every_writer_of_csv_writes_cells() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in Path(mdmf_deploy.__file__).parent.rglob("*.py")}
    writers = {path: text for path, text in sources.items() if re.search(r"\bcsv\.(DictW|w)riter\(", text)}
    assert len(writers) == 3
    assert not [path for path, text in writers.items() if "map(cell, " not in text]
