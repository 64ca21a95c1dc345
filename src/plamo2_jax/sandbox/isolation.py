"""Isolation of one process on Linux: namespaces, a minimal read-only root, resource limits and a system call filter.

An isolated process

    - sees the standard library and the system's shared libraries, read-only, and a private temporary folder; no home and no /proc;
    - has no network (not even loopback) and sees no other process;
    - has no capabilities, cannot gain privileges, and runs as nobody if the caller is root;
    - cannot start processes or threads, open sockets, mount, trace, or create namespaces.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys

NOBODY = 65534
AS_NOBODY, IN_USER_NAMESPACE, UNISOLATED_AS_NOBODY, UNISOLATED = range(4)
"""Kinds of isolation. The first two use namespaces: root becomes nobody, or any user gets a user namespace. The others use limits only:
root becomes nobody, or the user stays the same."""

_NEW_MOUNTS, _NEW_HOSTNAME, _NEW_IPC = 0x00020000, 0x04000000, 0x08000000
_NEW_USER, _NEW_PIDS, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 32, 4096
_MS_REC, _MS_PRIVATE, _MNT_DETACH = 16384, 1 << 18, 2
_ATTR_RDONLY, _ATTR_NOSUID, _AT_FDCWD, _AT_RECURSIVE = 1, 2, -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
_CAP_VERSION_3 = 0x20080522
_SYS_MOUNT_SETATTR = 442

# System call numbers of x86_64 and of arm64.
_DENIED = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "chroot": (161, 51),
    "socket": (41, 198),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
}
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""By machine: the column above, and the AUDIT_ARCH constant."""

_libc = ctypes.CDLL(None, use_errno=True)


class IsolationError(Exception):
    """Isolation failed; the message names the step and the reason."""


def enter(kind: int, temporary_bytes: int) -> None:
    """Move the calling process into new namespaces with a minimal root. Its next child is process 1 of the new process namespace.

    Args:
        kind: AS_NOBODY or IN_USER_NAMESPACE.
        temporary_bytes: size of the private temporary folder, in bytes.

    Raises:
        IsolationError: the system does not allow a step.
    """
    if platform.machine() not in _MACHINES or not hasattr(_libc, "unshare"):
        raise IsolationError(f"{platform.system()} on {platform.machine()} is not supported")
    # The folders of the new root must be readable for the user nobody, whatever the caller's mask is. `confine` sets another mask.
    os.umask(0o022)
    flags = _NEW_MOUNTS | _NEW_HOSTNAME | _NEW_IPC | _NEW_PIDS | _NEW_NETWORK
    user, group = os.geteuid(), os.getegid()
    _call("unshare", flags | (_NEW_USER if kind == IN_USER_NAMESPACE else 0))
    if kind == IN_USER_NAMESPACE:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {user} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {group} 1")
    _build_root(temporary_bytes)


def confine(kind: int, seconds: int, memory: int, file_bytes: int) -> None:
    """Apply limits to the calling process and drop its privileges, permanently.

    Args:
        kind: the kind of isolation.
        seconds: processor time, in seconds.
        memory: address space, in bytes.
        file_bytes: largest file that can be written, in bytes.

    Raises:
        IsolationError: a step failed. Without namespaces, limits that the system lacks are skipped.
    """
    # A signal to the process group would reach the caller, which is in another process namespace but in the same group.
    os.setsid()
    unisolated = kind in (UNISOLATED_AS_NOBODY, UNISOLATED)
    for name, value in {
        "RLIMIT_CPU": seconds,
        "RLIMIT_AS": memory,
        "RLIMIT_FSIZE": file_bytes,
        "RLIMIT_NPROC": 0,
        "RLIMIT_NOFILE": 32,
        "RLIMIT_CORE": 0,
    }.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (AttributeError, ValueError, OSError) as error:
            if not unisolated:
                raise IsolationError(f"{name}: {error}") from None
    os.umask(0o077)
    if kind in (AS_NOBODY, UNISOLATED_AS_NOBODY):
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    if sys.platform != "linux":
        return
    if kind == IN_USER_NAMESPACE:
        for capability in range(64):
            if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
                break
        header, none = struct.pack("=Ii", _CAP_VERSION_3, 0), bytes(24)
        _call("capset", header, none)
    _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if platform.machine() in _MACHINES:
        _filter_calls()


