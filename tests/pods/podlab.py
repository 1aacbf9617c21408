"""podlab.py - a node's network without a node: namespaces, real CNI plugins, the pod's NICs

A Lab is a namespace that stands for the node. Pods are namespaces that the CNI plugins of the
package containernetworking-plugins join to it; peers are the same for plain programs.
tests/pods/podnet.c does with a pod what the shim does. Everything is named after this process and
goes away with the Lab.
"""
import contextlib
import ctypes
import fcntl
import ipaddress
import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading

TOP = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "tests/e2e"))
import coracle  # pylint: disable=C0413
from coracle import Coracle, Reader, TIMEOUT, guest  # pylint: disable=C0413

BUILD = pathlib.Path(os.environ.get("CORACLE_BUILD", TOP / "build/release"))
PODNET = BUILD / "tests/pods/podnet"
CNI = pathlib.Path(os.environ.get("CNI_PATH", "/usr/lib/cni"))
CLONE_NEWNET = 0x40000000
SERIAL = itertools.count()
why_no_kvm = coracle.why_no_kvm


def why_not(*plugins):
    """None where pods' networks can be made, otherwise the reason to skip."""
    if os.geteuid():
        return "needs root"
    for program in ("ip", "tc", "ping"):
        if not shutil.which(program):
            return f"{program} is not installed (tools/setup test)"
    for plugin in plugins:
        if not (CNI / plugin).exists():
            return f"no CNI plugin {plugin} in {CNI} (tools/setup test)"
    if not PODNET.exists():
        return f"{PODNET} is not built (make pod-tools)"
    if not os.path.exists("/dev/net/tun"):
        return "no /dev/net/tun"
    return None


def run(*args, **kwargs):
    """A command's output; raises with what it said."""
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=TIMEOUT,
                          check=False, **kwargs)
    assert done.returncode == 0, f"{' '.join(map(str, args))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def works(*args):
    return subprocess.run([str(a) for a in args], capture_output=True, timeout=TIMEOUT,
                          check=False).returncode == 0


