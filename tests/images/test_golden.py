"""The files in export/golden pin what decoding and preprocessing give."""

from __future__ import annotations

import json

import pytest
from helpers import bad_inputs
from helpers.bad_inputs import valid

from mdmf_deploy.images.decode import decoder_version

TABLE = json.loads((bad_inputs.GOLDEN / "decoding.json").read_text(encoding="utf-8"))


def test_golden_files_cover_every_kind() -> None:
    files = {path.name for path in (bad_inputs.GOLDEN / "decoding").iterdir()}
    assert set(TABLE["images"]) == files == set(valid())


@pytest.mark.parametrize("name", TABLE["images"])
def test_golden_files_give_the_same_tensors_on_every_machine(name: str) -> None:
    data = (bad_inputs.GOLDEN / "decoding" / name).read_bytes()
    assert bad_inputs.described(data, TABLE["crop"]) == TABLE["images"][name], (
        f"{name}: the golden values were made with {TABLE['decoder']}, this is {decoder_version()}; "
        "if only lossy files differ, a codec has changed: see tests/helpers/bad_inputs.py"
    )
