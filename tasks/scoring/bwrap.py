"""bubblewrap's part of the sandbox: what a program sees of the system."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/alternatives")
PROGRAM = "/program.py"


def bwrap_command(program: Path, launch: Path, python: str, megabytes: int) -> list[str]:
    """The command that starts `launch` with nothing but read-only libraries and a small folder.

    Namespaces of its own for everything: users, processes, network, mounts. All that can be written
    is one file system in memory of `megabytes`. There is no /proc: for root, the kernel's settings
    could be written in it. Needs bubblewrap 0.7 (`--size`).
    """
    seen = []
    for path in SYSTEM:
        if os.path.islink(path):
            seen += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            seen += ["--ro-bind", path, path]
    prefixes = {sys.base_prefix, os.path.realpath(sys.base_prefix)}
    for path in sorted(prefixes):
        if not path.startswith("/usr"):
            seen += ["--ro-bind", path, path]
    return [
        *(shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user"),
        *("--die-with-parent", "--new-session", "--hostname", "sandbox"),
        *("--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"),
        *seen,
        *("--dev", "/dev", "--remount-ro", "/dev"),
        *("--size", str(megabytes << 20), "--tmpfs", "/work", "--symlink", "/work", "/tmp"),
        *("--ro-bind", str(program), PROGRAM, "--ro-bind", str(launch), "/launch.py"),
        *("--remount-ro", "/", "--chdir", "/work"),
        *(python, "-I", "-S", "/launch.py"),
    ]
