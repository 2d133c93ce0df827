import platform
import socket
import struct

import pytest

from llamarl.judges.code.refusals import MACHINES, open_refusals, refusals

ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
X86, ARM = MACHINES["x86_64"], MACHINES["aarch64"]


def decided(program: bytes, number: int, architecture: int, first: int = 0) -> int:
    """What the kernel would make of a call: classic BPF over `struct seccomp_data`."""
    data = struct.pack("=IIQQ", number, architecture, 0, first)
    lines = list(struct.iter_unpack("=HBBI", program))
    place, value = 0, 0
    while True:
        operation, yes, no, operand = lines[place]
        place += 1
        match operation:
            case 0x20:
                (value,) = struct.unpack_from("=I", data, operand)
            case 0x15:
                place += yes if value == operand else no
            case 0x35:
                place += yes if value >= operand else no
            case 0x06:
                return int(operand)


@pytest.mark.parametrize("machine", [X86, ARM])
def test_keys_and_what_attacks_begin_with_are_refused_and_nothing_else(machine) -> None:
    program = refusals(machine)
    refused = [n for n in range(600) if decided(program, n, machine.architecture, socket.AF_INET) != ALLOW]
    assert refused == sorted(machine.refused) and len(refused) == 9
    assert decided(program, machine.refused[0], machine.architecture) == REFUSE


@pytest.mark.parametrize("machine", [X86, ARM])
def test_sockets_of_families_that_stay_inside_are_allowed(machine) -> None:
    program = refusals(machine)
    allowed = [f for f in range(64) if decided(program, machine.socket, machine.architecture, f) == ALLOW]
    assert allowed == [1, 2, 10, 16]  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK


def test_other_ways_to_call_the_kernel_are_refused() -> None:
    """Reads are 0 on x86_64, 0x40000000 there with 32-bit pointers (x32), and 3 in 32-bit programs."""
    program = refusals(X86)
    assert decided(program, 0, X86.architecture) == ALLOW
    assert decided(program, 0x40000000, X86.architecture) == REFUSE
    assert decided(program, 3, 0x40000003) == REFUSE


def test_the_filter_is_read_once_from_a_descriptor() -> None:
    with open_refusals() as descriptor:
        if platform.machine() not in MACHINES:
            assert descriptor is None
            return
        assert descriptor is not None
        with open(descriptor, "rb", closefd=False) as file:
            assert file.read() == refusals(MACHINES[platform.machine()])
