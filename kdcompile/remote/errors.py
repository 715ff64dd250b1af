"""Errors of a device and of the connection to it."""

import re
from collections.abc import Mapping, Sequence

from kdcompile.core.errors import KDError, ToolMissingError, plain

# codes of the worker and of its first lines that mean: install something there
TOOLS = frozenset(
    {
        "backend-missing",
        "cuda-missing",
        "numpy-missing",
        "onnxruntime-missing",
        "python-old",
        "tensorrt-missing",
        "tensorrt-too-old",
    }
)
# what OpenSSH's client says on standard error, in the order of looking
REFUSALS = (
    ("changed", "HOST IDENTIFICATION HAS CHANGED"),
    ("unknown", "Host key verification failed|No .* host key is known"),
    ("refused", "Permission denied|Too many authentication failures"),
    (
        "unreachable",
        "Could not resolve|Connection (refused|closed|reset)|timed out|No route to host"
        "|is unreachable|Host is down|kex_exchange_identification|banner exchange"
        "|exec: .*not found",  # of a ProxyCommand; ssh itself is then silent at times
    ),
)
LOST = re.compile(
    r"closed by remote host|Connection (reset|closed)|Broken pipe|Timeout, server|timed out"
)
SHELL_NO_PROGRAM = (126, 127)
SSH_FAILED = 255


def invalid(shown: str, why: str) -> KDError:
    """A `via` that breaks the grammar; `shown` is without what may be a password."""
    return KDError(
        "via-invalid",
        why,
        where=f"--via {shown}",
        fix="--via python:/path/to/python, or --via ssh://[user@]host[:port][?python=/path/there]",
    )


def not_plain(name: str) -> KDError:
    """A name that is no plain file name."""
    return KDError(
        "via-path",
        f"{name!r} is no plain file name",
        where="the work folder of the device",
        fix="use letters, digits and ._- only, the first one a letter, a digit or _",
    )


def no_python(path: str, why: str = "no program that can be run") -> KDError:
    """A `python:` that cannot be run here, or is something else."""
    return KDError(
        "via-python",
        f"{path} is {why}",
        where=f"--via python:{path}",
        fix="give the full path of an interpreter, such as python:/opt/trt/bin/python",
    )


def no_program(name: str) -> ToolMissingError:
    """OpenSSH is not on this machine."""
    return ToolMissingError(
        "ssh-missing",
        f"there is no {name} on PATH",
        where="this machine",
        fix="sudo apt install openssh-client",
    )


ENGINES = ("engine-damaged", "engine-mismatch", "engine-refused", "engine-unknown", "run-failed")


def worker_error(error: Mapping[str, str], label: str) -> KDError:
    """An error that the worker answered, with its own fix."""
    code, message, fix = error["code"], error["message"], error["fix"]
    if code in TOOLS:
        if code == "python-old":
            fix = f"name a newer one there: {remedy_python(label)}"
        return ToolMissingError(code, message, where=label, fix=fix)
    if code in ENGINES:  # the worker's own fix is for those who have a kit
        fix = "build it again there: kdcompile build --via PLACE"
    if code in ("file", "work-folder") and "No space left" in message:
        return KDError("board-disk-full", message, where=label, fix=FREE_DISK)
    return KDError(code, message, where=label, fix=fix)


def worker_died(label: str, status: int, lines: Sequence[str]) -> KDError:
    """The worker ended by itself, with the last of what it printed."""
    said = f": {' / '.join(lines[-3:])}" if lines else ""
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    return KDError(
        "worker-died",
        f"the worker ended {how}{said}",
        where=label,
        fix="run the same command again; where the system killed it (dmesg | tail there says so), "
        "free memory or lower compile.workspace_mb",
    )


def stopped(label: str, op: str) -> KDError:
    """The worker was ended while it worked, because this process was interrupted."""
    return KDError(
        "worker-stopped",
        f"the worker was stopped in the middle of {op}",
        where=label,
        fix="run the same command again",
    )


def timed_out(label: str, op: str, seconds: float) -> KDError:
    """No answer in time; the worker was ended."""
    return KDError(
        "worker-timeout",
        f"no answer to {op} in {seconds:g} s; the worker was stopped",
        where=label,
        fix="see what else runs there (top, tegrastats), then run the same command again",
    )


