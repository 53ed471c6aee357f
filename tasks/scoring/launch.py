"""Runs a program inside a sandbox: limits first, then the code, and a word when it came to its end.

Started as `python -I -S launch.py SETTINGS PROGRAM`, with the word on its input. The word stays
there, unread, until the program is over: no frame and no object of the process holds it before.
Standard library only, in one file: it runs where nothing else can be read.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys
import types
from contextlib import suppress

# Landlock (linux/landlock.h): rights on files, by the version of the interface that brought them.
FILES = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
MAKE_SPECIAL = 1 << 6 | 1 << 9 | 1 << 11  # devices and sockets
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
OPEN_FILES = 64


def main() -> None:
    """Shut the doors, run the program, say the word."""
    settings, program = json.loads(sys.argv[1]), sys.argv[2]
    level = settings["level"]
    held, said, output = os.dup(0), os.dup(1), sys.stdout
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with open(program, encoding="utf-8") as file:
        source = file.read()
    limit(settings, must=level != "none")
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if level != "bwrap":
            libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: killed when who waits for it is
        drop_rights(libc)
        if level == "landlock":
            confine(libc, os.getcwd())
        load_filter(libc, bytes.fromhex(settings["filter"]), must=level != "none")
    sys.argv[:] = ["program.py"]
    # Its name is not `__main__`: what a script does when it is started is no part of the answer.
    module = types.ModuleType("program")
    sys.modules["__main__"] = sys.modules[module.__name__] = module
    exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
    with suppress(Exception):
        output.flush()
    os.write(said, os.read(held, 64))
    # What the program left behind (threads, exit handlers) has no say any more.
    os._exit(0)


def limit(settings: dict[str, int], must: bool) -> None:
    """Memory, processor time, processes, files and their size; no core dumps."""
    megabyte = 1 << 20
    for what, value in (
        (resource.RLIMIT_AS, settings["memory_mb"] * megabyte),
        (resource.RLIMIT_CPU, settings["seconds"] + 1),
        (resource.RLIMIT_FSIZE, settings["file_mb"] * megabyte),
        (resource.RLIMIT_NPROC, running() + settings["processes"]),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(what, (value, value))
        except (OSError, ValueError):  # a lower limit is in force, or the system has none
            if must and resource.getrlimit(what)[1] > value:
                raise


def running() -> int:
    """Processes and threads that this user has: the limit on them counts all."""
    count = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += len(os.listdir(f"/proc/{name}/task"))
    return count


def drop_rights(libc: ctypes.CDLL) -> None:
    """No capabilities, even for root, and none to come: limits could be raised with them."""
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    done(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)))


def confine(libc: ctypes.CDLL, folder: str) -> None:
    """Landlock: read the standard library, write in `folder`, no TCP, no signals to others.

    Raises `OSError` where the kernel has none, or one before 6.2, which lets files be cut short.
    """
    version = done(libc.syscall(CREATE_RULESET, None, 0, 1))
    if version < 3:
        raise OSError(f"Landlock of version {version}: version 3 is needed (Linux 6.2)")
    files = sum(right for since, right in FILES.items() if since <= version)
    network = 3 if version >= 4 else 0  # bind and connect of TCP; seccomp refuses all sockets
    scoped = 3 if version >= 6 else 0  # abstract sockets, signals; seccomp refuses them as well
    ruleset = struct.pack("QQQ", files, network, scoped)
    ruleset = ruleset[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = done(libc.syscall(CREATE_RULESET, ruleset, len(ruleset), 0))
    libraries = {sys.base_prefix, "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo"}
    for path, rights in [
        *((path, READ_FILE | READ_DIR) for path in sorted(libraries)),
        *((f"/dev/{name}", READ_FILE) for name in ("zero", "random", "urandom")),
        ("/dev/null", READ_FILE | WRITE_FILE | TRUNCATE),
        (folder, files & ~(EXECUTE | MAKE_SPECIAL)),
    ]:
        if os.path.exists(path):
            door = os.open(path, os.O_PATH | os.O_CLOEXEC)
            done(libc.syscall(ADD_RULE, rules, 1, struct.pack("=Qi", rights, door), 0))
            os.close(door)
    done(libc.syscall(RESTRICT_SELF, rules, 0))
    os.close(rules)


def load_filter(libc: ctypes.CDLL, lines: bytes, must: bool) -> None:
    """Have the kernel refuse system calls (`seccomp.py`). Raises `OSError` where it has to."""
    buffer = ctypes.create_string_buffer(lines, len(lines))
    program = struct.pack("HxxxxxxP", len(lines) // 8, ctypes.addressof(buffer))
    if libc.prctl(22, 2, program, 0, 0) and must:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp does not work for this machine")


def done(result: int) -> int:
    """What a call gave. Raises `OSError` when it failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


if __name__ == "__main__":
    main()
