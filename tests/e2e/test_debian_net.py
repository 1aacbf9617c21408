"""test_debian_net.py - a Debian guest's network, in a network namespace of the test's own

One guest with a NIC for each kind of tap: one made for it with two pairs of queues, one for jumbo
frames, one that exists already, one inherited as a descriptor. Where the host has vhost-net it works on
the rings, but for those of two NICs of the second guest, which are the VMM's own. No figure decides: data arrives
whole, counters on both sides say that it came the way it should.
"""
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from debian import Debian, MIB, host, kernel_warnings, needs, why_not
from netns import network_namespace

WHY_NOT = why_not()
pytestmark = [pytest.mark.debian, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
              needs("ip", "nsenter", "unshare", "iperf3", "ping")]

MAC = "52:54:00:c0:4a:c1"

# NIC -> (host's address, guest's, MTU)
NETS = {
    "main": ("192.0.2.1", "192.0.2.2", 1500),
    "jumbo": ("198.51.100.1", "198.51.100.2", 9000),
    "lasting": ("203.0.113.1", "203.0.113.2", 1500),
    "given": ("203.0.113.129", "203.0.113.130", 1400),
}

# Makes a tap, then becomes the VMM, which has the tap as descriptor 9.
WITH_TAP = """
import fcntl, os, struct, sys
TUNSETIFF, TAP, NO_PI, VNET_HDR = 0x400454ca, 2, 0x1000, 0x4000
tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tap-given", TAP | NO_PI | VNET_HDR))
os.dup2(tun, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""

# The far end of a TCP connection: sends that many bytes, takes all there is, and tells their sum.
PEER = """
import hashlib, os, socket, sys
s = socket.create_server(("", 5001))
print("listening", flush=True)
c = s.accept()[0]
count, sum = int(sys.argv[1]), hashlib.md5()
if count:
    data = os.urandom(count)
    sum.update(data)
    c.sendall(data)
    c.shutdown(socket.SHUT_WR)
while data := c.recv(1 << 16):
    sum.update(data)
print(sum.hexdigest(), flush=True)
"""


@pytest.fixture(scope="module", name="inside")
def fixture_inside():
    """A command prefix that enters a new network namespace."""
    with network_namespace() as prefix:
        assert prefix
        yield prefix


def links(inside):
    return {link["ifname"]: link for link in json.loads(host(*inside, "ip", "-json", "link"))}


class Guest(Debian):
    """With all the NICs, set up on both sides."""

    def __init__(self, transport, inside):
        self.inside, self.transport = inside, transport
        own = "off" if transport == "mmio" else "auto"
        host(*inside, "ip", "tuntap", "add", "tap-lasting", "mode", "tap")
        host(*inside, "ip", "addr", "add", "203.0.113.1/25", "dev", "tap-lasting")
        super().__init__(
            "--transport", transport, "--cpus", 2, "--id", f"e2e-net-{os.getpid()}",
            "--net", f"tap-main,id=main,mac={MAC},queues=2,addr=192.0.2.1/24",
            "--net", f"tap-jumbo,id=jumbo,mtu=9000,addr=198.51.100.1/24,vhost={own}",
            "--net", f"tap-lasting,id=lasting,create=off,vhost={own}",
            "--net", "fd=9,id=given,mtu=1400",
            prefix=[*inside, sys.executable, "-c", WITH_TAP], pass_fds=())

    def set_up(self):
        """The guest's addresses; from the log, which NIC has which MAC."""
        host(*self.inside, "ip", "addr", "replace", "203.0.113.129/25", "dev", "tap-given")
        host(*self.inside, "ip", "link", "set", "tap-given", "mtu", "1400", "up")
        self.macs = dict(re.findall(r"net\.(\w+): tap \S+, MAC ([0-9a-f:]+)", self.errors()))
        self.nics = {}
        for line in self.sh("cd /sys/class/net; for n in *; do echo $n $(cat $n/address); done"
                            ).splitlines():
            nic, mac = line.split()
            for label, wanted in self.macs.items():
                if mac == wanted:
                    self.nics[label] = nic
        for label, nic in self.nics.items():
            prefix = 24 if label in ("main", "jumbo") else 25
            self.sh(f"ip addr add {NETS[label][1]}/{prefix} dev {nic}; ip link set {nic} up")

    def counters(self, label):
        return self.call("stats")["devices"][f"net.{label}"]

    def pings(self, label, *more):
        """The guest asks the host."""
        return self.run(f"ping -c 3 -i 0.2 -W 60 {' '.join(more)} {NETS[label][0]}")

    def pinged(self, label):
        """The host asks the guest."""
        host(*self.inside, "ping", "-c", "3", "-i", "0.2", "-W", "60", NETS[label][1])

    def assert_reachable(self, label):
        text, status = self.pings(label)
        assert status == 0 and " 0% packet loss" in text, text
        self.pinged(label)


