import platform
import socket
import struct

import pytest

from llamarl.judges.code.refusals import FIRST_UNKNOWN, MACHINES, open_refusals, refusals

ALLOW, REFUSE, NO_SUCH = 0x7FFF0000, 0x00050001, 0x00050026  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO: EPERM, ENOSYS
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
            case 0x45:
                place += yes if value & operand else no
            case 0x06:
                return int(operand)


@pytest.mark.parametrize("machine", [X86, ARM])
def test_keys_and_what_attacks_begin_with_are_refused_and_nothing_else(machine) -> None:
    program = refusals(machine)
    decisions = {n: decided(program, n, machine.architecture, socket.AF_INET) for n in range(FIRST_UNKNOWN)}
    assert [n for n, decision in decisions.items() if decision == REFUSE] == sorted(machine.refused.values())
    assert [n for n, decision in decisions.items() if decision == NO_SUCH] == [machine.clone3]


UNCOUNTED = {"shmget", "shmat", "semget", "semop", "msgget", "msgsnd", "mq_open", "memfd_create", "memfd_secret"}
DEEP = {"keyctl", "add_key", "ptrace", "process_vm_readv", "pidfd_getfd", "unshare", "setns", "mount", "bpf"}
DEEP |= {"userfaultfd", "perf_event_open", "io_uring_setup", "io_uring_enter", "io_uring_register"}


@pytest.mark.parametrize("machine", [X86, ARM])
def test_memory_that_no_limit_counts_and_calls_that_reach_deep_are_among_them(machine) -> None:
    assert machine.refused.keys() >= UNCOUNTED | DEEP


def test_the_numbers_are_those_of_the_kernel() -> None:
    assert (X86.refused["shmget"], ARM.refused["shmget"]) == (29, 194)
    assert (X86.refused["memfd_create"], ARM.refused["memfd_create"]) == (319, 279)
    assert (X86.refused["keyctl"], ARM.refused["keyctl"]) == (250, 219)
    assert len(set(X86.refused.values())) == len(X86.refused) and len(set(ARM.refused.values())) == len(ARM.refused)


@pytest.mark.parametrize("machine", [X86, ARM])
def test_processes_and_threads_begin_but_no_namespaces(machine) -> None:
    program = refusals(machine)
    for flags in (0x11, 0x01200011, 0x003D0F00):  # fork, fork as the C library does it, a thread
        assert decided(program, machine.clone, machine.architecture, flags) == ALLOW
    for bit in (17, 25, 26, 27, 28, 29, 30):  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
        assert decided(program, machine.clone, machine.architecture, 0x11 | 1 << bit) == REFUSE
    assert decided(program, machine.clone3, machine.architecture) == NO_SUCH  # so that `clone` is taken
    assert decided(program, FIRST_UNKNOWN, machine.architecture) == NO_SUCH


@pytest.mark.parametrize("machine", [X86, ARM])
def test_sockets_of_families_that_stay_inside_are_allowed(machine) -> None:
    program = refusals(machine)
    allowed = [f for f in range(64) if decided(program, machine.socket, machine.architecture, f) == ALLOW]
    assert allowed == [1, 2, 10, 16]  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK


def test_other_ways_to_call_the_kernel_are_refused() -> None:
    """Reads are 0 on x86_64, 0x40000000 there with 32-bit pointers (x32), and 3 in 32-bit programs."""
    program = refusals(X86)
    assert decided(program, 0, X86.architecture) == ALLOW
    assert decided(program, 0x40000000, X86.architecture) == NO_SUCH
    assert decided(program, 3, 0x40000003) == REFUSE


def test_the_filter_is_read_once_from_a_descriptor() -> None:
    with open_refusals() as descriptor:
        if platform.machine() not in MACHINES:
            assert descriptor is None
            return
        assert descriptor is not None
        with open(descriptor, "rb", closefd=False) as file:
            assert file.read() == refusals(MACHINES[platform.machine()])
