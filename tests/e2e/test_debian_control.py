"""test_debian_control.py - steering a Debian guest from outside, and what is left when it has gone

One machine that is looked at, paused, reset and killed; then another one from the same words, for
which nothing of the first may be in the way.
"""
import contextlib
import json
import os
import re
import signal
import subprocess
import time

import pytest

from coracle import Coracle, PROGRAM
from debian import (Debian, IMAGE, MIB, assert_clean, host, kernel_warnings, needs, root_disk,
                    scratch_dir, sparse, why_not)
from netns import network_namespace

WHY_NOT = why_not()
pytestmark = [pytest.mark.debian, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
              needs("ip", "nsenter", "unshare")]


class Place:
    """The files, the names and the network of a machine, which outlive it."""

    def __init__(self, stack):
        self.dir = stack.enter_context(scratch_dir())
        self.root = root_disk(self.dir)
        self.data = sparse(f"{self.dir}/data", 64 * MIB)
        self.socket = f"{self.dir}/control"
        self.inside = stack.enter_context(network_namespace())
        assert self.inside

    def start(self):
        m = Debian("--cpus", 2, "--control", self.socket, "--net", "tap-e2e,addr=192.0.2.1/24",
                   "--disk", f"{self.data},id=data,aio=threads", root=f"{self.root},id=root",
                   prefix=self.inside)
        m.socket_path = self.socket
        return m

    def links(self):
        return [link["ifname"] for link in json.loads(host(*self.inside, "ip", "-json", "link"))]


@pytest.fixture(scope="module", name="place")
def fixture_place():
    with contextlib.ExitStack() as stack:
        yield Place(stack)


@pytest.fixture(scope="module", name="debian")
def fixture_debian(place):
    with place.start() as m:
        yield m.login()


FIO = ("fio --thread --name=v --filename=/dev/vdb --size=8M --ioengine=libaio --direct=1 "
       "--iodepth=16 --rw=randrw --bs=4k --verify=crc32c --verify_fatal=1 --eta=never "
       "--output=/run/fio || { cat /run/fio; false; }")


def uptime(m):
    return float(m.sh("cut -d' ' -f1 /proc/uptime"))


def test_info(debian):
    info = debian.call("info")
    assert (info["state"], info["cpus"], info["memory"]) == ("running", 2, 512 * MIB)
    assert info["pid"] == debian.pid and info["resets"] == 0
    assert {"disk.root", "disk.data", "rng"} <= {d["name"] for d in info["devices"]}
    text = debian.ctl("info")
    for label, value in (("state", "running"), ("pid", debian.pid), ("vCPUs", 2),
                         ("memory", "512 MiB"), ("transport", "pci")):
        assert re.search(rf"^{label} +{value}$", text, re.M), text


def test_stats(debian):
    before = debian.call("stats")
    debian.sh("dd if=/dev/zero of=/dev/vdb bs=64k count=16 oflag=direct")
    after = debian.call("stats")
    counters = [s["devices"]["disk.data"] for s in (before, after)]
    assert counters[1]["write-bytes"] - counters[0]["write-bytes"] == MIB
    assert counters[1]["write-ops"] - counters[0]["write-ops"] == 16
    assert sum(v["exits"] for v in after["vcpus"]) > sum(v["exits"] for v in before["vcpus"])
    assert after["uptime-ms"] > before["uptime-ms"]
    assert 32 * MIB < after["process"]["rss"] < 1024 * MIB
    text = debian.ctl("stats")
    assert re.search(r"^disk\.data +write-bytes +\d+$", text, re.M), text
    assert len(re.findall(r"^\d +\d+ +\d+ +\d+ +\d+$", text, re.M)) == 2, text


