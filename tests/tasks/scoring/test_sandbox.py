"""Hostile code at every level of the sandbox that works here."""

import os
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kvcomm.errors import UsageError
from kvcomm.tasks.scoring import sandbox as module
from kvcomm.tasks.scoring.sandbox import Level, Limits, Sandbox, available, find_sandbox

HERE = str(Path(__file__).resolve())
KERNEL = ("sys/kernel/core_pattern", "sysrq-trigger", "1/mem", "self/mem")
SHORT = Limits(seconds=2, memory_mb=256)


def at(level: Level) -> Sandbox:
    if level not in available():
        pytest.skip(f"{level} does not work on this machine")
    return Sandbox(level)


@pytest.fixture(params=["bwrap", "landlock"])
def safe(request: pytest.FixtureRequest) -> Sandbox:
    return at(request.param)


@pytest.fixture(params=["bwrap", "landlock", "none"])
def any_level(request: pytest.FixtureRequest) -> Sandbox:
    return at(request.param)


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("import math, json\nprint(json.dumps(math.pi)[:4])", "3.14"),
        ("import asyncio\nprint(asyncio.run(asyncio.sleep(0, 'x')))", "x"),
        ("import threading as t\nx = t.Thread(target=print, args='x')\nx.start()\nx.join()", "x"),
        ("if __name__ == '__main__':\n    raise SystemExit(input())\nprint('defined')", "defined"),
    ],
)
def test_a_program_that_comes_to_its_end(any_level: Sandbox, code: str, printed: str) -> None:
    ran = any_level.run(code, SHORT)
    assert (ran.finished, ran.stdout, ran.reason) == (True, printed, "finished"), ran


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('odd')", "ValueError: odd"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("import os; os._exit(0)", "left in the middle, exit 0"),
        ("raise SystemExit(0)", "left in the middle, exit 0"),
        ("import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", ""),
        ("while True: pass", "timed out after 2 s"),
        ("input()", "EOFError"),
        ("x = bytearray(2 << 30)", "MemoryError"),
        ("while True: print('x' * 1000)", "more than 64 KiB of output"),
        ("f = open('x', 'wb')\nfor i in range(100): f.write(bytes(1 << 20))", "File too large"),
    ],
)
def test_one_that_does_not(any_level: Sandbox, code: str, reason: str) -> None:
    ran = any_level.run(code, SHORT)
    assert not ran.finished
    assert reason in ran.reason
    assert len(ran.stdout) <= 65 << 10


def test_what_it_wrote_is_gone(any_level: Sandbox) -> None:
    ran = any_level.run("open('x', 'w').write('x')\nimport os\nprint(os.getcwd())", SHORT)
    assert ran.finished
    assert not Path(ran.stdout, "x").exists()
    assert not any_level.run("print(open('x').read())", SHORT).finished


def test_the_environment_stays_here(any_level: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "swordfish")
    ran = any_level.run("import os\nprint(dict(os.environ))", SHORT)
    assert ran.finished
    assert "swordfish" not in ran.stdout


@pytest.mark.parametrize(
    "code",
    [
        *(f"open({path!r})" for path in ("/etc/passwd", "/etc/hostname", HERE)),
        "open('/proc/HERE/cmdline')",
        *(f"os.open('/proc/{path}', os.O_WRONLY)" for path in KERNEL),
    ],
)
def test_files_and_processes_of_the_host_cannot_be_opened(safe: Sandbox, code: str) -> None:
    code = code.replace("HERE", str(os.getpid()))
    ran = safe.run(f"import os\nprint({code})", SHORT)
    assert (ran.finished, ran.stdout) == (False, "")


def test_nothing_can_be_written_elsewhere(safe: Sandbox, tmp_path: Path) -> None:
    for place in (tmp_path / "x", Path("/usr/kvcomm-x"), Path("/var/tmp/kvcomm-x")):
        assert not safe.run(f"open({str(place)!r}, 'w').write('x')", SHORT).finished
        assert not place.exists()


def test_devices_cannot_be_opened(safe: Sandbox) -> None:
    """Root could read and write all files through a disk's device."""
    disks = [str(path) for path in Path("/dev").iterdir() if stat.S_ISBLK(path.lstat().st_mode)]
    code = f"""
import os, stat
for disk in {disks!r}:
    try: print(os.open(disk, os.O_RDONLY))
    except OSError: pass
try:
    os.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0))
    print(os.open('disk', os.O_RDONLY))
except OSError: pass
"""
    ran = safe.run(code, SHORT)
    assert (ran.finished, ran.stdout) == (True, ""), ran


@pytest.mark.parametrize(
    "change", ["chmod(FILE, 0o777)", "utime(FILE, (1, 1))", "truncate(FILE, 0)"]
)
def test_files_of_the_host_cannot_be_changed(safe: Sandbox, tmp_path: Path, change: str) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    before = file.stat()
    ran = safe.run(f"import os\nFILE = {str(file)!r}\nos.{change}", SHORT)
    assert not ran.finished
    assert file.stat() == before


