"""A bundle with one wrong value and hashes that fit is refused in one line, or still gives scores that images can have.

Whoever sends a bundle can compute its hashes again, so nothing but the values themselves can give a wrong one away.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
from helpers.bundle_mutants import mutant, read_tensors, write_tensors
from helpers.handmade import calibration_of, make_bundle
from helpers.mdmf import mdmf
from helpers.synthetic_photos import write_photos

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import Bundle, shipped, write_bundle
from mdmf_deploy.bundle.manifest import BANK, CALIBRATION, PROBES
from mdmf_deploy.bundle.probe_images import probe_crops, probes_from_bytes, probes_to_bytes
from mdmf_deploy.detection.detector import Detector
from mdmf_deploy.errors import BankError, MdmfError
from mdmf_deploy.mmd.reference import check_self_term
from mdmf_deploy.runtime import open_engine
from mdmf_deploy.tasks.bank.compress import compress_bundle
from mdmf_deploy.tasks.verify import extract_crops

# Each opens in milliseconds. Every eighth gets a detector, and every sixtieth the commands.
SEEDS = range(300)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two calibrated bundles of one small model. The second has a bank and a calibration of its own."""
    folder = tmp_path_factory.mktemp("pair")
    bundle = make_bundle(folder / "unprobed.mdmf")
    crops = probe_crops(bundle.manifest.preprocessing.crop)
    with closing(open_engine("onnxruntime", bundle)) as engine:
        signatures = extract_crops(crops, engine, bundle.manifest.preprocessing)
    probes = {PROBES: probes_to_bytes(signatures, crops)}
    bundle = write_bundle(folder / "probed.mdmf", bundle.manifest, {**bundle.files(), **probes})
    found = []
    for name, points, shift in (("a.mdmf", None, 0.0), ("b.mdmf", 8, 0.5)):
        made = bundle if points is None else compress_bundle(bundle, folder / name, points=points).bundle
        calibration = calibration_of([shift + n / 20 for n in range(20)], bundle_id=made.bundle_id)
        written = write_bundle(folder / name, made.manifest, {**made.files(), CALIBRATION: calibration.to_bytes()})
        found.append(written.path)
    return found[0], found[1]


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    write_photos(folder, 1, first_seed=7)
    return next(folder.iterdir())


def opened(path: Path) -> Bundle:
    """Read everything that a bundle holds."""
    bundle = Bundle.open(path)
    _ = bundle.bank, bundle.calibration
    return bundle


def refusal(path: Path, error: MdmfError) -> str:
    text = str(error)
    assert "\n" not in text, text
    assert str(path) in text, text
    assert len(text) < 1500, text
    return "refused"


def outcome(path: Path, photo: Path | None) -> str:
    """Return "refused" or "works". Any other exception passes through."""
    try:
        bundle = opened(path)
        if photo is None:
            return "works"
        with Detector(path, "onnxruntime") as detector:
            [row] = detector.detect(photo)
        if PROBES in bundle.manifest.files:
            crops = probe_crops(bundle.manifest.preprocessing.crop)
            probes_from_bytes((path / PROBES).read_bytes(), crops, str(path / PROBES))
    except MdmfError as error:
        return refusal(path, error)
    assert row.error_code in (None, "impossible_score")
    if row.score is not None:
        low, high = bundle.bank.score_range
        assert -0.01 < low <= row.score <= high < 4.01
        assert row.p_value is None or 0.0 < row.p_value <= 1.0
    return "works"


def test_a_mutant_is_refused_in_one_line_or_gives_scores_that_can_be(
    pair: tuple[Path, Path], photo: Path, tmp_path: Path
) -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        path = tmp_path / f"{seed}.mdmf"
        what = mutant(seed, *pair, path)
        try:
            seen[outcome(path, photo if seed % 8 == 0 else None)] += 1
        except Exception as error:
            error.add_note(what)
            raise
    # Neither an untouched copy nor a reader that refuses everything would tell anything.
    assert opened(pair[0]).calibration is not None
    assert seen["refused"] > 0.6 * len(SEEDS)
    assert seen["works"] > 0.05 * len(SEEDS)


def test_commands_refuse_a_mutant_in_one_line(pair: tuple[Path, Path], photo: Path, tmp_path: Path) -> None:
    for seed in SEEDS[::60]:
        path = tmp_path / f"{seed}.mdmf"
        what = mutant(seed, *pair, path)
        for command in (
            ("detect", photo, "--bundle", path, "--runtime", "onnxruntime"),
            ("inspect", path),
            ("verify", path, "--runtime", "onnxruntime", "-o", tmp_path / "v.mdmf", "--force"),
            ("calibrate", path, photo, "--runtime", "onnxruntime", "-o", tmp_path / "c.mdmf", "--force"),
            ("bank", "inspect", path),
            ("bank", "compress", path, "--points", 8, "-o", tmp_path / "k.mdmf", "--force"),
        ):
            result = mdmf(*command)
            said = f"{what}\n{command}\n{result.stderr}"
            assert result.exception is None or isinstance(result.exception, SystemExit), said
            assert result.exit_code in (0, 1, 2, 3), said
            if result.exit_code == 2:
                last = result.stderr.splitlines()[-1]
                assert "mdmf: " in last, said


@pytest.mark.parametrize("seed", range(1000, 1006))
def test_so_is_a_mutant_of_a_shipped_bundle(tmp_path: Path, seed: int) -> None:
    what = mutant(seed, shipped("starter"), shipped("dinov2s"), tmp_path / "m.mdmf")
    try:
        opened(tmp_path / "m.mdmf")
    except MdmfError as error:
        refusal(tmp_path / "m.mdmf", error)
    except Exception as error:
        error.add_note(what)
        raise


@pytest.mark.parametrize("shift", [-0.1, 0.1])
def test_a_wrong_self_term_of_a_large_bank_is_refused(shift: float) -> None:
    """Only some of its pairs are drawn, so a small difference passes until `mdmf verify` counts all of them."""
    tensors, header = read_tensors((shipped("starter") / BANK).read_bytes())
    assert len(tensors["weights"]) > 1000
    for off, refused in ((0.0, False), (shift / 100, False), (shift, True)):
        own = {**tensors, "self_term": tensors["self_term"] + off}
        with pytest.raises(BankError, match="its self term is") if refused else nullcontext():
            bank = Bank.from_bytes(write_tensors(own, header["__metadata__"]))
            with pytest.raises(BankError, match="its self term is") if off else nullcontext():
                check_self_term(bank, "bank")
