"""The schedule, the parameter groups, the average and the cadence of the training loop."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mdmf_deploy.bundle.recipe import Recipe, Training
from mdmf_deploy.errors import TrainingFailed
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train import loop
from mdmf_deploy.tasks.train.data import Batch
from mdmf_deploy.tasks.train.loop import Cadence, train
from mdmf_deploy.tasks.train.network import TrainingNet, classification_loss


def features(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return Batch(torch.randn(4, 4, 192, generator=generator), 1 + torch.randn(4, 4, 192, generator=generator))


def net(recipe: Recipe) -> TrainingNet:
    torch.manual_seed(0)
    return TrainingNet(MdmfModel(recipe), frozen=True, classify=False)


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    plan = Training(steps=110, warmup=10, learning_rate=1.0)
    rates = [loop._learning_rate(step, plan) for step in range(111)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.505)
    assert rates[110] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_every_trained_parameter_is_in_one_group_and_biases_do_not_decay(tiny_recipe: Recipe) -> None:
    whole = TrainingNet(MdmfModel(tiny_recipe), frozen=False, classify=True)
    decayed, plain, bandwidth = loop._groups(whole, Training(weight_decay=0.3))
    assert decayed["weight_decay"] == 0.3
    assert plain["weight_decay"] == bandwidth["weight_decay"] == 0
    assert [id(p) for p in bandwidth["params"]] == [id(whole.detector.log_sigma)]  # type: ignore[attr-defined]
    assert all(p.ndim == 1 for p in plain["params"])  # type: ignore[attr-defined]
    grouped = [id(p) for group in (decayed, plain, bandwidth) for p in group["params"]]  # type: ignore[attr-defined]
    trained = [id(p) for p in whole.parameters() if p is not whole.detector.backbone.mask_token]
    assert sorted(grouped) == sorted(trained)


def test_what_is_kept_is_the_average_not_the_last_weights(tiny_recipe: Recipe, tmp_path: Path) -> None:
    kept = {}
    for average in (0.0, 0.9):
        plan = Training(steps=12, warmup=1, learning_rate=1e-2, average=average)
        current = net(tiny_recipe)
        trained = train(current, features, plan, lambda _: {}, tmp_path / str(average), "", cadence=Cadence(save=100))
        kept[average] = (trained.head.layers[0].weight, current.detector.head.layers[0].weight)
    assert torch.equal(*kept[0.0])
    assert torch.equal(kept[0.0][1], kept[0.9][1])
    assert not torch.allclose(*kept[0.9])


def test_validation_comes_when_asked_for_whatever_the_log(tiny_recipe: Recipe, tmp_path: Path) -> None:
    history: list[dict[str, float]] = []
    plan = Training(steps=14, warmup=1)
    cadence = Cadence(log=10, validate=4, save=100)
    validate = {"mean": 0.5}
    train(net(tiny_recipe), features, plan, lambda _: validate, tmp_path, "", cadence=cadence, watch=history.append)
    assert [record["step"] for record in history] == [4, 8, 10, 12, 14]
    assert [record["step"] for record in history if "auroc_mean" in record] == [4, 8, 12, 14]


def test_a_loss_that_is_no_number_ends_the_run_and_is_not_saved(tiny_recipe: Recipe, tmp_path: Path) -> None:
    def poisoned(step: int) -> Batch:
        batch = features(step)
        return batch if step < 3 else Batch(batch.real * torch.nan, batch.generated)

    with pytest.raises(TrainingFailed, match="at step 4"):
        train(net(tiny_recipe), poisoned, Training(steps=6), lambda _: {}, tmp_path, "", cadence=Cadence(1, 100, 4))
    assert not (tmp_path / loop.STATE).exists()


def test_bfloat16_stays_close_to_float32(tiny_recipe: Recipe, tmp_path: Path) -> None:
    ends = []
    for amp in (False, True):
        plan = Training(steps=5, warmup=1)
        trained = train(net(tiny_recipe), features, plan, lambda _: {}, tmp_path / str(amp), "", amp=amp)
        ends.append(trained.head.layers[0].weight)
    torch.testing.assert_close(ends[0], ends[1], rtol=0.05, atol=0.01)


def test_the_classifier_exists_only_where_it_is_in_the_loss(tiny_recipe: Recipe) -> None:
    crops = torch.zeros(2, 3, 56, 56)
    assert TrainingNet(MdmfModel(tiny_recipe), frozen=False, classify=False)(crops)[1] is None
    logits = TrainingNet(MdmfModel(tiny_recipe), frozen=False, classify=True)(crops)[1]
    assert logits is not None
    assert logits.shape == (2, 16)


def test_the_classifiers_loss_falls_as_generated_logits_rise() -> None:
    even = torch.zeros(4, 9)
    right = torch.cat([torch.full((2, 9), -2.0), torch.full((2, 9), 2.0)])
    assert float(classification_loss(even)) == pytest.approx(0.6931, abs=1e-4)
    assert float(classification_loss(right)) == pytest.approx(0.1269, abs=1e-4)
    assert float(classification_loss(-right)) > 2