@pytest.mark.parametrize("place", ["/", "/dev/shm", "/tmp", "/var/tmp", "."])
def test_there_is_no_place_to_fill(safe: Sandbox, place: str) -> None:
    code = f"""
import time
for i in range(40): open({place!r} + f'/kvcomm-{{i}}', 'wb').write(bytes(1 << 20))
time.sleep(0.5)
"""
    ran = safe.run(code, SHORT)
    assert not ran.finished
    assert any(why in ran.reason for why in ("No space", "Read-only", "denied", "No such", "16 MB"))
    ran = safe.run("for i in range(2000): open(f'{i}', 'w')", SHORT)
    assert safe.level == "bwrap" or ran.reason == "more than 1000 files"


@pytest.mark.parametrize(
    "code",
    [
        "os.memfd_create('x')",  # memory that is not counted
        "assert libc.shmget(0, 1 << 20, 0o1600) >= 0",
        "assert libc.syscall(425, 4, ctypes.create_string_buffer(120)) >= 0",  # io_uring: sockets
        "assert libc.syscall(0x40000000 + 41, 2, 2, 0) >= 0",  # socket, by its x32 number
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",  # sends to sockets of others
        "assert libc.prlimit(os.getppid(), 7, None, ctypes.create_string_buffer(16)) == 0",
        "fcntl.fcntl(0, 10, 9)",  # F_SETSIG: a signal to the owner
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "assert libc.syscall(9999) >= 0",
    ],
)
def test_ways_around_the_limits_are_closed(any_level: Sandbox, code: str) -> None:
    head = "import ctypes, fcntl, os, resource, socket\nlibc = ctypes.CDLL(None)\n"
    assert not any_level.run(head + code, SHORT).finished


@pytest.mark.parametrize("depth", [0, 900, 3000])
def test_folders_of_any_depth_are_removed_and_links_are_not_followed(
    any_level: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "kept").touch()
    code = f"import os\nos.symlink({str(tmp_path)!r}, 'link')\nos.mkdir('locked', 0)\n"
    any_level.run(f"{code}for i in range({depth}):\n    os.mkdir('d')\n    os.chdir('d')", SHORT)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    "code",
    [
        "socket.create_connection(('127.0.0.1', PORT), 1)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
        "socket.getaddrinfo('example.org', 80)",
        "socket.socket(socket.AF_UNIX)",
    ],
)
def test_there_is_no_network(safe: Sandbox, listening: int, code: str) -> None:
    ran = safe.run(f"import socket\nPORT = {listening}\n{code}\nprint('connected')", SHORT)
    assert not ran.finished
    assert "connected" not in ran.stdout


@pytest.mark.parametrize(
    "code",
    [
        "while True: os.fork()",
        "while True:\n    try: os.fork()\n    except OSError: pass",
        "import subprocess\nsubprocess.Popen(['sleep', '30'])",
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(30)",
        "os.execv('/usr/bin/sleep', ['sleep', '30'])",
    ],
)
def test_no_process_is_started_and_none_is_left(any_level: Sandbox, code: str) -> None:
    marked = Limits(seconds=1, output_bytes=(64 << 10) + os.getpid())
    ran = any_level.run(f"import os, time\n{code}", marked)
    assert not ran.finished
    deadline = time.monotonic() + 60  # the kernel ends them when it comes to it
    while _running_with(f'"output_bytes": {marked.output_bytes}'):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _running_with(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if mark in (line := path.read_text(errors="replace")):
                found.append(line)
    return found


def test_others_get_no_signal(safe: Sandbox) -> None:
    sleeper = subprocess.Popen(["sleep", "20"])
    try:
        for pid in (str(sleeper.pid), str(os.getpid()), "os.getppid()"):
            assert not safe.run(f"import os\nos.kill({pid}, 9)", SHORT).finished
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_it_is_a_module_of_its_own(any_level: Sandbox) -> None:
    code = """
import dataclasses, pickle, sys, typing, unittest
@dataclasses.dataclass
class Point:
    x: 'int'
    next: 'Point | None' = None
class TestPoint(unittest.TestCase):
    def test_x(self):
        self.assertEqual(Point(1).x, 1)
assert typing.get_type_hints(Point)['next'] == Point | None
assert pickle.loads(pickle.dumps(Point(2))) == Point(2)
assert sys.modules['__main__'].Point is sys.modules[__name__].Point is Point
assert sys.argv == ['program.py']
ran = unittest.main(exit=False).result
assert (ran.testsRun, ran.failures) == (1, [])
"""
    ran = any_level.run(code, SHORT)
    assert ran.finished, ran


def test_the_best_level_is_taken_and_none_if_insisted_on(monkeypatch) -> None:
    assert find_sandbox(allow_unsandboxed=True).level == available()[0]
    why = {"bwrap": "it is not installed", "landlock": "Function not implemented"}
    monkeypatch.setattr(module, "failures", lambda: why)
    with pytest.raises(UsageError, match=r"apt install bubblewrap.*--allow-unsandboxed") as caught:
        find_sandbox()
    assert "bwrap: it is not installed; landlock: Function not" in str(caught.value)
    assert find_sandbox(allow_unsandboxed=True).level == "none"
