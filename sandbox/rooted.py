"""Files of a sandbox from the host, with no process in it: paths that cannot lead out.

Rule: the kernel resolves every path below the sandbox's root (`openat2` with `RESOLVE_IN_ROOT`):
links and `..` end there, and magic links of `/proc` are refused. `kinds` opens nothing for reading
and changes nothing; `opened` is for devices of ours. Blocking, for microseconds.
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Sequence

_OPENAT2 = 437
_IN_ROOT, _NO_MAGIC = 0x10, 0x02
_NOTHING = (errno.ENOENT, errno.ENOTDIR)
_libc = ctypes.CDLL(None, use_errno=True)


def kinds(first: int, paths: Sequence[bytes]) -> str | None:
    """Of each absolute path in the root of process `first`; see `Direct.kinds`.

    None: there is no way in, or a path that the kernel does not follow from here.
    """
    try:
        root = _root(first)
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


def opened(first: int, path: bytes, flags: int) -> int:
    """A descriptor of what `path` names in the root of process `first`. Raises `OSError`."""
    root = _root(first)
    try:
        return _open(root, path, flags)
    finally:
        os.close(root)


def _root(first: int) -> int:
    return os.open(f"/proc/{first}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _open(root: int, path: bytes, flags: int) -> int:
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, _IN_ROOT | _NO_MAGIC)
    fd: int = _libc.syscall(_OPENAT2, root, path, how, len(how))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def _kind(root: int, path: bytes) -> str:
    try:
        fd = _open(root, path, os.O_PATH)
    except OSError as e:
        if e.errno in _NOTHING:
            return "-"
        raise
    try:
        mode = os.fstat(fd).st_mode
    finally:
        os.close(fd)
    return "d" if stat.S_ISDIR(mode) else "f" if stat.S_ISREG(mode) else "o"
