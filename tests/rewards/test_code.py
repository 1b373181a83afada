"""Programs behind a fence: what they may not do, what they leave behind, and what they score."""

import os
import pickle
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ext.rewards import code, code_reward, sandbox
from grpo_ext.rewards.code import extract_program
from grpo_ext.rewards.sandbox import ISOLATIONS, Limits, SandboxError, run_program
from grpo_ext.rewards.sandbox_child import TIMED_OUT


# The weaker fence is tested everywhere, the stronger one wherever the machine allows it.
def allowed() -> list[str]:
    try:
        return [name for name in ISOLATIONS if name == "hooks" or sandbox.isolation() == "namespaces"]
    except SandboxError:
        return ["hooks"]


HERE = allowed()
QUICK = Limits(wall_seconds=10.0, cpu_seconds=2)
SHORT = Limits(wall_seconds=1.5, cpu_seconds=1)  # for programs that use up all they get
each_fence = pytest.mark.parametrize("fence", HERE)


def run(program: str, fence: str, limits: Limits = QUICK, stdin: str = "") -> sandbox.Run:
    return run_program(program, stdin, limits, isolation=fence)


def processes() -> set[str]:
    """Every process that shows a sandbox in its command line."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"sandbox_child" in command or b"SETTINGS = json" in command:
            found.add(folder.name)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = processes()
    yield
    # Another test worker runs programs too; those end by themselves, and sooner than what an attack leaves
    left, until = processes() - before, time.monotonic() + 15
    while left and time.monotonic() < until:
        time.sleep(0.05)
        left &= processes()
    assert not left
    assert not list(tmp_path.glob("grpo-ext-box-*"))


# None of them does lasting harm on a machine where the fence is broken, which is what these tests look for: the bomb
# has an end, and a signal that must not arrive is number 0, which only asks whether it could.
ATTACKS = {
    "endless loop": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "fork bomb": "import os, time\nfor _ in range(8):\n    try: os.fork()\n    except OSError: pass\ntime.sleep(20)",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
    "huge memory": "x = bytearray(4 * 2**30)",
    "memory by and by": "x = []\nwhile True: x.append(bytearray(2**20))",
    "huge file": "f = open('x', 'wb')\nwhile True: f.write(bytes(2**20))",
    "endless printing": "while True: print('x' * 1000)",
    "leaves the session": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\ntime.sleep(60)",
    "undoes the leash": "import ctypes, os, time\nctypes.CDLL(None).prctl(1, 0)\nos.setsid()\ntime.sleep(60)",
    "kills its group": "import os, time\nos.killpg(0, 9)",
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nprint('done')",
    "asks a name server": "import socket\nsocket.getaddrinfo('example.org', 80)\nprint('done')",
    "writes outside": "open('{outside}', 'w').write('x')\nprint('done')",
    "reads outside": "print(open('{secret}').read(), 'done')",
    "deletes outside": "import os\nos.remove('{secret}')\nprint('done')",
    "lists outside": "import os\nprint(os.listdir('{folder}'), 'done')",
    "reads its parent's environment": "import os\nprint(open(f'/proc/{os.getppid()}/environ').read(), 'done')",
    "reads our environment": "print(open('/proc/{pid}/environ').read(), 'done')",
    "kills us": "import os\nos.kill({pid}, 0)\nprint('done')",
    "says the sandbox is broken": "import os\nos.write(2, b'x')\nos._exit(70)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "is no program": "\0 this is (",
}


@each_fence
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_attacks_are_contained_and_score_nothing(
    attack: str, fence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def recorded(*args: Any, **kwargs: Any) -> sandbox.Run:
        runs.append(run_program(*args, **kwargs))
        return runs[-1]

    monkeypatch.setattr(sandbox, "run_program", recorded)
    monkeypatch.setenv("A_SECRET_OF_OURS", "the secret")
    (tmp_path / "secret").write_text("the secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        places = {"port": server.getsockname()[1], "outside": tmp_path / "new", "secret": tmp_path / "secret"}
        for name, value in {**places, "folder": tmp_path, "pid": os.getpid()}.items():
            attack = attack.replace("{" + name + "}", str(value))
        start = time.monotonic()
        tests = [{"input": "", "output": "done"}]
        assert code_reward(SHORT, isolation=fence)([attack], tests=[tests]) == [0.0]
        assert time.monotonic() - start < 12
    [ended] = runs
    assert "done" not in ended.output and "the secret" not in ended.output
    assert len(ended.output) <= SHORT.file_bytes
    assert (tmp_path / "secret").read_text() == "the secret" and not (tmp_path / "new").exists()
    # the run goes on
    assert code_reward(QUICK, isolation=fence)(["print('done')"], tests=[tests]) == [1.0]


@each_fence
def test_what_a_program_may_do(fence: str) -> None:
    program = """
