"""Runs a program inside a sandbox: limits first, then the code, and a word when it came to its end.

Started as `python -I -S launch.py LEVEL LIMITS PROGRAM`, with the word as the first line of its
input. Standard library only: it runs where nothing else can be read.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys

# Landlock (linux/landlock.h): rights by the version of the interface that brought them.
FILES = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, read a folder
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
# Seccomp: system calls that are refused, by machine; clone3 is said not to exist.
NUMBERS = {
    "x86_64": (0xC000003E, (41, 57, 58, 62, 101, 200, 234, 424), 56, 435),
    "aarch64": (0xC00000B7, (198, 117, 129, 130, 131, 424), 220, 435),
}
THREAD = 0x10000  # CLONE_THREAD
ERRNO, ALLOW = 0x00050000, 0x7FFF0000
EPERM, ENOSYS = 1, 38


def main() -> None:
    """Read the word, shut the doors, run the program, say the word."""
    level, limits, program = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    word = sys.stdin.readline()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with open(program, encoding="utf-8") as file:
        code = compile(file.read(), "program.py", "exec")
    said = os.dup(1)
    limit(limits)
    if level == "landlock":
        confine(os.getcwd())
    if level != "none":
        refuse()
    exec(code, {"__name__": "__main__"})
    sys.stdout.flush()
    os.write(said, word.encode())
    # What the program left behind (threads, exit handlers) has no say any more.
    os._exit(0)


def limit(limits: dict[str, int]) -> None:
    """Memory, processor time, processes, size of files; no core dumps."""
    megabyte = 1 << 20
    for what, value in (
        (resource.RLIMIT_AS, limits["memory_mb"] * megabyte),
        (resource.RLIMIT_CPU, limits["seconds"] + 1),
        (resource.RLIMIT_FSIZE, limits["file_mb"] * megabyte),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (value, value))


def confine(folder: str) -> None:
    """Landlock: read the standard library, write in `folder`, no TCP, no signals to others.

    Raises `OSError` where the kernel has no Landlock.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = call(libc, CREATE_RULESET, None, 0, 1)
    files = sum(right for since, right in FILES.items() if since <= version)
    network = 3 if version >= 4 else 0  # bind and connect of TCP; seccomp refuses all sockets
    scoped = 3 if version >= 6 else 0  # abstract sockets, signals
    rules = struct.pack("QQQ", files, network, scoped)[
        : 8 if version < 4 else 16 if version < 6 else 24
    ]
    ruleset = call(libc, CREATE_RULESET, rules, len(rules), 0)
    readable = {sys.base_prefix, "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo"}
    for path, rights in [
        *((p, READ) for p in sorted(readable)),
        (folder, files),
        ("/dev", 1 << 1 | READ),
    ]:
        if os.path.isdir(path):
            door = os.open(path, os.O_PATH | os.O_CLOEXEC)
            call(libc, ADD_RULE, ruleset, 1, struct.pack("=Qi", rights & files, door), 0)
            os.close(door)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call(libc, RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def call(libc: ctypes.CDLL, number: int, *arguments: object) -> int:
    """A system call. Raises `OSError` when it fails."""
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def refuse() -> None:
    """A seccomp filter: no sockets, no signals, no processes but threads, no tracing.

    Limits on the number of processes do not hold for root, so none may be started at all. Raises
    `OSError` where the kernel has no seccomp, `KeyError` for an unknown machine.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    architecture, refused, clone, clone3 = NUMBERS[platform.machine()]
    load, equal, masked, ret = 0x20, 0x15, 0x45, 0x06
    program = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, architecture),
        (ret, 0, 0, ERRNO | EPERM),
        (load, 0, 0, 0),  # the number of the call
    ]
    for number in refused:
        program += [(equal, 0, 1, number), (ret, 0, 0, ERRNO | EPERM)]
    program += [
        (equal, 0, 1, clone3),
        (ret, 0, 0, ERRNO | ENOSYS),
        (equal, 0, 3, clone),
        (load, 0, 0, 16),  # its flags
        (masked, 1, 0, THREAD),
        (ret, 0, 0, ERRNO | EPERM),
        (ret, 0, 0, ALLOW),
    ]
    packed = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    filters = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    if libc.prctl(22, 2, filters, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    main()
