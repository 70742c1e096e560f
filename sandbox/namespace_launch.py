"""How a namespace sandbox is started: the steps of the launcher, or a command line; pure.

Rule: first a mount namespace with a size-limited tmpfs and an overlay on it, then a root that
leaves no host file in sight. What root inside could still use against the host (kernel settings,
memory, keys) is read-only or hidden. Root's driver has a launcher that does it in one process
(`plan`); for others `unshare` and bubblewrap do the same (`command`). Nothing here starts anything.
"""

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.sandbox.base import Limits
from headrace.sandbox.cgroups import Settings
from headrace.sandbox.scripts import INIT

HOSTNAME = "sandbox"
SECCOMP_FD = 10
PROGRAM_FD = 9
CAPABILITIES = {  # by their numbers in the kernel
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SYS_CHROOT": 18,
}
DEFAULT_ENV = {
    "HOME": "/root",
    "HOSTNAME": HOSTNAME,
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
_HIDDEN = tuple(
    f"/proc/{name}" for name in ("kcore", "keys", "key-users", "timer_list", "sysrq-trigger")
)
_SHM_BYTES = 256 << 20
_DEVPTS = "newinstance,ptmxmode=0666,mode=620"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "fd": "/proc/self/fd",
    "core": "/proc/kcore",
    "ptmx": "pts/ptmx",
}
_HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8
_REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 32, 4096, 16384, 1 << 18
_READ_ONLY = ("/proc/sys", "/proc/fs", "/proc/irq", "/proc/bus", "/proc/acpi", "/proc/scsi")

_LAUNCH = r"""
fail() { echo "headrace: $1" >&2; exit 125; }
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || fail "cannot enter $1"; shift; done
mnt=$2; lower=$3; upper=$4; size=$5; options=$6; network=$7; shift 7
umask 022
if [ -z "$upper" ]; then
  mount -t tmpfs -o "size=$size,mode=755" tmpfs "$mnt" || fail "no tmpfs in a namespace"
  upper=$mnt/upper
  mkdir "$mnt/upper" "$mnt/work" "$mnt/root" || fail "no room on the tmpfs"
  work=$mnt/work; root=$mnt/root
else
  work=$upper/../work; root=$mnt
fi
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work$options" "$root" ||
  fail "no overlay in a namespace"
etc=$root/etc
if [ -d "$etc" ] && [ ! -L "$etc" ]; then
  # a link of the image would be followed on the host here
  [ -e "$etc/hosts" ] || [ -L "$etc/hosts" ] ||
    printf '127.0.0.1 localhost\n::1 localhost\n' >"$etc/hosts"
  if [ -n "$network" ] && [ -r /etc/resolv.conf ]; then
    rm -f "$etc/resolv.conf"; cat /etc/resolv.conf >"$etc/resolv.conf"
  fi
fi
cd /
exec "$@"
"""


@dataclass(frozen=True)
class Host:
    """What this host has for namespaces; found out once."""

    bwrap: str
    unshare: str
    root: bool
    map_range: bool = False
    """Not root: a range of user ids can be mapped (newuidmap), not only one."""
    prlimit: str | None = None
    seccomp: bool = True


@dataclass(frozen=True)
class Launch:
    """One sandbox to start."""

    layers: tuple[Path, ...]
    """Folders of the root filesystem, the topmost first."""
    mount_point: Path
    groups: Mapping[Path, Settings]
    """Control groups to be in; the launcher makes them, for others they are there."""
    env: Mapping[str, str]
    workdir: str
    user: str
    network: bool
    limits: Limits
    storage_mb: int
    upper: Path | None = None
    """A host folder that keeps what is written (image builds); None: a tmpfs that goes away."""
    beside: tuple[str, ...] = ()
    """See `scripts.beside`."""


Step = tuple[str | int | bool, ...]
"""A name among the steps of `launcher.py`, and what it takes."""


def plan(
    launch: Launch, *, seccomp: bytes, resolv: str, argv: tuple[str, ...] = ()
) -> dict[str, object]:
    """What the launcher does for one sandbox, all but its descriptors.

    `resolv`: the host's name servers, for a sandbox with its network; `argv` in place of the
    channels' own program.
    """
    return {
        "groups": [(str(group), settings) for group, settings in launch.groups.items()],
        "rlimits": _data_limit(launch),
        "network": launch.network,
        "steps": [*_root_steps(launch, resolv), *_kernel_steps(_root_of(launch))],
        "hostname": HOSTNAME,
        "capabilities": list(CAPABILITIES.values()),
        "seccomp": seccomp,
        "argv": list(argv or _inside(launch)),
        "env": {**DEFAULT_ENV, **launch.env},
        "workdir": launch.workdir,
    }


def _root_of(launch: Launch) -> str:
    return str(launch.mount_point if launch.upper else launch.mount_point / "root")


def _inside(launch: Launch) -> tuple[str, ...]:
    return ("sh", "-c", INIT, "headrace", launch.user, launch.workdir, *launch.beside)


def _data_limit(launch: Launch) -> list[tuple[int, int]]:
    if launch.groups or launch.limits.memory_mb is None:
        return []
    return [(resource.RLIMIT_DATA, launch.limits.memory_mb << 20)]


