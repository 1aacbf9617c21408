"""two_nodes.py - two hosts to move machines between: both nodes of the lab, seen from outside

What a user with two hosts has to set up is set up here: a disk both can write (node 1 exports a file by
NBD, both attach it), a bridge that joins the guest's tap to the link between them, and clocks that agree
(node 2 takes the time from node 1).

Commands run by way of tests/lab/lab; a process that stays ends with its `lab run`, and that with the test.
"""
import contextlib
import json
import os
import signal
import subprocess

from coracle import PROGRAM, TIMEOUT, TOP, Coracle, Reader
from debian import IMAGE

LAB = TOP / "tests/lab/lab"
TOOL = TOP / "tests/e2e/node_tool.py"
WATCH = TOP / "tests/e2e/guest_watch.py"
FOLDER = "/run/two-nodes"          # in a node: sockets
STORE = "/var/tmp/two-nodes"       # in node 1: the disk
DEVICE, BRIDGE, TAP = "/dev/nbd0", "two0", "two1"
NBD_PORT, CLOCK_PORT, PORT = 10809, 10810, 4444
COMMAND = 240  # seconds

ADDRESS = {1: "10.9.0.1", 2: "10.9.0.2"}

# Each packet costs an emulated machine a lot, so they are large.
NETWORK = """
ip link add {bridge} address 52:54:00:1a:b2:0{node} type bridge forward_delay 0
ip addr flush dev link0
ip link set link0 mtu 9000 master {bridge}
ip addr add {address}/24 dev {bridge}
ip link set {bridge} up
ip tuntap add {tap} mode tap vnet_hdr
ip link set {tap} mtu 9000 master {bridge} up
"""
NETWORK_END = """
ip link del {tap}
ip link del {bridge}
ip link set link0 mtu 1500
ip addr replace {address}/24 dev link0
"""


def why_not():
    """None where the lab's two nodes can run, otherwise the reason to skip."""
    if "CORACLE_LAB_NODE" in os.environ:
        return "this is one node; it takes both, driven from outside"
    if not os.path.exists(PROGRAM):
        return f"{PROGRAM} is not built"
    if not (IMAGE / "root.ext4").exists():
        return "no guest image: guest-images/build makes it"
    up = subprocess.run([LAB, "up"], capture_output=True, text=True, check=False)
    return None if up.returncode == 0 else f"no lab: {up.stderr.strip().splitlines()[-1]}"


def prefix(node, *options):
    """What runs the command that follows in a node."""
    return [str(LAB), "run", "--node", str(node), "--shared", *options, "--"]


def on(node, *command):
    """Run a command in a node; its output."""
    run = subprocess.run([*prefix(node, "-n"), *map(str, command)], capture_output=True, text=True,
                         check=False, timeout=COMMAND)
    assert run.returncode == 0, f"node {node}: {command}: {run.stdout}{run.stderr}"
    return run.stdout


