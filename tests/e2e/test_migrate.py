"""test_migrate.py - machines that move to another process while their guests work

On any KVM, with the tiny guests of tests/guest: two processes of one host, over Unix sockets and TCP.
Whatever breaks, and wherever: afterwards one machine runs, and its guest finds everything as it should
be.
"""
import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys

import pytest

from coracle import (PROGRAM, TIMEOUT, Coracle, ControlError, check_host, console_says, guest, verdicts,
                     why_no_kvm)
from migration import TYPES, Hold, Message, Proxy, Target, connect, crc32c, guest_memory
from netns import network_namespace

WHY_NOT = why_no_kvm()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
TRANSPORTS = ("pci", "mmio")
MIB = 1 << 20


def make_disk(path, size=3 * MIB):
    with open(path, "wb") as f:
        f.truncate(size)
    return path


def source(disk, *args, pages=512, memory="24M", cpus=1, cmdline="", **popen):
    """A machine at work: its guest writes all over its memory and its disk until it gets a byte."""
    m = Coracle("--kernel", guest("churn"), "--memory", memory, "--hugepages", "off", "--cpus", cpus,
                "--cmdline", f"pages={pages} {cmdline}",
                *(["--disk", f"{disk},id=root"] if disk else []), *args, **popen)
    m.line("ready")
    return m


def good_end(machine):
    """The machine runs, and its guest has found everything as it should be. It ends."""
    machine.send(b"x")
    assert machine.wait() == 0, machine.story()
    assert "churn" in verdicts(machine)


def migrate(m, address, *args):
    return m.ctl("migrate", address, *args)


def given_up(t, kind):
    """The target has ended. Without a whole greeting and header nobody was there: it waits on, for
    another."""
    if kind not in ("hello", "header", "machine", "cpu"):
        assert t.wait() == 1, t.story()
        return
    found = t.err.wait_for(lambda data: True if b"turned somebody away" in data else None, TIMEOUT)
    assert found and t.process.poll() is None, t.story()


def moved(m, target, *args, address=None):
    done = migrate(m, address or target.address, *args)
    assert done.returncode == 0, f"{done.stderr}\n{m.story()}\n{target.story()}"
    assert m.wait() == 0, m.story()
    return done.stdout