@pytest.fixture(scope="module", name="debian", params=["pci", "mmio"])
def fixture_debian(request, inside):
    with contextlib.ExitStack() as stack:
        stack.callback(host, *inside, "ip", "link", "del", "tap-lasting")
        m = stack.enter_context(Guest(request.param, inside))
        m.login()
        m.set_up()
        yield m


def test_mac_addresses(debian):
    assert debian.macs["main"] == MAC
    assert set(debian.nics) == set(NETS), debian.macs
    assert len(set(debian.macs.values())) == len(NETS)
    for label in ("jumbo", "lasting", "given"):     # made up: local, and no group's
        assert int(debian.macs[label][:2], 16) & 3 == 2


@pytest.mark.parametrize("label", NETS)
def test_ping_both_ways(debian, label):
    before = debian.counters(label)
    debian.assert_reachable(label)
    after = debian.counters(label)
    assert after["tx-frames"] >= before["tx-frames"] + 6
    assert after["rx-frames"] >= before["rx-frames"] + 6
    assert debian.sh(f"cat /sys/class/net/{debian.nics[label]}/carrier") == "1"


@pytest.mark.parametrize("label", NETS)
def test_mtu(debian, label):
    """The guest has the MTU that the NIC tells, and frames of that size get through."""
    mtu = NETS[label][2]
    assert debian.sh(f"cat /sys/class/net/{debian.nics[label]}/mtu") == str(mtu)
    if label != "given":    # that one is the caller's
        assert links(debian.inside)[f"tap-{label}"]["mtu"] == mtu
    text, status = debian.pings(label, "-M do", f"-s {mtu - 28}")
    assert status == 0 and " 0% packet loss" in text, text
    text, status = debian.pings(label, "-M do", f"-s {mtu - 27}")
    assert status != 0 and "message too long" in text, text


def test_ipv6(debian):
    host(*debian.inside, "ip", "addr", "add", "2001:db8::1/64", "dev", "tap-main", "nodad")
    debian.sh(f"ip addr add 2001:db8::2/64 dev {debian.nics['main']} nodad; "
              "ping -c 3 -i 0.2 -W 60 2001:db8::1")


def test_offloads(debian):
    text = debian.sh(f"ethtool -k {debian.nics['main']}")
    have = dict(re.findall(r"^\s*([\w-]+): (on|off)", text, re.M))
    for feature in ("rx-checksumming", "tx-checksumming", "tcp-segmentation-offload",
                    "tx-tcp-segmentation", "tx-tcp6-segmentation", "scatter-gather",
                    "generic-receive-offload"):
        assert have[feature] == "on", text


def iperf(m, *options):
    """iperf3 from guest to host (-R: back); bytes received, by the receiver's count."""
    with subprocess.Popen([*m.inside, "iperf3", "--server", "--one-off", "--forceflush"],
                          stdout=subprocess.PIPE, text=True) as server:
        try:
            for line in server.stdout:
                if "listening" in line:
                    break
            text = m.sh(f"iperf3 --client {NETS['main'][0]} --json {' '.join(options)}")
            server.wait(120)
        finally:
            server.kill()
    result = json.loads(text)
    assert "error" not in result, text
    return result["end"]["sum_received"]["bytes"]


@pytest.mark.parametrize("way,there", [("tx", ""), ("rx", "--reverse")])
def test_iperf3(debian, way, there):
    """Bulk TCP, in frames longer than the MTU: segmentation was left to the host."""
    before = debian.counters("main")
    got = iperf(debian, "--bytes 32M", there)
    after = debian.counters("main")
    sent = after[f"{way}-bytes"] - before[f"{way}-bytes"]
    frames = after[f"{way}-frames"] - before[f"{way}-frames"]
    assert got >= 16 * MIB
    assert sent >= got
    assert sent / frames > 2 * NETS["main"][2], (sent, frames)


@pytest.mark.parametrize("label", ["main", "jumbo", "given"])
def test_data_arrives_whole(debian, label):
    """Random bytes by TCP to the host and from it; missing checksums are made good."""
    length = 4 * MIB
    send = f"head -c {length} /dev/urandom | tee /run/sent >&3; md5sum /run/sent"
    for count, command in ((0, send), (length, "md5sum <&3")):
        with subprocess.Popen([*debian.inside, sys.executable, "-c", PEER, str(count)],
                              stdout=subprocess.PIPE, text=True) as peer:
            try:
                assert peer.stdout.readline() == "listening\n"
                text = debian.sh(f"bash -c 'exec 3<>/dev/tcp/{NETS[label][0]}/5001; {command}'")
                assert text.split()[0] == peer.stdout.readline().strip()
            finally:
                peer.kill()
    assert text.split()[0] != hashlib.md5(b"").hexdigest()


