"""test_debian_net.py - a Debian guest on the pod's network; every kind of link on a user's kernel

Tests of test_net.py run here again, for a kernel as users have it: with matchall, ipvlan and KVM in
hardware. Then a guest with systemd-networkd, whose DHCP client is none of ours, on a ptp network
and, as its second NIC, a bridge the way Multus users ask for one.
"""
import contextlib
import json
import os
import re

import pytest
import yaml

import test_net
import debian_pod
from debian import IMAGE, Debian, host, scratch_dir, why_not
from podlab import TIMEOUT, Lab, podnet, run
from test_net import (fixture_lab, test_calico, test_classifier, test_close_restores,
                      test_dhcp_stays_on_the_tap, test_killed, test_machines_on_one_parent,
                      test_network, test_stack_is_silent, test_two_ipvlan_links)

__all__ = ("fixture_lab", "test_calico", "test_classifier", "test_close_restores",
           "test_dhcp_stays_on_the_tap", "test_killed", "test_machines_on_one_parent",
           "test_network", "test_stack_is_silent", "test_two_ipvlan_links")

WHY_NOT = why_not() or test_net.WHY_NOT
pytestmark = [pytest.mark.debian, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

# What a guest's cloud-init makes of a network-config, for each way to set up a network but netplan, which is
# handed the file as it is.
RENDER = """
import glob, json, os, sys
from cloudinit import distros
from cloudinit.net import eni, network_manager, network_state, networkd, sysconfig

config, made = json.load(sys.stdin), {}
for kind, module in (("eni", eni), ("network-manager", network_manager), ("networkd", networkd),
                     ("sysconfig", sysconfig)):
    configs = distros.fetch("rhel" if kind == "sysconfig" else "debian").renderer_configs
    module.Renderer(configs.get(kind)).render_network_state(
        network_state.parse_net_config_data(config), target="/run/" + kind)
    files = [p for p in glob.glob("/run/" + kind + "/**", recursive=True) if os.path.isfile(p)]
    made[kind] = "".join(open(p).read() for p in files)
json.dump(made, sys.stdout)
"""

ATTACHMENT = {"type": "bridge", "ipam": {"type": "static"}}
MIB = 1 << 20


def networkd(nic):
    """IPv4 by DHCP; from cloud-init's network-config what that cannot carry, IPv6."""
    lines = ["[Match]", f"MACAddress={nic['match']['macaddress']}", "[Network]", "DHCP=ipv4",
             "IPv6AcceptRA=yes"]
    lines += [f"Address={a}" for a in nic.get("addresses", []) if ":" in a]
    lines += ["[DHCPv4]", "UseMTU=yes", "UseDomains=yes", "RoutesToDNS=no"]
    for route in nic.get("routes", []):
        if ":" in route["to"]:
            lines += ["[Route]", f"Destination={route['to']}"]
            lines += [f"Gateway={route['via']}", "GatewayOnLink=yes"] if "via" in route else \
                     ["Scope=link"]
    return "\\n".join(lines) + "\\n"


class Pod:
    """A Debian guest in a pod of two interfaces, the host beyond the node, and a pod beside it."""

    def __init__(self, stack):
        self.lab = stack.enter_context(contextlib.closing(Lab()))
        self.pod, self.other = self.lab.pod(), self.lab.pod()
        self.far = test_net.NETWORKS["ptp"](self.lab, self.pod)
        for pod, name, address in ((self.pod, "net1", "191.168.1.1/24"),
                                   (self.other, "eth0", "191.168.1.2/24")):
            config = {**ATTACHMENT, "ipam": {"type": "static", "addresses": [{"address": address}]}}
            pod.add(config, name)
        self.before = self.pod.state()
        config = os.path.join(stack.enter_context(scratch_dir()), "network-config")
        self.machine = stack.enter_context(Debian(
            "--net", "fd={fd0},mac={mac0},mtu={mtu0}", "--net", "fd={fd1},mac={mac1},mtu={mtu1}",
            prefix=podnet(self.pod, *test_net.TOLD, "--config", config)))
        self.machine.login()
        with open(config, encoding="utf-8") as f:
            self.nics = yaml.safe_load(f)["ethernets"]
        self.set_up()

    def mac(self, name):
        return self.pod.link(name)["address"]

    def set_up(self):
        """Until networkd has the addresses."""
        sh = self.machine.sh
        sh("mkdir -p /run/systemd/network")
        for name, nic in self.nics.items():
            sh(f"printf '{networkd(nic)}' >/run/systemd/network/10-{name}.network")
        sh("systemctl start systemd-networkd")
        sh("/lib/systemd/systemd-networkd-wait-online --timeout=200")
        sh("while ip -6 addr | grep -q tentative; do sleep 0.2; done")
        links = json.loads(sh("ip -j link"))
        self.link = {name: next(l["ifname"] for l in links if l["address"] == self.mac(name))
                     for name in self.nics}

    def netif(self, kind, name):
        """What networkd keeps of a link or a lease, KEY=value a line."""
        index = self.machine.sh(f"cat /sys/class/net/{self.link[name]}/ifindex")
        text = self.machine.sh(f"cat /run/systemd/netif/{kind}/{index}")
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


@pytest.fixture(scope="module", name="debian")
def fixture_debian():
    with contextlib.ExitStack() as stack:
        yield Pod(stack)


@pytest.mark.parametrize("name", ["eth0", "net1"])
def test_lease(debian, name):
    """systemd-networkd made of it what the pod has."""
    link = json.loads(debian.machine.sh(f"ip -j addr show dev {debian.link[name]}"))[0]
    inet = [a for a in link["addr_info"] if a["family"] == "inet"]
    assert [a["local"] for a in inet] == [debian.pod.address(name=name)]
    assert inet[0]["valid_life_time"] == 0xffffffff
    assert link["mtu"] == debian.pod.link(name)["mtu"]
    lease = debian.netif("leases", name)
    assert lease["DNS"] == "10.96.0.10"
    assert lease["HOSTNAME"] == "vm-1"
    assert lease["DOMAIN_SEARCH_LIST"] == "ns.svc.cluster.local cluster.local"


def test_routes(debian):
    """All that the pod has, and no more; an IPv6 gateway beyond the address's network is "on-link"."""
    names = {guest: pod for pod, guest in debian.link.items()}
    kernels = ("fe80::/64", debian.pod.address(6), "fd62::1")  # made with an address; the gateway

    def table(text):
        return {(r["dst"], r.get("gateway"), names.get(r["dev"], r["dev"]))
                for r in json.loads(text) if r["dst"] not in kernels}

    for family in ("-4", "-6"):
        assert table(debian.machine.sh(f"ip {family} -j route")) == \
            table(debian.pod("ip", family, "-j", "route"))


def test_advertisement(debian):
    """Name servers of IPv6 come by it alone."""
    assert debian.netif("links", "eth0")["DNS"].split() == ["10.96.0.10", "fd00::a"]


def test_ping(debian):
    """From beyond the node to the pod's address, and back."""
    for version in (4, 6):
        run(*debian.far.prefix, "ping", "-c", "3", "-i", "0.2", "-W", TIMEOUT,
            debian.pod.address(version))
    debian.machine.sh("ping -c 2 -W 30 192.0.2.2 && ping -6 -c 2 -W 30 2001:db8::2")


def iperf(client, address, *args):
    """Bytes received. What is in the sockets' buffers when the client has written all is not: -w bounds it."""
    report = json.loads(client("iperf3", "-J", "-c", address, "-w", "128K", *args))
    assert "error" not in report
    return report["end"]["sum_received"]["bytes"]


def test_iperf(debian):
    """Both ways, with the offloads a guest negotiates: checksums and big segments on a veth."""
    for least, *args in ((2 * MIB, "-n", "4M"), (2 * MIB, "-n", "4M", "-R"), (2 * MIB, "-6", "-n", "4M"),
                         (1, "-n", "1M", "-u", "-b", "0")):  # UDP may lose what comes too fast
        debian.machine.sh("iperf3 -s -D --one-off >/dev/null; "
                          "until ss -Hltn sport = 5201 | grep -q .; do sleep 0.1; done")
        address = debian.pod.address(6 if "-6" in args else 4)
        assert iperf(debian.far, address, *args) >= least


def test_vhost(debian):
    """The node's kernel moves the frames, where it can."""
    made = re.findall(r"net\.(\w+): tap [^,]*, MAC \S{17}(, vhost-net)?", debian.machine.errors())
    assert len(made) == 2
    assert all(bool(vhost) == os.path.exists("/dev/vhost-net") for _, vhost in made), made


def test_checksums(debian):
    """Filled in for a pod's link that does none, and looked at by a guest whose peer's link does none."""
    for ends in ([debian.pod], [debian.pod, debian.far]):
        for end in ends:
            end("ethtool", "-K", "eth0", "tx", "off", "gso", "off", "tso", "off")
        for least, *args in ((MIB // 2, "-n", "1M"), (MIB // 2, "-6", "-n", "1M", "-R"),
                             (1, "-n", "200K", "-u", "-b", "1M"),
                             (1, "-6", "-n", "200K", "-u", "-b", "1M", "-R")):
            debian.machine.sh("iperf3 -s -D --one-off >/dev/null; "
                              "until ss -Hltn sport = 5201 | grep -q .; do sleep 0.1; done")
            address = debian.pod.address(6 if "-6" in args else 4)
            assert iperf(debian.far, address, *args) >= least
    for family in ("Tcp", "Udp"):
        counted = [line.split() for line in debian.machine.sh(
            f"grep ^{family}: /proc/net/snmp").splitlines()]
        assert dict(zip(*counted))["InCsumErrors"] == "0"


def test_second_nic(debian):
    """The pod beside it sees the pod's address and the pod's MAC address."""
    run(*debian.other.prefix, "ping", "-c", "2", "-i", "0.2", "-W", TIMEOUT, "191.168.1.1")
    neighbours = debian.other.json("ip", "-j", "neigh", "show", "191.168.1.1")
    assert [n["lladdr"] for n in neighbours] == [debian.mac("net1")]
    debian.machine.sh("ping -c 2 -W 30 191.168.1.2")


@contextlib.contextmanager
def guests_root():
    """The guest's root file system, with a /run that can be written."""
    with scratch_dir() as directory, debian_pod.loop_device(f"{IMAGE}/root.ext4") as device:
        host("mount", "-o", "ro,noload", device, directory)
        host("mount", "-t", "tmpfs", "run", f"{directory}/run")
        try:
            yield directory
        finally:
            host("umount", f"{directory}/run")
            host("umount", directory)


def test_cloud_init_renders_it(lab, tmp_path):
    """Every way to set up a network, from a pod whose routes have no gateway: IPv4 by DHCP, IPv6 as told."""
    pod = lab.pod()
    test_net.ptp(lab, pod)
    run(*podnet(pod, *test_net.TOLD, "--config", tmp_path / "network-config"), "true")
    with guests_root() as root:
        made = json.loads(host("chroot", root, "/usr/bin/python3", "-c", RENDER, input=json.dumps(
            yaml.safe_load((tmp_path / "network-config").read_text()))))
    assert len(made) == 4
    for kind, text in made.items():
        assert pod.address(6) + "/128" in text, f"{kind}: {text}"
        assert re.search("dhcp|DHCP=ipv4|method=auto", text), f"{kind}: {text}"


def test_end(debian):
    debian.machine.power_off()
    assert debian.pod.state() == debian.before