class Netns:
    def __init__(self, kind):
        self.name = f"cor{os.getpid()}-{kind}{next(SERIAL)}"
        run("ip", "netns", "add", self.name)
        self.path = f"/run/netns/{self.name}"
        self("ip", "link", "set", "lo", "up")

    def __call__(self, *args, **kwargs):
        return run("ip", "netns", "exec", self.name, *args, **kwargs)

    @property
    def prefix(self):
        return ("ip", "netns", "exec", self.name)

    def json(self, *args):
        return json.loads(self(*args) or "[]")

    def link(self, name):
        return self.json("ip", "-d", "-j", "link", "show", "dev", name)[0]

    def state(self):
        """All that a closed pod network must have put back."""
        # Autoconfigured link-local addresses come in their own time, and so do counters.
        links = [(l["ifname"], l["mtu"], l["address"], sorted(set(l["flags"])))
                 for l in self.json("ip", "-d", "-j", "link")]
        addrs = sorted(a for a in self("ip", "-o", "addr").splitlines() if "scope link" not in a)
        addrs = [re.sub(r"\s+", " ", a.split("\\")[0]).replace(" tentative", "") for a in addrs]
        routes = self("ip", "route").splitlines() + self("ip", "-6", "route").splitlines()
        routes = sorted(r for r in routes if "fe80::/64" not in r)
        qdiscs = self("tc", "qdisc").splitlines()
        rules = [self("tc", "filter", "show", "dev", l[0], hook)
                 for l in links for hook in ("ingress", "egress")]
        return links, addrs, routes, qdiscs, rules

    def inside(self, function):
        """Call it on a thread in the namespace: sockets made there stay there."""
        result = []

        def body():
            with open(self.path, "rb") as ns:
                if ctypes.CDLL(None, use_errno=True).setns(ns.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            result.append(function())

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        return result[0]

    def remove(self):
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


class Pod(Netns):
    """A namespace with what CNI gave it. results: the plugins' answers, by interface."""

    def __init__(self, lab):
        super().__init__("pod")
        self.lab, self.results, self.added = lab, {}, []

    def cni(self, command, config, name):
        env = {"CNI_COMMAND": command, "CNI_CONTAINERID": self.name, "CNI_NETNS": self.path,
               "CNI_IFNAME": name, "CNI_PATH": str(CNI), "PATH": os.environ["PATH"]}
        return self.lab.node(CNI / config["type"], input=json.dumps(config), env=env)

    def add(self, config, name="eth0"):
        config = {"cniVersion": "0.4.0", "name": "net-" + name, **config}
        self.results[name] = json.loads(self.cni("ADD", config, name))
        self.added.append((config, name))
        self.wait_for_addresses()
        return self

    def wait_for_addresses(self):
        """Duplicate address detection has ended."""
        end = threading.Event()
        for _ in range(int(TIMEOUT * 20)):
            if "tentative" not in self("ip", "-6", "addr"):
                return
            end.wait(0.05)
        raise AssertionError(self("ip", "-6", "addr"))

    def check(self):
        """CNI's own look at what is there, with what it said when it was made."""
        for config, name in self.added:
            self.cni("CHECK", {**config, "prevResult": self.results[name]}, name)

    def addresses(self, name="eth0"):
        return [ipaddress.ip_interface(ip["address"]) for ip in self.results[name]["ips"]]

    def address(self, version=4, name="eth0"):
        return str(next(a.ip for a in self.addresses(name) if a.version == version))

    def remove(self):
        for config, name in reversed(self.added):
            with contextlib.suppress(AssertionError):
                self.cni("DEL", config, name)
        super().remove()


class Lab:
    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="coracle-podlab-")
        self.spaces = []
        self.node = self.keep(Netns("node"))
        for key in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            self.node("sysctl", "-qw", f"net.{key}=1")

    def keep(self, space):
        self.spaces.append(space)
        return space

    def pod(self):
        return self.keep(Pod(self))

    def peer(self):
        return self.keep(Netns("peer"))

    def ipam(self, four, six=None):
        """host-local, with the leases in the lab's directory"""
        ranges = [[{"subnet": s}] for s in (four, six) if s]
        return {"type": "host-local", "dataDir": self.dir + "/ipam", "ranges": ranges,
                "routes": [{"dst": "0.0.0.0/0"}] + ([{"dst": "::/0"}] if six else [])}

    def close(self):
        for space in reversed(self.spaces):
            space.remove()
        shutil.rmtree(self.dir, ignore_errors=True)


# ---- what runs in a pod ----

def podnet(pod, *options):
    """The command that opens a pod's NICs for the command after it."""
    return (*pod.lab.node.prefix, str(PODNET), pod.path, *options, "--")


def sweep(pod):
    pod.lab.node(PODNET, "--sweep", pod.path)


class Kit(Coracle):
    """The guest of tests/guest/pod.c in a pod."""

    def __init__(self, pod, *options, nics=1, args=()):
        self.pod = pod
        args = ["--kernel", guest("pod"), "--memory", "64M",
                "--cmdline", f"nics={nics} {self.ip6(pod)}", *args]
        for i in range(nics):
            args += ["--net", f"fd={{fds{i}}},mac={{mac{i}}},mtu={{mtu{i}}}"]
        super().__init__(*args, control=False, prefix=podnet(pod, *options))

    @staticmethod
    def ip6(pod):
        """IPv6 addresses come from cloud-init in a real guest."""
        words = []
        for i, name in enumerate(sorted(pod.results, key=lambda n: pod.link(n)["ifindex"])):
            six = [a for a in pod.addresses(name) if a.version == 6]
            words += [f"ip6_{i}={six[0].ip.packed.hex()}"] if six else []
        return " ".join(words)

    def up(self):
        self.line("ready")
        return self

    def facts(self, kind, nic=0):
        """What a line "nic N KIND key=value ..." said; route has a list."""
        line = re.search(rf"^nic {nic} {kind} (.*)$", self.text(), re.M)
        assert line, self.story()
        facts = {"route": []}
        for word in line.group(1).split():
            key, value = word.split("=", 1)
            if key == "route":
                facts["route"].append(value)
            else:
                facts[key] = value
        return facts

    def mac_and_mtu(self, nic=0):
        return re.search(rf"^nic {nic} mac=(\S+) mtu=(\d+)$", self.text(), re.M).groups()

    def ping(self, to, nic=0):
        self.send(f"ping {nic} {to}\n".encode())
        self.line(f"pong {re.escape(str(to))}")

    def quit(self):
        self.send(b"quit\n")
        assert self.wait() == 0, self.story()