class Migrating:
    """`coracle ctl migrate` on a thread."""

    def __init__(self, m, address, *args):
        m.wait_for_socket()
        self.process = subprocess.Popen(
            [PROGRAM, "ctl", m.socket_path, "migrate", address, *map(str, args)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def wait(self):
        """Exit status, and what it said."""
        out, err = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, out + err


# ---- it works ----

@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("cpus,parallel,tcp", [(1, 1, False), (2, 4, False), (4, 1, True),
                                               (1, 3, True)])
def test_moves(transport, cpus, parallel, tcp, tmp_path):
    disk = make_disk(tmp_path / "disk")
    with source(disk, "--transport", transport, cpus=cpus) as m, Target(tmp_path, tcp=tcp) as t:
        said = moved(m, t, "--parallel", parallel)
        assert re.search(r"runs at .* in all, the guest stood still for [0-9.]+ ms", said)
        assert t.call("info")["state"] == "running"
        assert t.call("info")["cpus"] == cpus
        good_end(t)


def walk(tmp_path, *args, there=(), cmdline="", memory="8M", tcp=False):
    """Move at every sync point, from machine to machine. What passed, and how often it moved."""
    texts, moves = [], 0
    m = Coracle(*args, "--memory", memory, "--cmdline", f"{cmdline} sync")
    while True:
        with m:
            said = m.line(r"sync \d+|done").group(0)
            if said.startswith(b"done"):
                assert m.wait() == 0, m.story()
                texts.append(m.text())
                break
            t = Target(tmp_path, *there, tcp=tcp)
            moved(m, t)
            texts.append(m.text())
        m = t
        m.send(b"x")
        moves += 1
    lines = "".join(texts).splitlines()
    assert not [line for line in lines if line.startswith("fail ")], "\n".join(lines)
    return [line[3:] for line in lines if line.startswith("ok ")], moves


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_walk_everything(transport, tmp_path):
    passed, moves = walk(tmp_path, "--kernel", guest("keep"), "--transport", transport)
    assert {"kept", "timer"} <= set(passed) and moves == 3


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_walk_disk(transport, tmp_path):
    disk = make_disk(tmp_path / "disk")
    passed, moves = walk(tmp_path, "--kernel", guest("blk"), "--transport", transport,
                         "--disk", f"{disk},id=root,serial=kit-disk", cmdline="serial=kit-disk")
    assert {"many", "get-id"} <= set(passed) and moves == 4


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_walk_console(transport, tmp_path):
    out = tmp_path / "out"
    passed, moves = walk(tmp_path, "--kernel", guest("console"), "--transport", transport,
                         "--console", f"file:{out}")
    assert {"long", "long-after-sync"} <= set(passed) and moves == 5
    assert out.read_bytes() == console_says()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_walk_chips(transport, tmp_path):
    passed, moves = walk(tmp_path, "--kernel", guest("devices"), "--transport", transport)
    assert {"uart-irq", "rtc"} <= set(passed) and moves == 4


@pytest.mark.parametrize("cpus", [2, 3, 4])
def test_walk_processors(cpus, tmp_path):
    passed, moves = walk(tmp_path, "--kernel", guest("smp"), "--cpus", cpus, cmdline=f"cpus={cpus}",
                         tcp=True)
    assert "start" in passed and moves == 2


def test_walk_two_regions(tmp_path):
    """RAM below and above the hole under 4 GiB; what is zero is not sent."""
    passed, moves = walk(tmp_path, "--kernel", guest("memory"), "--hugepages", "off",
                         cmdline=f"ram={3074 * MIB}", memory="3074M")
    assert "content" in passed and moves == 1


def test_there_and_back(tmp_path):
    """Ten times, the guest at work all the while; the disk's lock goes along."""
    disk = make_disk(tmp_path / "disk")
    m = source(disk)
    for i in range(10):
        with m:
            t = Target(tmp_path, tcp=i % 2)
            moved(m, t, "--parallel", 1 + i % 3)
            with Coracle("--kernel", guest("hello"), "--memory", "8M", "--disk", disk) as thief:
                assert thief.wait() == 1 and "in use" in thief.errors(), thief.story()
        m = t
    with m:
        good_end(m)


def test_arrives_paused(tmp_path):
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path) as t:
        m.call("pause")
        moved(m, t)
        assert t.call("info")["state"] == "paused"
        t.call("resume")
        good_end(t)


def test_progress_and_events(tmp_path):
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path) as t:
        watch = m.connect()
        watch.call("info")
        done = migrate(m, t.address, "--json")
        assert done.returncode == 0, done.stderr
        stages = []
        while True:
            e = watch.receive()
            if e["method"] == "job-progress" and e["params"]["stage"] not in stages:
                stages.append(e["params"]["stage"])
            if e["method"] == "job-done":
                break
        assert stages == ["connect", "check", "precopy", "switchover", "resumed", "done"]
        assert e["params"]["rounds"] >= 2 and e["params"]["sent"] > 0
        assert watch.receive()["params"] == {"reason": "migrated", "status": 0}
        assert '"job-done"' in done.stdout.splitlines()[-1]
        good_end(t)


def test_sandboxed(tmp_path):
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path) as t:
        moved(m, t)
        with open(f"/proc/{t.pid}/status", encoding="ascii") as f:
            status = dict(line.split(":", 1) for line in f.read().splitlines())
        assert int(status["CapEff"], 16) == 0 and status["Seccomp"].strip() == "2"
        good_end(t)


# ---- cut at every message ----

MESSAGES = ["hello", "header", "machine", "cpu", "accept", "ram-zero", "ram-data", "round-end",
            "round", "last-round-end", "clock", "chips", "device", "vcpu", "end", "ready", "commit",
            "running"]


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("how", ["cut", "half"])
@pytest.mark.parametrize("parallel", [1, 3])
def test_cut(kind, how, parallel, tmp_path):
    """The connection ends before a message, or in the middle of it. One runs, and all is well there."""
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path) as t, \
            Proxy(tmp_path, t.address,
                  lambda message: how if message.kind == kind else "pass") as proxy:
        done = migrate(m, proxy.address, "--parallel", parallel)
        if kind == "running":
            # The target has the disks, which the source sees: it has ended well.
            assert done.returncode == 0, done.stderr
            assert m.wait() == 0, m.story()
            good_end(t)
            return
        assert done.returncode == 1, done.stdout
        given_up(t, kind)
        assert m.call("info")["state"] == "running", m.story()
        good_end(m)


@pytest.mark.parametrize("kind", ["commit", "running"])
def test_cut_without_a_judge(kind, tmp_path):
    """Without a disk no lock tells whether the target runs: the source waits for a person."""
    with source(None) as m, Target(tmp_path) as t, \
            Proxy(tmp_path, t.address,
                  lambda message: "cut" if message.kind == kind else "pass") as proxy:
        done = migrate(m, proxy.address)
        assert done.returncode == 1 and "stays paused" in done.stderr, done
        assert m.call("info")["state"] == "paused"
        if kind == "commit":
            assert t.wait() == 1, t.story()
            m.call("resume")
            good_end(m)
        else:
            assert t.call("info")["state"] == "running"
            m.call("quit")
            good_end(t)


