"""The system calls that a sandbox refuses: a filter for the kernel (seccomp), as bubblewrap takes it.

    uncounted memory    System V shared memory, semaphores and messages, POSIX message queues, files without a name: no
                        limit of a process holds them, and some outlive it
    keys                those of a login session go to every process it starts, whatever its user: a solution could
                        read them, and leave notes for the next one
    sockets             of families that reach past the network namespace: `AF_VSOCK` the host of a virtual machine,
                        `AF_ALG` the kernel's ciphers
    namespaces, mounts  new ones give a process rights inside that most attacks on the kernel begin with
    others' memory      debuggers' calls
    the kernel's depths performance counters, programs in the kernel, io_uring, modules, clocks; and every call that is
                        newer than this list

No solution needs them. Where a library has another way, it takes it on "no such call", so that is the answer to new
calls and to `clone3`, whose flags lie where a filter cannot read.
"""

import contextlib
import errno
import os
import platform
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# name, number on x86_64, on aarch64 ("-": there is none)
_CALLS = """
shmget 29 194, shmat 30 196, shmdt 67 197, shmctl 31 195
semget 64 190, semop 65 193, semtimedop 220 192, semctl 66 191
msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187
mq_open 240 180, mq_unlink 241 181, mq_timedsend 242 182, mq_timedreceive 243 183, mq_notify 244 184
mq_getsetattr 245 185, memfd_create 319 279, memfd_secret 447 447, vmsplice 278 75
add_key 248 217, request_key 249 218, keyctl 250 219
unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51
open_tree 428 428, move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433
mount_setattr 442 442, quotactl 179 60, quotactl_fd 443 443, swapon 167 224, swapoff 168 225, acct 163 89
name_to_handle_at 303 264, open_by_handle_at 304 265, fanotify_init 300 262, fanotify_mark 301 263
ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440
process_mrelease 448 448, kcmp 312 272, pidfd_getfd 438 438
mbind 237 235, set_mempolicy 238 237, get_mempolicy 239 236, migrate_pages 256 238, move_pages 279 239
set_mempolicy_home_node 450 450
perf_event_open 298 241, bpf 321 280, userfaultfd 323 282
io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427
init_module 175 105, finit_module 313 273, delete_module 176 106, kexec_load 246 104, kexec_file_load 320 294
reboot 169 142, syslog 103 116, lookup_dcookie 212 18, personality 135 92, vhangup 153 58, nfsservctl 180 42
settimeofday 164 170, clock_settime 227 112, clock_adjtime 305 266, adjtimex 159 171
sethostname 170 161, setdomainname 171 162
iopl 172 -, ioperm 173 -, modify_ldt 154 -, uselib 134 -, _sysctl 156 -
"""
FIRST_UNKNOWN = 451
"""Numbers from here on are newer than the list above, or of programs with 32-bit pointers on x86_64."""


def _numbers(column: int) -> dict[str, int]:
    """Name -> number on one architecture, in the list's order."""
    rows = [row.split() for line in _CALLS.strip().splitlines() for row in line.split(", ")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


@dataclass(frozen=True, slots=True)
class Machine:
    """Numbers of system calls on one architecture."""

    architecture: int
    """`AUDIT_ARCH_*`: of another (32-bit programs on a 64-bit system) every call is refused."""
    socket: int
    clone: int
    clone3: int
    refused: Mapping[str, int]


MACHINES = {
    "x86_64": Machine(0xC000003E, 41, 56, 435, _numbers(1)),
    "aarch64": Machine(0xC00000B7, 198, 220, 435, _numbers(2)),
}
FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, by Linux' numbers: other systems lack some
"""Kinds of sockets that a solution may open; none of them leads out of the sandbox."""

NAMESPACES = 0x7E02_0000
"""`CLONE_NEW*` among the flags of `clone`."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _REFUSE, _NO_SUCH_CALL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS


def refusals(machine: Machine) -> bytes:
    """The filter as a classic BPF program."""
    # (operation, operand, where to go if it is so, if not); None: the next line
    lines: list[tuple[int, int, str | None, str | None]] = [
        (_LOAD, _ARCHITECTURE, None, None),
        (_EQUAL, machine.architecture, None, "refuse"),
        (_LOAD, _NUMBER, None, None),
        (_AT_LEAST, FIRST_UNKNOWN, "no such call", None),
        (_EQUAL, machine.clone3, "no such call", None),
        *((_EQUAL, number, "refuse", None) for number in machine.refused.values()),
        (_EQUAL, machine.clone, "clone", None),
        (_EQUAL, machine.socket, None, "allow"),
        (_LOAD, _FIRST_ARGUMENT, None, None),
        *((_EQUAL, family, "allow", None) for family in FAMILIES),
        (_RETURN, _REFUSE, None, None),
        (_LOAD, _FIRST_ARGUMENT, None, None),
        (_ANY_BIT, NAMESPACES, "refuse", "allow"),
        (_RETURN, _NO_SUCH_CALL, None, None),
        (_RETURN, _REFUSE, None, None),
        (_RETURN, _ALLOW, None, None),
    ]
    last = len(lines) - 1
    places = {"clone": last - 4, "no such call": last - 2, "refuse": last - 1, "allow": last}
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
