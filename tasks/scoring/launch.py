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

# Landlock (linux/landlock.h): rights on files.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
MAKE_SPECIAL = 1 << 6 | 1 << 9 | 1 << 11  # devices and sockets
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
PARENT_DEATH_SIGNAL, SECCOMP, NO_NEW_PRIVILEGES = 1, 22, 38  # of prctl
OPEN_FILES, MEGABYTE = 64, 1 << 20


def main() -> None:
    """Shut the doors, run the program, say the word."""
    settings, program = json.loads(sys.argv[1]), sys.argv[2]
    held, said, output = os.dup(0), os.dup(1), sys.stdout
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with open(program, encoding="utf-8") as file:
        source = file.read()
    limit(settings, must=settings["level"] != "none")
    if sys.platform == "linux":
        shut(settings["level"], bytes.fromhex(settings["filter"]))
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
    for what, value in (
        (resource.RLIMIT_AS, settings["memory_mb"] * MEGABYTE),
        (resource.RLIMIT_CPU, settings["seconds"] + 1),
        (resource.RLIMIT_FSIZE, settings["file_mb"] * MEGABYTE),
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


def shut(level: str, refused: bytes) -> None:
    """Drop all rights, even root's, who could raise limits; and have the kernel refuse calls.

    Raises `OSError` where this does not work, and the level needs it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if level != "bwrap":
        libc.prctl(PARENT_DEATH_SIGNAL, 9, 0, 0, 0)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    done(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)))
    if level == "landlock":
        confine(libc, os.getcwd())
    buffer = ctypes.create_string_buffer(refused, len(refused))
    program = struct.pack("HxxxxxxP", len(refused) // 8, ctypes.addressof(buffer))
    if libc.prctl(SECCOMP, 2, program, 0, 0) and level != "none":  # SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp does not work for this machine")


def confine(libc: ctypes.CDLL, folder: str) -> None:
    """Landlock: read the standard library, write in `folder`. Sockets and signals seccomp refuses.

    Raises `OSError` where the kernel has none, or one before 6.2, which lets files be cut short.
    """
    version = done(libc.syscall(CREATE_RULESET, None, 0, 1))
    if version < 3:
        raise OSError(f"Landlock of version {version}: version 3 is needed (Linux 6.2)")
    files = (1 << (16 if version >= 5 else 15)) - 1  # all rights that it knows
    rules = done(libc.syscall(CREATE_RULESET, struct.pack("Q", files), 8, 0))
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


def done(result: int) -> int:
    """What a call gave. Raises `OSError` when it failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


if __name__ == "__main__":
    main()