def test_sandbox(debian):
    """Every thread, those that serve disks and NICs too, has given up all it could."""
    debian.sh(FIO)
    tasks = os.listdir(f"/proc/{debian.pid}/task")
    assert len(tasks) > 4   # main, two vCPUs, I/O
    for task in tasks:
        with open(f"/proc/{debian.pid}/task/{task}/status", encoding="ascii") as f:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
        name = status["Name"]
        assert status["Seccomp"] == "2", name
        assert status["NoNewPrivs"] == "1", name
        for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[kind], 16) == 0, (name, kind)


def test_pause_and_resume(debian):
    """Nothing moves in a paused guest; its clock and its disk go on afterwards."""
    before = uptime(debian)
    debian.shell.start(FIO)
    writes = debian.call("stats")["devices"]["disk.data"]["write-ops"]
    while debian.call("stats")["devices"]["disk.data"]["write-ops"] == writes:
        pass    # until fio is at it
    assert debian.ctl("pause").strip().endswith("paused")
    assert debian.call("info")["state"] == "paused"
    first = debian.call("stats")
    printed = len(debian.out.data)
    debian.send(b"\n")
    assert debian.ctl("info").splitlines()      # takes a while: a process of its own
    second = debian.call("stats")
    assert first["devices"] == second["devices"]
    assert [v["exits"] for v in first["vcpus"]] == [v["exits"] for v in second["vcpus"]]
    assert len(debian.out.data) == printed
    assert debian.ctl("resume").strip().endswith("running")
    text, status = debian.shell.finish()
    assert status == 0, text
    middle = uptime(debian)
    assert middle > before
    debian.sh("sleep 1")    # the guest's: its timers work
    assert uptime(debian) >= middle + 1
    assert abs(int(debian.sh("date +%s")) - time.time()) < 120
    assert kernel_warnings(debian.shell) == []


def test_events(debian):
    """What the last test did, as everybody who listened heard it."""
    debian.call("info")     # its answer comes after them
    names = [e["method"] for e in debian.control.events]
    assert names[-2:] == ["paused", "resumed"]


def test_reset(debian):
    """From outside, without the guest's doing: it starts again, and recovers its file system."""
    boot_id = debian.sh("echo written >/root/reset-test; sync; cat /proc/sys/kernel/random/boot_id")
    debian.ctl("reset")
    debian.event("reset")
    debian.login()
    assert debian.call("info")["resets"] == 1
    assert debian.sh("cat /proc/sys/kernel/random/boot_id") != boot_id
    assert debian.sh("cat /root/reset-test") == "written"
    assert debian.sh("nproc") == "2"


def test_killed(debian, place):
    """SIGKILL: no tap, no lock and no process stays; only the socket's file does."""
    debian.sh("echo committed >/root/kill-test; sync")
    assert "tap-e2e" in place.links()
    debian.signal(signal.SIGKILL)
    assert debian.wait() == -signal.SIGKILL
    assert "tap-e2e" not in place.links()
    assert os.path.exists(place.socket)
    left = subprocess.run([PROGRAM, "ctl", place.socket, "info"], capture_output=True, text=True,
                          check=False)
    assert left.returncode == 1 and "nobody listens" in left.stderr
    with Coracle("--kernel", IMAGE / "vmlinuz", "--disk", place.root, "--disk", place.data) as m:
        assert m.call("info")["state"] == "running"     # the disks are free
        m.call("quit")
        assert m.wait() == 0


@needs("e2fsck", "dumpe2fs")
def test_again_and_power_button(place):
    """The same words start the same machine; it ends by the button and leaves nothing at all."""
    files = set(os.listdir(place.dir)) - {"control"}
    with place.start() as m:
        m.login()
        assert m.sh("cat /root/kill-test") == "committed"
        assert "tap-e2e" in place.links()
        assert m.call("info")["resets"] == 0
        assert m.ctl("power-button").strip().endswith("running")
        assert m.event("shutdown") == {"reason": "guest-power-off", "status": 0}
        assert m.wait() == 0, m.story()
    assert set(os.listdir(place.dir)) == files
    assert "tap-e2e" not in place.links()
    assert_clean(place.root)