def _root_steps(launch: Launch, resolv: str) -> list[Step]:
    """An overlay of the layers and something to write to."""
    top, root = str(launch.mount_point), _root_of(launch)
    out: list[Step] = [("mount", "", "/", "", _RECURSIVE | _PRIVATE, "")]
    if launch.upper is None:
        size = f"mode=755,size={launch.storage_mb}m"
        out.append(("mount", "tmpfs", top, "tmpfs", _NOSUID | _NODEV, size))
        out += [("folder", f"{top}/{name}", 0o755) for name in ("upper", "work", "root")]
        upper, work = f"{top}/upper", f"{top}/work"
    else:
        upper, work = str(launch.upper), str(launch.upper.parent / "work")
    lower = ":".join(_escaped(str(layer)) for layer in launch.layers)
    data = f"lowerdir={lower},upperdir={_escaped(upper)},workdir={_escaped(work)}"
    out.append(("mount", "overlay", root, "overlay", _NOSUID | _NODEV, data))
    out.append(("text", f"{root}/etc", "hosts", _HOSTS, False))
    if launch.network and resolv:
        out.append(("text", f"{root}/etc", "resolv.conf", resolv, True))
    return out


def _kernel_steps(root: str) -> list[Step]:
    """`/proc` and `/dev`, with what could be used against the host out of reach; then that root."""
    strict = _NOSUID | _NODEV | _NOEXEC
    dev, shm = f"{root}/dev", f"{root}/dev/shm"
    return [
        ("place", f"{root}/proc"),
        ("place", dev),
        ("mount", "proc", f"{root}/proc", "proc", strict, ""),
        ("mount", "tmpfs", dev, "tmpfs", _NOSUID | _NOEXEC, f"mode=755,size={_SHM_BYTES}"),
        *(("device", f"{dev}/{name}", f"/dev/{name}") for name in _DEVICES),
        *(("link", target, f"{dev}/{name}") for name, target in _DEVICE_LINKS.items()),
        ("folder", f"{dev}/pts", 0o755),
        ("folder", shm, 0o1777),
        ("mount", "devpts", f"{dev}/pts", "devpts", _NOSUID | _NOEXEC, _DEVPTS),
        # Programs may run from it. Not a filesystem of its own: every control group of memory on
        # the machine has a record of each.
        ("mount", shm, shm, "", _BIND, ""),
        ("mount", "", shm, "", _BIND | _REMOUNT | _NOSUID | _NODEV, ""),
        *(("read_only", f"{root}{path}", strict) for path in _READ_ONLY),
        *(("hide", f"{root}{path}", f"{dev}/null") for path in _HIDDEN),
        ("pivot", root),
    ]


def command(host: Host, launch: Launch, *, program: tuple[str, ...] | None = None) -> list[str]:
    """The command line of the leader process; `program` in place of the channels' own."""
    if host.root:
        out = [host.unshare, "--mount"]
    else:
        out = [host.unshare, "--user", "--mount", "--map-root-user"]
        out += ["--map-auto"] if host.map_range else []
    options = "" if host.root else ",userxattr"
    out += ["sh", "-c", _LAUNCH, "headrace", *map(str, launch.groups), "--"]
    out += [str(launch.mount_point), ":".join(_escaped(str(layer)) for layer in launch.layers)]
    out += [str(launch.upper or ""), f"{launch.storage_mb}m", options, "1" * launch.network]
    inside = program or _inside(launch)
    return [*out, *_rlimits(host, launch), *_bubblewrap(host, launch), *inside]


def _bubblewrap(host: Host, launch: Launch) -> list[str]:
    out = [host.bwrap, "--bind", _root_of(launch), "/", "--dev", "/dev", "--proc", "/proc"]
    out += ["--perms", "1777", "--size", str(_SHM_BYTES), "--tmpfs", "/dev/shm"]
    for path in _READ_ONLY:
        out += ["--ro-bind-try", path, path]
    for path in _HIDDEN:
        out += ["--ro-bind", "/dev/null", path] if Path(path).exists() else []
    for name in _DEVICES if host.root else ():  # mode and owner of a device are the host's
        out += ["--remount-ro", f"/dev/{name}"]
    out += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    out += [] if launch.network else ["--unshare-net"]
    out += ["--hostname", HOSTNAME, "--die-with-parent", "--new-session", "--as-pid-1"]
    out += ["--cap-drop", "ALL"]
    for capability in CAPABILITIES:
        out += ["--cap-add", capability]
    if host.seccomp:
        out += ["--seccomp", str(SECCOMP_FD)]
    out += ["--clearenv"]
    for name, value in {**DEFAULT_ENV, **launch.env}.items():
        out += ["--setenv", name, value]
    return [*out, "--chdir", "/"]


def _escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _rlimits(host: Host, launch: Launch) -> list[str]:
    if launch.groups or host.prlimit is None:
        return []
    out = [host.prlimit]
    if launch.limits.pids is not None and not host.root:  # the kernel does not count for root
        out.append(f"--nproc={launch.limits.pids}")
    if launch.limits.memory_mb is not None:
        out.append(f"--data={launch.limits.memory_mb << 20}")
    return out if len(out) > 1 else []
