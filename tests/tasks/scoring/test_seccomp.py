"""The filter of system calls, run line by line as the kernel does."""

import struct

import pytest

from kvcomm.tasks.scoring.seccomp import (
    ARCHITECTURES,
    CONDITIONS,
    NEWER,
    REFUSED,
    REFUSED_OUTSIDE,
    numbers,
    seccomp_filter,
)

ALLOWED, REFUSES, UNKNOWN = 0x7FFF0000, 0x00050001, 0x00050026
MACHINES = pytest.mark.parametrize("machine", ARCHITECTURES)
FREE = {"x86_64": (0, 1, 9, 60, 202, 257, 318), "aarch64": (56, 63, 64, 93, 98, 222, 278)}


def decision(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    data = struct.pack("<iIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    at = value = 0
    while True:
        code, yes, no, constant = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            (value,) = struct.unpack_from("<I", data, constant)
        elif code == 0x54:
            value &= constant
        elif code in (0x15, 0x35):
            holds = value == constant if code == 0x15 else value >= constant
            at += yes if holds else no
        else:
            assert code == 0x06
            return int(constant)


@MACHINES
@pytest.mark.parametrize("namespaces", [True, False])
def test_what_is_listed_is_refused(machine: str, namespaces: bool) -> None:
    program = seccomp_filter(machine, namespaces)

    def decisions(*calls: int) -> set[int]:
        return {decision(program, ARCHITECTURES[machine][1], call) for call in calls}

    assert decisions(*numbers(REFUSED, machine)) == {REFUSES}
    outside = ALLOWED if namespaces else REFUSES
    assert decisions(*numbers(REFUSED_OUTSIDE, machine)) == {outside}
    assert decisions(*FREE[machine]) == {ALLOWED}
    assert decisions(NEWER, 435, 9999, 0x40000000 + 1) == {UNKNOWN}


@MACHINES
@pytest.mark.parametrize(
    ("call", "arguments", "allowed"),
    [
        ((56, 220), (0x3D0F00,), True),  # a thread
        ((56, 220), (0x1200011,), False),  # a process
        ((53, 199), (1, 1 | 0x80000), True),
        ((53, 199), (1, 2), False),
        ((53, 199), (30, 1), False),
        ((302, 261), (0, 7), True),
        ((302, 261), (1, 7), False),
        ((72, 25), (3, 1030), True),
        ((72, 25), (3, 4), True),
        ((72, 25), (3, 8), False),
        ((72, 25), (3, 10), False),
        ((72, 25), (3, 15), False),
        ((16, 29), (3, 0x5421), True),
        ((16, 29), (3, 0x8901), False),
    ],
)
def test_what_depends_on_arguments(
    machine: str, call: tuple[int, int], arguments: tuple[int, ...], allowed: bool
) -> None:
    column, architecture = ARCHITECTURES[machine]
    program = seccomp_filter(machine, namespaces=True)
    found = decision(program, architecture, call[column], *arguments)
    assert found == (ALLOWED if allowed else REFUSES)
    assert call in {condition[0] for condition in CONDITIONS}


@MACHINES
def test_calls_of_another_machine_are_refused(machine: str) -> None:
    assert decision(seccomp_filter(machine, True), 0x40000003, 1) == REFUSES


def test_an_unknown_machine_has_no_filter() -> None:
    assert seccomp_filter("sparc64", True) == b""
