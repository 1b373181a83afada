"""Running a program that nobody has read, with limits on what it can use, see and leave behind.

What is contained where the kernel lets a process have namespaces of its own (`isolation() == "namespaces"`; measured
once per process, usual on Linux desktops and servers, often forbidden inside containers):

- CPU time, memory and number of open files of each process, the number of processes, the wall-clock time of all;
- files: the program sees the interpreter, the system's libraries and a working folder in memory, which vanishes; all
  but that folder is read-only, so the home folder, tokens and data of the user do not exist for it;
- the network: there is none, not even loopback;
- other processes: the program sees and can signal only its own, and all of them are dead when the run is over;
- the environment: it is empty but for `PATH`, `HOME`, `TMPDIR` and the like.

Elsewhere (`"hooks"`) the same resource limits hold and no second process or thread can be started, which the kernel
sees to unless the run is root's. Sockets, signals, `ctypes`, and files outside the working folder and the
interpreter's own are refused by an audit hook inside the interpreter: that stops what programs of a language model do,
and does not stop an attacker who knows CPython's internals. It is weaker, and a warning says so once.
A run by root hands the program over to the user nobody, in `"hooks"` only where nobody can read the interpreter: where
it lies in a private folder of root's, a program that gets round the hook has the rights of root. So `isolation()` does
not choose `"hooks"` there; only who names it gets it.

Not contained in either case: bugs of the kernel, what a program can learn from timing, and memory beyond the limit by
way of several processes (the limit holds for each of them).
"""

import functools
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from grpo_ext.rewards import sandbox_child

logger = logging.getLogger(__name__)

ISOLATIONS = ("namespaces", "hooks")
# What an interpreter and the tools it may call need of the system; missing ones are passed over.
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_GRACE_SECONDS = 10.0  # for setting up on a busy machine; the launcher itself keeps the wall-clock limit

# What runs in front of the program, inside its process. The tests arrive on standard input, after the program ran.
_HARNESS = (Path(__file__).parent / "sandbox_harness.py").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Limits:
    """What one run of a program may use.

    Args:
        wall_seconds: time from start to end.
        cpu_seconds: processor time of each process, in whole seconds.
        memory_bytes: address space of each process.
        processes: processes and threads at one time, the program itself included.
        file_bytes: size of a file, of all files together, and of what is printed.
    """

    wall_seconds: float = 5.0
    cpu_seconds: int = 5
    memory_bytes: int = 512 * 2**20
    processes: int = 8
    file_bytes: int = 2**20

    def __post_init__(self) -> None:
        for name, least in [("wall_seconds", 0.01), ("cpu_seconds", 1), ("processes", 1), ("file_bytes", 4096)]:
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; a program needs at least {least}.")
        if self.memory_bytes < 64 * 2**20:
            raise ValueError(f"memory_bytes is {self.memory_bytes}; an interpreter needs at least {64 * 2**20}.")


class Run(NamedTuple):
    """How a program ended: its exit status (128 + signal when killed) and what it printed."""

    status: int
    output: str


class SandboxError(RuntimeError):
    """The isolation that was asked for cannot be set up on this machine."""


@functools.cache
def isolation() -> str:
    """Return the strongest isolation that this machine allows, `"namespaces"` or `"hooks"`, tried out once.

    Raises:
        SandboxError: a program would run as root behind nothing but an audit hook.
    """
    try:
        run = run_program("print('in')", isolation="namespaces")
    except SandboxError as error:
        if os.geteuid() == 0 and not _everyone_reads(os.__file__):
            raise SandboxError(
                f"this machine allows no namespaces ({error}), and root's own interpreter {sys.executable} would run "
                "programs as root; train as another user, or install Python where every user can read it."
            ) from None
        logger.warning(
            "programs run behind an audit hook of Python only, which is weaker than a kernel's fence, because this "
            "machine allows no namespaces (%s); run where unprivileged user namespaces are on, or inside a container "
            "that may be lost.",
            error,
        )
        return "hooks"
    if run.output != "in\n":
        raise SandboxError(f"a trial program ended with status {run.status} and printed {run.output!r}, not 'in'.")
    return "namespaces"


def _everyone_reads(file: str) -> bool:
    path = Path(file).resolve()
    return bool(path.stat().st_mode & 0o004) and all(folder.stat().st_mode & 0o001 for folder in path.parents)


def run_program(
    program: str,
    stdin: str = "",
    limits: Limits = Limits(),
    packages: Sequence[str] = (),
    isolation: str = "namespaces",
    asserts: bool = False,
) -> Run:
    """Run a Python program in a process of its own, shut in as this module's docstring says.

    Args:
        program: Source code.
        stdin: What it reads from standard input; with `asserts`, the test code, see `sandbox_harness`.
        limits: What it may use.
        packages: Folders of packages that it may import beside the standard library; they are shown read-only.
        isolation: `"namespaces"` or `"hooks"`.
        asserts: Whether `stdin` holds code to be executed after the program, within it.

    Returns:
        How the program ended, and the first `file_bytes` of what it printed.

    Raises:
        SandboxError: The isolation cannot be set up here.
        ValueError: `isolation` is unknown.
    """
    if isolation not in ISOLATIONS:
        raise ValueError(f"isolation is {isolation!r}; choose one of {', '.join(ISOLATIONS)}.")
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"programs can be shut in on Linux only, this is {sys.platform}.")
    job = _job(program, limits, [os.path.abspath(path) for path in packages], isolation, asserts)
    with ExitStack() as stack:
        if isolation == "hooks":
            job["box"] = os.path.realpath(stack.enter_context(tempfile.TemporaryDirectory(prefix="grpo-ext-box-")))
            os.chmod(job["box"], 0o777 if os.geteuid() == 0 else 0o700)
        described, given, printed, errors = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(4))
        for file, text in ((described, json.dumps(job)), (given, stdin)):
            file.write(text.encode("utf-8", "surrogatepass"))
            file.seek(0)
        status = _launch(described.fileno(), given, printed, errors, limits.wall_seconds + _GRACE_SECONDS)
        if status == sandbox_child.SETUP_FAILED:
            errors.seek(0)
            message = errors.read(200).decode("utf-8", "replace").strip()
            # A program may exit with this number too, but its own standard error leads nowhere.
            if message:
                raise SandboxError(message)
        printed.seek(0)
        output = printed.read(limits.file_bytes).decode("utf-8", "replace")
    return Run(status, output)


def _job(program: str, limits: Limits, packages: list[str], isolation: str, asserts: bool) -> dict[str, Any]:
    """Return what the launcher has to know, as JSON values."""
    return {
        **vars(limits),
        "parent": os.getpid(),
        "isolation": isolation,
        "program": program,
        "harness": _HARNESS,
        "python": os.path.realpath(sys.executable),
        "readable": [*_SYSTEM, *_DEVICES, *_interpreter(), *packages],
        "environment": {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
        "settings": {"packages": packages, "asserts": asserts, "readable": [*_interpreter(), *packages]},
    }


def _interpreter() -> list[str]:
    """Return the folders that this interpreter lives in."""
    return sorted({sys.base_prefix, os.path.realpath(sys.base_prefix), os.path.realpath(sys.executable)})


def _launch(job: int, stdin: Any, stdout: Any, stderr: Any, seconds: float) -> int:
    """Start the launcher and wait for it; its end is the end of all that it started."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", sandbox_child.__file__, str(job)],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={},
        cwd="/",
        pass_fds=[job],
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return sandbox_child.TIMED_OUT
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