def queue_counters(m):
    text = m.sh(f"ethtool -S {m.nics['main']}")
    found = re.findall(r"([rt]x_queue_\d_packets): (\d+)", text)
    return {name: int(value) for name, value in found}


def test_two_pairs_of_queues(debian):
    nic = debian.nics["main"]
    assert debian.sh(f"ethtool -l {nic} | grep Combined").split() == ["Combined:", "2"] * 2
    assert len(debian.sh(f"ls /sys/class/net/{nic}/queues").split()) == 4
    # What processor 1 sends goes by its own queue, and answers come by the one beside it.
    before = queue_counters(debian)
    debian.sh(f"taskset -c 1 ping -c 5 -i 0.2 -W 60 {NETS['main'][0]}")
    iperf(debian, "--bytes 4M --parallel 4 --affinity 1")
    after = queue_counters(debian)
    for name in ("tx_queue_1_packets", "rx_queue_1_packets"):
        assert after[name] > before[name], (before, after)
    # One pair less, and back.
    for pairs in (1, 2):
        debian.sh(f"ethtool -L {nic} combined {pairs}")
        debian.assert_reachable("main")
        iperf(debian, "--bytes 2M --parallel 4")


def test_changes_at_run_time(debian):
    """Link down and up, promiscuous, another address: by the control queue."""
    nic = debian.nics["main"]
    debian.sh(f"ip link set {nic} promisc on && ip link set {nic} promisc off")
    debian.sh(f"ip link set {nic} down && ip link set {nic} address 52:54:00:00:00:77 && "
              f"ip link set {nic} up")
    debian.assert_reachable("main")
    debian.sh(f"ip link set {nic} down && ip link set {nic} address {MAC} && ip link set {nic} up")
    debian.sh(f"ethtool -K {nic} tso off gso off rx off 2>/dev/null; ethtool -K {nic} tx off")
    iperf(debian, "--bytes 2M")
    debian.sh(f"ethtool -K {nic} tx on tso on gso on")
    debian.assert_reachable("main")


def test_vhost_is_used(debian):
    """Where there is one, and not where it is not wanted."""
    has = os.path.exists("/dev/vhost-net")
    log = dict(re.findall(r"net\.(\w+): tap [^,]*, MAC \S{17}(, vhost-net)?", debian.errors()))
    for label in NETS:
        off = debian.transport == "mmio" and label in ("jumbo", "lasting")
        assert bool(log[label]) == (has and not off), log


def test_pause_in_traffic(debian):
    """Rings come back in the middle of it, and go on where they were."""
    debian.shell.start("ping -i 0.05 -c 100 -W 60 " + NETS["main"][0])
    for _ in range(5):
        debian.pinged("main")
        debian.call("pause")
        debian.call("resume")
    text, status = debian.shell.finish()
    assert status == 0 and " 100 received, 0% packet loss" in text, text
    assert iperf(debian, "--bytes 4M", "--reverse") > 0


def test_driver_comes_again(debian):
    """Taken off the device and put on it: rings in other places, from the beginning."""
    nic = debian.nics["main"]
    device = debian.sh(f"basename $(readlink -f /sys/class/net/{nic}/device)")
    for _ in range(3):
        debian.sh(f"cd /sys/bus/virtio/drivers/virtio_net; echo {device} >unbind; echo {device} >bind")
        nic = debian.sh(f"udevadm settle; ls /sys/bus/virtio/devices/{device}/net")
        debian.sh(f"ip addr add {NETS['main'][1]}/24 dev {nic}; ip link set {nic} up")
        debian.assert_reachable("main")
    debian.nics["main"] = nic


def test_in_use(debian):
    """A tap has one machine."""
    with Debian("--net", "tap-lasting", prefix=debian.inside) as second:
        assert second.wait() == 1
        assert "tap-lasting" in second.errors() and "in use" in second.errors()
        assert second.text() == ""
    debian.assert_reachable("lasting")


def test_reboot(debian):
    debian.reboot()
    debian.set_up()
    for label in NETS:
        debian.assert_reachable(label)
    assert kernel_warnings(debian.shell) == []


def test_taps_at_the_end(debian):
    """What was made for the machine goes with it; what was there stays, without its MTU touched."""
    debian.power_off()
    left = links(debian.inside)
    assert "tap-lasting" in left
    assert not {"tap-main", "tap-jumbo", "tap-given"} & set(left)
    assert left["tap-lasting"]["mtu"] == 1500
