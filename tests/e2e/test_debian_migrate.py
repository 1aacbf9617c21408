"""test_debian_migrate.py - a Debian guest at work moves from process to process

While it moves, fio writes and verifies its disk, a TCP connection runs into it, a block of memory is
summed again and again, and a loop watches its clock. Each hop is a new process on the same disk, with a
tap of its own on one bridge. Where the host has vhost-net, each other process does without it.
"""
import contextlib
import itertools
import os
import re
import subprocess
import time

import pytest

from coracle import PROGRAM, TOP, Coracle
from debian import Debian, Shell, host, kernel_warnings, needs, root_disk, scratch_dir, why_not

WHY_NOT = why_not()
pytestmark = [pytest.mark.debian, needs("ip", "iperf3"),
              pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]
SLOW_KVM = TOP / "build/release/tests/e2e/slow_kvm"
HOPS = int(os.environ.get("CORACLE_TEST_HOPS", "3"))  # each costs most of a minute in the lab
GUEST, HOST = "198.51.100.2", "198.51.100.1"

WORK = r"""
dmesg -c >/dev/null; cd /root
ip link set dev $(ls /sys/class/net | grep -v lo) up
ip addr add 198.51.100.2/24 dev $(ls /sys/class/net | grep -v lo)
head -c 16M /dev/urandom >/run/blob; sha256sum /run/blob >/run/blob.sum
(while [ ! -e /run/stop ]; do
	sha256sum --quiet -c /run/blob.sum >>/run/trouble 2>&1 || echo memory >>/run/trouble
	echo round >>/run/memory.rounds
done) &
(last=0; while [ ! -e /run/stop ]; do
	read -r up rest </proc/uptime; now=${up%.*}${up#*.}
	[ $now -ge $last ] || echo "clock: $last then $now" >>/run/trouble
	last=$now; sleep 0.1
done) &
(while [ ! -e /run/stop ]; do
	fio --name=v --directory=/root --size=8M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio \
		--iodepth=8 --verify=crc32c --verify_fatal=1 --do_verify=1 >/run/fio.log 2>&1 ||
		{ echo fio >>/run/trouble; cat /run/fio.log >>/run/trouble; }
	echo round >>/run/fio.rounds
done) &
iperf3 -s -1 >/run/iperf3.log 2>&1 &
:"""


@contextlib.contextmanager
def bridge(name):
    host("ip", "link", "add", name, "type", "bridge", "forward_delay", "0")
    try:
        host("ip", "addr", "add", f"{HOST}/24", "dev", name)
        host("ip", "link", "set", name, "up")
        yield name
    finally:
        host("ip", "link", "del", name, check=False)


def vhost(number):
    return "off" if number % 2 else "auto"


def plug(tap, br):
    host("ip", "link", "set", tap, "master", br, "up")


def clock_ahead(shell):
    """How far the guest's wall clock is ahead of ours, at least and at most; it starts from an RTC that
    counts seconds, so that is not nothing."""
    before = time.time()
    guest = float(shell.sh("date +%s.%N"))
    return guest - time.time(), guest - before