def _build_root(temporary_bytes: int) -> None:
    """Replace / by a small file system with the libraries, a few devices and /tmp."""
    sources = {path: os.path.realpath(path) for path in (*_libraries(), "/dev/null", "/dev/zero", "/dev/urandom")}
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    # Any folder can serve as mount point: the mount is visible to this process only.
    base = next((path for path in ("/tmp", "/var/tmp", "/mnt", "/run") if os.path.isdir(path)), "/tmp")
    flags, size = _MS_NOSUID | _MS_NODEV, f"size={temporary_bytes},nr_inodes=4096"
    _mount("tmpfs", base, "tmpfs", flags, f"mode=0755,{size}")
    os.chdir(base)
    os.mkdir("system", 0o755)
    os.mkdir("root", 0o755)
    _call("pivot_root", b".", b"system")
    os.chdir("/")
    for path, source in sources.items():
        _bind(source, path)
    _call("umount2", b"/system", _MNT_DETACH)
    os.rmdir("/system")
    _mount("tmpfs", _below("/tmp", folder=True), "tmpfs", flags, f"mode=01777,{size}")
    _mount("none", "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | flags)
    # A process whose root differs from that of its mount namespace cannot create a user namespace.
    os.chroot("/root")
    os.chdir("/tmp")


def _libraries() -> list[str]:
    """Return the folders and files that Python and its extension modules need."""
    bases = {sys.base_prefix, sys.base_exec_prefix}
    paths = {os.path.join(base, name) for base in bases for name in ("lib", "lib64")}
    paths.add(os.path.dirname(os.__file__))
    paths |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo"}
    if sys.base_prefix.startswith("/nix/"):
        paths.add("/nix/store")
    found = sorted(path for path in paths if os.path.exists(path))
    return [path for path in found if not any(path.startswith(f"{other}/") for other in found)]


def _bind(source: str, path: str) -> None:
    """Mount a folder or file of the system, without links in its path, read-only at a path of the new root."""
    target = _below(path, folder=os.path.isdir(f"/system{source}"))
    _mount(f"/system{source}", target, None, _MS_BIND | _MS_REC)
    attributes = struct.pack("=QQQQ", _ATTR_RDONLY | _ATTR_NOSUID, 0, 0, 0)
    _call("syscall", _SYS_MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, len(attributes))


def _below(path: str, folder: bool) -> str:
    """Create the mount point of a path in the new root."""
    target = f"/root{path}"
    os.makedirs(target if folder else os.path.dirname(target), 0o755, exist_ok=True)
    if not folder:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    return target


def _filter_calls() -> None:
    """Install a seccomp filter: the system calls in `_DENIED` fail with EPERM."""
    column, audit = _MACHINES[platform.machine()]
    numbers = [pair[column] for pair in _DENIED.values() if pair[column] is not None]
    load, equal, at_least, end = 0x20, 0x15, 0x35, 0x06
    allow, deny = 0x7FFF0000, 0x00050000 | 1
    count = len(numbers)
    steps = [(load, 0, 0, 4), (equal, 0, count + 3, audit), (load, 0, 0, 0), (at_least, count + 1, 0, 0x40000000)]
    steps += [(equal, count - i, 0, number) for i, number in enumerate(numbers)]
    steps += [(end, 0, 0, allow), (end, 0, 0, deny)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    _call("prctl", _PR_SET_SECCOMP, 2, ctypes.create_string_buffer(program), 0, 0)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = kind.encode() if kind else None
    _call("mount", source.encode(), target.encode(), encoded, ctypes.c_ulong(flags), data.encode())


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise IsolationError(f"{path}: {error.strerror}") from None


def _call(name: str, *arguments: object) -> None:
    ctypes.set_errno(0)
    if name == "pivot_root":  # glibc has no wrapper for it.
        name, arguments = "syscall", ({"x86_64": 155, "aarch64": 41}[platform.machine()], *arguments)
    if getattr(_libc, name)(*arguments) != 0:
        what = "mount_setattr" if arguments[0] == _SYS_MOUNT_SETATTR else name
        raise IsolationError(f"{what}: {os.strerror(ctypes.get_errno())}")
