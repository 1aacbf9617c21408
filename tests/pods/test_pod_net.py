"""test_pod_net.py - the guest on the pod's network, by a real containerd with real CNI plugins"""
import json
import re
import subprocess

import pytest

import cri
from node import Node, Pod, TIMEOUT, guest, why_not
from podlab import Netns

# A network attachment as its users write it.
ATTACHMENT = """{ "cniVersion": "0.3.1", "type": "bridge", "master": "eth1",
    "ipam": { "type": "static", "addresses": [ { "address": "191.168.1.1/24" } ] } }"""

ROOT = "/dev/rootdisk"


@pytest.fixture(name="start")
def fixture_start(node, pods, device):
    """A pod of the guest that answers."""
    def start(**sandbox):
        node.configure(kernel=str(guest("pod")), cmdline="nics=1")
        pod = pods(**sandbox).start(devices=[(ROOT, device())], stdin=True)
        pod.line("ready")
        return pod

    return start


def ping(pod):
    """By the node's own bridge: another test's node may have the same network."""
    subprocess.run(["ping", "-I", pod.node.name, "-c", "3", "-i", "0.2", "-W", "5", pod.ip()],
                   check=True, timeout=TIMEOUT, stdout=subprocess.DEVNULL)


def test_what_the_guest_is_told(start):
    pod = start()
    lease = pod.line(r"nic 0 dhcp (.*)").group(1)
    assert f"addr={pod.ip()} " in lease
    assert "dns=192.0.2.53 " in lease
    assert f"host={pod.name} " in lease
    assert "domain=example.test " in lease
    ping(pod)


FORWARD = """
import socket
with socket.create_connection(("127.0.0.1", 7), {timeout}) as s:
    s.sendall(b"there and back")
    s.shutdown(socket.SHUT_WR)
    while piece := s.recv(64):
        print(piece.decode(), end="")
"""


def test_port_forward(start, device):
    """containerd connects to the port on the namespace's loopback, where the guest is not."""
    pod = start()

    def forward():
        return subprocess.run(["nsenter", f"--net={pod.netns()}", "/usr/bin/python3", "-c",
                               FORWARD.format(timeout=TIMEOUT)], check=False, capture_output=True, text=True)

    for _ in range(3):
        assert forward().stdout == "there and back"
    pod.stop(timeout=0)
    assert "ConnectionRefusedError" in forward().stderr
    pod.start(devices=[(ROOT, device())])  # the machine's end took it away, the next one's start brings it back
    pod.line("ready")
    assert forward().stdout == "there and back"


def test_a_host_name_of_its_own(start):
    """spec.hostname of the pod."""
    assert "host=another " in start(hostname="another").line(r"nic 0 dhcp (.*)").group(1)


def test_refused_second_machine_leaves_the_network(start, device):
    """containerd has what the refused container left behind cleared away."""
    pod = start()
    first = pod.container
    with pytest.raises(cri.Refused):
        pod.start(devices=[(ROOT, device())])
    ping(pod)
    pod.remove_container()
    ping(pod)
    pod.container = first


def test_network_comes_back(start, device):
    """A second machine in the same pod has the same address, once the first has ended."""
    pod = start()
    mac = re.search(r"mac=(\S+)", pod.log()).group(1)
    pod.stop(0)
    pod.remove_container()
    pod.start(devices=[(ROOT, device())], stdin=True)
    pod.line("ready")
    assert re.search(r"mac=(\S+)", pod.log()).group(1) == mac
    ping(pod)


@pytest.fixture(name="far_node")
def fixture_far_node(device):  # disks outlive pods
    """make(attachment...) a node in a network namespace: its bridges have names of the user's choice."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    space, made = Netns("node"), []

    def make(*attachments):
        made.append(Node(prefix=("nsenter", f"--net={space.path}"), attachments=attachments,
                         kernel=str(guest("pod")), cmdline="nics=2"))
        made[0].space = space
        return made[0]

    yield make
    try:
        for node in made:
            for pod in node.cri("ListPodSandbox").items:
                node.cri("StopPodSandbox", pod_sandbox_id=pod.id)
                node.cri("RemovePodSandbox", pod_sandbox_id=pod.id)
            node.check_clean()
    finally:
        for node in made:
            node.close()
        space.remove()


def test_attachment(far_node, device):
    """By the real plugins, in the order in which Multus runs them."""
    node = far_node(json.loads(ATTACHMENT))
    pod = Pod(node).run().start(devices=[(ROOT, device())], stdin=True)
    pod.line("ready")
    assert f"addr={pod.ip()} " in pod.line(r"nic 0 dhcp (.*)").group(1)
    second = pod.line(r"nic 1 dhcp (.*)").group(1)
    assert "addr=191.168.1.1 " in second and " prefix=24 " in second, second
    assert "route" not in second, second
    node.space("ip", "addr", "add", "191.168.1.9/24", "dev", "cni0")  # the plugin's own name for it
    node.space("ping", "-c", "2", "-i", "0.2", "-W", TIMEOUT, "191.168.1.1")
    node.space("ping", "-c", "2", "-i", "0.2", "-W", TIMEOUT, pod.ip())
    assert node.space.json("ip", "-j", "neigh", "show", "191.168.1.1")[0]["lladdr"] == \
        pod.line(r"nic 1 mac=(\S+) .*").group(1)


def test_one_mac_address_twice(far_node, device, tmp_path):
    """As two ipvlan links on one parent have it. DHCP works, cloud-init is told nothing, and both say so."""
    twin = {**json.loads(ATTACHMENT), "capabilities": {"mac": True},
            "runtimeConfig": {"mac": "02:00:00:00:00:77"}}
    other = {**twin, "bridge": "other", "ipam": {"type": "static", "addresses": [
        {"address": "198.51.100.7/24"}]}}
    node = far_node(twin, other)
    node.configure(cmdline="nics=3")
    pod = Pod(node, {"vm.coracle.dev/cloud-init-from": "/cidata"}).run()
    pod.start(devices=[(ROOT, device())], mounts=[("/cidata", str(tmp_path))], stdin=True)
    pod.line("ready")
    for nic, address in ((1, "191.168.1.1"), (2, "198.51.100.7")):
        assert f"addr={address} " in pod.line(rf"nic {nic} dhcp (.*)").group(1)
    sentence = ("net1 and net2 have the same MAC address, as ipvlan links on one parent have; "
                "cloud-init cannot do with that and is told nothing of them: addresses come by DHCP only")
    assert f"coracle: {sentence}" in pod.log().splitlines()
    assert f"warning: {sentence}" in node.log()
    path, = (node.dir / "run/pods").glob("*/cidata.iso")
    config = subprocess.run(["bsdtar", "-xOf", path, "network-config"], check=True,
                            capture_output=True, text=True).stdout
    assert '"eth0":' in config and "net1" not in config and "net2" not in config
