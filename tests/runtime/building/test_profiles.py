"""Build profiles: those in engines/profiles, and a user's own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mdmf_deploy.errors import ProfileError
from mdmf_deploy.runtime.building.profiles import load_profile, profile_names

GOOD = 'summary = "x"\nworkspace_mib = 64\n[batch]\nmin = 1\nopt = 2\nmax = 4\n'


def test_every_profile_of_the_package_reads() -> None:
    names = profile_names()
    assert {"default", "latency", "throughput"} <= set(names)
    for name in names:
        profile = load_profile(name)
        assert profile.name == name
        assert profile.summary
    # The batch size of `mdmf detect`.
    assert load_profile().batch.opt == 8


def test_a_users_own_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    profile = load_profile(path)
    assert (profile.name, profile.batch.opt, profile.level) == ("mine", 2, 3)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD.replace("max = 4", "max = 1"), "1 <= min <= opt <= max, got 1, 2, 1"),
        (GOOD.replace("min = 1", "min = 0"), "got 0, 2, 4"),
        (GOOD.replace("64", "0"), "workspace_mib from 1"),
        ("level = 6\n" + GOOD, "level from 0 to 5"),
        (GOOD + "often = 3\n", "often"),
        (GOOD.replace("opt = 2\n", ""), "opt"),
        ("[batch", "not valid TOML"),
    ],
)
def test_a_bad_profile_is_one_line_that_names_it(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ProfileError, match=reason) as failure:
        load_profile(path)
    assert str(path) in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_profiles_name_is_not_part_of_its_key() -> None:
    profile = load_profile()
    renamed = msgspec.structs.replace(profile, name="other", summary="The same under another name.")
    assert renamed.key == profile.key


def test_an_unknown_profile_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="choose one of default, latency, throughput"):
        load_profile("fast")
    with pytest.raises(ProfileError, match=r"none\.toml: No such file"):
        load_profile(tmp_path / "none.toml")
