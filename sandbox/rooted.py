"""Looks at files of a sandbox from the host, with no process in it: paths that cannot lead out.

Rule: the kernel resolves every path below the sandbox's root (`openat2` with `RESOLVE_IN_ROOT`):
links and `..` end there, and magic links of `/proc` are refused. Nothing is opened for reading and
nothing is changed; what is asked is only what kind of file there is. Blocking, for microseconds.
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Sequence

_OPENAT2 = 437
_IN_ROOT, _NO_MAGIC = 0x10, 0x02
_LOOK = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, _IN_ROOT | _NO_MAGIC)
_NOTHING = (errno.ENOENT, errno.ENOTDIR)
_libc = ctypes.CDLL(None, use_errno=True)


def kinds(first: int, paths: Sequence[bytes]) -> str | None:
    """Of each absolute path in the root of process `first`; see `Direct.kinds`.

    None: there is no way in, or a path that the kernel does not follow from here.
    """
    try:
        root = os.open(f"/proc/{first}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if os.path.samestat(os.fstat(root), os.stat("/")):
            return None  # it has ended, and its number is another's
        return "".join(_kind(root, path) for path in paths)
    except OSError:
        return None
    finally:
        os.close(root)


def _kind(root: int, path: bytes) -> str:
    fd = _libc.syscall(_OPENAT2, root, path, _LOOK, len(_LOOK))
    if fd < 0:
        number = ctypes.get_errno()
        if number in _NOTHING:
            return "-"
        raise OSError(number, os.strerror(number))
    try:
        mode = os.fstat(fd).st_mode
    finally:
        os.close(fd)
    return "d" if stat.S_ISDIR(mode) else "f" if stat.S_ISREG(mode) else "o"
