"""test_pod_net.py - the guest on the pod's network, by a real containerd with real CNI plugins"""
import re
import subprocess

import pytest

import cri
from node import TIMEOUT, guest

ROOT = "/dev/rootdisk"


@pytest.fixture(name="start")
def fixture_start(node, pods, device):
    """A pod of the guest that answers."""
    def start():
        node.configure(kernel=str(guest("pod")), cmdline="nics=1")
        pod = pods().start(devices=[(ROOT, device())], stdin=True)
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
