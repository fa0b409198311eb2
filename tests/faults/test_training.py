"""Training and export, killed or terminated: training resumes to the bit, and an export is whole or absent."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from helpers.faulty import CHANGES, Action, Calls, Rule, Server, moments, serving, tree
from helpers.jobs import Job, whole_bundle
from helpers.synthetic_photos import synthetic_photo
from PIL import Image

from mdmf_deploy.bundle.recipe import Recipe

RECIPE = """
name = "small"
summary = "A random model for tests."
backbone = { architecture = "starter_vit14" }
preprocessing = { crop = 56 }
head = { pool = 2, hidden = [16], signature = 8 }

[training]
steps = 4
batch = 4
split = { train = 0.6, validation = 0.2 }
gate = { min_kernel = 0.0, max_swapped_auroc = 1.0 }
"""
# One block, no plot, and a graph that is there already: neither learning, drawing nor tracing is what is tested.
# The first optimizer imports much of PyTorch, so it is made before the commands are.
PREPARE = """
import torch
from helpers import backbones
from mdmf_deploy import runtime
from mdmf_deploy.cli import export, train
from mdmf_deploy.files import atomic_file
from mdmf_deploy.runtime import ort
from mdmf_deploy.tasks.export import export as exporting
from mdmf_deploy.tasks.train import train as training
torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1)])
runtime.SECONDS_PER_TURN = 0.0
exporting.installed = lambda: ["onnxruntime"]
def write_plot(path, *_):
    with atomic_file(path, durable=False) as scratch:
        scratch.write_bytes(b"plot")
training.write_plot = write_plot
"""
SMALLER = """
from dataclasses import replace
from helpers.backbones import PLAIN
from mdmf_deploy.model.architectures import ARCHITECTURES
ARCHITECTURES["starter_vit14"] = replace(PLAIN, depth=1)
"""


@dataclass(frozen=True)
class Place:
    """Photographs, a recipe and the server of these tests."""

    data: Path
    server: Server


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cache: None) -> Iterator[Place]:
    data = tmp_path_factory.mktemp("data")
    (data / "small.toml").write_text(RECIPE)
    for name, first, count in (("real", 300, 12), ("generated/one", 400, 12)):
        (data / name).mkdir(parents=True)
        for seed in range(first, first + count):
            Image.fromarray(synthetic_photo(seed, 64, 60)).save(data / name / f"{seed}.png")
    with serving(tmp_path_factory.mktemp("server"), PREPARE) as server:
        yield Place(data, server)


def test_a_stopped_training_resumes_to_the_bit(place: Place, tmp_path: Path) -> None:
    server, data, folder = place.server, place.data, tmp_path / "out"
    command = ("train", data / "real", data / "generated", "--recipe", data / "small.toml", "--train-backbone")
    options = ("-o", folder / "run", "--save-every", 1, "--validate-every", 2)

    def begin() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    begin()
    ending = server.run(*command, *options, rules=[Rule(folder, CHANGES)], patch=SMALLER)
    assert ending.code == 0, str(ending)
    expected, total = tree(folder), ending.counts[0]
    assert not [name for name in expected if "/." in name]
    for number, few in ((signal.SIGKILL, 1), (signal.SIGTERM, 1)):
        for at in moments(total, few, f"train {number}"):
            begin()
            rule = Rule(folder, CHANGES, Action.tear, at, number)
            stopped = server.run(*command, *options, rules=[rule], patch=SMALLER)
            assert stopped.code in (-signal.SIGKILL, 128 + signal.SIGTERM, 0), str(stopped)
            assert "Traceback" not in stopped.err, str(stopped)
            resumed = ("--resume",) if (folder / "run" / "state.safetensors").exists() else ()
            ending = server.run(*command, *options, *resumed, patch=SMALLER)
            assert ending.code == 0, f"{ending}\nafter {stopped}"
            found = tree(folder)
            assert found.keys() == expected.keys(), f"{ending}\nafter {stopped}"
            changed = [name for name in found if found[name] != expected[name]]
            # The last save of the state stands before the history, so a run that resumes there logs nothing again.
            assert not [name for name in changed if "history" not in name], f"{ending}\nafter {stopped}"


def test_a_full_disk_in_training_is_told_with_the_name_of_the_file(place: Place, tmp_path: Path) -> None:
    server, data, folder = place.server, place.data, tmp_path / "out"
    folder.mkdir()
    command = ("train", data / "real", data / "generated", "--recipe", data / "small.toml", "--train-backbone")
    writes = Calls.WRITE | Calls.SYNC | Calls.TRUNCATE
    for at in moments(10, 2, "train fails"):
        rule = Rule(folder, writes, Action.fail, at, 28)
        ending = server.run(*command, "-o", folder / str(at), rules=[rule], patch=SMALLER)
        last = ending.err.splitlines()[-1]
        assert ending.code == 2, str(ending)
        assert str(folder / str(at)) in last, str(ending)
        assert "No space left on device" in last, str(ending)
        assert "Traceback" not in ending.err, str(ending)


def test_a_stopped_export_writes_a_whole_bundle_or_none(
    place: Place, tiny_bundle: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    import torch

    from mdmf_deploy.model.checkpoints import save_model
    from mdmf_deploy.model.pfs import MdmfModel

    torch.manual_seed(0)
    model = MdmfModel(tiny_recipe)
    torch.nn.init.trunc_normal_(model.backbone.pos_embed, std=0.02)
    save_model(tmp_path / "model.safetensors", model, {"recipe": tiny_recipe})
    reals = tmp_path / "reals"
    reals.mkdir()
    for path in sorted(path for path in tiny_bundle.parent.iterdir() if path.is_file())[:16]:
        shutil.copy(path, reals)
    output = tmp_path / "out" / "new.mdmf"
    arguments = ("export", tmp_path / "model.safetensors", "--reals", reals, "-o", output, "--force")
    graph = json.dumps(str(tiny_bundle / "model.onnx"))
    patch = (
        "import shutil\nfrom pathlib import Path\nfrom mdmf_deploy.tasks.export import export as exporting\n"
        f"exporting.trace = lambda detector, recipe, path, metadata: Path(shutil.copy({graph}, path))"
    )
    job = Job(output.parent, output, arguments, whole_bundle)
    job.begin()
    ending = place.server.run(*arguments, rules=[Rule(job.folder, CHANGES)], patch=patch)
    assert ending.code == 0, str(ending)
    job.whole(output)
    job.tidy(ending)
    older = Path(shutil.copytree(output, tmp_path / "older.mdmf"))
    for number, few in ((signal.SIGKILL, 2), (signal.SIGTERM, 1)):
        for n, at in enumerate(moments(ending.counts[0], few, f"export {number} in the middle")):
            again = replace(job, older=older if n % 2 else None)
            again.begin()
            rule = Rule(job.folder, CHANGES, Action.tear, at, number)
            stopped = place.server.run(*arguments, rules=[rule], patch=patch)
            again.check(stopped)
            if number == signal.SIGTERM:
                job.tidy(stopped)
                continue
            finished = place.server.run(*arguments, patch=patch)
            assert finished.code == 0, f"{finished}\nafter {stopped}"
            job.whole(output)
            job.tidy(finished, stopped)
