"""The system calls that a sandbox refuses: a filter for the kernel (seccomp), as bubblewrap takes it.

Some things are in no namespace. The keys of a login session go to every process it starts, whatever its user: a
solution could read them, and leave notes for the next one. Sockets of some families reach past the network namespace:
`AF_VSOCK` the host of a virtual machine, `AF_ALG` the kernel's ciphers. The other calls reach deep into the kernel,
most attacks on it begin there, and no solution needs them.
"""

import contextlib
import errno
import os
import platform
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """What system calls are called on one architecture."""

    architecture: int
    """`AUDIT_ARCH_*`: of another (32-bit programs on a 64-bit system) every call is refused."""
    socket: int
    refused: tuple[int, ...]
    """add_key, request_key, keyctl, perf_event_open, bpf, userfaultfd, io_uring_setup, io_uring_enter,
    io_uring_register"""
    end: int = 0xFFFFFFFF
    """Numbers from here on are refused."""


MACHINES = {
    "x86_64": Machine(0xC000003E, 41, (248, 249, 250, 298, 321, 323, 425, 426, 427), end=0x40000000),  # x32 behind it
    "aarch64": Machine(0xC00000B7, 198, (217, 218, 219, 241, 280, 282, 425, 426, 427)),
}
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
"""Of sockets that a solution may open; none of them leads out of the sandbox."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM


def refusals(machine: Machine) -> bytes:
    """The filter as a classic BPF program."""
    # (operation, operand, where to go if it is so, if not); None: the next line
    lines: list[tuple[int, int, str | None, str | None]] = [
        (_LOAD, _ARCHITECTURE, None, None),
        (_EQUAL, machine.architecture, None, "refuse"),
        (_LOAD, _NUMBER, None, None),
        (_AT_LEAST, machine.end, "refuse", None),
        *((_EQUAL, number, "refuse", None) for number in machine.refused),
        (_EQUAL, machine.socket, None, "allow"),
        (_LOAD, _FIRST_ARGUMENT, None, None),
        *((_EQUAL, family, "allow", None) for family in FAMILIES),
        (_RETURN, _REFUSE, None, None),
        (_RETURN, _ALLOW, None, None),
    ]
    places = {"refuse": len(lines) - 2, "allow": len(lines) - 1}
    packed = []
    for here, (operation, operand, yes, no) in enumerate(lines):
        jumps = [places[target] - here - 1 if target else 0 for target in (yes, no)]
        packed.append(struct.pack("=HBBI", operation, *jumps, operand))
    return b"".join(packed)


@contextlib.contextmanager
def open_refusals() -> Iterator[int | None]:
    """A descriptor to read this machine's filter from, once; None on a machine that has none here."""
    machine = MACHINES.get(platform.machine())
    if machine is None:
        yield None
        return
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, refusals(machine))
        os.close(write_end)
        yield read_end
    finally:
        os.close(read_end)
