"""What stands in front of a candidate program in its own process: the paths, the audit hook, the tests at the end.

`sandbox` reads this file as text and hands it to `python -c`; it is never imported. Where the kernel gives no
namespaces, the audit hook refuses what a program has no business with.
"""

import json
import os
import runpy
import sys
from typing import Any

SETTINGS = json.loads(sys.argv.pop())

REFUSED = (
    "socket.", "ctypes.", "subprocess.", "pty.", "os.fork", "os.posix_spawn", "os.spawn", "os.exec", "os.system",
    "os.kill", "os.startfile", "os.chflags", "os.setxattr", "os.removexattr", "resource.", "signal.", "shutil.chown",
    "gc.", "fcntl.", "syslog.", "mmap.",
    "_thread.",
)  # fmt: skip
MODULES = frozenset(
    {"ctypes", "_ctypes", "_posixsubprocess", "_socket", "_multiprocessing", "_posixshmem", "_testcapi"}
)
# Event -> how many of its first arguments are paths that must lie in the working folder.
CHANGES = {
    "os.remove": 1, "os.rename": 2, "os.mkdir": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "os.utime": 1, "os.chdir": 1, "os.listdir": 1, "os.scandir": 1, "os.walk": 1,
    "os.mkfifo": 1, "os.mknod": 1,
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def install(box: str, readable: list[str]) -> None:
    """Add the hook. What it uses is bound here, where the program cannot replace it."""
    realpath, fspath, fsdecode, writing = os.path.realpath, os.fspath, os.fsdecode, WRITING
    refused, modules, changes = tuple(REFUSED), MODULES, dict(CHANGES)
    inside = (box,)
    visible = (box, *readable, "/dev/null", "/dev/urandom")
    busy: list[str] = []

    def lies_in(path: Any, folders: tuple[str, ...]) -> bool:
        if isinstance(path, int):
            return True
        path = realpath(fsdecode(fspath(path)))
        return any(path == folder or path.startswith(folder + "/") for folder in folders)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if busy:
            return
        busy.append(event)
        try:
            if event.startswith(refused) or (event == "import" and arguments[0] in modules):
                raise PermissionError(f"{event} is refused")
            if event == "open":
                path, _, flags = arguments
                writes = bool(flags & writing) if isinstance(flags, int) else True
                if path is not None and not lies_in(path, inside if writes else visible):
                    raise PermissionError("this file is out of bounds")
            elif event in changes:
                folders = visible if event in ("os.listdir", "os.scandir") else inside
                if not all(lies_in(path, folders) for path in arguments[: changes[event]] if path is not None):
                    raise PermissionError("this path is out of bounds")
        finally:
            busy.pop()

    sys.addaudithook(hook)


def main() -> None:
    """Run the program; with tests, run them in its namespace and print the word that says all of them passed."""
    sys.path[:0] = SETTINGS["packages"]
    if SETTINGS["hooks"]:
        install(SETTINGS["box"], SETTINGS["readable"])
    program = SETTINGS["box"] + "/program.py"
    sys.argv[:] = [program]
    if not SETTINGS["asserts"]:
        runpy.run_path(program, run_name="__main__")
        return
    names = runpy.run_path(program, run_name="candidate")
    tests = json.loads(sys.stdin.read())
    exec(compile(tests["code"], "tests", "exec"), names)
    sys.stdout.write("\n" + tests["word"] + "\n")


main()
