"""test_two_nodes.py - a Debian guest at work moves from host to host, and back

Two nodes of the lab are the hosts (two_nodes.py). While the guest moves, fio writes and verifies its disk,
iperf3 sends to it, random blocks of memory are verified and written anew, its clocks are read, and a TCP
connection from node 1, which is there from the first hop to the last, asks it for its time ten times a
second. Its wall clock is set by node 1's once, as a time server would; all hops together may take it no
further than 100 ms away.
"""
import contextlib
import os
import re

import pytest

from debian import Debian, Shell, kernel_warnings
from two_nodes import (BRIDGE, COMMAND, DEVICE, TAP, Peer, Service, Target, clocks, control, ctl,
                       network, on, prefix, shared_disk, why_not)

pytestmark = pytest.mark.debian
HOPS = int(os.environ.get("CORACLE_TEST_HOPS", "2"))  # each costs half a minute
GUEST, PORT, MAC = "10.9.0.3", 7000, "52:54:00:1a:b3:03"
ALLOWED_NS = 100_000_000

WORK = f"""
dmesg -c >/dev/null; mkdir /run/watch; cd /root
ip link set dev $(ls /sys/class/net | grep -v lo) up
ip addr add {GUEST}/24 dev $(ls /sys/class/net | grep -v lo)
python3 guest_watch.py {PORT} /run/watch &
(while [ ! -e /run/watch/stop ]; do
	fio --name=v --directory=/root --size=4M --rw=randwrite --bs=4k --direct=1 --ioengine=libaio \\
		--iodepth=8 --rate_iops=100 --verify=crc32c --verify_fatal=1 --do_verify=1 \\
		>/run/fio.log 2>&1 ||
		{{ echo fio; cat /run/fio.log; }} >>/run/watch/trouble
	mv /run/fio.log /run/fio.done; echo round >>/run/watch/fio.rounds
done) &
iperf3 -s -1 >/run/iperf3.log 2>&1 &
until [ -e /run/watch/listening ] && grep -q ':1451 ' /proc/net/tcp6; do sleep 0.2; done"""
TROUBLE = "cat /run/watch/trouble 2>/dev/null || true"
# Each kind of work has begun, and ended, once more.
ROUNDS = """cd /run/watch
for work in memory clock fio; do
	until [ -s $work.rounds ]; do sleep 0.5; done
	before=$(wc -l <$work.rounds)
	until [ $(wc -l <$work.rounds) -ge $((before + 2)) ]; do sleep 0.5; done
done
wc -l *.rounds; grep -E 'err=|(read|write):' /run/fio.done"""


def learnt(node):
    """The port behind which the node's bridge has the guest."""
    found = re.search(rf"^{MAC} dev (\S+)", on(node, "bridge", "fdb", "show", "br", BRIDGE), re.M)
    return found and found[1]


def ahead(answers):
    """Of many looks at the guest's clock the one that says most, in words."""
    best = min(answers, key=lambda a: a["took"])
    return f"{best['least'] / 1e6:+.1f} to {best['most'] / 1e6:+.1f}"


def check_clock(answers):
    """No look shows the guest's clock to be further away than allowed."""
    for a in answers:
        assert a["least"] <= ALLOWED_NS and a["most"] >= -ALLOWED_NS, a


def hop(stack, number, set_clock, peer):
    """From the odd machine's node 1 to node 2, or back. The new machine, its shell, and a line to print."""
    here, there = (1, 2) if number % 2 else (2, 1)
    source, name = f"vm{number - 1}", f"vm{number}"
    before, _ = peer.take(lambda answers, rarps: len(answers) >= 20)
    check_clock(before)
    clock = set_clock()
    target = stack.enter_context(Target(there, name))
    status, said = ctl(here, source, "migrate", target.address, "--timeout", "300s",
                       "--downtime-ms", 2000)  # the lab is slow: what is tested is not how long
    assert status == 0, said + target.story()
    shell = Shell(target.out, target.send, target.story)
    assert shell.sh(TROUBLE) == "", f"hop {number}"
    answers, rarps = peer.take(lambda answers, rarps: len(answers) > 20 and MAC in rarps)
    check_clock(answers)
    assert learnt(here) == "link0" and learnt(there) == TAP
    return target, shell, (
        f"hop {number}, to node {there}: {said.strip().splitlines()[-1]}\n"
        f"    node 2's clock was {clock['before_ns'] / 1e6:+.3f} ms ahead of node 1's, is "
        f"{clock['ahead_ns'] / 1e6:+.3f} (+/- {clock['within_ns'] / 1e6:.3f}); the guest's was "
        f"{ahead(before[-20:])}, is {ahead(answers[-20:])}\n    longest without an answer "
        f"{max(a['took'] for a in answers) / 1e9:.2f} s, {answers[-1]['retransmits']} retransmits so "
        f"far, {rarps.count(MAC)} announcements")


def test_there_and_back():
    reason = why_not()  # not on import: it starts the nodes
    if reason:
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        set_clock = stack.enter_context(clocks())
        stack.enter_context(network())
        stack.enter_context(shared_disk())
        machine = stack.enter_context(Debian(
            "--cpus", 2, "--net", f"id=net0,tap={TAP},create=off,mac={MAC}", "--control",
            control("vm0"), root=f"{DEVICE},id=disk0", memory="192M", prefix=prefix(1)))
        machine.login()
        shell = machine.shell
        shell.sh(WORK)
        traffic = stack.enter_context(Service(1, "iperf3", "-c", GUEST, "-t", 3600, "-b", "500K",
                                              "-i", "10"))
        peer = stack.enter_context(Peer(GUEST, PORT))
        for i in range(1, HOPS + 1):
            last = machine
            machine, shell, told = hop(stack, i, set_clock, peer)
            assert last.wait() == 0, last.story()
            assert traffic.process.poll() is None, traffic.end()
            print(told, flush=True)
        worked = shell.sh(ROUNDS, timeout=3 * COMMAND)
        answers, _ = peer.take()
        check_clock(answers)
        assert shell.sh(TROUBLE) == ""
        print(f"{answers[-1]['number']} answers on one connection, {answers[-1]['retransmits']} "
              f"retransmits\n{worked}\n{traffic.end()}")
        assert kernel_warnings(shell) == []
        shell.sh("touch /run/watch/stop")
        machine.send(b"systemctl poweroff\n")
        assert machine.wait(COMMAND) == 0, machine.story()