class Stranger:
    """Somebody else's machine that has locked a disk."""

    def __init__(self, path):
        self.m = Coracle("--kernel", guest("hello"), "--memory", "8M", "--disk", path, "--cmdline",
                         "exit=halt")
        self.m.line("done")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.m.close()


@pytest.mark.parametrize("disks", ["other", "both"])
def test_strangers_lock_judges_nothing(disks, tmp_path):
    """The target's disk is another one, or one of two is, and a stranger holds it in `check`, not later.

    Such a lock says nothing about the source's. "both": the shared disk's does, and that is the judge.
    """
    shared, ours, theirs = (make_disk(tmp_path / name) for name in ("shared", "ours", "theirs"))
    more = ["--disk", f"{shared},id=shared"] if disks == "both" else []
    hold = Hold("last-round-end")

    def decide(message):
        return "cut" if message.kind == "running" else hold(message)

    with Stranger(theirs) as stranger, source(ours, *more) as m, \
            Target(tmp_path, "--disk", f"id=root,path={theirs}") as t, \
            Proxy(tmp_path, t.address, decide) as proxy:
        with Migrating(m, proxy.address) as moving:
            hold.wait()
            stranger.m.close()
            hold.release()
            status, said = moving.wait()
        assert t.call("info")["state"] == "running", t.story()
        if disks == "both":
            assert status == 0 and m.wait() == 0, said + m.story()
            return
        assert status == 1 and "stays paused" in said, said
        assert m.call("info")["state"] == "paused"


def test_disk_stolen_in_the_hand_over(tmp_path):
    """Between the two a stranger takes the disk, and the target's refusal is lost: nobody may run on it."""
    disk = make_disk(tmp_path / "disk")
    hold = Hold("commit")

    def decide(message):
        return "cut" if message.kind == "failed" else hold(message)

    with source(disk) as m, Target(tmp_path) as t, Proxy(tmp_path, t.address, decide) as proxy:
        with Migrating(m, proxy.address) as moving:
            hold.wait()
            with Stranger(disk):
                hold.release()
                status, said = moving.wait()
                assert status == 1 and "stays paused" in said, said
                assert t.wait() == 1, t.story()
                with pytest.raises(ControlError, match="in use"):
                    m.call("resume")
                assert m.call("info")["state"] == "paused"
        m.call("resume")
        good_end(m)


def test_second_disk_taken_in_the_end(tmp_path):
    """The target gets the judge's lock last: if another disk's is not to be had, the source has not ended.

    Its answer is lost too, so that the locks alone decide.
    """
    disk, ours, theirs = (make_disk(tmp_path / name) for name in ("disk", "ours", "theirs"))
    with source(disk, "--disk", f"{ours},id=data") as m, \
            Target(tmp_path, "--disk", f"id=data,path={theirs}") as t, \
            Stranger(theirs), \
            Proxy(tmp_path, t.address,
                  lambda message: "cut" if message.kind == "failed" else "pass") as proxy:
        done = migrate(m, proxy.address)
        assert done.returncode == 1, done.stdout
        assert t.wait() == 1, t.story()
        assert m.call("info")["state"] == "running", m.story()
        good_end(m)


# ---- either side killed ----

@pytest.mark.parametrize("kind", MESSAGES)
def test_target_killed(kind, tmp_path):
    """Before it owns the machine, the source runs on. After, the source must not."""
    hold = Hold(kind)
    with source(make_disk(tmp_path / "disk"), "--log-level", "debug") as m, \
            Target(tmp_path) as t, Proxy(tmp_path, t.address, hold) as proxy:
        with Migrating(m, proxy.address) as moving:
            hold.wait()
            if kind == "running":
                looked = b"the target has the disks"
                assert m.err.wait_for(lambda data: True if looked in data else None, TIMEOUT)
            t.process.kill()
            t.process.wait()
            hold.release("cut")
            status, said = moving.wait()
        if kind == "running":
            assert status == 0 and m.wait() == 0, said
            return
        assert status == 1, said
        assert m.call("info")["state"] == "running", m.story()
        good_end(m)


