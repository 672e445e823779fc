"""The sandbox: plain numbers come back, and whatever the code tries, it scores nothing and harms nothing."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import companion.grading
from companion.grading import Outcome, Sandbox

GRADER = Path(companion.grading.__file__).parent
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own walls are Linux's")


def run(sandbox: Sandbox, code: str, inputs: Any = None, **limits: Any) -> Outcome:
    return sandbox.run({"work.py": code}, "work:work", inputs, **{"seconds": 3.0, **limits})


def test_numbers_go_in_and_come_out(sandbox):
    code = "import torch\ndef work(x):\n    print('hello')\n    return (2 * torch.tensor(x)).tolist()"
    outcome = run(sandbox, code, [[1.5, 2.0]])
    assert (outcome.ended, outcome.value, outcome.printed) == ("returned", [[3.0, 4.0]], "hello\n")
    assert "limits" in outcome.isolation


def test_training_works_inside(sandbox):
    code = (
        "import torch, threading, tempfile\n"
        "def work(_):\n"
        "    x = torch.ones(2, requires_grad=True)\n"
        "    (x * x).sum().backward()\n"
        "    torch.optim.AdamW([x], lr=0.5, weight_decay=0.0).step()\n"
        "    thread = threading.Thread(target=print)\n"
        "    thread.start(); thread.join()\n"
        "    with tempfile.TemporaryFile() as file:\n"
        "        file.write(b'x')\n"
        "    return x.tolist()"
    )
    assert run(sandbox, code).value == pytest.approx([0.5, 0.5], abs=1e-4)


def test_an_exception_is_named_with_its_line(sandbox):
    outcome = run(sandbox, "def work(x):\n    return [][x]", 3)
    assert (
        outcome.ended == "raised" and "IndexError" in outcome.error and "line 2 of work.py" in outcome.error
    )


def test_no_run_sees_another_ones_changes(sandbox):
    code = (
        "import builtins, json, os, torch\n"
        "def work(_):\n"
        "    before = hasattr(builtins, 'changed'), os.listdir('.')\n"
        "    builtins.changed = 1; torch.relu = None; json.dumps = None; open('left', 'w').close()\n"
        "    return before"
    )
    for _ in range(2):
        assert run(sandbox, code).value == [False, []]


def test_an_endless_loop_is_stopped(sandbox):
    for code in ("while True: pass", "import time\ntime.sleep(1000)"):
        start = time.perf_counter()
        outcome = run(sandbox, f"{code}\ndef work(_): return 1", seconds=0.5)
        assert outcome.ended == "too long" and outcome.value is None
        assert time.perf_counter() - start < 15


def test_signals_do_not_help_an_endless_loop(sandbox):
    code = (
        "import signal\n"
        "for number in range(1, 32):\n"
        "    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except OSError: pass\n"
        "def work(_):\n"
        "    while True:\n"
        "        try:\n"
        "            while True: pass\n"
        "        except BaseException: pass"
    )
    assert run(sandbox, code, seconds=0.5).ended == "too long"


@needs_linux
@pytest.mark.parametrize("call", ["os.fork()", "ctypes.CDLL(None).fork()"])
def test_a_fork_bomb_makes_no_process(sandbox, call):
    code = (
        "import ctypes, os\n"
        "def work(_):\n"
        "    made = []\n"
        "    for _ in range(50):\n"
        f"        try: made.append({call})\n"
        "        except OSError: made.append(-1)\n"
        "    return made"
    )
    assert run(sandbox, code).value == [-1] * 50


def test_huge_memory_is_refused(sandbox):
    outcome = run(sandbox, "def work(_): return len(bytearray(3 << 30))", memory_bytes=1 << 29)
    assert outcome.ended == "raised" and "MemoryError" in outcome.error


def test_huge_files_are_refused(sandbox):
    code = "def work(_):\n    open('x', 'wb').write(bytes(9 << 20))"
    assert run(sandbox, code, file_bytes=1 << 20).ended in ("raised", "died")


def test_an_endless_answer_is_no_answer(sandbox):
    assert run(sandbox, "def work(_): return 'x' * (9 << 20)").ended == "tampered"


def test_endless_printing_is_cut(sandbox):
    outcome = run(sandbox, "def work(_):\n    for _ in range(9000): print('x' * 100)\n    return 1")
    assert outcome.value == 1 and len(outcome.printed) <= 2_000


@needs_linux
def test_the_graders_files_cannot_be_read(sandbox):
    secret = GRADER / "sandbox.py"
    assert secret.is_file()
    for path in (
        secret,
        GRADER.parent / "debugging" / "recipe.py",
        f"/proc/{os.getpid()}/environ",
        "/etc/passwd",
    ):
        outcome = run(sandbox, f"def work(_): return open({str(path)!r}).read()")
        assert outcome.ended == "raised" and outcome.value is None, path
    listing = run(sandbox, f"import os\ndef work(_): return os.listdir({str(GRADER)!r})")
    assert listing.ended == "raised"
    for name in ("companion.models.transformer", "companion.debugging.recipe", "companion.exercises"):
        assert run(sandbox, f"import {name}\ndef work(_): return 1").ended == "raised"


@needs_linux
def test_nothing_is_written_outside(sandbox, tmp_path):
    outside = tmp_path / "outside"
    for code in (
        f"open({str(outside)!r}, 'w')",
        f"__import__('os').mkdir({str(outside)!r})",
        f"__import__('os').symlink('/', {str(outside)!r})",
        f"__import__('ctypes').CDLL(None).mkdir({str(outside).encode()!r}, 0o777)",
    ):
        run(sandbox, f"def work(_): {code}")
        assert not outside.exists() and not outside.is_symlink()


def test_the_folder_is_gone_afterwards(sandbox):
    code = "import os\ndef work(_):\n    os.makedirs('a/b'); os.chmod('a', 0); return os.getcwd()"
    folder = run(sandbox, code).value
    assert folder and not Path(folder).exists()


@needs_linux
def test_no_socket_is_opened(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        python = f"import socket\ndef work(_): socket.create_connection(('127.0.0.1', {port}), 1)"
        libc = "import ctypes\ndef work(_): return ctypes.CDLL(None).socket(2, 1, 0)"
        assert run(sandbox, python).ended == "raised"
        assert run(sandbox, libc).value == -1
        with pytest.raises(TimeoutError):
            server.accept()


@needs_linux
def test_no_program_is_run(sandbox):
    code = "import os, sys\ndef work(_): os.execv(sys.executable, [sys.executable, '-c', '1'])"
    assert run(sandbox, code).ended == "raised"
    libc = "import ctypes\ndef work(_): return ctypes.CDLL(None).execl(b'/bin/true', b'true', None)"
    assert run(sandbox, libc).value == -1


@needs_linux
def test_the_grader_cannot_be_killed(sandbox):
    code = (
        f"import ctypes\ndef work(_): return [ctypes.CDLL(None).kill(p, 9) for p in ({os.getpid()}, -1, 1)]"
    )
    assert run(sandbox, code).value == [-1, -1, -1]


def test_environment_is_empty(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    assert set(run(sandbox, "import os\ndef work(_): return list(os.environ)").value) == {
        "HOME",
        "TMPDIR",
        "OMP_NUM_THREADS",
    }


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "import os\ndef work(_): os._exit(0)",
        "import sys\ndef work(_): sys.exit(0)",
        "import os\ndef work(_): os.abort()",
        "import os\nos.closerange(0, 64)\ndef work(_): return 1",
        "work = 7",
        "def work(_): return {1, 2}",
        "def work(_",
    ],
)
def test_what_ends_without_an_answer_has_none(sandbox, code):
    outcome = run(sandbox, code)
    assert outcome.ended in ("raised", "died") and outcome.value is None


def test_a_printed_answer_is_no_answer(sandbox):
    code = "import os\nprint('{\"value\": 1}', flush=True)\nos.write(1, b'{\"value\": 1}')\nos._exit(0)"
    outcome = run(sandbox, code)
    assert outcome.ended == "died" and outcome.value is None and "value" in outcome.printed


def test_an_answer_written_past_the_grader_is_no_answer(sandbox):
    code = (
        "import os\n"
        "for fd in range(3, 64):\n"
        '    try: os.write(fd, b\'0123456789abcdef0123456789abcdef\\n{"value": 1, "seconds": 0}\')\n'
        "    except OSError: pass\n"
        "os._exit(0)\n"
    )
    outcome = run(sandbox, code)
    assert outcome.ended == "tampered" and outcome.value is None


def test_patched_modules_do_not_answer(sandbox):
    code = (
        "import builtins, json, os\n"
        "json.JSONEncoder.encode = json.dumps = lambda *a, **k: '{\"value\": 100}'\n"
        "builtins.len = lambda x: 100\n"
        "def work(_): return 1"
    )
    assert run(sandbox, code).value == 1


def test_the_sandbox_goes_on_after_all_that(sandbox):
    assert run(sandbox, "def work(x): return x + 1", 1).value == 2


def test_a_closed_sandbox_says_so():
    with Sandbox() as one:
        pass
    with pytest.raises(RuntimeError, match="open another"):
        run(one, "def work(_): return 1")
