"""test_net.py - the guest on the pod's network: real namespaces, CNI plugins, tc, taps and machines

The guest is tests/guest/pod.c; where a frame has to be made by hand, a program that holds the tap.
"""
import ipaddress
import json
import re
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

from podlab import (Coracle, Kit, Lab, PODNET, TIMEOUT, TapGuest, discover, guest, is_offer,
                    packet_socket, podnet, why_no_kvm, run, sweep, why_not, works)

WHY_NOT = why_not("bridge", "ptp", "macvlan", "ipvlan", "host-local", "static")
WHY_NO_KVM = why_no_kvm()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
with_kvm = pytest.mark.skipif(WHY_NO_KVM is not None, reason=str(WHY_NO_KVM))

BRIDGE = {"type": "bridge", "bridge": "corbr0", "isGateway": True, "hairpinMode": True}
TOLD = ("--hostname", "vm-1", "--dns", "10.96.0.10", "--dns", "fd00::a",
        "--search", "ns.svc.cluster.local", "--search", "cluster.local")


@pytest.fixture(name="lab")
def fixture_lab():
    lab = Lab()
    yield lab
    lab.close()


def outside(lab):
    """A host beyond the node: 192.0.2.2, 2001:db8::2. The guest gets there by its default route."""
    far = lab.peer()
    lab.node("ip", "link", "add", "far", "type", "veth", "peer", "name", "eth0", "netns", far.name)
    lab.node("ip", "addr", "add", "192.0.2.1/24", "dev", "far")
    lab.node("ip", "addr", "add", "2001:db8::1/64", "dev", "far", "nodad")
    lab.node("ip", "link", "set", "far", "up")
    far("ip", "link", "set", "eth0", "up")
    far("ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
    far("ip", "addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
    far("ip", "route", "add", "default", "via", "192.0.2.1")
    far("ip", "-6", "route", "add", "default", "via", "2001:db8::1")
    return far


def bridge(lab, pod, **more):
    pod.add({**BRIDGE, "ipam": lab.ipam("10.61.0.0/24", "fd61::/64"), **more})
    return outside(lab)


def ptp(lab, pod, **more):
    pod.add({"type": "ptp", "ipam": lab.ipam("10.62.0.0/24", "fd62::/64"), **more})
    return outside(lab)


def parent(lab):
    """A link of the node with a network behind it, in which the peer is the gateway."""
    peer = lab.peer()
    lab.node("ip", "link", "add", "parent", "type", "veth", "peer", "name", "eth0",
             "netns", peer.name)
    lab.node("ip", "link", "set", "parent", "up")
    peer("ip", "link", "set", "eth0", "up")
    peer("ip", "addr", "add", "10.63.0.1/24", "dev", "eth0")
    peer("ip", "addr", "add", "fd63::1/64", "dev", "eth0", "nodad")
    return peer


def macvlan(lab, pod, **more):
    peer = parent(lab)
    pod.add({"type": "macvlan", "master": "parent", "ipam": lab.ipam("10.63.0.0/24", "fd63::/64"),
             **more})
    return peer


def need_ipvlan(lab):
    if not works(*lab.node.prefix, "ip", "link", "add", "link", "parent", "name", "try", "type",
                 "ipvlan"):
        pytest.skip("this kernel has no ipvlan")
    lab.node("ip", "link", "del", "try")


def ipvlan(lab, pod, mode="l2", **more):
    peer = parent(lab)
    need_ipvlan(lab)
    pod.add({"type": "ipvlan", "master": "parent", "mode": mode,
             "ipam": lab.ipam("10.63.0.0/24", "fd63::/64"), **more})
    return peer


def ipvlan_l3(lab, pod, **more):
    """Nobody asks for MAC addresses on such a link; the network knows where the pod is."""
    peer = ipvlan(lab, pod, mode="l3", **more)
    parent_ = lab.node.link("parent")["address"]
    for address in pod.addresses():
        peer("ip", "neigh", "replace", str(address.ip), "lladdr", parent_, "dev", "eth0")
    for text in ("10.63.0.254/24", "fd63::254/64"):
        lab.node("ip", "addr", "add", text, "dev", "parent", "nodad")
    return peer


NETWORKS = {"bridge": bridge, "ptp": ptp, "macvlan": macvlan, "ipvlan-l2": ipvlan,
            "ipvlan-l3": ipvlan_l3}


def expect_silence(space, address):
    """Nobody answers; the requests go out at once, so it's their loss that is waited for."""
    r = subprocess.run([*space.prefix, "ping", "-c", "3", "-i", "0.2", "-W", "1", address],
                       capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert ", 0 received" in r.stdout, r.stdout


def echo(space, address, size=100_000):
    """TCP to the guest and back."""
    def talk():
        # a guest that answers in order and never twice; the sender waits for room
        with socket.create_connection((address, 7), TIMEOUT) as s:
            s.settimeout(TIMEOUT)
            data, back = bytes(i * 31 & 255 for i in range(size)), b""
            for at in range(0, size, 4000):
                s.sendall(data[at:at + 4000])
                while len(back) < min(at + 4000, size):
                    piece = s.recv(65536)
                    assert piece, f"closed after {len(back)} bytes"
                    back += piece
            s.shutdown(socket.SHUT_WR)
            assert s.recv(1) == b""
            assert back == data
        return True

    assert space.inside(talk)


# ---- every kind of link ----

@with_kvm
@pytest.mark.parametrize("network", NETWORKS)
def test_network(lab, network):
    pod = lab.pod()
    peer = NETWORKS[network](lab, pod)
    before = pod.state()
    link = pod.link("eth0")
    with Kit(pod, *TOLD) as m:
        m.up()
        assert m.mac_and_mtu() == (link["address"], str(link["mtu"]))
        lease = m.facts("dhcp")
        assert lease["addr"] == pod.address()
        assert lease["lease"] == "ffffffff"
        assert lease["mtu"] == str(link["mtu"])
        assert lease["dns"] == "10.96.0.10"
        assert lease["host"] == "vm-1"
        assert lease["domain"] == "ns.svc.cluster.local"
        assert bytes.fromhex(lease["search"]) == (b"\2ns\3svc\7cluster\5local\0"
                                                  b"\7cluster\5local\0")
        check_routes(pod, lease)
        assert m.facts("ra")["flags"] == "0"
        run(*peer.prefix, "ping", "-c", "2", "-i", "0.2", "-W", TIMEOUT, pod.address())
        run(*peer.prefix, "ping", "-6", "-c", "2", "-i", "0.2", "-W", TIMEOUT, pod.address(6))
        run(*peer.prefix, "ping", "-c", "1", "-W", TIMEOUT, "-M", "do", "-s", link["mtu"] - 28,
            pod.address())
        echo(peer, pod.address())
        # by the routes it was told, to the gateway and beyond
        if lease.get("router"):
            m.ping(lease["router"])
        m.ping(peer.json("ip", "-4", "-j", "addr", "show", "eth0")[0]["addr_info"][0]["local"])
        pod.check()
        m.quit()
    assert pod.state() == before


def check_routes(pod, lease):
    """The guest's routes are the pod's, in a form it can use."""
    told = {}
    for text in lease["route"]:
        to, via = text.split(":")
        told[str(ipaddress.ip_network(to))] = via
    own = ipaddress.ip_interface(f"{lease['addr']}/{lease['prefix']}").network
    if own.prefixlen < 32:
        told[str(own)] = "0.0.0.0"
    pods = {r["dst"].replace("default", "0.0.0.0/0"): r.get("gateway", "0.0.0.0")
            for r in pod.json("ip", "-4", "-j", "route")}
    pods = {to if "/" in to else to + "/32": via for to, via in pods.items()}
    assert told == pods
    assert lease.get("router") == next((via for to, via in pods.items()
                                        if to == "0.0.0.0/0" and via != "0.0.0.0"), None)


@with_kvm
@pytest.mark.parametrize("mtu", [1400, 9000])
@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_mtu(lab, mtu, transport):
    pod = lab.pod()
    bridge(lab, pod, mtu=mtu)
    with Kit(pod, args=("--transport", transport)) as m:
        m.up()
        assert m.mac_and_mtu()[1] == str(mtu)
        assert m.facts("dhcp")["mtu"] == str(mtu)
        run(*lab.node.prefix, "ping", "-c", "1", "-W", TIMEOUT, "-M", "do", "-s", mtu - 28,
            pod.address())
        assert not works(*lab.node.prefix, "ping", "-c", "1", "-W", "1", "-M", "do", "-s", mtu - 27,
                         pod.address())
        echo(lab.node, pod.address())
        m.quit()


@with_kvm
def test_two_interfaces(lab):
    """The second as Multus users write it: a bridge by its default name, a static address."""
    attachment = json.loads('{ "cniVersion": "0.3.1", "type": "bridge", "master": "eth1", '
                            '"ipam": { "type": "static", '
                            '"addresses": [ { "address": "191.168.1.1/24" } ] } }')
    pod = lab.pod()
    far = bridge(lab, pod)
    pod.add(attachment, "net1")
    other = lab.pod()
    attachment["ipam"]["addresses"][0]["address"] = "191.168.1.2/24"
    other.add(attachment)
    before = pod.state()
    with Kit(pod, nics=2) as m:
        m.up()
        assert m.mac_and_mtu(0)[0] == pod.link("eth0")["address"]
        assert m.mac_and_mtu(1)[0] == pod.link("net1")["address"]
        assert m.facts("dhcp", 0)["addr"] == pod.address()
        second = m.facts("dhcp", 1)
        assert (second["addr"], second["prefix"]) == ("191.168.1.1", "24")
        assert "router" not in second and not second["route"]
        run(*other.prefix, "ping", "-c", "1", "-W", TIMEOUT, "191.168.1.1")
        run(*far.prefix, "ping", "-c", "1", "-W", TIMEOUT, pod.address())
        m.ping("191.168.1.2", nic=1)
        m.ping("192.0.2.2", nic=0)
        echo(other, "191.168.1.1")
        m.quit()
    assert pod.state() == before


@with_kvm
def test_two_ipvlan_links(lab):
    """On one parent: two NICs with its MAC address, each with its own link's frames."""
    pod = lab.pod()
    peer = ipvlan(lab, pod)
    pod.add({"type": "ipvlan", "master": "parent", "mode": "l2", "ipam": {
        "type": "static", "addresses": [{"address": "10.64.0.2/24"}]}}, "net1")
    peer("ip", "addr", "add", "10.64.0.1/24", "dev", "eth0")
    with Kit(pod, nics=2) as m:
        m.up()
        assert m.mac_and_mtu(0)[0] == m.mac_and_mtu(1)[0] == lab.node.link("parent")["address"]
        assert m.facts("dhcp", 1)["addr"] == "10.64.0.2"
        for address in (pod.address(), "10.64.0.2"):
            run(*peer.prefix, "ping", "-c", "2", "-i", "0.2", "-W", TIMEOUT, address)
        m.ping("10.63.0.1", nic=0)
        m.ping("10.64.0.1", nic=1)
        m.quit()


@with_kvm
@pytest.mark.parametrize("network", ["macvlan", "ipvlan-l2", "ipvlan-l3"])
def test_machines_on_one_parent(lab, network):
    """A machine and an ordinary container, and two machines, talk past the parent link."""
    one, two, plain = lab.pod(), lab.pod(), lab.pod()
    NETWORKS[network](lab, one)
    config = one.added[0][0]
    for pod in (two, plain):
        pod.add({k: v for k, v in config.items() if k not in ("cniVersion", "name")})
    with Kit(one) as m, Kit(two) as n:
        m.up()
        n.up()
        run(*plain.prefix, "ping", "-c", "1", "-W", TIMEOUT, one.address())
        m.ping(two.address())
        n.ping(one.address())
        m.ping(plain.address())
        m.quit()
        n.quit()


@with_kvm
def test_renewal(lab):
    pod = lab.pod()
    bridge(lab, pod)
    with Kit(pod) as m:
        m.up()
        m.send(b"again 0\n")
        m.line("nic 0 dhcp addr=" + pod.address() + " .*")
        m.quit()


# ---- unusual routes ----

def plain_pod(lab, *commands):
    """A pod that no plugin made: a veth, and what the commands do."""
    pod = lab.pod()
    lab.node("ip", "link", "add", "veth", "type", "veth", "peer", "name", "eth0", "netns", pod.name)
    lab.node("ip", "link", "set", "veth", "up")
    pod("ip", "link", "set", "eth0", "up")
    for command in commands:
        pod("ip", *command.split())
    pod.wait_for_addresses()
    return pod


@with_kvm
def test_calico(lab):
    """A /32, and a gateway that is nowhere near it and answers by proxy."""
    lab.node("sysctl", "-qw", "net.ipv4.conf.default.proxy_arp=1")
    pod = plain_pod(lab, "addr add 10.65.1.7/32 dev eth0",
                    "route add 169.254.1.1 dev eth0 scope link",
                    "route add default via 169.254.1.1 dev eth0",
                    "addr add fd65::7/128 dev eth0 nodad",
                    "-6 route add default via fe80::ecee:eeff:feee:eeee dev eth0")
    lab.node("ip", "route", "add", "10.65.1.7", "dev", "veth")
    # proxy_arp wants a route to what is asked for
    lab.node("ip", "route", "add", "default", "dev", "lo")
    far = outside(lab)
    with Kit(pod) as m:
        m.up()
        lease = m.facts("dhcp")
        assert (lease["addr"], lease["prefix"]) == ("10.65.1.7", "32")
        assert lease["router"] == "169.254.1.1"
        assert lease["route"] == ["169.254.1.1/32:0.0.0.0", "0.0.0.0/0:169.254.1.1"]
        m.ping("192.0.2.2")
        run(*far.prefix, "ping", "-c", "1", "-W", TIMEOUT, "10.65.1.7")
        ra = m.facts("ra")
        assert ra["router"] == "fe80000000000000eceeeefffeeeeeee"
        assert ra["lifetime"] == "9000"
        assert "option3" not in ra
        m.quit()


@with_kvm
def test_onlink_gateway(lab):
    """Reached by a flag of the route, not by another route."""
    pod = plain_pod(lab, "addr add 10.65.1.7/32 dev eth0",
                    "route add default via 10.99.0.1 dev eth0 onlink")
    lab.node("ip", "addr", "add", "10.99.0.1/32", "dev", "veth")
    lab.node("ip", "route", "add", "10.65.1.7", "dev", "veth")
    with Kit(pod) as m:
        m.up()
        assert m.facts("dhcp")["route"] == ["10.99.0.1/32:0.0.0.0", "0.0.0.0/0:10.99.0.1"]
        m.ping("10.99.0.1")
        m.quit()


def test_what_is_no_nic(lab):
    """lo, links that are down, ports of a bridge and taps of others."""
    pod = plain_pod(lab, "addr add 10.65.1.7/24 dev eth0",
                    "link add name down0 type veth peer name down1",
                    "link add name bridge0 type bridge",
                    "link add name port0 type veth peer name port1",
                    "link set port0 master bridge0 up", "tuntap add vpn0 mode tap",
                    "link set vpn0 up")
    r = run(*podnet(pod), "echo", "{name0}")
    assert r == "eth0\n"
    r = subprocess.run([*podnet(pod), "echo", "{name1}"], capture_output=True, text=True,
                       check=False, timeout=TIMEOUT)
    assert r.returncode == 125 and "no such NIC" in r.stderr


def test_no_links(lab):
    pod = lab.pod()
    assert run(*podnet(pod), "echo", "fine") == "fine\n"


def test_config_for_cloud_init(lab, tmp_path):
    yaml = pytest.importorskip("yaml")
    pod = lab.pod()
    ptp(lab, pod)
    run(*podnet(pod, *TOLD, "--config", tmp_path / "network-config"), "true")
    config = yaml.safe_load((tmp_path / "network-config").read_text())
    eth0 = config["ethernets"]["eth0"]
    assert config["version"] == 2
    assert eth0["match"] == {"macaddress": pod.link("eth0")["address"]}
    # A route without a gateway is the end of some of cloud-init's renderers.
    assert eth0["dhcp4"] and eth0["addresses"] == [pod.address(6) + "/128"]
    assert {"to": "::/0", "via": "fd62::1", "on-link": True} in eth0["routes"]
    assert all("via" in route for route in eth0["routes"])
    assert eth0["nameservers"] == {"addresses": ["10.96.0.10", "fd00::a"],
                                   "search": ["ns.svc.cluster.local", "cluster.local"]}


def test_classifier(lab):
    """The right one where the kernel has it, and on both ends."""
    pod = plain_pod(lab, "addr add 10.65.1.7/24 dev eth0")
    lab.node("tc", "qdisc", "add", "dev", "veth", "clsact")
    has = works(*lab.node.prefix, "tc", "filter", "add", "dev", "veth", "ingress", "matchall",
                "action", "mirred", "egress", "redirect", "dev", "lo")
    text = run(*podnet(pod), *pod.prefix, "sh", "-c",
               "for d in $(ls /sys/class/net); do tc filter show dev $d ingress; done")
    kinds = re.findall(r"pref 49313 (\w+) chain 0 $", text, re.M)
    assert kinds == ["matchall" if has else "u32"] * 2, text
    actions = re.findall(r"mirred \(Egress Redirect to device (?:eth0|cortap\d+)\) stolen", text)
    assert len(actions) == 2, text


# ---- frames ----

def test_no_qdisc_before_the_tap(lab):
    """It would always be empty, and cost."""
    pod = plain_pod(lab, "addr add 10.65.1.7/24 dev eth0")
    for queues in ("1", "3"):
        text = run(*podnet(pod, "--queues", queues), *pod.prefix, "tc", "qdisc", "show")
        assert re.findall(r"^qdisc (\w+) \S+ dev cortap\d+ root", text, re.M) == ["noqueue"], text


def test_stack_is_silent(lab):
    """While the guest says nothing, nobody else answers for it, though the link has its address."""
    pod = lab.pod()
    bridge(lab, pod)
    run(*lab.node.prefix, "ping", "-c", "1", "-W", TIMEOUT, pod.address())
    lab.node("ip", "neigh", "flush", "all")
    with TapGuest(pod):
        expect_silence(lab.node, pod.address())
        expect_silence(lab.node, pod.address(6))
        assert "REACHABLE" not in lab.node("ip", "neigh", "show", pod.address())
    # the first is lost by the neighbour that was not there
    run(*lab.node.prefix, "ping", "-c", "5", "-i", "0.3", pod.address())


def test_dhcp_stays_on_the_tap(lab):
    """A server in the pod's network neither hears the guest nor reaches it."""
    pod = plain_pod(lab, "addr add 10.65.1.7/24 dev eth0")
    mac = pod.link("eth0")["address"]
    with TapGuest(pod) as g, packet_socket(lab.node, "veth") as wire:
        g.send(discover(mac, 1))
        g.frame(lambda f: is_offer(f, 1), "the offer")
        marker = b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) + b"\x88\xb5" + bytes(60)
        g.send(marker)
        frame, sender = wire.recvfrom(4096)
        while frame[12:14] != b"\x88\xb5":
            assert not (frame[12:14] == b"\x08\0" and frame[36:38] == b"\0\x43"), frame.hex()
            frame, sender = wire.recvfrom(4096)
        assert sender[2] != socket.PACKET_OUTGOING
        # and the other way: an offer of somebody's, then a marker
        offer = bytearray(discover(mac, 77))
        struct.pack_into("!HH", offer, 34, 67, 68)
        wire.send(bytes(offer))
        wire.send(marker)
        g.frame(lambda f: f[12:14] == b"\x88\xb5", "the marker")
        assert not any(is_offer(f, 77) for f in g.frames())


def test_network_without_addresses(lab):
    """A second NIC on a network that has a DHCP server of its own: its, not ours, answers."""
    pod = plain_pod(lab)
    mac = pod.link("eth0")["address"]
    with TapGuest(pod) as g, packet_socket(lab.node, "veth") as wire:
        g.send(discover(mac, 6))
        while True:
            frame = wire.recv(4096)
            if frame[46:50] == struct.pack("!I", 6):
                break
        offer = bytearray(frame)
        struct.pack_into("!HH", offer, 34, 67, 68)
        wire.send(bytes(offer))
        g.frame(lambda f: is_offer(f, 6), "the server's offer")
        assert sum(is_offer(f, 6) for f in g.frames()) == 1


def test_only_for_the_nic(lab):
    """No answer to somebody behind the guest's NIC, in its VLAN or with another address."""
    pod = plain_pod(lab, "addr add 10.65.1.7/24 dev eth0")
    mac = pod.link("eth0")["address"]
    with TapGuest(pod) as g, packet_socket(lab.node, "veth") as wire:
        g.send(discover(mac, 2, vlan=5))
        g.send(discover("02:00:00:00:00:99", 3))
        g.send(discover(mac, 4))
        g.frame(lambda f: is_offer(f, 4), "the offer")
        assert not any(is_offer(f, x) for f in g.frames() for x in (2, 3))
        # but what is in a VLAN goes on to the network; the kernel shows it without the tag
        while True:
            frame = wire.recv(4096)
            if frame[46:50] == struct.pack("!I", 2):
                break


def test_flood(lab):
    """A guest that asks without end is answered again when it comes to its senses."""
    pod = plain_pod(lab, "addr add 10.65.1.7/24 dev eth0")
    mac = pod.link("eth0")["address"]
    with TapGuest(pod) as g:
        for i in range(3000):
            g.send(discover(mac, 1000 + i))
        # what the socket's buffer had no room for is lost, as frames may be: ask again
        for xid in range(5000, 5000 + int(TIMEOUT) * 10):
            g.send(discover(mac, xid))
            if g.reader.wait_for(lambda data: any(is_offer(f, x) for f in g.frames()[-50:]
                                                  for x in range(5000, xid + 1)) or None, 0.1):
                break
        else:
            pytest.fail("no answer after the flood")


# ---- ends ----

def test_close_restores(lab):
    pod = lab.pod()
    ptp(lab, pod)
    before = pod.state()
    during = json.loads(run(*podnet(pod), *pod.prefix, "ip", "-j", "link"))
    assert any(l["ifname"].startswith("cortap") for l in during)
    assert pod.state() == before


def test_keeps_what_others_have(lab):
    """Flags and rules on a link that were there before stay there."""
    pod = plain_pod(lab, "addr add 10.65.1.7/24 dev eth0", "link set eth0 allmulticast on")
    pod("tc", "qdisc", "add", "dev", "eth0", "clsact")
    pod("tc", "filter", "add", "dev", "eth0", "egress", "protocol", "ip", "prio", "7", "u32",
        "match", "u32", "0", "0", "flowid", "1:1")
    before = pod.state()
    run(*podnet(pod), "true")
    assert pod.state() == before


def holder(pod, *options):
    """NICs that are open, and a program that holds them until its input ends."""
    p = subprocess.Popen([*podnet(pod, *options), "sh", "-c", "echo here; exec cat", "{fd0}"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert p.stdout.readline() == b"here\n"
    return p


@pytest.mark.parametrize("orphan", [False, True])
def test_killed(lab, orphan):
    """Nothing is left after a sweep once the machine has gone, too; and a second shim can start
    where one was killed, whether its machine lives on or not."""
    pod = lab.pod()
    bridge(lab, pod)
    before = pod.state()
    first = holder(pod, *(["--orphan"] if orphan else []))
    first.kill()
    first.wait()
    if orphan:
        during = pod.state()
        sweep(pod)
        assert pod.state() == during
    end_holder(pod, first)
    assert pod.state() != before
    sweep(pod)
    assert pod.state() == before
    sweep(pod)
    assert pod.state() == before
    # again, without a sweep in between
    second = holder(pod, *(["--orphan"] if orphan else []))
    second.kill()
    second.wait()
    third = holder(pod)
    assert taps(pod) == 1
    second.stdin.close()
    second.stdout.close()
    third.stdin.close()
    assert third.wait(TIMEOUT) == 0
    third.stdout.close()
    assert pod.state() == before


def taps(pod):
    return sum(l["ifname"].startswith("cortap") for l in pod.json("ip", "-j", "link"))


def end_holder(pod, process):
    """What podnet started ends, now or because podnet was killed, and the tap with it."""
    process.stdin.close()
    process.stdout.close()
    end, turn = time.monotonic() + TIMEOUT, threading.Event()
    while taps(pod):
        assert time.monotonic() < end, "the tap stays"
        turn.wait(0.02)


def test_sweep_spares_the_living(lab):
    """A sweep for somebody else's container takes nothing from a running machine."""
    pod = lab.pod()
    bridge(lab, pod)
    mac = pod.link("eth0")["address"]
    with TapGuest(pod) as g, packet_socket(lab.node, "corbr0") as wire:
        during = pod.state()
        sweep(pod)
        assert pod.state() == during
        g.send(discover(mac, 9))
        g.frame(lambda f: is_offer(f, 9), "the offer")
        g.send(b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) + b"\x88\xb5" + bytes(60))
        while wire.recv(4096)[12:14] != b"\x88\xb5":
            pass


def test_namespace_goes_first(lab):
    """CNI's DEL and the namespace's end before the shim's."""
    pod = lab.pod()
    bridge(lab, pod)
    p = holder(pod)
    pod.remove()
    p.stdin.close()
    assert p.wait(TIMEOUT) == 0
    p.stdout.close()
    sweep(pod)


def test_machine_killed(lab):
    if WHY_NO_KVM:
        pytest.skip(WHY_NO_KVM)
    pod = lab.pod()
    bridge(lab, pod)
    before = pod.state()
    with Kit(pod) as m:
        m.up()
        children = run("pgrep", "-P", m.pid).split()
        assert len(children) == 1
        run("kill", "-KILL", children[0])
        assert m.wait() == 128 + signal.SIGKILL
    assert pod.state() == before


@pytest.mark.parametrize("path,says", [
    ("/run/netns/coracle-there-is-none", "No such file or directory"),
    ("/etc/hostname", "is gone"),
    ("/proc/self/ns/net", "hostNetwork"),
])
def test_no_namespace(lab, path, says):
    r = subprocess.run([*lab.node.prefix, str(PODNET), path, "--", "true"], capture_output=True,
                       text=True, check=False, timeout=TIMEOUT)
    assert r.returncode == 125
    assert says in r.stderr


def test_too_many_links(lab):
    pod = lab.pod()
    for i in range(9):
        pod("ip", "link", "add", f"a{i}", "type", "veth", "peer", "name", f"b{i}")
        pod("ip", "link", "set", f"a{i}", "up")
        pod("ip", "link", "set", f"b{i}", "up")
    before = pod.state()
    r = subprocess.run([*podnet(pod), "true"], capture_output=True, text=True, check=False,
                       timeout=TIMEOUT)
    assert r.returncode == 125 and "more than 16" in r.stderr
    assert pod.state() == before


@with_kvm
def test_many_queues(lab):
    """A tap of several queues, all of which the machine has; a guest that uses one pair gets all frames."""
    pod = lab.pod()
    peer = bridge(lab, pod)
    with Kit(pod, "--queues", "4") as m:
        m.up()
        run(*peer.prefix, "ping", "-c", "8", "-i", "0.2", "-W", TIMEOUT, pod.address())
        echo(peer, pod.address())
        m.quit()


@with_kvm
def test_some_of_a_taps_queues(lab):
    pod = lab.pod()
    bridge(lab, pod)
    with Coracle("--kernel", guest("hello"), "--memory", "64M", "--net", "fd={fd0},mac={mac0}",
                 control=False, prefix=podnet(pod, "--queues", "4")) as m:
        assert m.wait() == 0, m.story()