@pytest.mark.parametrize("kind", MESSAGES)
def test_source_killed(kind, tmp_path):
    """The target ends, unless the machine is its own already."""
    hold = Hold(kind)
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path) as t, \
            Proxy(tmp_path, t.address, hold) as proxy:
        with Migrating(m, proxy.address):
            hold.wait()
            m.process.kill()
            m.process.wait()
            hold.release("pass" if kind == "commit" else "cut")
        if kind in ("commit", "running"):
            t.event("resumed") if t.call("info")["state"] != "running" else None
            good_end(t)
        else:
            given_up(t, kind)


# ---- called off ----

@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize("how", ["cancel", "interrupt"])
def test_cancelled(kind, how, tmp_path):
    hold = Hold(kind)
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path) as t, \
            Proxy(tmp_path, t.address, hold) as proxy:
        with Migrating(m, proxy.address) as moving:
            hold.wait()
            if kind in ("commit", "running"):
                with pytest.raises(ControlError):
                    m.call("migrate-cancel")
                hold.release()
                assert moving.wait()[0] == 0
                good_end(t)
                return
            if how == "cancel":
                assert m.call("migrate-cancel") == {"job": "migrate"}
            else:
                moving.process.send_signal(signal.SIGINT)
            status, said = moving.wait()
            assert status == 1, said
            hold.release("cut")
        given_up(t, kind)
        assert m.call("info")["state"] == "running"
        good_end(m)


def test_client_killed(tmp_path):
    """Whoever asked for it is gone: it is cancelled."""
    hold = Hold("round-end")
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path) as t, \
            Proxy(tmp_path, t.address, hold) as proxy:
        watch = m.connect()
        watch.call("info")
        with Migrating(m, proxy.address) as moving:
            hold.wait()
            moving.process.kill()
            assert "has gone" in watch.event("job-failed")["message"]
            hold.release("cut")
        assert t.wait() == 1
        good_end(m)


def test_too_fast_for_the_link(tmp_path):
    """A guest that writes faster than the link carries: the time ends it, and says why."""
    with source(make_disk(tmp_path / "disk"), pages=2048) as m, Target(tmp_path) as t:
        done = migrate(m, t.address, "--bandwidth", "4MiB/s", "--timeout", "4s", "--downtime-ms", 1)
        assert done.returncode == 1
        assert "the guest writes" in done.stderr and "--bandwidth" in done.stderr, done.stderr
        assert t.wait() == 1, t.story()
        good_end(m)


def test_one_at_a_time(tmp_path):
    hold = Hold("round-end")
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path) as t, \
            Proxy(tmp_path, t.address, hold) as proxy:
        with Migrating(m, proxy.address) as moving:
            hold.wait()
            assert m.call("info")["job"] == "migrate"
            again = m.ctl("snapshot", tmp_path / "snapshot")
            assert again.returncode == 1 and "migrate is under way" in again.stderr
            hold.release()
            assert moving.wait()[0] == 0
        if t.call("info")["job"]:  # it tells the source that it runs, and then is done
            t.event("job-done")
        assert t.call("info")["job"] is None
        good_end(t)


@pytest.mark.parametrize("what", ["power-off", "reset", "quit"])
@pytest.mark.parametrize("kind", ["round-end", "ready"])
def test_machine_ends_meanwhile(what, kind, tmp_path):
    """The guest's own end, a reset, the user's: carried out here, the migration has failed."""
    hold = Hold(kind)
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path) as t, \
            Proxy(tmp_path, t.address, hold) as proxy:
        with Migrating(m, proxy.address) as moving:
            hold.wait()
            if what == "power-off":
                m.send(b"x")  # held in the switch-over, the guest cannot: it does afterwards
                if kind == "ready":
                    m.call("cancel")
            else:
                m.call(what)
            status, said = moving.wait()
            assert status == 1, said
            hold.release("cut")
        assert t.wait() == 1, t.story()
        if what == "reset":
            m.line("ready")
            good_end(m)
        else:
            assert m.wait() == 0, m.story()


# ---- what does not fit ----

def refused(m, t, *words):
    done = migrate(m, t.address)
    assert done.returncode == 1
    assert t.wait() == 1, t.story()
    for text in (done.stderr, t.errors()):
        assert all(word in text for word in words), f"{text}\n{t.story()}"
    assert m.call("info")["state"] == "running"
    good_end(m)


def test_refused_missing_disk(tmp_path):
    with source(make_disk(tmp_path / "disk")) as m, \
            Target(tmp_path, "--disk", "id=root,path=/nonexistent.img") as t:
        refused(m, t, "/nonexistent.img", "No such file")


def test_refused_disk_size(tmp_path):
    other = make_disk(tmp_path / "other", 2 * MIB)
    with source(make_disk(tmp_path / "disk")) as m, \
            Target(tmp_path, "--disk", f"id=root,path={other}") as t:
        refused(m, t, "root", str(2 * MIB), str(3 * MIB))


