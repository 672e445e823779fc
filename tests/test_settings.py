"""The settings: defaults, the environment, and what a wrong variable is answered with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from companion.settings import PROFILES, ProfileNames, Settings, get_settings, usable_cores


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("COMPANION_")]:
        monkeypatch.delenv(name)


def test_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = get_settings()
    assert (settings.profile, settings.seed, settings.device) == ("quick", 0, "auto")
    assert settings.home == tmp_path / "companion"
    assert settings.threads == usable_cores()
    assert (settings.progress, settings.remeasure, settings.data_dir) == (True, False, None)


def test_home_without_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert get_settings().home == tmp_path / ".cache" / "companion"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert get_settings().home == tmp_path / ".cache" / "companion"


def test_paths_are_absolute_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPANION_HOME", "~/store")
    monkeypatch.setenv("COMPANION_DATA_DIR", "glue")
    settings = get_settings()
    assert settings.home == tmp_path / "store"
    assert settings.data_dir == tmp_path / "glue"


def test_every_field_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {
        "profile": "full",
        "home": str(tmp_path),
        "seed": "7",
        "threads": "3",
        "data_dir": str(tmp_path),
        "device": "cuda",
        "progress": "0",
        "remeasure": "1",
        "encoder": "here/encoder",
        "task": "cola",
    }
    assert given.keys() == Settings.model_fields.keys()
    for field, text in given.items():
        monkeypatch.setenv(f"COMPANION_{field.upper()}", text)
    settings = get_settings()
    assert settings.model_dump() == {
        **given,
        "home": tmp_path,
        "data_dir": tmp_path,
        "seed": 7,
        "threads": 3,
        "progress": False,
        "remeasure": True,
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_names_come_from_the_profile_and_its_overrides(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_PROFILE", profile)
    assert get_settings().names == PROFILES[profile]
    monkeypatch.setenv("COMPANION_TASK", "rte")
    assert get_settings().names == ProfileNames(encoder=PROFILES[profile].encoder, task="rte")
    monkeypatch.setenv("COMPANION_ENCODER", "a/folder")
    assert get_settings().names == ProfileNames(encoder="a/folder", task="rte")


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_DATA_DIR", "")
    monkeypatch.setenv("COMPANION_PROFILE", "")
    assert (get_settings().data_dir, get_settings().profile) == (None, "quick")


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("COMPANION_PROFILE", "fast", "'quick' or 'full'"),
        ("COMPANION_THREADS", "0", "greater than or equal to 1"),
        ("COMPANION_THREADS", "many", "valid integer"),
        ("COMPANION_SEED", "-1", "greater than or equal to 0"),
        ("COMPANION_DEVICE", "gpu", "'auto'"),
        ("COMPANION_PROGRESS", "perhaps", "valid boolean"),
    ],
)
def test_a_wrong_variable_gives_one_readable_line(
    variable: str, text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ValueError, match=variable) as caught:
        get_settings()
    message = str(caught.value)
    assert repr(text) in message
    assert expected in message
    assert "\n" not in message


def test_all_wrong_variables_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_SEED", "x")
    monkeypatch.setenv("COMPANION_THREADS", "y")
    with pytest.raises(ValueError, match=r"COMPANION_SEED.*COMPANION_THREADS"):
        get_settings()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        get_settings().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu.max": "nonsense"}, 4),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.max": "900000 100000\n"}, 4),
        ({}, 4),
    ],
)
def test_usable_cores_keep_to_affinity_and_quota(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == cores


def test_ground_floor_loads_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "onnxruntime", "fastapi", "matplotlib", "numpy"]
    code = "import sys, companion.settings, companion.artifacts; "
    code += f"print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_artifacts_load_no_pydantic() -> None:
    code = "import sys, companion.artifacts; print('pydantic' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