class TapGuest:
    """A program in the place of the guest: frames as hexadecimal lines, both ways."""

    HEADER = bytes(10)  # struct virtio_net_hdr

    def __init__(self, pod, *options):
        self.process = subprocess.Popen(
            [*podnet(pod, *options), sys.executable, __file__, "{fd0}"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE)
        self.reader, self.seen = Reader(self.process.stdout), 0
        self.wait_for(lambda line: line == b"here", "the guest's start")

    def send(self, frame):
        self.process.stdin.write(frame.hex().encode() + b"\n")
        self.process.stdin.flush()

    def wait_for(self, wanted, what):
        """The first line from here on that is wanted."""
        def find(data):
            while b"\n" in data[self.seen:]:
                end = data.index(b"\n", self.seen)
                line, self.seen = data[self.seen:end], end + 1
                if wanted(line):
                    return line
            return None

        line = self.reader.wait_for(find, TIMEOUT)
        assert line is not None, f"{what}: did not come"
        return line

    def frame(self, wanted, what):
        line = self.wait_for(lambda text: wanted(bytes.fromhex(text.decode())), what)
        return bytes.fromhex(line.decode())

    def frames(self):
        """All so far."""
        lines = self.reader.data.split(b"\n")[1:-1]
        return [bytes.fromhex(line.decode()) for line in lines]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(TIMEOUT)
        self.reader.join()
        self.process.stdout.close()


def tap_guest(fd):
    import select  # pylint: disable=C0415
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
    print("here", flush=True)
    text = b""
    while True:
        ready, _, _ = select.select([fd, 0], [], [])
        if fd in ready:
            print(os.read(fd, 70000)[len(TapGuest.HEADER):].hex(), flush=True)
        if 0 in ready:
            piece = os.read(0, 65536)
            if not piece:
                return
            *lines, text = (text + piece).split(b"\n")
            for line in lines:
                os.write(fd, TapGuest.HEADER + bytes.fromhex(line.decode()))


# ---- frames ----

def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff


def discover(mac, xid, vlan=None):
    """A DHCPDISCOVER from the Ethernet header on."""
    mac = bytes.fromhex(mac.replace(":", ""))
    bootp = struct.pack("!BBBBI", 1, 1, 6, 0, xid) + bytes(20) + mac + bytes(202)
    bootp += bytes.fromhex("63825363350101ff")
    udp = struct.pack("!HHHH", 68, 67, 8 + len(bootp), 0) + bootp
    ip = bytearray(struct.pack("!BBHHHBBHII", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, 0,
                               0xffffffff))
    struct.pack_into("!H", ip, 10, checksum(bytes(ip)))
    tag = struct.pack("!HH", 0x8100, vlan) if vlan else b""
    return b"\xff" * 6 + mac + tag + b"\x08\0" + bytes(ip) + udp


def is_offer(frame, xid):
    return (frame[12:14] == b"\x08\0" and frame[23:24] == b"\x11" and frame[36:38] == b"\0\x44"
            and frame[46:50] == struct.pack("!I", xid))


def packet_socket(space, link):
    """Hears what arrives at a link of a namespace."""
    def make():
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        s.bind((link, 0))
        s.settimeout(TIMEOUT)
        return s

    return space.inside(make)


if __name__ == "__main__":
    tap_guest(int(sys.argv[1]))
