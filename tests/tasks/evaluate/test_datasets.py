"""Layouts of data sets: which images are found, of which class, kind and generator, and what they are compared with."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mdmf_deploy.errors import UsageError
from mdmf_deploy.tasks.evaluate.datasets import KnownImage, find_images, kind_of

Layout = Callable[..., Path]


@pytest.fixture
def layout(photos: Path, tmp_path: Path) -> Layout:
    """Make a data set with one image in each of these folders."""
    names = sorted(photos.iterdir())

    def made(*folders: str) -> Path:
        root = tmp_path / "some set"
        for n, folder in enumerate(folders):
            (root / folder).mkdir(parents=True)
            shutil.copy(names[n], root / folder)
        return root

    return made


def facts(images: list[KnownImage], root: Path) -> list[tuple[str, str | None, str | None]]:
    """The folder, the generator and the one that a real image is compared with."""
    return [(i.path.parent.relative_to(root).as_posix(), i.generator, i.compared_with) for i in images]


def test_finds_classes_by_folder(dataset: Path) -> None:
    images = find_images(dataset)
    assert [image.generator for image in images] == [None] * 6 + ["a"] * 4 + ["b"] * 2
    assert all(s.sha256 == hashlib.sha256(s.path.read_bytes()).hexdigest() for s in images)
    assert {image.compared_with for image in images} == {None}


def test_folder_names_are_literal_and_hidden_folders_are_no_generators(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dataset / "generated/a").rename(dataset / "generated/[a]*")
    (dataset / "generated/.cache").mkdir()
    shutil.copytree(dataset, tmp_path / "@set")
    monkeypatch.chdir(tmp_path)
    for folder in (dataset, Path("@set")):
        assert [image.generator for image in find_images(folder)] == [None] * 6 + ["[a]*"] * 4 + ["b"] * 2


def test_generated_images_without_a_folder_of_their_own_are_one_generator(layout: Layout) -> None:
    root = layout("real", "generated")
    assert facts(find_images(root), root) == [("real", None, None), ("generated", "generated", None)]


def test_images_beside_the_folders_of_generators_are_said_to_be_left_out(layout: Layout, photos: Path) -> None:
    root = layout("real", "generated/a")
    shutil.copy(photos / "photo09.png", root / "generated")
    lines: list[str] = []
    assert len(find_images(root, tell=lines.append)) == 2
    assert lines == [
        f"{root}/generated: 1 files beside the generators' folders are left out; move images into a folder of their own"
    ]


def test_cnndetection_compares_each_generator_with_its_own_real_images(layout: Layout) -> None:
    root = layout("progan/cat/0_real", "progan/cat/1_fake", "progan/dog/0_real", "progan/dog/1_fake", "dalle/1_fake")
    shutil.copytree(root / "progan/cat/0_real", root / "laion/0_real")
    found = facts(find_images(root), root)
    assert found == [
        ("laion/0_real", None, None),
        ("progan/cat/0_real", None, "progan"),
        ("progan/dog/0_real", None, "progan"),
        ("dalle/1_fake", "dalle", None),
        ("progan/cat/1_fake", "progan", None),
        ("progan/dog/1_fake", "progan", None),
    ]


@pytest.mark.parametrize("folders", [("0_real", "1_fake"), ("nature", "ai"), ("Nature", "AI")])
def test_one_generator_alone_is_called_by_the_name_of_the_data_set(layout: Layout, folders: tuple[str, str]) -> None:
    root = layout(*folders)
    assert facts(find_images(root), root) == [(folders[0], None, "some set"), (folders[1], "some set", None)]


def test_genimage_leaves_training_parts_out_where_others_lie_beside_them(layout: Layout) -> None:
    root = layout("glide/train/nature", "glide/train/ai", "glide/val/nature", "glide/val/ai")
    lines: list[str] = []
    assert facts(find_images(root, tell=lines.append), root) == [
        ("glide/val/nature", None, "glide"),
        ("glide/val/ai", "glide", None),
    ]
    assert lines == [f"{root}: folders called train are left out, because others hold the part to judge"]
    shutil.rmtree(root / "glide/val")
    assert facts(find_images(root), root)[1] == ("glide/train/ai", "glide", None)


def test_a_split_may_lie_above_the_generators(layout: Layout) -> None:
    root = layout("test/biggan/0_real", "test/biggan/1_fake", "train/biggan/0_real", "train/biggan/1_fake")
    found = [("test/biggan/0_real", None, "biggan"), ("test/biggan/1_fake", "biggan", None)]
    assert facts(find_images(root), root) == found
    shutil.rmtree(root)
    root = layout("test/real", "test/generated/flux")
    assert facts(find_images(root), root) == [("test/real", None, None), ("test/generated/flux", "flux", None)]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "no folder says which images are real"),
        (["photos", "flux"], "no folder says which images are real"),
        (["real"], "expected generated images too, in a folder called generated, 1_fake or ai"),
        (["generated/a"], "expected real images too, in a folder called real, 0_real or nature"),
        (["progan/0_real", "dalle/0_real"], "expected generated images too"),
    ],
)
def test_a_missing_class_is_one_line_that_names_the_layouts(
    folders: list[str], message: str, layout: Layout, tmp_path: Path
) -> None:
    root = layout(*folders) if folders else tmp_path
    with pytest.raises(UsageError, match=message) as raised:
        find_images(root)
    assert "nature and ai" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_empty_class_is_named(layout: Layout) -> None:
    root = layout("real")
    (root / "generated/flux").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no images in .*/generated/flux"):
        find_images(root)
    with pytest.raises(UsageError, match=r"no such folder, and no \.csv or \.json list; expected real/"):
        find_images(root / "nowhere")


@pytest.mark.parametrize(
    ("folders", "kind"),
    [
        (("real", "art_wesnoth"), "art"),
        (("real", "screen_gimp_help"), "screenshots"),
        (("real", "UI"), "screenshots"),
        (("photos", "deep", "2019"), "photographs"),
        (("photos", "paintings"), "art"),
        (("generated", "artbreeder"), None),
        (("real", "guitars"), None),
        (("real", "party"), None),
    ],
)
def test_folders_say_the_kind_by_whole_words_and_the_deepest_counts(folders: tuple[str, ...], kind: str | None) -> None:
    assert kind_of(folders) == kind


def test_images_get_the_kind_of_their_folder(layout: Layout) -> None:
    root = layout("real/art", "real/cameras", "real/other", "generated/flux/screenshots")
    assert [image.kind for image in find_images(root)] == ["art", "photographs", None, "screenshots"]


def test_lists_are_read_like_folders(layout: Layout) -> None:
    root = layout("photos", "flux", "art")
    [photo, flux, art] = [next((root / folder).iterdir()) for folder in ("photos", "flux", "art")]
    (root / "set.csv").write_text(
        f"label,path,generator,kind\nreal,photos/{photo.name},,\n1,{flux},flux,\nreal,art/{art.name},,photographs\n"
        "real,gone.jpg,,\n"
    )
    images = find_images(root / "set.csv")
    assert [(image.path.name, image.generator, image.kind) for image in images] == [
        (photo.name, None, "photographs"),
        (flux.name, "flux", None),
        (art.name, None, "photographs"),
        ("gone.jpg", None, None),
    ]
    assert images[0].sha256 == hashlib.sha256(photo.read_bytes()).hexdigest()
    assert images[3].sha256 is None


def test_videos_are_known_by_their_content(layout: Layout) -> None:
    root = layout("real", "generated")
    (root / "real/clip").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0isom" + bytes(40))
    found = {image.path.name: image.video for image in find_images(root)}
    assert found.pop("clip")
    assert not any(found.values())