def test_refused_no_such_id(tmp_path):
    with source(make_disk(tmp_path / "disk")) as m, \
            Target(tmp_path, "--disk", "id=data,path=/x") as t:
        refused(m, t, "no disk called data", "root")


def test_disk_taken_in_the_end(tmp_path):
    """Another path's disk, and somebody else has locked it: the target cannot own it, the source runs."""
    disk, copy = make_disk(tmp_path / "disk"), make_disk(tmp_path / "copy")
    with source(disk) as m, Target(tmp_path, "--disk", f"id=root,path={copy}") as t, \
            Coracle("--kernel", guest("hello"), "--memory", "8M", "--disk", copy,
                    "--cmdline", "exit=halt") as owner:
        owner.line("done")
        refused(m, t, str(copy), "in use")


@pytest.mark.parametrize("args,words", [
    (["--memory", "8M"], ["--memory", "cannot change"]),
    (["--kernel", "/x"], ["--kernel"]),
    (["stray"], ["stray"]),
])
def test_refused_options(args, words, tmp_path):
    with Coracle("--incoming", f"unix:{tmp_path}/in", *args) as t:
        assert t.wait() == 2, t.story()
        assert all(word in t.errors() for word in words), t.errors()


@pytest.mark.parametrize("words", [["nowhere"], ["tcp:x"], ["unix:"], [], ["unix:/x", "unix:/y"],
                                   ["unix:/x", "--parallel", "17"], ["unix:/x", "--bandwidth", "much"],
                                   ["unix:/x", "--timeout", "0s"], ["unix:/x", "--downtime-ms"],
                                   ["unix:/x", "--sideways"]])
def test_usage(words, tmp_path):
    with Coracle("--kernel", guest("hello"), "--memory", "8M", "--cmdline", "exit=halt") as m:
        m.line("done")
        assert migrate(m, *words).returncode == 2 if words else m.ctl("migrate").returncode == 2
        assert m.call("info")["state"] == "running"


def test_nobody_there(tmp_path):
    with Coracle("--kernel", guest("hello"), "--memory", "8M", "--cmdline", "exit=halt") as m:
        m.line("done")
        done = migrate(m, f"unix:{tmp_path}/nobody")
        assert done.returncode == 1 and "run --incoming" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_target_stopped_while_waiting(number, tmp_path):
    with Target(tmp_path) as t:
        t.signal(number)
        assert t.wait() == 128 + number
        assert f"signal {int(number)}" in t.errors()
        assert not os.path.exists(t.address[5:])


def test_waiting_target_answers(tmp_path):
    """Its control socket works before there is a machine, and the client that came then stays."""
    name = f"waits-{os.getpid()}"
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path, "--id", name) as t:
        watch = t.connect()
        assert watch.call("info") == {
            "id": name, "state": "incoming", "version": m.call("info")["version"], "pid": t.pid,
            "incoming": t.address}
        for method in ("pause", "stats", "snapshot", "no-such-thing"):
            with pytest.raises(ControlError) as e:
                watch.call(method)
            assert e.value.code == -32001 and "no machine has come yet" in str(e.value)
        listed = subprocess.run([PROGRAM, "ctl", "list"], capture_output=True, text=True,
                                check=True).stdout
        assert re.search(rf"^{name} +incoming +{t.pid} +- +- +-$", listed, re.M), listed
        moved(m, t)
        assert watch.call("info")["state"] == "running"
        good_end(t)


def test_waiting_target_quits(tmp_path):
    with Target(tmp_path) as t:
        done = t.ctl("quit")
        assert done.returncode == 0 and "stopped" in done.stdout
        assert t.wait() == 0, t.story()
        assert not os.path.exists(t.address[5:])


def test_arriving_target_says_so(tmp_path):
    hold = Hold("round-end")
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path) as t, \
            Proxy(tmp_path, t.address, hold) as proxy, Migrating(m, proxy.address) as moving:
        hold.wait()
        info = t.call("info")
        assert info["state"] == "incoming" and info["job"] == "incoming"
        hold.release()
        assert moving.wait()[0] == 0
        assert t.call("info")["state"] == "running"
        good_end(t)


# ---- who else knocks ----

def test_strangers(tmp_path):
    """Noise at the door is turned away, and the machine comes in after it."""
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path, tcp=True) as t:
        for noise in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\0" * 100, b"CSEC" + b"\xff" * 60):
            with connect(t.address) as s:
                s.sendall(noise)
                try:
                    s.shutdown(socket.SHUT_WR)
                    while s.recv(4096):
                        pass
                except OSError:
                    pass  # it has closed already
        moved(m, t)
        assert t.errors().count("turned somebody away") == 4
        good_end(t)


