"""`mdmf bank inspect` finds the images that look generated, and no others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
from helpers.handmade import GRAPH, extracted, manifest

from mdmf_deploy.bundle.bank import Bank
from mdmf_deploy.bundle.bundle import write_bundle
from mdmf_deploy.bundle.manifest import BANK, MODEL
from mdmf_deploy.mmd.cpu import leave_one_out
from mdmf_deploy.mmd.reference import ReferenceReduction, gaussian_kernel, uniform_bank
from mdmf_deploy.tasks.bank.build import gather_bank
from mdmf_deploy.tasks.bank.compress import compress_bundle
from mdmf_deploy.tasks.bank.inspect import OUTLIER_Z, audit_bank


def made(count: int = 30, strange: int = 0) -> Bank:
    usual = [extracted(f"/r/{'ab'[place % 2]}/{place}.png", 9) for place in range(count)]
    return gather_bank(
        manifest(), [*usual, *(extracted(f"/r/z/odd{i}.png", 9, shift=4.0) for i in range(strange))]
    ).bank


def test_leave_one_out_scores_are_those_of_a_bank_built_without_the_image() -> None:
    whole = made(8)
    expected = []
    for image in range(8):
        keep = whole.source != image
        rest = uniform_bank(
            whole.signatures[keep],
            whole.sigma,
            source=whole.source[keep],
            sources=whole.sources,
            model_sha256=whole.model_sha256,
        )
        expected.append(ReferenceReduction()(whole.signatures[~keep][None], rest).mmd2[0])
    quantiles = audit_bank(whole).quantiles
    assert list(quantiles.values()) == pytest.approx(np.quantile(expected, [float(q) for q in quantiles]), abs=2e-6)


def test_images_that_look_generated_are_found_worst_first() -> None:
    whole = made(30, strange=2)
    audit = audit_bank(whole)
    assert {outlier.uri for outlier in audit.outliers} == {"r/z/odd0.png", "r/z/odd1.png"}
    assert [outlier.z for outlier in audit.outliers] == sorted((o.z for o in audit.outliers), reverse=True)
    assert audit.outliers[0].score == pytest.approx(audit.quantiles["1"])
    scores = leave_one_out(whole)
    apart = scores - np.median(scores)
    z = {source.uri: z for source, z in zip(whole.sources, 0.6745 * apart / np.median(np.abs(apart)), strict=True)}
    assert {outlier.uri: outlier.z for outlier in audit.outliers} == pytest.approx(
        {uri: value for uri, value in z.items() if value > OUTLIER_Z}
    )


def test_images_like_the_others_are_no_outliers() -> None:
    assert audit_bank(made(30)).outliers == ()


def test_sources_are_counted_by_folder() -> None:
    audit = audit_bank(made(5, strange=1))
    assert audit.folders == {"r/a": 3, "r/b": 2, "r/z": 1}
    assert (audit.images, audit.signatures, audit.width) == (6, 54, 4)


def test_the_mean_kernel_value_leaves_out_the_diagonal() -> None:
    whole = made(3)
    kernel = gaussian_kernel(whole.signatures, whole.signatures, whole.sigma)
    expected = kernel[~np.eye(len(kernel), dtype=bool)].mean()
    assert audit_bank(whole).mean_kernel == pytest.approx(expected)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.5, 30.0])
@pytest.mark.parametrize("points", [3, 12])
def test_a_compressed_bank_has_the_mean_kernel_value_of_the_whole_one(
    sigma: float, points: int, tmp_path: Path
) -> None:
    model = manifest()
    model = msgspec.structs.replace(model, model=msgspec.structs.replace(model.model, sigma=sigma))
    whole = gather_bank(model, [extracted(f"{i}.png", 9) for i in range(6)]).bank
    expected = audit_bank(whole).mean_kernel
    bundle = write_bundle(tmp_path / "b", model, {MODEL: GRAPH, BANK: whole.to_bytes()})
    report = compress_bundle(bundle, tmp_path / "c", points=points)
    assert report.mean_kernel == expected
    assert report.bundle.bank.compression["of"] == 54 > len(report.bundle.bank.weights)
    assert audit_bank(report.bundle.bank).mean_kernel == pytest.approx(expected, rel=1e-4, abs=1e-8)
    warnings = audit_bank(report.bundle.bank).warnings[:-1]
    assert [line.partition("(")[0] for line in warnings] == [line.partition("(")[0] for line in report.warnings]


@pytest.mark.parametrize(("sigma", "word"), [(1e-3, "too small"), (1e3, "too large"), (1.5, None)])
def test_a_useless_bandwidth_is_warned_of(sigma: float, word: str | None) -> None:
    model = manifest()
    model = msgspec.structs.replace(model, model=msgspec.structs.replace(model.model, sigma=sigma))
    warnings = audit_bank(gather_bank(model, [extracted(f"{i}.png") for i in range(6)]).bank).warnings
    assert [word in warning for warning in warnings] == ([True] if word else [])


def test_compressed_and_single_banks_say_why_they_have_no_scores() -> None:
    compressed = dataclasses.replace(made(3), compression={"method": "nystrom"})
    assert "compressed" in audit_bank(compressed).warnings[-1]
    single = audit_bank(made(1))
    assert "single image" in single.warnings[-1]
    assert single.quantiles == {}
    assert single.outliers == ()


def test_one_image_again_and_again_is_no_scale_to_judge_by() -> None:
    copies = [extracted(f"{place}.png")._replace(signatures=extracted("x").signatures) for place in range(5)]
    assert audit_bank(gather_bank(manifest(), copies).bank).outliers == ()