def bad_answer(label: str, op: str, why: object) -> KDError:
    """What came in place of a worker's answer; the worker was ended."""
    return KDError(
        "board-answer",
        f"what came as the answer to {op} is none of a worker: {why}",
        where=label,
        fix="see that nothing there prints instead of the worker (a shell's start-up files, a "
        "wrapper around python) and that --via names the device you mean, then run it again",
    )


FREE_DISK = (
    "free some there; ~/.cache/kdcompile has only copies and engines, which are made again: "
    "it may be deleted"
)


def disk_full(label: str, folder: str, free_mb: float, needed_mb: float) -> KDError:
    """The disk there does not hold a file."""
    return KDError(
        "board-disk-full",
        f"{needed_mb:.0f} MiB are needed in {folder}, {free_mb:.0f} MiB are free",
        where=label,
        fix=FREE_DISK,
    )


def file_absent(there: str, label: str) -> KDError:
    """A file that should be fetched is not there."""
    return KDError(
        "file-absent", f"there is no {there}", where=label, fix="run the same command again"
    )


def file_differs(there: str, label: str) -> KDError:
    """A copy does not have the hash of what was copied."""
    return KDError(
        "copy-damaged",
        f"the copy of {there} does not have its SHA-256; it was dropped",
        where=label,
        fix="run the same command again; if it repeats, check the disks of both machines",
    )


def no_sftp(label: str) -> ToolMissingError:
    """The SSH server there copies no files."""
    return ToolMissingError(
        "sftp-missing",
        "the board's SSH server has no sftp",
        where=label,
        fix="there: sudo apt install openssh-sftp-server, or add `Subsystem sftp internal-sftp` "
        "to sshd_config",
    )


def copy_failed(label: str, said: Sequence[str]) -> KDError:
    """Sftp gave up, and the board still answers."""
    return KDError(
        "copy-failed",
        f"the copy stopped: {plain(said[-1]) if said else 'sftp was ended'}",
        where=label,
        fix="run the same command again: it goes on where it stopped",
    )


def board_lost(label: str) -> KDError:
    """The connection broke in the middle of something."""
    return KDError(
        "board-lost",
        "the connection to the board broke",
        where=label,
        fix="see that it is on and reachable, then run the same command again: copies go on where "
        "they stopped, and nothing half-done is used",
    )


def not_started(
    label: str, destination: str, python: str, status: int, lines: Sequence[str]
) -> KDError:
    """No worker answered over SSH: what its client said, without repeating it.

    OpenSSH names key files and configuration files in its messages, so none of them is passed on.

    Args:
        label: of the device.
        destination: `[-p PORT] [USER@]HOST`, to try by hand.
        python: the interpreter that was asked for there.
        status: of the ssh client.
        lines: its standard error.
    """
    if status in SHELL_NO_PROGRAM:
        return ToolMissingError(
            "python-missing",
            f"there is no {python} there",
            where=label,
            fix=f"sudo apt install python3 python3-numpy there, or {remedy_python(label)}",
        )
    if status != SSH_FAILED:
        return worker_died(label, status, lines)
    text = "\n".join(lines)
    kind = next((kind for kind, pattern in REFUSALS if re.search(pattern, text)), "other")
    code, message, fix = _REFUSED[kind]
    return KDError(code, message, where=label, fix=fix.replace("DESTINATION", destination))


_REFUSED = {
    "changed": (
        "host-key",
        "the board shows another host key than the one that is known",
        "compare its key with the board's own (there: ssh-keygen -lf "
        "/etc/ssh/ssh_host_ed25519_key.pub); only if it is genuine, remove the old one with "
        "ssh-keygen -R, then: ssh DESTINATION",
    ),
    "unknown": (
        "host-key",
        "the board's host key is not known here",
        "once, by hand: ssh DESTINATION, and compare the key that it shows with the board's own "
        "(there: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)",
    ),
    "refused": (
        "ssh-refused",
        "the board refuses the login: no key of yours is accepted (passwords are not asked for)",
        "ssh-copy-id DESTINATION, or load the right key with ssh-add",
    ),
    "unreachable": (
        "ssh-unreachable",
        "the board cannot be reached",
        "check its power, name, port and network with: ssh DESTINATION true",
    ),
    "other": (
        "ssh-failed",
        "ssh ended before the worker answered",
        "fix what this says: ssh DESTINATION true",
    ),
}


def remedy_python(label: str) -> str:
    """How to name another interpreter of this device."""
    if label.startswith("ssh:"):
        return f"--via '{label}?python=/path/there'"
    return "--via python:/path/to/python"
