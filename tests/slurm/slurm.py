"""A real Slurm of four nodes, and one with two GPUs, on this machine, in network and mount
namespaces of its own.

Debian's slurm-wlm without systemd and without cgroups: own munge key and socket, one slurmctld,
five slurmd on ports of their own. The GPUs are counted, not there: plain files stand for them.
Nothing listens or sends outside. Daemons are ended by the ids that were started here.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

NODES = ("n1", "n2", "n3", "n4", "n5")  # the last one is the partition gpu
ADDRESS = "10.255.0.1"  # with loopback alone getaddrinfo finds no address
PACKAGES = ("slurm-wlm", "iproute2", "util-linux")
TOOLS = ("sbatch", "squeue", "slurmctld", "slurmd", "munged", "unshare", "nsenter", "ip")
PATH = "/usr/local/sbin:/usr/sbin:/sbin:" + os.environ.get("PATH", "/usr/bin:/bin")

CONF = """ClusterName=test
SlurmctldHost={host}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort=17200
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=5
SlurmdTimeout=5
KillWait=3
MinJobAge=2
MaxArraySize=7
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
GresTypes=gpu
NodeName=n[1-4] NodeHostname={host} NodeAddr={address} Port=[17201-17204] CPUs=1
NodeName=n5 NodeHostname={host} NodeAddr={address} Port=17205 CPUs=2 Gres=gpu:2
PartitionName=main Nodes=n[1-4] Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=n5 MaxTime=INFINITE State=UP
"""


def unavailable() -> str:
    """Why no cluster can be started here, '' if it can; installs Slurm with apt."""
    if os.geteuid() != 0:
        return "the cluster tests need root (network namespaces, munge)"
    if any(shutil.which(tool, path=PATH) is None for tool in TOOLS):
        if shutil.which("apt-get") is None:
            return "the cluster tests need slurm-wlm, and there is no apt-get to install it"
        with open(Path(tempfile.gettempdir()) / "klassify-cluster-tests.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another worker of the test run may be at it
            _install()
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    if lacking:
        return f"the cluster tests need slurm-wlm; apt-get install gave no {', '.join(lacking)}"
    if subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True).returncode:
        return (
            "the cluster tests need namespaces of their own, which this machine forbids (unshare"
            " -n -m)"
        )
    return ""


def _install() -> None:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], **quiet, env=environment, check=False)
    subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES],
        **quiet,
        env=environment,
        check=False,
    )


class Cluster:
    """One Slurm: start(), run(command), kill and start daemons, stop()."""

    def __init__(self, folder: Path):
        self.folder, self.host = folder, socket.gethostname().split(".")[0]
        self.daemons: dict[str, subprocess.Popen] = {}
        self.environment = os.environ | {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        for name in [
            name
            for name in self.environment
            if name.startswith(("SBATCH_", "SLURM_")) and name != "SLURM_CONF"
        ]:
            del self.environment[name]

    def start(self) -> None:
        """Namespaces, munged, slurmctld, five slurmd; returns when all nodes are idle."""
        (self.folder / "state").mkdir(parents=True)
        (self.folder / "slurm.conf").write_text(
            CONF.format(folder=self.folder, host=self.host, address=ADDRESS)
        )
        for k in range(2):
            (self.folder / f"gpu{k}").touch()
        (self.folder / "gres.conf").write_text(
            f"NodeName=n5 Name=gpu File={self.folder}/gpu[0-1]\n"
        )
        (self.folder / "hosts").write_text(
            f"127.0.0.1 localhost\n{ADDRESS} {self.host} {' '.join(NODES)}\n"
        )
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        self._spawn(
            "holder",
            ["unshare", "-n", "-m", "--propagation", "private", "sleep", "infinity"],
            inside=False,
        )
        until(lambda: self._namespace() != os.readlink("/proc/self/ns/net"), "a network namespace")
        for command in (
            "ip link set lo up",
            f"ip addr add {ADDRESS}/32 dev lo",
            f"mount --bind {self.folder}/hosts /etc/hosts",
        ):
            self.run(command.split())
        self._spawn(
            "munged",
            [
                "munged",
                "-F",
                "--force",
                f"--key-file={key}",
                f"--socket={self.folder}/munge.socket",
                f"--pid-file={self.folder}/munged.pid",
                f"--log-file={self.folder}/munged.log",
                f"--seed-file={self.folder}/munge.seed",
            ],
        )
        until((self.folder / "munge.socket").exists, "munged")
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        until(lambda: self.nodes() == dict.fromkeys(NODES, "idle"), "five idle nodes")

    def _namespace(self) -> str:
        try:
            return os.readlink(f"/proc/{self.daemons['holder'].pid}/ns/net")
        except OSError:
            return os.readlink("/proc/self/ns/net")

    def start_controller(self) -> None:
        self._spawn("slurmctld", ["slurmctld", "-D"])

    def start_node(self, node: str) -> None:
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._spawn(node, ["slurmd", "-D", "-N", node])

    def kill(self, name: str) -> None:
        """kill -9 of one daemon; what it started lives on."""
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def lose_node(self, node: str) -> None:
        """A node goes down with everything on it: slurmd, slurmstepd, the job."""
        steps = [
            pid
            for pid, line in processes().items()
            if re.match(r"slurmstepd: \[", line) and self._on(pid, node)
        ]
        doomed = [*steps, *(pid for step in steps for pid in descendants(step))]
        self.kill(node)
        for pid in doomed:
            kill(pid)

    def _on(self, pid: int, node: str) -> bool:
        try:
            return f"SLURMD_NODENAME={node}" in Path(
                f"/proc/{descendants(pid)[0]}/environ"
            ).read_text().split("\0")
        except (OSError, IndexError):
            return False

    def stop(self) -> None:
        """End every job and daemon of this cluster."""
        if "slurmctld" in self.daemons:
            self.run(["scancel", "--user=root", "--signal=KILL"], check=False)
        doomed = [
            pid
            for daemon in self.daemons.values()
            for pid in (daemon.pid, *descendants(daemon.pid))
        ]
        doomed += [
            pid
            for pid, line in processes().items()
            if line.startswith("slurmstepd: [") and self._ours(pid)
        ]
        doomed += [pid for step in doomed for pid in descendants(step)]
        for pid in dict.fromkeys(doomed):
            kill(pid)
        for daemon in self.daemons.values():
            daemon.wait()

    def _ours(self, pid: int) -> bool:
        """Whether a process lives in this cluster's network namespace."""
        try:
            return os.readlink(f"/proc/{pid}/ns/net") == self._namespace()
        except OSError:
            return False

    def _spawn(self, name: str, command: Sequence[str], inside: bool = True) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(
                [*(self.inside() if inside else ()), *command],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                start_new_session=True,
            )

    def inside(self) -> list[str]:
        """What a command is prefixed with to run in the namespaces (nsenter becomes the command:
        same id).
        """
        return ["nsenter", "-t", str(self.daemons["holder"].pid), "-n", "-m", f"--wd={os.getcwd()}"]

    def run(
        self, command: Sequence[str], *, check: bool = True, **options
    ) -> subprocess.CompletedProcess:
        """Run a command in the cluster's namespaces; its output is text."""
        options = {
            "capture_output": True,
            "text": True,
            "env": self.environment,
            "timeout": 120,
        } | options
        done = subprocess.run([*self.inside(), *map(str, command)], **options, check=False)
        if check and done.returncode:
            raise AssertionError(
                f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def nodes(self) -> dict[str, str]:
        """{node: state}."""
        done = self.run(["sinfo", "-N", "-h", "-o", "%N %T"], check=False)
        return dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)

    def queue(self) -> list[list[str]]:
        """Rows of squeue: id, state, reason, node list, name."""
        done = self.run(["squeue", "--array", "-h", "-o", "%i|%t|%r|%N|%j"], check=False)
        return [line.split("|") for line in done.stdout.splitlines()]

    def fix(self) -> None:
        """All daemons up and all nodes idle, and nothing in the queue: the start of every test."""
        self.run(["scancel", "--user=root"], check=False)
        if "slurmctld" not in self.daemons:
            self.start_controller()
        for node in NODES:
            if node not in self.daemons:
                self.start_node(node)

        def idle() -> bool:
            states = self.nodes()
            for node, state in states.items():
                if state.rstrip("*") in ("down", "drained", "draining"):
                    self.run(
                        ["scontrol", "update", f"nodename={node}", "state=resume"], check=False
                    )
            return states == dict.fromkeys(NODES, "idle") and not self.queue()

        until(idle, "an idle cluster", 30)


def until(holds: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


def processes() -> dict[int, str]:
    """{process id: command line} of all processes."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found[int(folder.name)] = (
                (folder / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
            )
        except OSError:
            continue
    return found


def descendants(process: int) -> list[int]:
    """Children of a process and theirs, nearest first."""
    found, todo = [], [process]
    while todo:
        for path in Path(f"/proc/{todo.pop(0)}").glob("task/*/children"):
            try:
                children = list(map(int, path.read_text().split()))
            except OSError:
                continue
            found += children
            todo += children
    return found


def kill(process: int) -> None:
    """kill -9, if it still lives."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return
