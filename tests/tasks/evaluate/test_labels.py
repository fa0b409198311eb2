"""Labelled lists in CSV and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.evaluate.labels import Label, read_labels

ROWS = [
    {"path": "a.jpg", "label": "real"},
    {"path": "deep/b.png", "label": "fake", "generator": "flux", "kind": "art"},
    {"path": "/c.png", "label": "1"},
]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_same_list_in_every_format_is_the_same(tmp_path: Path) -> None:
    csv = "path,label,generator,kind\n" + "".join(
        f"{row['path']},{row['label']},{row.get('generator', '')},{row.get('kind', '')}\n" for row in ROWS
    )
    texts = {
        "a.csv": csv,
        "b.CSV": "\ufeff" + csv.replace("\n", "\r\n"),
        "a.json": json.dumps(ROWS),
        "a.jsonl": "\n\n".join(map(json.dumps, ROWS)),
    }
    for name, text in texts.items():
        assert read_labels(written(tmp_path / name, text)) == [
            Label(tmp_path / "a.jpg", None, None),
            Label(tmp_path / "deep/b.png", "flux", "art"),
            Label(Path("/c.png"), "generated", None),
        ]


@pytest.mark.parametrize("real", ["real", "REAL ", "0", 0, "nature", "0_real"])
@pytest.mark.parametrize("generated", ["generated", "fake", "1", 1, "ai", "1_fake"])
def test_labels_are_the_words_of_benchmarks(real: object, generated: object, tmp_path: Path) -> None:
    rows = [{"path": "a", "label": real, "generator": "ignored"}, {"path": "b", "label": generated}]
    labels = read_labels(written(tmp_path / "set.json", json.dumps(rows)))
    assert [label.generator for label in labels] == [None, "generated"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "expected the columns path and label, found none"),
        ("a.csv", "file,class\na,0\n", "expected the columns path and label, found 'file', 'class'; rename them"),
        ("a.csv", "path;label\na;0\n", "expected the columns path and label, found 'path;label'"),
        ("a.csv", "path,label\na,0\nb,\n", "line 3: label is ''; expected real or generated"),
        ("a.csv", "path,label\na,0\nb\n", "line 3: label is None; expected real or generated"),
        ("a.csv", "path,label\na,0\nb,perhaps\n", "line 3: label is 'perhaps'"),
        ("a.csv", "path,label\n,0\n", "line 2: path is ''; expected the path of an image"),
        ("a.csv", 'path,label\n"a,0\n', "is no CSV"),
        ("a.csv", "path,label\na,real\n", "no image is labelled generated"),
        ("a.csv", "path,label\na,ai\n", "no image is labelled real"),
        ("a.json", "{}", "holds a dict; expected an array of objects"),
        ("a.json", "[", "is no JSON"),
        ("a.json", '["a"]', "entry 1 is a str; expected an object with path and label"),
        ("a.json", '[{"path": "a"}]', "entry 1: expected the columns path and label, found 'path'"),
        ("a.json", '[{"path": "a", "label": true}]', "entry 1: label is True"),
        ("a.json", '[{"path": 7, "label": 0}]', "entry 1: path is 7"),
        ("a.json", '[{"path": "a", "label": 1, "generator": 7}]', "entry 1: generator is 7; expected a text"),
        ("a.jsonl", '{"path": "a", "label": 0}\n{', "line 2 is no JSON"),
        ("a.json", "[" * 100_000, "is no JSON"),
    ],
)
def test_a_wrong_list_is_one_line_that_names_the_place(name: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        read_labels(written(tmp_path / name, text))
    assert str(raised.value).startswith(str(tmp_path / name))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_list_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give a file that you can read"):
        read_labels(tmp_path / "gone.csv")
    (tmp_path / "a.csv").write_bytes(b"path,label\n\xff,0\n")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_labels(tmp_path / "a.csv")
