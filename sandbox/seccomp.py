"""The system-call filter of the namespace provider, as the bytes bubblewrap loads.

Rule: a short list of calls that no task needs and that have opened kernels before is refused with
EPERM; all else passes. New user namespaces are refused too, because they hand out capabilities.
It is one wall among several (capabilities, namespaces, read-only kernel files), not the only one.
"""

import errno
import platform
import struct

_LOAD, _JEQ, _JSET, _JGE, _RET = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NR, _ARCH, _ARG0 = 0, 4, 16
_CLONE_NEWUSER = 0x10000000
_X32 = 0x40000000

_ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_REFUSED = {  # name: (x86_64, aarch64); None where the architecture has no such call
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "userfaultfd": (323, 282),
}
_CLONE, _UNSHARE, _CLONE3 = (56, 220), (272, 97), (435, 435)


def program(machine: str | None = None) -> bytes | None:
    """The filter for this machine, or None where there is no table for it."""
    machine = machine or platform.machine()
    if machine not in _ARCHES:
        return None
    column = list(_ARCHES).index(machine)
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, _ARCHES[machine]),
        (_RET, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
    ]
    if machine == "x86_64":
        code += [(_JGE, 0, 1, _X32), (_RET, 0, 0, _ERRNO | errno.ENOSYS)]
    # clone3 keeps its flags behind a pointer; ENOSYS makes libraries fall back to clone.
    code += [(_JEQ, 0, 1, _CLONE3[column]), (_RET, 0, 0, _ERRNO | errno.ENOSYS)]
    for call in (_CLONE, _UNSHARE):
        code += [
            (_JEQ, 0, 4, call[column]),
            (_LOAD, 0, 0, _ARG0),
            (_JSET, 0, 1, _CLONE_NEWUSER),
            (_RET, 0, 0, _ERRNO | errno.EPERM),
            (_RET, 0, 0, _ALLOW),
        ]
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number is not None:
            code += [(_JEQ, 0, 1, number), (_RET, 0, 0, _ERRNO | errno.EPERM)]
    code.append((_RET, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *step) for step in code)