# ---- the network ----

@pytest.fixture(name="network")
def fixture_network():
    """A command prefix that enters a network of the test's own."""
    if check_host()[0]["checks"]["tun"]["has"] == "no":
        pytest.skip("this host has no tun")
    with network_namespace() as prefix:
        if not prefix:
            pytest.skip("needs the right to make a network namespace")
        yield prefix


FAR_END = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind((sys.argv[1], 3))
print("listening", flush=True)
while True:
    f = s.recv(65536)
    if f[12:14] == bytes.fromhex("88b5"):
        s.send(f[6:12] + bytes.fromhex("020000000001 88b6") + f[14:])
    elif f[12:14] == bytes.fromhex("8035"):
        print("rarp", f.hex(), flush=True)
"""


class FarEnd:
    """The host's side of a tap: answers the guest's frames, keeps announcements; or does as @program."""

    def __init__(self, network, tap, program=FAR_END):
        self.process = subprocess.Popen([*network, sys.executable, "-c", program, tap],
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        text=True)
        assert self.process.stdout.readline() in ("listening\n", "sending\n")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def announcement(self):
        word, frame = self.process.stdout.readline().split()
        assert word == "rarp"
        return bytes.fromhex(frame)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_network(transport, network, tmp_path):
    """On another tap now: it tells so itself, asks the guest to, and frames go on."""
    hold = Hold("ready")
    with Coracle("--kernel", guest("net"), "--memory", "8M", "--transport", transport,
                 "--net", "kit0,id=n0,mac=02:00:00:00:ab:cd", "--cmdline", "frames=20 sync announce",
                 prefix=network) as m, \
            Target(tmp_path, "--net", "id=n0,tap=kit1", prefix=network) as t, \
            Proxy(tmp_path, t.address, hold) as proxy:
        m.line("ready")
        with FarEnd(network, "kit0"):
            m.send(b"x")
            m.line("sync 1")
        with Migrating(m, proxy.address) as moving:
            hold.wait()
            with FarEnd(network, "kit1") as far:
                hold.release()
                assert moving.wait()[0] == 0
                mac = bytes.fromhex("02000000abcd")
                for _ in range(5):
                    f = far.announcement()
                    assert f[:12] == b"\xff" * 6 + mac and len(f) == 60
                    assert f[14:22] == bytes.fromhex("0001080006040003")
                    assert f[22:28] == mac and f[32:38] == mac
                t.send(b"x")
                assert t.wait() == 0, t.story()
        assert {"announce", "frames-after-sync"} == set(verdicts(t))


def test_refused_absent_tap(network, tmp_path):
    with Coracle("--kernel", guest("churn"), "--memory", "24M", "--net", "kit0,id=n0",
                 "--cmdline", "pages=64", prefix=network) as m, \
            Target(tmp_path, "--net", "id=n0,tap=absent0,create=off", prefix=network) as t:
        m.line("ready")
        refused(m, t, "absent0")


FLOOD = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind((sys.argv[1], 3))
print("sending", flush=True)
n = 0
while True:
    n += 1
    head = bytes.fromhex("ffffffffffff 020000000001 88b6")
    try:
        s.send(head + bytes((n + i) % 256 for i in range(n % 1400 + 46)))
    except OSError:
        pass  # the queue is full
"""


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("with_nic", [False, True])
def test_every_page_is_the_sources(transport, with_nic, request, tmp_path):
    """In the switch-over, guest and devices stopped in mid-work: all RAM is the same at both ends.

    The guest dirties its memory all the time, its disk reads into it, and frames keep coming in.
    """
    disk = make_disk(tmp_path / "disk")
    size = 27 * MIB
    hold = Hold("ready")
    network = request.getfixturevalue("network") if with_nic else []
    nic, there = (["--net", "kit0,id=n0"], ["--net", "id=n0,tap=kit1"]) if with_nic else ([], [])
    with source(disk, *nic, "--transport", transport, pages=2048, memory="27M", prefix=network) as m, \
            Target(tmp_path, *there, prefix=network) as t, Proxy(tmp_path, t.address, hold) as proxy, \
            FarEnd(network, "kit0", FLOOD) if with_nic else contextlib.nullcontext():
        with Migrating(m, proxy.address, "--parallel", 4) as moving:
            hold.wait()
            ours, theirs = guest_memory(m, size), guest_memory(t, size)
            wrong = [i for i in range(0, size, 4096) if ours[i:i + 4096] != theirs[i:i + 4096]]
            assert not wrong, f"{len(wrong)} pages differ, the first at {wrong[0]:#x}"
            assert any(ours)
            hold.release()
            assert moving.wait()[0] == 0
        assert m.wait() == 0
        good_end(t)
        assert ("net" in verdicts(t)) == with_nic


