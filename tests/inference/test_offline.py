"""A whole file answered: in order, through kills, by one process or several, with bad rows in it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion.inference import OfflineJob, OnnxPredictor, mixed_texts, predict_file
from companion.inference.offline import windows as cutting
from companion.inference.offline.unfinished import rows_kept
from companion.inference.offline.windows import Window, cut

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # so that processes which are started afresh find the model by its name
from offline_fakes import sums  # noqa: E402


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("1")
    return folder


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def job(tmp_path: Path, model: Path) -> OfflineJob:
    texts = [f"text {n} nap" for n in range(200)]
    return OfflineJob(model, write(tmp_path / "in.jsonl", texts), "text", batch_size=1)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- what is answered


def test_answers_do_not_move_with_batches_windows_or_processes(onnx_folder, tmp_path):
    """Every digit is that of the text alone, whatever it is batched with."""
    texts = mixed_texts(150)
    file = write(tmp_path / "in.jsonl", list(texts))
    predictor = OnnxPredictor(onnx_folder, threads=1)
    alone = np.concatenate([predictor.probabilities([text]) for text in texts])
    written = set()
    for batch_size, processes in ((1, 1), (2, 2), (8, 1), (64, 1)):
        job = OfflineJob(onnx_folder, file, "text", batch_size=batch_size, threads=1)
        report = predict_file(job, tmp_path / "out.jsonl", processes=processes)
        assert (report.rows, report.problems, report.resumed) == (150, 0, 0)
        written.add((tmp_path / "out.jsonl").read_bytes())
    assert len(written) == 1
    got = [list(line["probabilities"].values()) for line in lines(tmp_path / "out.jsonl")]
    assert np.array_equal(np.array(got, dtype=np.float32), alone)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_windows_are_the_same_from_wherever_one_goes_on(tmp_path, model, monkeypatch):
    monkeypatch.setattr(cutting, "_CHARACTERS", 400)
    texts = ["x" * (n * 37 % 150 + 1) for n in range(300)]
    job = OfflineJob(model, write(tmp_path / "in.jsonl", texts), "text", batch_size=1)
    whole = list(cut(job))
    assert [item[1].text for window in whole for item in window.items] == texts
    assert max(len(window.items) for window in whole) < 32, "characters end a window too"
    done = 0
    for index, window in enumerate(whole):
        assert list(cut(job, skip=done)) == whole[index:]
        done += len(window.items)


BAD = [
    '{"text": "fine"}',
    '{"text": ""}',
    "not json",
    "[1]",
    '{"other": 1}',
    '{"text": 7}',
    "",
    '{"text": "boom"}',
    '{"text": "nan"}',
    '{"text": "fine"}',
]


def test_bad_rows_are_recorded_in_their_place(tmp_path, model):
    file = tmp_path / "in.jsonl"
    file.write_bytes("\n".join(BAD).encode() + b'\n{"text": "na\xefve"}\n{"text": "last"}\n\n')
    job = OfflineJob(model, file, "text", on_error="record")
    report = predict_file(job, tmp_path / "out.jsonl", load=sums)
    assert (report.rows, report.problems) == (12, 9)
    found = lines(tmp_path / "out.jsonl")
    assert [index + 1 for index, line in enumerate(found) if "label" in line] == [1, 10, 12]
    assert all(line["row"] == index + 1 for index, line in enumerate(found) if "problem" in line)
    words = ["empty text", "not JSON", "JSON object", "no column", "expected text", "blank line"]
    words += ["RuntimeError: it broke in two lines", "finite", "not UTF-8"]
    assert all(
        word in line["problem"]
        for word, line in zip(words, [line for line in found if "problem" in line], strict=True)
    )


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_bad_rows_of_other_files(tmp_path, model, ending):
    file = tmp_path / f"in.{ending}"
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        broken = pa.array([b"fine", b"na\xefve", None, b"last"]).cast(pa.string(), safe=False)
        pq.write_table(pa.table({"text": broken}), file)
        problems = {2: "not UTF-8", 3: "empty text"}
    else:
        mark = "," if ending == "csv" else "\t"
        file.write_bytes(b"text\nfine\nna\xefve\na%sb\n\nlast\n" % mark.encode())
        problems = {3: "not UTF-8", 4: "2 columns, but the header has 1", 5: "blank line"}
    job = OfflineJob(model, file, "text", on_error="record")
    assert predict_file(job, tmp_path / "out.jsonl", load=sums).problems == len(problems)
    found = {line["row"]: line["problem"] for line in lines(tmp_path / "out.jsonl") if "problem" in line}
    assert found.keys() == problems.keys()
    assert all(words in found[row] for row, words in problems.items())
    with pytest.raises(ValueError, match=rf"in\.{ending}, rows? {min(problems)}: "):
        predict_file(replace(job, on_error="stop"), tmp_path / "other.jsonl", load=sums)


def test_a_bad_row_stops_before_anything_is_computed(tmp_path, model):
    file = write(tmp_path / "in.jsonl", ["fine"] * 100 + [" "])
    asked = []
    job = OfflineJob(model, file, "text", batch_size=1)
    with pytest.raises(ValueError, match=r"in\.jsonl, row 101: empty text"):
        predict_file(job, tmp_path / "out.jsonl", load=lambda *given: asked.append(given))
    assert asked == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "model"]


@pytest.mark.parametrize(
    ("text", "words"), [("boom", "rows 65 to 96: .*it broke in two lines"), ("nan", "row 71: .*nan")]
)
def test_a_model_that_fails_stops_and_what_was_done_is_kept(tmp_path, model, text, words):
    file = write(tmp_path / "in.jsonl", ["fine"] * 70 + [text] + ["fine"] * 30)
    job, out = OfflineJob(model, file, "text", batch_size=1), tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match=words):
        predict_file(job, out, load=sums)
    assert not out.exists()
    assert rows_kept(out) == 64
    report = predict_file(replace(job, on_error="record"), out, load=sums)
    assert (report.rows, report.problems, report.resumed) == (101, 1, 64)
    assert "problem" in lines(out)[70]


# --- what is kept, and what is refused


def half_done(job: OfflineJob, out: Path, rows: int = 96) -> None:
    """Answer some windows, and stop as a full disk stops it."""
    from companion.inference.offline import run

    def stop(self, answers):
        if self.note.rows >= rows:
            raise OSError(28, "No space left on device")
        append(self, answers)

    append = run.Unfinished.append
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.Unfinished, "append", stop)
        with pytest.raises(OSError, match="goes on where it stopped"):
            predict_file(job, out, load=sums)
    assert rows_kept(out) == rows
    assert not out.exists()


def test_what_is_there_is_not_computed_again(tmp_path, job):
    out = tmp_path / "out.jsonl"
    predict_file(job, tmp_path / "whole.jsonl", load=sums)
    half_done(job, out)
    model = sums(job.folder, 1)
    report = predict_file(job, out, load=lambda folder, threads: model)
    assert sum(model.batches) == 200 - 96
    assert (report.rows, report.resumed) == (200, 96)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("what", ["file", "model", "column", "batch"])
def test_work_that_was_begun_with_something_else_is_refused(tmp_path, job, what):
    out = tmp_path / "out.jsonl"
    half_done(job, out)
    other, words = job, "FILE"
    if what == "file":
        job.file.write_text(job.file.read_text() + '{"text": "one more"}\n')
    elif what == "model":
        (job.folder / "weights").write_text("2")
        words = "model's files"
    elif what == "column":
        job.file.write_text(job.file.read_text().replace('"text": ', '"words": '))
        other, words = replace(job, text_column="words"), r"--text-column \(text, now words\)"
    else:
        other, words = replace(job, batch_size=2), r"--batch-size \(1, now 2\)"
    with pytest.raises(ValueError, match=f"96 rows are answered.*{words}.*--restart"):
        predict_file(other, out, load=sums)
    assert rows_kept(out) == 96, "nothing was thrown away"
    report = predict_file(other, out, load=sums, restart=True)
    assert (report.resumed, len(lines(out))) == (0, report.rows)


def test_notes_in_the_models_folder_are_not_the_model(tmp_path, job):
    half_done(job, tmp_path / "out.jsonl")
    (job.folder / "README.md").write_text("a card")
    (job.folder / "answers.jsonl").write_text("{}")
    assert predict_file(job, tmp_path / "out.jsonl", load=sums).resumed == 96


def test_lines_that_somebody_touched_are_refused(tmp_path, job):
    out = tmp_path / "out.jsonl"
    half_done(job, out)
    kept = out.with_name(".out.jsonl.predicting") / "lines.jsonl"
    text = kept.read_text()
    for damaged in (text.replace("odd", "add", 1), text[:-10]):
        kept.write_text(damaged)
        with pytest.raises(ValueError, match="--restart"):
            predict_file(job, out, load=sums)
    kept.write_text(text + '{"label": "half a li')  # what a kill leaves behind
    assert predict_file(job, out, load=sums).resumed == 96


def test_two_runs_do_not_write_one_file(tmp_path, job):
    out = tmp_path / "out.jsonl"
    half_done(job, out)
    handle = os.open(out.with_name(".out.jsonl.predicting"), os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="another process writes"):
        predict_file(job, out, load=sums)
    os.close(handle)
    assert predict_file(job, out, load=sums).rows == 200


def test_an_input_that_changes_while_it_is_read(tmp_path, job):
    class Touching(type(sums(job.folder, 1))):
        def probabilities(self, texts, pairs=None, *, batch_size=32):
            os.utime(job.file, ns=(1, 1))
            return super().probabilities(texts, pairs, batch_size=batch_size)

    with pytest.raises(ValueError, match="changed while it was read"):
        predict_file(job, tmp_path / "out.jsonl", load=lambda *_: Touching())
    assert not (tmp_path / "out.jsonl").exists()


def test_settings_that_make_no_sense(tmp_path, job):
    for changes, words in (({"batch_size": 0}, "batch_size"), ({"on_error": "skip"}, "stop or record")):
        with pytest.raises(ValueError, match=words):
            replace(job, **changes)
    with pytest.raises(ValueError, match="processes is 0"):
        predict_file(job, tmp_path / "out.jsonl", processes=0)


# --- kills

KILLED = textwrap.dedent(
    """
    import os, random, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import pyarrow, offline_fakes  # once, and not in each of the processes that are forked below
    from companion.inference.offline.run import predict_file
    from companion.inference.offline.job import OfflineJob

    folder, how = Path(sys.argv[2]), sys.argv[3]
    job, out = OfflineJob(folder / "model", folder / "in.jsonl", "text", batch_size=1), folder / "out.jsonl"
    seconds = random.Random(0).uniform

    def child(after):
        pid = os.fork()
        if pid:
            return pid
        if how == "events":  # the kernel's view: die before the n-th thing that is done to a file
            left = after
            def count(event, arguments):
                nonlocal left
                name = str(arguments[0]) if arguments else ""
                if event.split(".")[0] in ("open", "os", "shutil") and "out.jsonl" in name:
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(count)
        predict_file(job, out, load=offline_fakes.sums)
        os._exit(0)

    kills, ended, patience = 0, False, 0.02
    while not ended:
        pid = child(kills if how == "events" else None)
        if how == "random":
            time.sleep(seconds(0.0, patience))
            patience *= 1.15  # a slow machine gets on as well
            os.kill(pid, signal.SIGKILL)
        ended = os.waitpid(pid, 0)[1] == 0
        kills += not ended
        if how == "events":
            # Each point in time from an empty folder, and then to the end.
            if not ended:
                pid = child(10**9)
                assert os.waitpid(pid, 0)[1] == 0
            print(out.read_bytes() == (folder / "whole.jsonl").read_bytes(), len(list(folder.iterdir())))
            out.unlink()
    print(kills)
    """
)


def killed(folder: Path, how: str) -> list[str]:
    command = [sys.executable, "-c", KILLED, str(HERE), str(folder), how]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=170
    ).stdout.splitlines()


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path, job):
    whole = tmp_path / "whole.jsonl"
    predict_file(job, whole, load=sums)
    assert len(lines(whole)) == 200
    kills = 0
    for _ in range(10):
        kills += int(killed(tmp_path, "random")[-1])
        assert (tmp_path / "out.jsonl").read_bytes() == whole.read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "in.jsonl",
            "model",
            "out.jsonl",
            "whole.jsonl",
        ]
        (tmp_path / "out.jsonl").unlink()
        if kills >= 20:
            break
    assert kills >= 20


def test_killed_before_each_thing_it_does_to_a_file(tmp_path, job):
    predict_file(job, tmp_path / "whole.jsonl", load=sums)
    *found, kills = killed(tmp_path, "events")
    assert int(kills) > 20
    assert set(found) == {"True 4"}, "the same bytes, and nothing else is left"


def test_a_process_that_is_killed_and_what_a_process_cannot_open(tmp_path, job):
    out = tmp_path / "out.jsonl"
    predict_file(job, tmp_path / "whole.jsonl", load=sums)
    program = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "import offline_fakes, os, signal, threading, time, psutil\n"
        "from pathlib import Path\n"
        "from companion.inference.offline.run import predict_file\n"
        "from companion.inference.offline.job import OfflineJob\n"
        f"job = OfflineJob(Path({str(job.folder)!r}), Path({str(job.file)!r}), 'text', batch_size=1)\n"
        "def kill():\n"
        f"    while not list(Path({str(tmp_path)!r}).glob('.out*/note.json')): time.sleep(0.01)\n"
        "    children = psutil.Process().children()\n"
        "    while not (workers := [c for c in children if '--multiprocessing-fork' in c.cmdline()]):\n"
        "        children = psutil.Process().children(); time.sleep(0.01)\n"
        "    workers[0].kill()\n"
        "threading.Thread(target=kill, daemon=True).start()\n"
        f"predict_file(job, Path({str(out)!r}), processes=2, load=offline_fakes.sums)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "ChildProcessError: a process ended early" in done.stderr
    assert not out.exists()
    assert predict_file(job, out, load=sums).rows == 200
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    (job.folder / "broken").touch()
    with pytest.raises(ValueError, match="is broken: mend it"):
        predict_file(job, out, processes=2, load=sums)


# --- the command


def test_the_command_goes_on_and_says_so(run, onnx_folder, tmp_path):
    file = write(tmp_path / "in.jsonl", list(mixed_texts(70)))
    out = tmp_path / "out.jsonl"
    command = ("predict", onnx_folder, file, "--text-column", "text", "--batch-size", 1)
    assert run(*command, "--out", tmp_path / "whole.jsonl")[0] == 0
    job = OfflineJob(onnx_folder, file, "text", batch_size=1)
    half_done(job, out, rows=64)
    code, told, err = run(*command, "--out", out, "--json")
    assert (code, json.loads(told)["resumed"], json.loads(told)["rows"]) == (0, 64, 70)
    assert "64 rows are answered: going on behind them" in err
    assert out.read_bytes() != (tmp_path / "whole.jsonl").read_bytes(), "those of the other model are kept"
    out.unlink()
    half_done(job, out, rows=64)
    assert "--batch-size" in run(*command[:-1], 2, "--out", out)[2]
    assert run(*command, "--out", out, "--restart")[0] == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    code, _, err = run(*command, "--out", out, "--on-error", "ignore")
    assert code == 2
    assert "expected stop or record" in err


@given(st.lists(st.text(max_size=9), min_size=1, max_size=20), st.integers(1, 9))
def test_each_row_has_one_line_in_its_place(texts, size):
    """Whatever the rows are, and however they are cut: as many lines, each the answer to its row alone."""
    from companion.data import BadRow, Example
    from companion.inference.offline.answers import answer_window

    items = [
        (row, Example(text)) if text.strip() else BadRow(row, "empty") for row, text in enumerate(texts, 1)
    ]
    model = sums(Path("none"), None)

    def answered(piece):
        found = answer_window(model, Window(tuple(piece), False, "f"), batch_size=4, on_error="record")
        assert found.rows == len(piece)
        assert found.problems == sum(
            isinstance(item, BadRow) or "nan" in item[1].text or "boom" in item[1].text for item in piece
        )
        return found.lines

    together = b"".join(answered(items[start : start + size]) for start in range(0, len(items), size))
    assert together == b"".join(answered([item]) for item in items)
    assert together.count(b"\n") == len(texts)
