"""The schedule, the parameter groups, the average and the cadence of the training loop."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mdmf_deploy.bundle.recipe import Recipe, Training
from mdmf_deploy.errors import TrainingFailed
from mdmf_deploy.model.pfs import MdmfModel
from mdmf_deploy.tasks.train.batches import TrainingBatch
from mdmf_deploy.tasks.train.loop import STATE, Cadence, LoopOptions, learning_rate, parameter_groups, train
from mdmf_deploy.tasks.train.network import TrainingNet


def features(step: int) -> TrainingBatch:
    generator = torch.Generator().manual_seed(step)
    return TrainingBatch(torch.randn(4, 4, 192, generator=generator), 1 + torch.randn(4, 4, 192, generator=generator))


def net(recipe: Recipe) -> TrainingNet:
    torch.manual_seed(0)
    return TrainingNet(MdmfModel(recipe), Training())


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    training = Training(steps=110, warmup=10, learning_rate=1.0)
    rates = [learning_rate(step, training) for step in range(111)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.505)
    assert rates[110] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_every_trained_parameter_is_in_one_group_and_biases_do_not_decay(tiny_recipe: Recipe) -> None:
    training = Training(weight_decay=0.3, learning_rate=1e-3, backbone_learning_rate=1e-5, patch_cross_entropy=1.0)
    whole = TrainingNet(MdmfModel(tiny_recipe), training, "all")
    groups = parameter_groups(whole, training)
    body = {id(p) for p in whole.detector.backbone.parameters()}
    for group in groups:
        for parameter in group["params"]:  # type: ignore[attr-defined]
            assert group["weight_decay"] == (0.3 if parameter.ndim >= 2 else 0)
            rate = 1e-2 if parameter.ndim == 0 else 1e-5 if id(parameter) in body else 1e-3
            assert group["top"] == pytest.approx(rate)
    grouped = [id(p) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    trained = [id(p) for p in whole.parameters() if p is not whole.detector.backbone.mask_token]
    assert sorted(grouped) == sorted(trained)


def test_the_run_keeps_the_average_not_the_last_weights(tiny_recipe: Recipe, tmp_path: Path) -> None:
    kept = {}
    for average in (0.0, 0.9):
        training = Training(steps=12, warmup=1, learning_rate=1e-2, average=average)
        current = net(tiny_recipe)
        options = LoopOptions(tmp_path / str(average), "", cadence=Cadence(save=100))
        trained = train(current, features, training, lambda _: {}, options)
        kept[average] = (trained.head.layers[0].weight, current.detector.head.layers[0].weight)
    assert torch.equal(*kept[0.0])
    assert torch.equal(kept[0.0][1], kept[0.9][1])
    assert not torch.allclose(*kept[0.9])


def test_the_average_of_a_short_run_forgets_the_start(tiny_recipe: Recipe, tmp_path: Path) -> None:
    current = net(tiny_recipe)
    start = current.detector.head.layers[0].weight.detach().clone()
    training = Training(steps=30, warmup=1, learning_rate=1e-2, average=0.9999)
    trained = train(current, features, training, lambda _: {}, LoopOptions(tmp_path, "", cadence=Cadence(save=100)))
    average, last = (
        float((detector.head.layers[0].weight.detach() - start).norm()) for detector in (trained, current.detector)
    )
    assert average > 0.5 * last


def test_validation_keeps_its_cadence_whatever_the_log(tiny_recipe: Recipe, tmp_path: Path) -> None:
    history: list[dict[str, float]] = []
    training = Training(steps=14, warmup=1)
    options = LoopOptions(tmp_path, "", cadence=Cadence(log=10, validate=4, save=100))
    train(net(tiny_recipe), features, training, lambda _: {"auroc_mean": 0.5}, options, history.append)
    assert [record["step"] for record in history] == [4, 8, 10, 12, 14]
    assert [record["step"] for record in history if "auroc_mean" in record] == [4, 8, 12, 14]


def test_a_loss_that_is_no_number_ends_the_run_and_is_not_saved(tiny_recipe: Recipe, tmp_path: Path) -> None:
    def poisoned(step: int) -> TrainingBatch:
        batch = features(step)
        return batch if step < 3 else TrainingBatch(batch.real * torch.nan, batch.generated)

    options = LoopOptions(tmp_path, "", cadence=Cadence(1, 100, 4))
    with pytest.raises(TrainingFailed, match="at step 4"):
        train(net(tiny_recipe), poisoned, Training(steps=6), lambda _: {}, options)
    assert not (tmp_path / STATE).exists()


def test_bfloat16_stays_close_to_float32(tiny_recipe: Recipe, tmp_path: Path) -> None:
    ends = []
    for amp in (False, True):
        training = Training(steps=5, warmup=1)
        options = LoopOptions(tmp_path / str(amp), "", amp=amp)
        trained = train(net(tiny_recipe), features, training, lambda _: {}, options)
        ends.append(trained.head.layers[0].weight)
    torch.testing.assert_close(ends[0], ends[1], rtol=0.05, atol=0.01)
