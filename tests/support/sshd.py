"""A real SSH server on the loopback, with its own keys, that plays a board."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

SERVER = "/usr/sbin/sshd"
SERVER_CONFIG = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized
StrictModes no
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
AcceptEnv KDCOMPILE_CACHE PYTHONPATH
SetEnv HOME="{home}"
{sftp}
"""
CLIENT_CONFIG = """
Host *
  IdentityFile {key}
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {known}
  GlobalKnownHostsFile none
"""


@dataclass(frozen=True)
class Sshd:
    """A running server: its address, the client's configuration, and what it started."""

    folder: Path
    home: Path
    port: int
    pid: int
    config: Path

    def via(self, python=sys.executable, user=None):
        return f"ssh://{user or getpass.getuser()}@127.0.0.1:{self.port}?python={python}"

    def client(self, name, key="user_key", known="known_hosts", extra=""):
        """Another configuration of the client; keys and known hosts by file name."""
        path = self.folder / name
        text = CLIENT_CONFIG.format(key=self.folder / key, known=self.folder / known)
        path.write_text(text + extra)
        return path

    def kill_connections(self):
        """What a board does that loses its power, but for the time that it takes to notice."""
        for pid in descendants(self.pid):
            _kill(pid)

    def kill_workers(self):
        """What the kernel does when memory runs out."""
        workers = [p for p in descendants(self.pid) if b"\0-c\0import sys;" in command_line(p)]
        for pid in workers:
            _kill(pid)
        return len(workers)


@contextmanager
def running_sshd(folder, sftp="Subsystem sftp internal-sftp"):
    """A server of its own in a folder; skips where there is no sshd, or it may not run."""
    if not Path(SERVER).is_file() or shutil.which("ssh-keygen") is None:
        pytest.skip(f"no {SERVER}: install openssh-server")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # its privilege separation wants it
    home = folder / "the board's home"
    home.mkdir(parents=True)
    for name in ("host_key", "other_host_key", "user_key", "stranger_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
        subprocess.run(command, check=True)
    shutil.copyfile(folder / "user_key.pub", folder / "authorized")
    (folder / "no_hosts").write_text("")
    server, port = _started(folder, home, sftp)
    try:
        for name, key in (("known_hosts", "host_key"), ("changed_hosts", "other_host_key")):
            text = (folder / f"{key}.pub").read_text()
            (folder / name).write_text(f"[127.0.0.1]:{port} {text}")
        made = Sshd(folder, home, port, server.pid, folder / "client_config")
        made.client("client_config")
        yield made
    finally:
        for pid in [*descendants(server.pid), server.pid]:
            _kill(pid)
        server.wait()


def _started(folder, home, sftp):
    """A server that listens, and its port: another one where that was taken meanwhile."""
    config, log = folder / "sshd_config", folder / "sshd.log"
    for _ in range(9):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config.write_text(SERVER_CONFIG.format(port=port, folder=folder, home=home, sftp=sftp))
        with log.open("w") as words:
            server = subprocess.Popen([SERVER, "-D", "-e", "-f", config], stderr=words)
        if _listens(server, port, log):
            return server, port
    pytest.fail(f"no port is free for sshd: {log.read_text()[-300:]}")


def descendants(pid):
    """Process ids under a process, the nearest first."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in path.read_text().split()]
        except OSError:  # it ended meanwhile
            continue
        found += children + [deeper for child in children for deeper in descendants(child)]
    return found


def command_line(pid):
    """The words of a process, each with a zero byte behind it; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _listens(server, port, log):
    """Waits until it says so, however busy the machine is; False where the port was taken."""
    while f"Server listening on 127.0.0.1 port {port}" not in log.read_text():
        if server.poll() is not None:
            said = log.read_text()
            if "Address already in use" in said:
                return False
            pytest.skip(f"sshd may not run here: {said[-300:]}")
        time.sleep(0.02)
    return True
