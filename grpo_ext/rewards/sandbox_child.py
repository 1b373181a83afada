"""The process that shuts a candidate program in and then becomes it; `sandbox` runs it as a script.

It makes new namespaces (user, mount, process, network, IPC, host name), a new root that holds only what the
interpreter needs, all of it read-only, and a working folder in memory. Three processes take part:

    launcher     waits for the wall-clock limit and then kills the process below, which takes everything with it
    first        number 1 of the new process namespace: when it ends, the kernel kills every process of the namespace
    candidate    the program, without capabilities, under resource limits

The first process is not the candidate itself, because a candidate could undo the signal that ties it to the launcher.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path

SETUP_FAILED = 70  # exit status: the isolation could not be set up, nothing of the candidate ran
TIMED_OUT = 71  # exit status: the wall-clock limit was reached

NOBODY = 65534
BOX = "/box"
# Existing everywhere on Linux, and nothing that an interpreter needs lies in it.
_NEW_ROOT = "/sys"
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV, _MNT_DETACH = 4096, 16384, 1 << 18, 2, 4, 2
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_CLONE_OTHERS = 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000  # process, network, IPC, host name
_SYS_MOUNT_SETATTR, _AT_RECURSIVE, _RDONLY_NOSUID = 442, 0x8000, 1 | 2  # one number on all architectures
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    arguments = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _check(_libc.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3]), f"mount {target}")


def _die_with_parent() -> None:
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")


def enter_namespaces() -> None:
    """Leave the namespaces of the host. A real root needs no user namespace for that, everybody else does."""
    if os.geteuid() == 0:
        _check(_libc.unshare(_CLONE_NEWNS | _CLONE_OTHERS), "unshare")
        return
    user, group = os.geteuid(), os.getegid()
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_OTHERS), "unshare")
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    # Any number but 0, so that the capabilities within the namespace end with the next exec.
    Path("/proc/self/uid_map").write_text(f"1000 {user} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"1000 {group} 1", encoding="ascii")


def _bind(path: str) -> None:
    """Show one file or folder of the host in the new root, symbolic links as they are."""
    target = _NEW_ROOT + path
    if os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    _mount(path, target, None, _MS_BIND | _MS_REC)


def change_root(readable: list[str], box_bytes: int) -> None:
    """Replace the root by one that holds the readable paths and a working folder in memory, and nothing else."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", _NEW_ROOT, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    # Shorter paths first: what lies inside a folder that is shown already needs no mount of its own.
    for path in sorted(readable, key=len):
        if os.path.lexists(path):
            _bind(path)
    os.mkdir(_NEW_ROOT + BOX)
    if not os.path.lexists(_NEW_ROOT + "/tmp"):
        os.symlink(BOX, _NEW_ROOT + "/tmp")
    attributes = (ctypes.c_uint64 * 4)(_RDONLY_NOSUID, 0, 0, 0)
    call = _libc.syscall(_SYS_MOUNT_SETATTR, -100, _NEW_ROOT.encode(), _AT_RECURSIVE, ctypes.byref(attributes), 32)
    _check(call, "mount_setattr")
    options = f"size={box_bytes},nr_inodes=1024,mode=777"
    _mount("tmpfs", _NEW_ROOT + BOX, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
    os.chdir(_NEW_ROOT)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir(BOX)


def _become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def limit(job: dict[str, int], processes: int) -> None:
    """Set the resource limits of this process and of all it starts."""
    limits = {
        resource.RLIMIT_CPU: job["cpu_seconds"],
        resource.RLIMIT_AS: job["memory_bytes"],
        resource.RLIMIT_FSIZE: job["file_bytes"],
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def candidate(job: dict, namespaces: bool) -> None:
    """Give up what is left of the host's rights and become the program."""
    if namespaces:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.geteuid() == 0:
            _become_nobody()
            # In a user namespace of its own, the processes of this run are counted apart from other runs'.
            _check(_libc.unshare(_CLONE_NEWUSER), "unshare")
        processes = job["processes"] + (0 if job["root"] else 2)  # launcher and first process count there
    else:
        if job["root"] and _readable_by_nobody():
            _become_nobody()
        processes = 1
    box = BOX if namespaces else job["box"]
    os.chdir(box)
    Path("program.py").write_text(job["program"], encoding="utf-8", errors="surrogatepass")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    silence = os.open("/dev/null", os.O_WRONLY)
    limit(job, processes)
    # The launcher ignores these; whoever comes next shall see the usual behaviour.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    settings = json.dumps({**job["settings"], "box": box, "hooks": not namespaces})
    command = [job["python"], "-I", "-S", "-B", "-X", "utf8", "-c", job["harness"], settings]
    if namespaces:
        os.setsid()  # a signal to its own group must not reach the launcher
    # Until here standard error told `sandbox` what went wrong with the setup; a program's own leads nowhere.
    errors = os.dup(2)
    os.dup2(silence, 2)
    try:
        os.execve(command[0], command, {**job["environment"], "HOME": box, "TMPDIR": box})
    except OSError as error:
        os.write(errors, f"{command[0]}: {error}".encode())


def _readable_by_nobody() -> bool:
    """Tell whether the user nobody can read the standard library, without which the program could not start."""
    os.seteuid(NOBODY)
    try:
        with open(os.__file__, "rb"):
            return True
    except OSError:
        return False
    finally:
        os.seteuid(0)


def first_process(job: dict) -> None:
    """Be number 1 of the process namespace: start the candidate and reap whatever it leaves, until it ends."""
    _die_with_parent()
    change_root(job["readable"], job["file_bytes"])
    child = os.fork()
    if child == 0:
        candidate(job, namespaces=True)
    while True:
        ended, status = os.wait()
        if ended == child:
            os._exit(_exit_status(status))


def _exit_status(status: int) -> int:
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def main() -> None:
    """Read the job from the file descriptor given as argument, run it, exit with its status."""
    with os.fdopen(int(sys.argv[1]), encoding="utf-8", errors="surrogatepass") as file:
        job = json.load(file)
    _die_with_parent()
    if os.getppid() != job["parent"]:  # it ended before this could be asked for
        os._exit(SETUP_FAILED)
    job["root"] = os.geteuid() == 0
    namespaces = job["isolation"] == "namespaces"
    if namespaces:
        enter_namespaces()
    child = os.fork()
    if child == 0:
        try:
            first_process(job) if namespaces else candidate(job, namespaces=False)
        except OSError as error:
            os.write(2, f"{error}\n".encode())
        os._exit(SETUP_FAILED)
    expired = False

    def stop(number: int, frame: object) -> None:
        nonlocal expired
        expired = True
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, job["wall_seconds"])
    status = os.waitpid(child, 0)[1]
    os._exit(TIMED_OUT if expired else _exit_status(status))


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        os.write(2, f"{error}\n".encode())
        os._exit(SETUP_FAILED)
