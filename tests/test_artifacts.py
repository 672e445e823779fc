"""The store: made once, whole or not at all, checked on each opening."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from companion import artifacts
from companion.artifacts import clear, digest, entries, machine, make, record, staged_file, staged_folder


class Recipe:
    """Writes two files, and counts how often."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, folder: Path) -> None:
        self.runs += 1
        (folder / "weights.bin").write_bytes(bytes(range(256)) * 16)
        (folder / "sub").mkdir()
        (folder / "sub" / "config.json").write_text("{}")


@pytest.fixture
def recipe() -> Recipe:
    return Recipe()


def stored(home: Path) -> list[str]:
    """Return all that lies in the store, apart from the locks."""
    paths = (home / "artifacts").rglob("*")
    return sorted(
        path.relative_to(home / "artifacts").as_posix()
        for path in paths
        if ".locks" not in path.parts and path.is_file()
    )


def test_digest_of_a_value_is_its_canonical_json() -> None:
    assert digest({"a": 1, "b": [1.5, None]}) == digest({"b": (1.5, None), "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest(1) != digest("1")
    # The SHA-256 of the two bytes {}. If the form changed, every stored artifact would be made again.
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_digest_of_a_path_is_its_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("text")
    two.write_text("text")
    assert digest(one) == digest(two)
    assert digest({"data": one}) == digest({"data": two})
    two.write_text("Text")
    assert digest({"data": one}) != digest({"data": two})


def test_digest_of_a_folder_counts_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = digest(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert digest(tmp_path / "a") != before


def test_digest_takes_dataclasses() -> None:
    @dataclass(frozen=True)
    class Config:
        epochs: int = 2

    assert digest({"config": Config()}) == digest({"config": {"epochs": 2}})


def test_digest_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['rate'\]\[1\] is of type complex"):
        digest({"rate": [0.1, 1j]})
    with pytest.raises(ValueError, match="nan"):
        digest({"rate": float("nan")})
    with pytest.raises(ValueError, match="key 1"):
        digest({1: "one"})
    with pytest.raises(FileNotFoundError, match="absent"):
        digest(tmp_path / "absent")


def test_make_makes_once(recipe: Recipe, tmp_path: Path) -> None:
    folder = make("model", recipe, version=1, inputs={"seed": 0}, home=tmp_path)
    assert (folder / "sub" / "config.json").read_text() == "{}"
    assert make("model", recipe, version=1, inputs={"seed": 0}, home=tmp_path) == folder
    assert recipe.runs == 1


def test_make_uses_the_settings_home(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_HOME", str(tmp_path / "home"))
    assert make("model", recipe, version=1, inputs={}).is_relative_to(
        tmp_path / "home" / "artifacts" / "model"
    )


def test_the_key_counts_name_version_inputs_and_content(recipe: Recipe, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("a")

    def key(name: str = "model", version: int = 1, **inputs: object) -> str:
        return make(name, recipe, version=version, inputs=inputs, home=tmp_path / "home").name

    first = key(data=data, seed=0)
    assert key(seed=0, data=data) == first
    others = {key("other", data=data, seed=0), key(version=2, data=data, seed=0), key(data=data, seed=1)}
    data.write_text("b")
    others.add(key(data=data, seed=0))
    assert len(others | {first}) == 5
    data.write_text("a")
    assert key(data=data, seed=0) == first


def test_meta_says_how_it_was_made(recipe: Recipe, tmp_path: Path) -> None:
    folder = make("model", recipe, version=3, inputs={"seed": 0}, home=tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["name"], meta["version"], meta["inputs"]) == ("model", 3, {"seed": 0})
    assert meta["files"]["sub/config.json"] == {"bytes": 2, "sha256": digest(folder / "sub" / "config.json")}
    assert meta["files"].keys() == {"sub/config.json", "weights.bin"}
    assert meta["seconds"] >= 0
    assert meta["made_at"].endswith("+00:00")
    assert meta["python"] and meta["companion"]


def truncate(folder: Path) -> None:
    os.truncate(folder / "weights.bin", 100)


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "weights.bin").read_bytes())
    content[2000] ^= 1
    (folder / "weights.bin").write_bytes(content)


def drop_meta(folder: Path) -> None:
    (folder / "meta.json").unlink()


def cut_meta(folder: Path) -> None:
    (folder / "meta.json").write_text((folder / "meta.json").read_text()[:40])


def change_inputs_in_meta(folder: Path) -> None:
    (folder / "meta.json").write_text((folder / "meta.json").read_text().replace('"seed": 0', '"seed": 1'))


def forget_files_in_meta(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    del meta["files"]
    (folder / "meta.json").write_text(json.dumps(meta))


def add_a_file(folder: Path) -> None:
    (folder / "sub" / "extra").touch()


def drop_a_file(folder: Path) -> None:
    (folder / "sub" / "config.json").unlink()


def link_a_file(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "weights.bin")


@pytest.mark.parametrize(
    ("harm", "reported"),
    [
        (truncate, "weights.bin was changed"),
        (flip_a_byte, "weights.bin was changed"),
        (drop_meta, "meta.json is missing"),
        (cut_meta, "meta.json is missing or not JSON"),
        (change_inputs_in_meta, "does not belong to this key"),
        (forget_files_in_meta, "lists no files"),
        (add_a_file, "sub/extra is not in meta.json"),
        (drop_a_file, "sub/config.json is missing"),
        (link_a_file, "is a link"),
    ],
)
def test_damage_is_reported_and_repaired(
    harm: Callable[[Path], None],
    reported: str,
    recipe: Recipe,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = make("model", recipe, version=1, inputs={"seed": 0}, home=tmp_path)
    whole = stored(tmp_path)
    harm(folder)
    with caplog.at_level(logging.WARNING, "companion.artifacts"):
        assert make("model", recipe, version=1, inputs={"seed": 0}, home=tmp_path) == folder
    assert reported in caplog.text
    assert recipe.runs == 2
    assert stored(tmp_path) == whole
    caplog.clear()
    make("model", recipe, version=1, inputs={"seed": 0}, home=tmp_path)
    assert recipe.runs == 2
    assert not caplog.records


@pytest.mark.parametrize("raised", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_build_that_raises_leaves_nothing(raised: BaseException, recipe: Recipe, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        recipe(folder)
        raise raised

    with pytest.raises(type(raised)):
        make("model", fail, version=1, inputs={}, home=tmp_path)
    assert stored(tmp_path) == []
    assert entries(tmp_path) == []
    make("model", recipe, version=1, inputs={}, home=tmp_path)
    assert recipe.runs == 2


def test_a_full_disk_leaves_nothing_and_says_what_to_do(recipe: Recipe, tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        recipe(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"'model' cannot be made in .*\(no space.*COMPANION_HOME") as caught:
        make("model", fill, version=1, inputs={}, home=tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert stored(tmp_path) == []


def test_other_errors_of_a_build_stay_as_they_are(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "absent" / "file").write_text("")

    with pytest.raises(FileNotFoundError, match="absent"):
        make("model", fail, version=1, inputs={}, home=tmp_path)


def test_a_home_that_cannot_be_written_is_named(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be stored in .*file.*COMPANION_HOME"):
        make("model", recipe, version=1, inputs={}, home=tmp_path / "file")


def test_a_recipe_cannot_write_meta_or_links(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipe wrote a meta\.json"):
        make("model", lambda folder: (folder / "meta.json").touch(), version=1, inputs={}, home=tmp_path)
    with pytest.raises(ValueError, match="is a link"):
        make("model", lambda folder: (folder / "l").symlink_to("/etc"), version=1, inputs={}, home=tmp_path)
    assert stored(tmp_path) == []


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "two words", "a\\b"])
def test_names_are_names(name: str, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="artifact name"):
        make(name, recipe, version=1, inputs={}, home=tmp_path)
    with pytest.raises(ValueError, match="artifact name"):
        clear(name, tmp_path)


SLOW_BUILD = """
import sys, time
from pathlib import Path
from companion.artifacts import make

home, log, seconds, seed = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])

def build(folder):
    (folder / "part").write_text("half")
    with log.open("a") as file:
        file.write("started\\n")
    time.sleep(seconds)
    (folder / "rest").write_text("whole")

print(make("slow", build, version=1, inputs={"seed": seed}, home=home))
"""


def start(home: Path, log: Path, seconds: float, seed: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW_BUILD, str(home), str(log), str(seconds), str(seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(log: Path, lines: int = 1) -> None:
    deadline = time.monotonic() + 60
    while not log.exists() or log.read_text().count("\n") < lines:
        assert time.monotonic() < deadline, "the build did not start"
        time.sleep(0.02)


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(tmp_path, log, 1.0) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1] != ""
    assert log.read_text() == "started\n"


def test_a_killed_build_is_taken_over(tmp_path: Path) -> None:
    log = tmp_path / "log"
    killed = start(tmp_path, log, 600)
    wait_for(log)
    waiting = start(tmp_path, log, 0)
    assert any(".building/part" in path for path in stored(tmp_path))
    assert entries(tmp_path) == []
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    folder = Path(waiting.communicate(timeout=60)[0].strip())
    assert waiting.returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "part", "rest"]
    assert not any(".building" in path for path in stored(tmp_path))
    assert log.read_text() == "started\nstarted\n"


def test_what_a_dead_build_left_is_swept_but_a_live_one_is_not(recipe: Recipe, tmp_path: Path) -> None:
    log = tmp_path / "log"
    dead, alive = start(tmp_path, log, 600, seed=1), start(tmp_path, log, 600, seed=2)
    try:
        wait_for(log, lines=2)
        dead.kill()
        dead.communicate()
        assert sum(".building" in path for path in stored(tmp_path)) == 2
        make("slow", recipe, version=1, inputs={"seed": 3}, home=tmp_path)
        assert sum(".building" in path for path in stored(tmp_path)) == 1
    finally:
        alive.kill()
        alive.communicate()
    clear("slow", tmp_path)
    assert stored(tmp_path) == []


def test_record_measures_once_and_returns_what_was_written(tmp_path: Path) -> None:
    measured: list[int] = []

    def measure() -> dict[str, object]:
        measured.append(len(measured))
        return {"runs": (1, 2.5), "none": None}

    first = record("speed", measure, version=1, inputs={"batch": 8}, home=tmp_path)
    again = record("speed", measure, version=1, inputs={"batch": 8}, home=tmp_path)
    assert first == again == {"runs": [1, 2.5], "none": None}
    assert measured == [0]


def test_record_belongs_to_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([1, 2])

    def measured() -> int:
        return int(record("speed", lambda: next(values), version=1, inputs={}, home=tmp_path))

    assert (measured(), measured()) == (1, 1)
    monkeypatch.setattr("companion.artifacts.store.machine", lambda: {**machine(), "cpu": "another"})
    assert measured() == 2


def test_remeasure_counts_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([1, 2])

    def measured() -> int:
        return int(record("speed", lambda: next(values), version=1, inputs={}, home=tmp_path))

    assert measured() == 1
    monkeypatch.setenv("COMPANION_REMEASURE", "1")
    # As in a new process, which has asked for nothing yet.
    monkeypatch.setattr("companion.artifacts.store._measured", set())
    assert (measured(), measured()) == (2, 2)
    assert len(entries(tmp_path)) == 1


def test_a_failed_remeasurement_keeps_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("the machine is busy")

    assert record("speed", lambda: 1, version=1, inputs={}, home=tmp_path) == 1
    monkeypatch.setenv("COMPANION_REMEASURE", "1")
    monkeypatch.setattr("companion.artifacts.store._measured", set())
    with pytest.raises(RuntimeError, match="busy"):
        record("speed", fail, version=1, inputs={}, home=tmp_path)
    monkeypatch.delenv("COMPANION_REMEASURE")
    assert record("speed", fail, version=1, inputs={}, home=tmp_path) == 1


def test_record_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the result\['loss'\] is nan"):
        record("speed", lambda: {"loss": float("nan")}, version=1, inputs={}, home=tmp_path)
    assert stored(tmp_path) == []


def test_machine_is_plain_and_stable() -> None:
    assert machine() == machine()
    assert json.loads(json.dumps(machine())) == machine()
    assert {"cpu", "cores", "memory_gib", "python", "torch", "onnxruntime"} <= machine().keys()
    assert int(machine()["cores"]) >= 1


def test_entries_list_what_is_there(recipe: Recipe, tmp_path: Path) -> None:
    assert entries(tmp_path) == []
    one = make("b", recipe, version=1, inputs={}, home=tmp_path)
    make("a", recipe, version=1, inputs={}, home=tmp_path)
    found = entries(tmp_path)
    assert [entry.name for entry in found] == ["a", "b"]
    assert found[1].path == one
    assert found[1].key == one.name
    assert found[1].bytes == sum(path.stat().st_size for path in one.rglob("*") if path.is_file())
    (one / "meta.json").unlink()
    assert (entries(tmp_path)[1].made_at, entries(tmp_path)[1].seconds) == ("", 0.0)


def test_clear_frees_one_name_or_all(recipe: Recipe, tmp_path: Path) -> None:
    for name, seed in [("a", 0), ("a", 1), ("b", 0)]:
        make(name, recipe, version=1, inputs={"seed": seed}, home=tmp_path)
    size = {name: sum(entry.bytes for entry in entries(tmp_path) if entry.name == name) for name in "ab"}
    assert clear("a", tmp_path) == size["a"] > 0
    assert [entry.name for entry in entries(tmp_path)] == ["b"]
    assert clear("a", tmp_path) == 0
    assert clear(home=tmp_path) == size["b"]
    assert stored(tmp_path) == []
    make("a", recipe, version=1, inputs={"seed": 0}, home=tmp_path)
    assert len(entries(tmp_path)) == 1


def test_clear_names_what_it_knows(recipe: Recipe, tmp_path: Path) -> None:
    make("model", recipe, version=1, inputs={}, home=tmp_path)
    with pytest.raises(ValueError, match=r"'modle'.*model"):
        clear("modle", tmp_path)
    assert clear(home=tmp_path / "empty") == 0


def test_a_staged_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with staged_folder(out, marker="config.json") as staging:
        (staging / "config.json").write_text("1")
        assert not out.exists()
    assert (out / "config.json").read_text() == "1"
    assert list(out.parent.iterdir()) == [out]


def test_a_staged_folder_replaces_its_own_kind(tmp_path: Path) -> None:
    for text in ("1", "2"):
        with staged_folder(tmp_path / "out", marker="config.json") as staging:
            (staging / "config.json").write_text(text)
            (staging / text).touch()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["2", "config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_staged_folder_that_fails_changes_nothing(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out", marker="config.json") as staging:
        (staging / "config.json").write_text("1")
    with (
        pytest.raises(OSError, match=r"out cannot be written \(no space.*\): free some space") as caught,
        staged_folder(tmp_path / "out", marker="config.json") as staging,
    ):
        (staging / "config.json").write_text("2")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "out" / "config.json").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_staged_folder_leaves_what_belongs_to_others(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one").touch()
    (tmp_path / "file").touch()
    for name, reason in [("photos", r"not empty and has no config\.json"), ("file", "is a file")]:
        with (
            pytest.raises(ValueError, match=reason),
            staged_folder(tmp_path / name, marker="config.json"),
        ):
            pytest.fail("nothing may be written")
    with (
        pytest.raises(OSError, match="cannot be written"),
        staged_folder(tmp_path / "file" / "out", marker="config.json"),
    ):
        pytest.fail("nothing may be written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]


def test_an_error_about_something_else_passes_unchanged(tmp_path: Path) -> None:
    with (
        pytest.raises(FileExistsError, match="other"),
        staged_folder(tmp_path / "out", marker="config.json"),
    ):
        (tmp_path / "other").mkdir()
        (tmp_path / "other").mkdir()


def test_a_staged_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for text in ("1", "2"):
        with staged_file(out) as staging:
            staging.write_text(text)
    with pytest.raises(RuntimeError), staged_file(out) as staging:
        staging.write_text("3")
        raise RuntimeError
    assert out.read_text() == "2"
    assert list(tmp_path.iterdir()) == [out]


def test_a_staged_file_needs_a_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder"), staged_file(tmp_path):
        pytest.fail("nothing may be written")
    with pytest.raises(OSError, match=r"cannot be written \(no such file"), staged_file(tmp_path / "a" / "b"):
        pytest.fail("nothing may be written")
    assert list(tmp_path.iterdir()) == []


def test_stored_measurements_are_found_from_any_folder_below(tmp_path, monkeypatch):
    rows = {
        "one": {"date": "2026-11-20T01:00", "machine": {"cpu": "X"}},
        "two": {"date": "2026-11-22", "machine": {}},
    }
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/speed.json").write_text(json.dumps({"settings": {}, "rows": rows}))
    (tmp_path / "book/chapter").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "book/chapter")
    assert artifacts.benchmark_file("speed") == tmp_path / "benchmarks/results/speed.json"
    assert artifacts.benchmark_rows("speed") == rows
    assert artifacts.benchmark_file("unknown") is None
    assert artifacts.benchmark_rows("unknown") == {}


def test_stored_measurements_say_when_and_where():
    one = {"date": "2026-11-20T01:00", "machine": {"cpu": "X"}}
    assert artifacts.benchmark_stamp({"a": one}) == "stored runs: 1, 2026-11-20, on X"
    both = {"a": one, "b": {"date": "2026-11-22", "machine": {}}}
    assert artifacts.benchmark_stamp(both) == "stored runs: 2, 2026-11-20 to 2026-11-22, on X and unknown"
    assert artifacts.benchmark_stamp({}) == "stored runs: 0, never, on no machine"