# ---- hostile sources ----

def turned_away(t, why):
    """The target has said so, and waits on."""
    found = t.err.wait_for(lambda data: True if why.encode() in data else None, TIMEOUT)
    assert found and t.process.poll() is None, t.story()


def hello(connections, index, session=bytes(range(16))):
    return packed(Message("hello", 0, struct.pack("<IIII", 1, connections, index, 0) + session, b""))


def test_silent_strangers(tmp_path):
    """Those who say nothing, or not all of it, hold nobody up."""
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path, tcp=True) as t, \
            connect(t.address), connect(t.address) as half, connect(t.address) as one, \
            connect(t.address) as three, connect(t.address) as again:
        half.sendall(hello(1, 0)[:20])
        one.sendall(hello(1, 0))
        three.sendall(hello(4, 2))
        again.sendall(hello(4, 2))
        assert b"is there already" in again.recv(4096)
        moved(m, t, "--parallel", 4)
        for s in (half, one, three):
            assert b"another machine is arriving here" in s.recv(4096)
        good_end(t)


def test_port_scan(tmp_path):
    """More of them than are looked at together, some of them staying."""
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path) as t:
        for _ in range(100):
            connect(t.address).close()
        turned_away(t, "it has gone")
        strangers = [connect(t.address) for _ in range(70)]
        assert b"too many knock" in strangers[0].recv(4096)
        moved(m, t)
        for s in strangers:
            s.close()
        good_end(t)


def test_two_sources(tmp_path):
    """The first that has said everything is taken; the other is told, and runs on."""
    hold = Hold("cpu")
    with source(make_disk(tmp_path / "disk")) as m, source(make_disk(tmp_path / "other")) as slow, \
            Target(tmp_path) as t, Proxy(tmp_path, t.address, hold) as proxy, \
            Migrating(slow, proxy.address) as moving:
        hold.wait()
        moved(m, t)
        hold.release()
        status, said = moving.wait()
        assert status == 1 and "another machine is arriving here" in said
        good_end(t)
        assert slow.call("info")["state"] == "running"
        good_end(slow)


def test_more_than_a_header(tmp_path):
    """What does not wait for an answer, or is damaged, is no source; a good one comes in after it."""
    sent = record(tmp_path)
    head = b"".join(packed(message) for message in sent[:4])
    damaged = bytearray(head)
    damaged[-1] ^= 1
    with source(make_disk(tmp_path / "disk")) as m, Target(tmp_path) as t:
        for words, why in ((head + b"x", "without waiting"), (bytes(damaged), "checksum"),
                           (head[:24 + 32 + 3], "gone before"), (packed(sent[0]) * 2, "does not begin")):
            with connect(t.address) as s:
                s.sendall(words)
                s.shutdown(socket.SHUT_WR)
                assert why in str(s.recv(4096))
            turned_away(t, why)
        moved(m, t)
        good_end(t)


def record(tmp_path):
    """What a source sends on one connection, message by message."""
    sent = []

    def keep(message):
        if message.kind not in ("accept", "round", "ready", "running", "failed"):
            sent.append(message)
        return "pass"

    with source(make_disk(tmp_path / "disk"), pages=16) as m, Target(tmp_path) as t, \
            Proxy(tmp_path, t.address, keep) as proxy:
        m.call("pause")  # so that what comes is the same each time
        moved(m, t, address=proxy.address)
    return sent


NUMBERS = {name: number for number, name in TYPES.items()} | {"last-round-end": 18}


def replay(messages, target):
    """Send them as a source would; waits for the answers a source waits for."""
    with connect(target.address) as s:
        s.settimeout(TIMEOUT)
        try:
            for message in messages:
                data = message if isinstance(message, bytes) else packed(message)
                s.sendall(data)
                if awaits(message) and not s.recv(4096):
                    break
            s.shutdown(socket.SHUT_WR)
            while s.recv(4096):
                pass
        except OSError:
            pass


def awaits(message):
    if isinstance(message, bytes):
        return False
    last = message.data[4:5] == b"\1"
    return message.kind in ("cpu", "end") or (message.kind == "round-end" and not last)


def packed(message, flags=None):
    kind, name = NUMBERS[message.kind], message.name
    bulk = 2 if message.kind == "ram-data" else 0
    flags = bulk if flags is None else flags
    crc = 0 if bulk else crc32c(name + message.data)
    return struct.pack("<IHHIIQ", 0x43455343, kind, flags, len(name), crc,
                       len(message.data)) + name + message.data