import collections, json, math, os, random, re, tempfile
with open("notes.txt", "w") as file: file.write("kept " + input())
with tempfile.TemporaryFile("w+") as file: file.write("x")
os.mkdir("folder"); os.rename("notes.txt", "folder/notes.txt")
print(open("folder/notes.txt").read(), math.factorial(5), sorted(os.environ))
"""
    ended = run(program, fence, stdin="here\n")
    names = ["HOME", "LANG", "OMP_NUM_THREADS", "PATH", "TMPDIR"]
    assert (ended.status, ended.output.strip()) == (0, f"kept here 120 {names}")
    assert run("import os; print(os.listdir())", fence).output == "['program.py']\n"


@pytest.mark.parametrize("fence", [name for name in HERE if name == "namespaces"])
def test_namespaces_hide_and_count(fence: str) -> None:
    seen = run(
        "import os; print(os.getpid(), os.getuid() == 0, os.path.exists('/proc/self'), os.listdir('/box'))", fence
    )
    assert seen.output == "2 False False ['program.py']\n"
    forks = (
        "import os, time\nn = 0\ntry:\n  while os.fork():\n    n += 1\n  time.sleep(9)\nexcept OSError:\n  print(n)"
    )
    for allowed in (2, 8):
        limits = Limits(wall_seconds=3.0, processes=allowed)
        assert run(forks, fence, limits).output == f"{allowed - 1}\n"
    assert run("open('/usr/x', 'w')", fence).status == 1
    assert run("open('/x', 'w')", fence).status == 1


@each_fence
def test_limits_are_told_apart(fence: str) -> None:
    start = time.monotonic()
    slept = run("import time; time.sleep(60)", fence, Limits(wall_seconds=0.5))
    assert slept.status == TIMED_OUT and time.monotonic() - start < 5
    busy = run("while True: pass", fence, Limits(wall_seconds=20.0, cpu_seconds=1))
    assert busy.status == 128 + 9
    assert run("raise SystemExit(3)", fence) == (3, "")
    assert run("bytearray(200 * 2**20)", fence, Limits(memory_bytes=128 * 2**20)).status == 1
    assert run("bytearray(200 * 2**20)", fence).status == 0


@each_fence
def test_assert_statements(fence: str) -> None:
    good, bad = "def f(x):\n    return x + 1", "def f(x):\n    return x"
    tests = ["assert f(1) == 2", "import math\nassert f(math.inf) == math.inf"]
    leaves = ["import os; os._exit(0)", "raise SystemExit(0)", "import atexit\ndef f(x): raise SystemExit(0)"]
    programs = [good, bad, *leaves, "print('assert f(1) == 2')"]
    assert code_reward(QUICK, isolation=fence)(programs, tests=[tests] * 6) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    shares = code_reward(QUICK, partial=True, isolation=fence)(programs, tests=[tests] * 6)
    assert shares == [1.0, 0.5, 0.0, 0.0, 0.0, 0.0]


@each_fence
def test_packages_may_be_shown(fence: str, tmp_path: Path) -> None:
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "of_ours.py").write_text("answer = 42")
    program = "import of_ours; print(of_ours.answer)"
    tests = [[{"input": "", "output": "42"}]]
    assert code_reward(QUICK, isolation=fence)([program], tests=tests) == [0.0]
    assert code_reward(QUICK, packages=[str(folder)], isolation=fence)([program], tests=tests) == [1.0]


def test_rows_are_scored_together_and_in_order() -> None:
    messages = [{"role": "assistant", "content": "Here:\n```python\nprint(int(input()) * 2)\n```\nDone."}]
    tests = [[{"input": "4\n", "output": "8\n\n"}, {"input": "0", "output": "0"}], None, [], ["assert 1"]]
    assert code([messages] * 4, tests=tests, prompts=["p"] * 4) == [
        1.0,
        None,
        None,
        0.0,
    ]  # the last one reads no input
    start = time.monotonic()
    slow = code_reward(QUICK, workers=4)(["import time; time.sleep(1)"] * 4, tests=[["assert True"]] * 4)
    assert slow == [1.0] * 4 and time.monotonic() - start < 3.9
    assert pickle.loads(pickle.dumps(code_reward()))(["x = 1"], tests=[["assert x == 1"]]) == [1.0]


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1", "x = 1"),
        ("```python\na\n```\nor\n```py\nb\n```", "b\n"),
        ("```\na\n```", "a\n"),
        ("```python\na\n```\n```bash\nls\n```", "a\n"),
        ("```python\na\n", ""),
        ("  ```Python\n  a\n  ```", "  a\n"),
        ("```json\n1\n```", ""),
    ],
)
def test_the_program_of_a_completion(text: str, program: str) -> None:
    assert extract_program(text) == program


@given(st.text(alphabet="`\n a python", max_size=200))
def test_any_text_has_a_program(text: str) -> None:
    assert extract_program(text) in (text, "") or "```" in text


def test_refusals() -> None:
    for tests, found in (
        (None, "missing"),
        ("assert 1", "one string"),
        ([[], []], "2 entries"),
        ([[3]], "row 0: a test is"),
        ([[{"input": "1"}]], "row 0"),
    ):
        with pytest.raises(ValueError, match=f"'tests'.*{found}"):
            code(["x"], tests=tests)
    with pytest.raises(ValueError, match="isolation is 'jail'; choose one of namespaces, hooks"):
        code_reward(isolation="jail")
    with pytest.raises(ValueError, match="workers is 0"):
        code_reward(workers=0)
    with pytest.raises(ValueError, match="memory_bytes is 1; an interpreter needs"):
        Limits(memory_bytes=1)
    with pytest.raises(ValueError, match="wall_seconds is 0"):
        Limits(wall_seconds=0)


def test_a_machine_without_namespaces_falls_back_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise SandboxError("unshare: Operation not permitted")

    sandbox.isolation.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sandbox, "run_program", refused)
            patch.setattr(sandbox, "_everyone_reads", lambda file: True)
            assert sandbox.isolation() == sandbox.isolation() == "hooks"
        assert caplog.text.count("weaker") == 1 and "Operation not permitted" in caplog.text
        assert code(["x = 1"], tests=[["assert x"]]) == [1.0]
    finally:
        sandbox.isolation.cache_clear()


def test_root_with_a_private_interpreter_gets_no_hooks_by_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise SandboxError("unshare: Operation not permitted")

    sandbox.isolation.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(sandbox, "run_program", refused)
            patch.setattr("os.geteuid", lambda: 0)
            patch.setattr(sandbox, "_everyone_reads", lambda file: False)
            with pytest.raises(SandboxError, match="would run programs as root; train as another user"):
                sandbox.isolation()
    finally:
        sandbox.isolation.cache_clear()
    private = tmp_path / "private"
    private.mkdir()
    file = private / "os.py"
    file.touch(0o644)
    private.chmod(0o700)
    assert not sandbox._everyone_reads(str(file))


def test_a_setup_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "_interpreter", lambda: [])  # nothing to run the program with
        patch.setattr(sandbox, "_SYSTEM", ())
        if "namespaces" in HERE:
            with pytest.raises(SandboxError, match="No such file"):
                run("print(1)", "namespaces")
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(SandboxError, match="Linux only, this is darwin"):
        run("print(1)", "hooks")