class Service:
    """A command that stays in a node. Ready when its output has @ready."""

    def __init__(self, node, *command, ready=None):
        self.process = subprocess.Popen([*prefix(node, "-n"), *map(str, command)],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.out, self.err = Reader(self.process.stdout), Reader(self.process.stderr)
        if ready:
            found = self.out.wait_for(lambda d: True if ready in d else None, COMMAND)
            assert found, f"node {node}: {command}: {self.out.data + self.err.data}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        """Ask it to end; all it said."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(TIMEOUT)
        finally:
            self.process.kill()
            self.process.wait()
        for reader, pipe in ((self.out, self.process.stdout), (self.err, self.process.stderr)):
            reader.join()
            pipe.close()
        return self.out.data.decode(errors="replace")


@contextlib.contextmanager
def shared_disk():
    """A copy of the guest's root disk, with guest_watch.py in it; both nodes have it as DEVICE."""
    on(1, "sh", "-ec", f"rm -rf {STORE}; mkdir {STORE}; "
       f"cp --sparse=always {IMAGE}/root.ext4 {STORE}/root.ext4; "
       f"debugfs -w -R 'write {WATCH} root/guest_watch.py' {STORE}/root.ext4")
    with contextlib.ExitStack() as stack:
        stack.callback(on, 1, "rm", "-rf", STORE)
        stack.enter_context(Service(
            1, "sh", "-c", f"rm -f {STORE}/pid; (until [ -e {STORE}/pid ]; do sleep 0.1; done; "
            "echo exported) & exec qemu-storage-daemon "
            f"--blockdev driver=file,node-name=disk,filename={STORE}/root.ext4 "
            f"--nbd-server addr.type=inet,addr.host=0.0.0.0,addr.port={NBD_PORT},max-connections=0 "
            f"--export type=nbd,id=disk,name=disk,node-name=disk,writable=on --pidfile {STORE}/pid",
            ready=b"exported"))
        for node in (1, 2):
            stack.enter_context(Service(node, "python3", TOOL, "nbd", ADDRESS[1], NBD_PORT, "disk",
                                        DEVICE, ready=b"bytes"))
        yield


@contextlib.contextmanager
def network():
    with contextlib.ExitStack() as stack:
        for node in (1, 2):
            names = {"bridge": BRIDGE, "tap": TAP, "node": node, "address": ADDRESS[node]}
            stack.callback(on, node, "sh", "-c", NETWORK_END.format(**names))
            on(node, "sh", "-ec", f"mkdir -p {FOLDER}" + NETWORK.format(**names))
        yield


@contextlib.contextmanager
def clocks():
    """Yields a function that sets node 2's clock by node 1's, and says how far they were, and are, apart."""
    with Service(1, "python3", TOOL, "clock-serve", CLOCK_PORT, ready=b"listening"):
        yield lambda: json.loads(on(2, "python3", TOOL, "clock-set", ADDRESS[1], CLOCK_PORT))


def control(name):
    """The control socket of a machine, in its node."""
    return f"{FOLDER}/{name}"


class Target(Coracle):
    """Waits in a node for its source at .address."""

    def __init__(self, node, name):
        self.address = f"tcp:{ADDRESS[node]}:{PORT}"
        super().__init__("--incoming", self.address, "--disk", f"id=disk0,path={DEVICE}",
                         "--net", f"id=net0,tap={TAP},create=off", "--serial", "stdio",
                         "--control", control(name), prefix=prefix(node))
        waits = self.err.wait_for(lambda d: True if b"waiting for a machine" in d else None, COMMAND)
        assert waits, self.story()


def ctl(node, name, *words):
    """`coracle ctl` in the machine's node: exit status, and all it said."""
    run = subprocess.run([*prefix(node, "-n"), PROGRAM, "ctl", control(name), *map(str, words)],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                         timeout=2 * COMMAND)
    return run.returncode, run.stdout


class Peer(Service):
    """node_tool.py's peer in node 1, with a connection to the guest: what it has seen since last asked."""

    def __init__(self, guest, port):
        self.at = 0
        super().__init__(1, "python3", TOOL, "peer", guest, port, BRIDGE, ready=b"number")

    def end(self):
        said = super().end()
        (TOP / "build/lab/results/two-nodes.peer").write_text(said, encoding="ascii")
        return said

    def take(self, enough=lambda answers, rarps: bool(answers)):
        """(answers, RARPs) from the last take() on, when they are @enough."""
        found = {}

        def look(data):
            end = data.rfind(b"\n") + 1
            said = [json.loads(line) for line in data[self.at:end].splitlines()]
            found["answers"] = [x for x in said if "number" in x]
            found["rarps"] = [x["rarp"] for x in said if "rarp" in x]
            found["end"] = end
            return True if enough(found["answers"], found["rarps"]) else None

        ok = self.out.wait_for(look, COMMAND)
        assert ok, f"the peer: {found} {self.err.data.decode(errors='replace')}"
        self.at = found["end"]
        return found["answers"], found["rarps"]