def hop(stack, machine, number, directory, root, transport_tap):
    """Move to a new process; it."""
    tap, br = transport_tap(number), "ctmig"
    address = f"unix:{directory}/hop{number}"
    target = stack.enter_context(Coracle("--incoming", address, "--disk", f"id=disk0,path={root}",
                                         "--net", f"id=net0,tap={tap},vhost={vhost(number)}"))
    assert target.err.wait_for(lambda d: b"waiting for a machine" in d or None, 60), target.story()
    job = subprocess.Popen([PROGRAM, "ctl", machine.socket_path, "migrate", address, "--timeout",
                            "300s", "--json"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           text=True)
    while job.poll() is None:  # its tap joins the bridge as soon as it is there
        if os.path.exists(f"/sys/class/net/{tap}") and \
                not os.path.exists(f"/sys/class/net/{tap}/master"):
            plug(tap, br)
        time.sleep(0.05)
    said = job.stdout.read()
    assert job.returncode == 0, said + machine.story() + target.story()
    assert machine.wait() == 0, machine.story()
    shell = Shell(target.out, target.send, target.story)
    return target, shell


def too_fast(machine, shell, directory, root):
    """Over a link that does not carry what it writes it stays where it is, and the figures say why. It
    writes so much that no round is short: in a short one it may not have had its turn on the host."""
    shell.sh("(while [ ! -e /run/enough ]; do "
             "dd if=/dev/zero of=/dev/shm/much bs=1M count=24 conv=notrunc status=none; done) & :")
    said = ""
    for seconds in (60, 120, 240):  # the first round has to be over by then, on whatever host
        address = f"unix:{directory}/slow{seconds}"
        with Coracle("--incoming", address, "--disk", f"id=disk0,path={root}",
                     "--net", "id=net0,tap=ctmigslow") as target:
            assert target.err.wait_for(lambda d: b"waiting for a machine" in d or None, 60), target.story()
            done = subprocess.run([PROGRAM, "ctl", machine.socket_path, "migrate", address, "--bandwidth",
                                   "16MiB/s", "--downtime-ms", "1", "--timeout", f"{seconds}s"],
                                  capture_output=True, text=True, check=False)
            assert done.returncode == 1 and target.wait() == 1, done.stderr + target.story()
        said = re.search(r"not done within \d+ s: the guest writes (\d+) MiB/s and (\d+) MiB/s get through, so "
                         r"the downtime would be (\d+) ms; allow a longer --downtime-ms", done.stderr)
        if said:
            break
        assert "not done within the time allowed" in done.stderr
    assert said and int(said[2]) <= 17 and int(said[3]) >= 1, done.stderr
    assert machine.call("info")["state"] == "running"
    shell.sh("touch /run/enough; wait %5; rm /dev/shm/much")


@pytest.mark.parametrize("transport,cpus", [("pci", 2), ("mmio", 1)])
def test_there_and_back(transport, cpus):
    with scratch_dir() as d, bridge("ctmig") as br, contextlib.ExitStack() as stack:
        root = root_disk(d)
        machine = stack.enter_context(Debian(
            "--cpus", cpus, "--transport", transport, "--net", "tap=ctmig0,id=net0",
            root=f"{root},id=disk0", memory="256M"))
        assert machine.err.wait_for(lambda said: b"tap ctmig0" in said or None, 60), machine.story()
        plug("ctmig0", br)
        machine.login()
        shell = machine.shell
        shell.sh(WORK)
        shell.sh("until ss -ltn 2>/dev/null | grep -q :5201 || "
                 "grep -q ':1451 ' /proc/net/tcp6; do sleep 0.2; done")
        traffic = subprocess.Popen(["iperf3", "-c", GUEST, "-t", "3600", "-b", "2M"],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if transport == "pci":
            too_fast(machine, shell, d, root)
        ahead = clock_ahead(shell)
        for i in range(1, HOPS + 1 if transport == "pci" else 2):
            machine, shell = hop(stack, machine, i, d, root, lambda n: f"ctmig{n}")
            low, high = clock_ahead(shell)
            assert low <= ahead[1] + 0.1 and high >= ahead[0] - 0.1, f"hop {i}: {ahead} {low} {high}"
            assert shell.sh("cat /run/trouble 2>/dev/null || true") == "", f"hop {i}"
            assert traffic.poll() is None, traffic.stdout.read()
        traffic.terminate()
        traffic.wait()
        shell.sh("echo >/run/memory.rounds; echo >/run/fio.rounds; "
                 "until grep -q round /run/memory.rounds && grep -q round /run/fio.rounds; "
                 "do sleep 0.5; done; touch /run/stop; wait %1 %2 %3", timeout=600)
        assert shell.sh("cat /run/trouble 2>/dev/null || true") == ""
        assert kernel_warnings(shell) == []
        machine.send(b"systemctl poweroff\n")
        assert machine.wait(240) == 0, machine.story()


def put_aside(seconds):
    """What starts a VMM that is put aside for so long when it has looked at the clock."""
    assert SLOW_KVM.exists(), "run `make e2e-tools` first"
    return {"program": str(SLOW_KVM), "env": {**os.environ, "CORACLE_SLOW_KVM": str(int(seconds * 1000))}}


def to_another(stack, machine, directory, number, **how):
    """Move a machine without NICs to a new process; it, with the guest's shell."""
    address = f"unix:{directory}/hop{number}"
    target = stack.enter_context(Coracle("--incoming", address, **how))
    assert target.err.wait_for(lambda d: b"waiting for a machine" in d or None, 60), target.story()
    machine.ctl("migrate", address, "--downtime-ms", 20000)
    assert machine.wait() == 0, machine.story()
    return target, Shell(target.out, target.send, target.story)


def test_clock_of_a_host_that_puts_us_aside():
    """A guest whose clock is the time stamp counter, whose VMMs lose the processor for four seconds between
    looking at one clock and the next, on the way out and on the way in: its clock is not moved by it."""
    aside = 4.0
    with scratch_dir() as d, contextlib.ExitStack() as stack:
        machine = stack.enter_context(Debian(
            "--cpus", 2, root=f"{root_disk(d)},id=disk0", init="/bin/sh", cmdline="clocksource=tsc tsc=reliable",
            memory="256M", **put_aside(aside)))
        shell = machine.shell
        shell.prompt(600)
        clocks = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource"
        shell.sh("mount -t sysfs none /sys; mount -t proc none /proc")
        assert shell.sh(clocks) == "tsc"
        ahead = [clock_ahead(shell)]
        for number, how in enumerate((put_aside(aside), {})):
            machine, shell = to_another(stack, machine, d, number, **how)
            ahead.append(clock_ahead(shell))
        assert all(high - low < aside / 2 for low, high in ahead), ahead
        for (low, _), (_, high) in itertools.permutations(ahead, 2):
            assert low <= high + 0.1, ahead
        assert shell.sh(clocks) == "tsc"
        machine.send(b"poweroff -ff\n")
        assert machine.wait(240) == 0, machine.story()
