"""The system calls that code in a sandbox is refused, as a filter for the kernel (seccomp).

A list of what is refused, not of what is allowed: interpreters differ in what they need. It is
closed at its upper end, though: calls that are newer than the list are said not to exist.
"""

from __future__ import annotations

import struct

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
# Why, and which: a call with its numbers on x86_64 and on aarch64, which lacks some.
REFUSED = {
    "connections": "socket 41 198",
    "other programs; for a process by `clone` see CONDITIONS": (
        "fork 57 -, vfork 58 -, execve 59 221, execveat 322 281"
    ),
    "signals to others, and looking into them": (
        "kill 62 129, tkill 200 130, tgkill 234 131, rt_sigqueueinfo 129 138, ptrace 101 117, "
        "rt_tgsigqueueinfo 297 240, process_vm_readv 310 270, process_vm_writev 311 271"
    ),
    "memory that no limit counts, some of which outlives the process": (
        "memfd_create 319 279, shmget 29 194, semget 64 190, msgget 68 186, mq_open 240 180"
    ),
    "what kernels had holes in, and no answer to a task needs": (
        "unshare 272 97, setns 308 268, add_key 248 217, request_key 249 218, keyctl 250 219, "
        "bpf 321 280, perf_event_open 298 241, userfaultfd 323 282"
    ),
}
# Without namespaces these reach the user's own files and processes, and Landlock lets them.
REFUSED_OUTSIDE = {
    "rights and times of files": (
        "chmod 90 -, fchmod 91 52, fchmodat 268 53, chown 92 -, fchown 93 55, lchown 94 -, "
        "fchownat 260 54, utime 132 -, utimes 235 -, futimesat 261 -, utimensat 280 88, "
        "setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14, "
        "lremovexattr 198 15, fremovexattr 199 16"
    ),
    "how others are scheduled": (
        "setpriority 141 140, ioprio_set 251 30, sched_setaffinity 203 122, "
        "sched_setscheduler 144 119, sched_setparam 142 118, sched_setattr 314 274, "
        "migrate_pages 256 238, move_pages 279 239"
    ),
}
# (call, argument, mask, value): allowed only where argument & mask == value.
CONDITIONS: tuple[tuple[tuple[int, int], int, int, int], ...] = (
    ((56, 220), 0, 0x10000, 0x10000),  # clone: CLONE_THREAD
    ((53, 199), 0, 0xFFFFFFFF, 1),  # socketpair: AF_UNIX ...
    ((53, 199), 1, 0xF, 1),  # ... SOCK_STREAM, which cannot be connected elsewhere
    ((302, 261), 0, 0xFFFFFFFF, 0),  # prlimit64: of itself
    ((72, 25), 1, 8, 0),  # fcntl: not F_SETOWN, F_SETSIG, F_SETOWN_EX, which send signals
    ((16, 29), 1, 0xFF00, 0x5400),  # ioctl: of terminals and on any file, not of devices
)
# Both machines number alike from here on: pidfd_send_signal, io_uring, clone3 and later ones. What
# an interpreter uses of them it does without when there are none. Also the x32 twins of all calls.
NEWER = 424

LOAD, EQUAL, AT_LEAST, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
ALLOW, ERRNO, EPERM, ENOSYS = 0x7FFF0000, 0x00050000, 1, 38
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data


def numbers(table: dict[str, str], machine: str) -> list[int]:
    """The numbers of a table's calls on a machine."""
    column = ARCHITECTURES[machine][0]
    calls = [call.split()[1:] for line in table.values() for call in line.split(", ")]
    return [int(call[column]) for call in calls if call[column] != "-"]


def seccomp_filter(machine: str, namespaces: bool) -> bytes:
    """The filter for a machine (`platform.machine()`); without namespaces it refuses more.

    Empty for a machine whose system calls are not listed here.
    """
    if machine not in ARCHITECTURES:
        return b""
    column, architecture = ARCHITECTURES[machine]
    refuse = (RETURN, 0, 0, ERRNO | EPERM)
    lines = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        refuse,
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, NEWER),
        (RETURN, 0, 0, ERRNO | ENOSYS),
    ]
    for number in numbers(REFUSED if namespaces else REFUSED | REFUSED_OUTSIDE, machine):
        lines += [(EQUAL, 0, 1, number), refuse]
    for call, argument, mask, value in CONDITIONS:
        lines += [
            (EQUAL, 0, 5, call[column]),
            (LOAD, 0, 0, ARGUMENTS + 8 * argument),
            (AND, 0, 0, mask),
            (EQUAL, 1, 0, value),
            refuse,
            (LOAD, 0, 0, NUMBER),
        ]
    lines.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in lines)