def changed(messages, kind, edit):
    """The same, with the first message of a kind put through @edit(data)."""
    out, done = [], False
    for m in messages:
        if m.kind == kind and not done:
            m, done = m._replace(data=edit(m.data)), True
        out.append(m)
    assert done, kind
    return out


def words(*values):
    return struct.pack("<" + "Q" * len(values), *values)


def test_hostile_sources(tmp_path):
    """Each length, count, index and range made wrong: an error in words, and no machine runs."""
    sent = record(tmp_path)
    kinds = [m.kind for m in sent]
    assert "ram-data" in kinds and kinds[-1] == "commit"
    huge = 1 << 62
    tries = {
        "zero beyond": (changed(sent, "ram-zero", lambda d: words(huge, 4096)), "guest RAM"),
        "zero wraps": (changed(sent, "ram-zero", lambda d: words(4096, (1 << 64) - 4096)), "guest RAM"),
        "zero unaligned": (changed(sent, "ram-zero", lambda d: words(100, 4096)), "guest RAM"),
        "zero empty": (changed(sent, "ram-zero", lambda d: words(0, 0)), "guest RAM"),
        "zero odd": (changed(sent, "ram-zero", lambda d: d[:-1]), "zero pages"),
        "zero many": (changed(sent, "ram-zero", lambda d: words(0, 4096) * 257), "zero pages"),
        "data beyond": (changed(sent, "ram-data", lambda d: struct.pack("<II", 1, 0) +
                                words(24 * MIB, 4096) + bytes(4096)), "guest RAM"),
        "data many": (changed(sent, "ram-data", lambda d: b"\xff\xff\0\0" + d[4:]), "ranges"),
        "data none": (changed(sent, "ram-data", lambda d: bytes(8)), "ranges"),
        "data short": (changed(sent, "ram-data", lambda d: d[:-4096]), "longer"),
        "data long": (changed(sent, "ram-data", lambda d: d + bytes(4096)), "shorter"),
        "data tiny": (changed(sent, "ram-data", lambda d: b"x"), "guest RAM"),
        "round number": (changed(sent, "round-end", lambda d: struct.pack("<II", 7, 0)), "round"),
        "round length": (changed(sent, "round-end", lambda d: d + b"x"), "round"),
        "last twice": (changed(sent, "round-end", lambda d: struct.pack("<II", 1, 1)), "section"),
        "no state": ([m for m in sent if m.kind not in ("clock", "chips", "device", "vcpu")], "end"),
        "no RAM end": ([m for m in sent if m.kind != "last-round-end"], "within guest RAM"),
        "no vCPU": ([m for m in sent if m.kind != "vcpu"], "end"),
        "commit early": ([m for m in sent if m.kind != "end"][:-1] + [sent[-1]], "state"),
        "commit word": (changed(sent, "commit", lambda d: struct.pack("<I", 2)), "hand-over"),
        "truncated": (sent[:-4], "gone"),
        "noise after": (sent[:6] + [b"noise" * 100], "section"),
        "machine": (changed(sent, "machine", lambda d: b"{"), "machine"),
        "machine deep": (changed(sent, "machine", lambda d: b"[" * 100000), "machine"),
        "cpu": (changed(sent, "cpu", lambda d: b"\1"), ""),
    }
    for name, (messages, word) in tries.items():
        with Target(tmp_path) as t:
            replay(messages, t)
            assert t.wait() == 1, f"{name}\n{t.story()}"
            said = t.errors().splitlines()[-1]
            print(name, "->", said)
            assert word in said, f"{name}: {said}"
            assert t.text() == "", name


def test_newer_protocol(tmp_path):
    """Told in words, and the door stays open."""
    with Target(tmp_path) as t, connect(t.address) as s:
        hello = struct.pack("<IIII", 2, 1, 0, 0) + bytes(20)
        s.sendall(packed(Message("hello", 0, hello, b"")))
        assert b"version 2 of the protocol" in s.recv(4096)
        assert t.process.poll() is None


def test_section_without_end(tmp_path):
    """A source that claims much and sends little costs little: memory grows with what has come."""
    sent = record(tmp_path)
    with Target(tmp_path) as t, connect(t.address) as s:
        s.sendall(packed(sent[0]))
        s.sendall(struct.pack("<IHHIIQ", 0x43455343, 1, 0, 0, 0, 64 << 20))
        with open(f"/proc/{t.pid}/status", encoding="ascii") as f:
            rss = int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1))
        assert rss < 32 << 10
