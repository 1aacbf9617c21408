"""test_snapshot.py - machines saved, ended, made again and continued

On any KVM, with the tiny guests of tests/guest. A guest that says "sync N" waits for a byte: there it
is saved with --stop, restored, and told to go on, over and over to its end, which must be the end it
would have come to anyway.
"""
import json
import os
import re
import shutil
import signal
import struct
import subprocess

import pytest

from coracle import (PROGRAM, TIMEOUT, Coracle, ControlError, check_host, console_says, guest, verdicts,
                     why_no_kvm)
from netns import echo, network_namespace

WHY_NOT = why_no_kvm()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
TRANSPORTS = ("pci", "mmio")
MIB = 1 << 20


class Story:
    """What a guest said over all the machines it lived in; for verdicts()."""

    def __init__(self):
        self.texts, self.stories = [], []

    def add(self, machine):
        self.texts.append(machine.text())
        self.stories.append(machine.story())

    def lines(self):
        return "".join(self.texts).splitlines()

    def story(self):
        return "\n==== then ====\n".join(self.stories)


def walk(tmp_path, *args, restore=(), cmdline="", memory="8M", prefix=()):
    """Save and restore at every sync point. What passed, and how often it was saved."""
    told, saved = Story(), 0
    machine = Coracle(*args, "--memory", memory, "--cmdline", f"{cmdline} sync", prefix=prefix)
    while True:
        with machine as m:
            said = m.line(r"sync \d+|done").group(0)
            if said.startswith(b"done"):
                assert m.wait() == 0, m.story()
                told.add(m)
                return verdicts(told), saved
            directory = tmp_path / f"snapshot{saved}"
            m.snapshot(directory, "--stop")
            assert m.wait() == 0, m.story()
            told.add(m)
        saved += 1
        machine = Coracle(directory, *restore, command="restore", prefix=prefix)
        machine.send(b"x")


def make_disk(path, size=3 * MIB):
    with open(path, "wb") as f:
        f.truncate(size)
    return path


# ---- state walk ----

@pytest.mark.parametrize("transport", TRANSPORTS)
def test_walk_everything(transport, tmp_path):
    passed, saved = walk(tmp_path, "--kernel", guest("keep"), "--transport", transport)
    assert {"kept", "timer"} <= set(passed)
    assert saved == 3


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("aio", ["auto", "threads"])
def test_walk_disk(transport, aio, tmp_path):
    disk = make_disk(tmp_path / "disk")
    passed, saved = walk(tmp_path, "--kernel", guest("blk"), "--transport", transport,
                         "--disk", f"{disk},id=root,serial=kit-disk,aio={aio}",
                         cmdline="serial=kit-disk")
    assert ("msix-pending" if transport == "pci" else "isr") in passed
    assert {"many", "get-id"} <= set(passed)
    assert saved == 4


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_walk_entropy(transport, tmp_path):
    passed, saved = walk(tmp_path, "--kernel", guest("rng"), "--transport", transport)
    assert "random" in passed and saved == 2


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_walk_console(transport, tmp_path):
    """Also in the middle of a request: every byte arrives, once."""
    out = tmp_path / "out"
    passed, saved = walk(tmp_path, "--kernel", guest("console"), "--transport", transport,
                         "--console", f"file:{out}")
    assert {"long", "long-after-sync"} <= set(passed) and saved == 5
    assert out.read_bytes() == console_says()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_walk_network(transport, network, tmp_path):
    """With buffers posted before the first frame and frames after it; the tap is made anew."""
    machine = Coracle("--kernel", guest("net"), "--memory", "8M", "--transport", transport,
                      "--net", "kit0,id=n0", "--cmdline", "frames=50 sync",
                      prefix=network)
    told = Story()
    for i, (said, interface) in enumerate([("ready", "kit1"), ("sync 1", "kit2"), ("done", None)]):
        with machine as m, echo(network, f"kit{i}") as peer:
            if i:
                m.send(b"x")
            m.line(said)
            if interface:
                m.snapshot(tmp_path / interface, "--stop")
            assert m.wait() == 0, m.story()
            told.add(m)
            peer.kill()
        if interface:
            machine = Coracle(tmp_path / interface, "--net", f"id=n0,tap={interface}",
                              command="restore", prefix=network)
    assert {"frames", "frames-after-sync"} <= set(verdicts(told))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_walk_broken_rules(transport, tmp_path):
    """A device that its driver has broken is saved broken, and comes back by a reset."""
    passed, saved = walk(tmp_path, "--kernel", guest("misbehave"), "--transport", transport,
                         memory="32M")
    assert saved >= 15 and len(passed) >= 30


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_walk_chips(transport, tmp_path):
    passed, saved = walk(tmp_path, "--kernel", guest("devices"), "--transport", transport)
    assert {"uart-irq", "rtc", "pci-scan"} <= set(passed)
    assert saved == 4


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_walk_processors(cpus, tmp_path):
    passed, saved = walk(tmp_path, "--kernel", guest("smp"), "--cpus", cpus, cmdline=f"cpus={cpus}")
    assert {"cpuid-b", "start"} <= set(passed)
    assert saved == 2


@pytest.mark.parametrize("size", [16 * MIB, 3074 * MIB])
def test_walk_memory(size, tmp_path):
    """Below and above the hole under 4 GiB; what was not touched takes no place in the file."""
    passed, saved = walk(tmp_path, "--kernel", guest("memory"), "--hugepages", "off",
                         cmdline=f"ram={size}", memory=f"{size // MIB}M")
    assert "content" in passed and saved == 1
    st = os.stat(tmp_path / "snapshot0" / "memory")
    assert st.st_size == size
    assert st.st_blocks * 512 < 64 * MIB


# ---- while it works ----

def churned(machine):
    """Tell a churn guest to end; how many rounds of memory and requests it had."""
    machine.send(b"x")
    assert machine.wait() == 0, machine.story()
    assert "churn" in verdicts(machine)
    count = re.search(r"^(\d+) rounds of memory, (\d+) requests$", machine.text(), re.M)
    return int(count[1]), int(count[2])


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("aio", ["auto", "threads"])
def test_busy(transport, aio, tmp_path):
    """Memory that changes all the time and a queue full of requests: each page and block arrives."""
    disk = make_disk(tmp_path / "disk", 4 * MIB)
    machine = Coracle("--kernel", guest("churn"), "--memory", "32M", "--transport", transport,
                      "--disk", f"{disk},aio={aio}", "--cmdline", "pages=2048 depth=32")
    for i in range(6):
        with machine as m:
            if not i:
                m.line("ready")
            directory = tmp_path / f"snapshot{i}"
            m.snapshot(directory, "--stop")
            assert m.wait() == 0, m.story()
            assert "fail" not in m.text(), m.story()
        machine = Coracle(directory, command="restore")
    with machine as m:
        rounds, requests = churned(m)
    assert rounds > 0 and requests > 32


def test_goes_on(tmp_path):
    """Without --stop the machine works on, and both go their own way."""
    with Coracle("--kernel", guest("churn"), "--memory", "32M", "--cmdline", "pages=2048") as m:
        m.line("ready")
        for i in range(3):
            said = m.snapshot(tmp_path / f"snapshot{i}")
            assert re.search(r"32 MiB of RAM, \d+ MiB written, .* stood still for [\d.]+ ms", said)
            assert m.call("info")["state"] == "running"
        churned(m)
    for i in range(3):
        with Coracle(tmp_path / f"snapshot{i}", command="restore") as m:
            churned(m)


def test_paused_machine(tmp_path):
    """A paused one stays so, and --paused makes one that waits."""
    with Coracle("--kernel", guest("hello"), "--memory", "8M", "--cmdline", "echo") as m:
        m.line("ready")
        m.call("pause")
        m.snapshot(tmp_path / "snapshot")
        assert m.call("info")["state"] == "paused"
        m.call("resume")
        m.send(b"first.")
        m.line("first")
        assert m.wait() == 0
    with Coracle(tmp_path / "snapshot", "--paused", command="restore") as m:
        assert m.call("info")["state"] == "paused"
        m.send(b"second.")
        assert m.call("info")["state"] == "paused"
        assert m.text() == ""
        again = m.snapshot(tmp_path / "again")
        assert "MiB of RAM" in again
        m.call("resume")
        m.line("second")
        assert m.wait() == 0


def test_snapshot_of_a_restored_machine(tmp_path):
    """Its RAM is a file; what it writes is its own, and the file stays as it was."""
    with Coracle("--kernel", guest("churn"), "--memory", "16M", "--cmdline", "pages=512") as m:
        m.line("ready")
        m.snapshot(tmp_path / "a", "--stop")
    before = (tmp_path / "a" / "memory").read_bytes()
    with Coracle(tmp_path / "a", command="restore") as m:
        m.snapshot(tmp_path / "b")
        m.snapshot(tmp_path / "c", "--stop")
    with Coracle(tmp_path / "c", command="restore") as m:
        churned(m)
    with Coracle(tmp_path / "b", command="restore") as m:
        churned(m)
    assert (tmp_path / "a" / "memory").read_bytes() == before


def test_reset_after_restore(tmp_path):
    """The kernel is read again and RAM is empty: nothing of the file comes back."""
    with Coracle("--kernel", guest("reset"), "--memory", "32M", "--cmdline", "how=i8042 sync") as m:
        m.line("sync 1")
        m.snapshot(tmp_path / "snapshot", "--stop")
    with Coracle(tmp_path / "snapshot", command="restore") as m:
        m.send(b"x")
        m.line("start 2")
        assert m.wait() == 0, m.story()
        assert verdicts(m) == ["memory-cleared"]


def test_kernel_gone(tmp_path):
    """It is not needed to go on; a reset then ends the machine with a message."""
    kernel = tmp_path / "kernel"
    shutil.copy(guest("reset"), kernel)
    with Coracle("--kernel", kernel, "--memory", "32M", "--cmdline", "how=i8042 sync") as m:
        m.line("sync 1")
        m.snapshot(tmp_path / "snapshot", "--stop")
    kernel.unlink()
    with Coracle(tmp_path / "snapshot", command="restore") as m:
        m.send(b"x")
        assert m.wait() == 4, m.story()
        assert "a reset would end this machine" in m.errors()
        assert "the guest resets" in m.errors()


def test_clones(tmp_path):
    """20 machines of one snapshot at once, each with its own disk, memory and end."""
    disk = make_disk(tmp_path / "disk", 1 * MIB)
    with Coracle("--kernel", guest("churn"), "--memory", "16M", "--disk", f"{disk},id=root",
                 "--cmdline", "pages=256 depth=4") as m:
        m.line("ready")
        m.snapshot(tmp_path / "snapshot", "--stop")
        assert m.wait() == 0
    before = (tmp_path / "snapshot" / "memory").read_bytes()
    clones = []
    try:
        for i in range(20):
            shutil.copy(disk, tmp_path / f"disk{i}")
            clones.append(Coracle(tmp_path / "snapshot", "--id", f"clone-{os.getpid()}-{i}",
                                  "--disk", f"id=root,path={tmp_path / f'disk{i}'}",
                                  command="restore"))
        for m in clones:
            assert m.call("info")["state"] == "running"
        for m in clones:
            churned(m)
    finally:
        for m in clones:
            m.close()
    assert (tmp_path / "snapshot" / "memory").read_bytes() == before


def test_sandboxed(tmp_path):
    """A restored machine is in the sandbox as any other: no capability, a filter, no new privileges."""
    with Coracle("--kernel", guest("hello"), "--memory", "8M", "--cmdline", "echo") as m:
        m.line("ready")
        m.snapshot(tmp_path / "snapshot", "--stop")
    with Coracle(tmp_path / "snapshot", "--verbose", command="restore") as m:
        m.call("info")
        if "no system call filter" in m.errors():
            pytest.skip("a sanitizer build has no system call filter")
        status = dict(line.split(":", 1) for line in
                      open(f"/proc/{m.pid}/status", encoding="ascii").read().splitlines())
        assert int(status["CapEff"], 16) == 0
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Seccomp"].strip() == "2"


# ---- what cannot be ----

@pytest.fixture(name="snapshot", scope="module")
def fixture_snapshot(tmp_path_factory):
    """A machine with a disk, saved and ended; its disk is beside it."""
    tmp = tmp_path_factory.mktemp("base")
    disk = make_disk(tmp / "disk", 1 * MIB)
    with Coracle("--kernel", guest("hello"), "--memory", "4M", "--cpus", "2", "--cmdline", "echo",
                 "--disk", f"{disk},id=root") as m:
        m.line("ready")
        m.snapshot(tmp / "snapshot", "--stop")
        assert m.wait() == 0
    return tmp / "snapshot"


def refused(directory, *args, status=1):
    """No machine comes of it: one message, nothing said by a guest, no socket left. The message."""
    with Coracle(directory, *args, command="restore") as m:
        assert m.wait() == status, m.story()
        assert m.text() == "", m.story()
        assert not os.path.exists(m.socket_path)
        errors = [line for line in m.errors().splitlines() if line.startswith("coracle restore:")]
        assert len(errors) == 1, m.story()
        return errors[0]


@pytest.mark.parametrize("args,status,words", [
    (["--disk", "id=data,path=x"], 2, ["no disk called data", "root"]),
    (["--disk", "id=root,queues=2"], 2, ["queues", "cannot change"]),
    (["--net", "id=n0,tap=x"], 2, ["no net called n0", "none"]),
    (["--memory", "8M"], 2, ["--memory", "cannot change"]),
    (["--cpus=4"], 2, ["--cpus", "cannot change"]),
    (["--disk"], 2, ["--disk", "needs a value"]),
    (["--bogus"], 2, ["--bogus"]),
    (["--disk", "id=root,path=/nonexistent"], 1, ["/nonexistent", "No such file"]),
])
def test_refused_options(snapshot, args, status, words):
    message = refused(snapshot, *args, status=status)
    assert all(word in message for word in words), message


def test_refused_disk_size(snapshot, tmp_path):
    other = make_disk(tmp_path / "other", 2 * MIB)
    message = refused(snapshot, "--disk", f"id=root,path={other}")
    assert str(2 * MIB) in message and str(MIB) in message and "root" in message


def test_refused_disk_in_use(tmp_path):
    """A clone that was not given a disk of its own, while the first has it."""
    disk = make_disk(tmp_path / "disk", 1 * MIB)
    with Coracle("--kernel", guest("hello"), "--memory", "4M", "--cmdline", "echo", "--disk",
                 f"{disk},id=root") as m:
        m.line("ready")
        m.snapshot(tmp_path / "snapshot", "--stop")
        assert m.wait() == 0
    with Coracle(tmp_path / "snapshot", command="restore") as m:
        m.call("info")
        message = refused(tmp_path / "snapshot")
        assert str(disk) in message and "in use" in message, message
        m.send(b"mine.")
        m.line("mine")
        assert m.wait() == 0


def test_refused_processor(snapshot, tmp_path):
    """The guest has seen what this host's processor lacks: named, as far as it has a name."""
    def every_feature(table):
        fields = dict(table_fields(table))
        count = struct.unpack("<I", fields[1])[0]
        function = struct.unpack(f"<{count}I", fields[2].ljust(4 * count, b"\0"))
        edx = list(struct.unpack(f"<{count}I", fields[8].ljust(4 * count, b"\0")))
        edx[function.index(7)] = 0xffffffff
        return set_field(table, 8, struct.pack(f"<{count}I", *edx)[:len(fields[8])])

    found = sections((snapshot / "state").read_bytes())
    message = refused(copy_of(snapshot, tmp_path, rebuilt(edit(found, 3, b"", every_feature))))
    assert "lacks" in message and "CPUID 0x7.0 edx bit" in message, message


def test_refused_absent_tap(network, tmp_path):
    with Coracle("--kernel", guest("hello"), "--memory", "4M", "--cmdline", "echo",
                 "--net", "kit0,id=n0", prefix=network) as m:
        m.line("ready")
        m.snapshot(tmp_path / "snapshot", "--stop")
        assert m.wait() == 0
    with Coracle(tmp_path / "snapshot", "--net", "id=n0,tap=absent0,create=off", command="restore",
                 prefix=network) as m:
        assert m.wait() == 1, m.story()
        assert "absent0" in m.errors() and m.text() == ""
    with Coracle(tmp_path / "snapshot", command="restore", prefix=network) as m:
        m.send(b"with its tap.")
        m.line("with its tap")
        assert m.wait() == 0


@pytest.fixture(name="network")
def fixture_network():
    """A command prefix that enters a network of the test's own."""
    if check_host()[0]["checks"]["tun"]["has"] == "no":
        pytest.skip("this host has no tun")
    with network_namespace() as prefix:
        if not prefix:
            pytest.skip("needs the right to make a network namespace")
        yield prefix


# ---- hostile directories ----

MAGIC, HEAD = 0x43455343, 24
NAMES = {1: "header", 2: "machine", 3: "cpu", 32: "clock", 33: "chips", 34: "device", 35: "vcpu",
         36: "end"}


def crc32c(data, crc=0):
    crc ^= 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def sections(data):
    """[(type, flags, name, payload, offset)] of a state file."""
    found, at = [], 0
    while at < len(data):
        magic, kind, flags, name_len, _, length = struct.unpack_from("<IHHIIQ", data, at)
        assert magic == MAGIC
        name = data[at + HEAD:at + HEAD + name_len]
        start = at + HEAD + name_len
        found.append((kind, flags, name, data[start:start + length], at))
        at = start + length
    return found


def section(kind, name, payload, flags=0):
    return struct.pack("<IHHIIQ", MAGIC, kind, flags, len(name), crc32c(name + payload),
                       len(payload)) + name + payload


def rebuilt(found):
    """A state file of these, with an END that fits."""
    out, total, count = b"", 0, 0
    for kind, flags, name, payload, *_ in found:
        if kind == 36:
            payload = (struct.pack("<HHII", 1, 1, 4, count) + struct.pack("<HHII", 2, 1, 4, total))
        out += section(kind, name, payload, flags)
        if kind >= 32:
            total = crc32c(struct.pack("<H", kind) + name + payload, total)
            count += 1
    return out


def copy_of(snapshot, tmp_path, state=None):
    directory = tmp_path / "copy"
    shutil.copytree(snapshot, directory)
    if state is not None:
        (directory / "state").write_bytes(state)
    return directory


def test_rebuilt_is_good(snapshot, tmp_path):
    """What the tests below break is whole before."""
    data = (snapshot / "state").read_bytes()
    assert rebuilt(sections(data)) == data


def test_truncated_everywhere(snapshot, tmp_path):
    """Cut within each section, and between each two: an error that names where."""
    data = (snapshot / "state").read_bytes()
    found = sections(data)
    for kind, _, name, _, at in found:
        for cut in (at, at + 10, at + HEAD, at + HEAD + len(name) + 3):
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            message = refused(copy_of(snapshot, tmp_path, data[:cut]))
            if cut >= at + HEAD:
                assert f"section {NAMES[kind]}" in message, message
            assert "end" in message or "state" in message, message


def test_damaged_sections(snapshot, tmp_path):
    """A flipped bit in each section's payload is found by its checksum, and the section named."""
    data = bytearray((snapshot / "state").read_bytes())
    for kind, _, name, payload, at in sections(bytes(data)):
        where = at + HEAD + len(name) + len(payload) // 2
        data[where] ^= 0x10
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        message = refused(copy_of(snapshot, tmp_path, bytes(data)))
        data[where] ^= 0x10
        assert f"section {NAMES[kind]}" in message and "checksum" in message, message


def edit(found, kind, name, change):
    return [(k, f, n, change(p) if (k, n) == (kind, name) else p) for k, f, n, p, *_ in found]


def table_fields(payload):
    """(id, bytes) of each field in a table's bytes."""
    at = 0
    while at < len(payload):
        number, _, length = struct.unpack_from("<HHI", payload, at)
        yield number, payload[at + 8:at + 8 + length]
        at += 8 + length


def set_field(payload, field, value):
    """In a table's bytes, the field with this id."""
    at = 0
    for number, old in table_fields(payload):
        if number == field:
            assert len(old) == len(value)
            return payload[:at + 8] + value + payload[at + 8 + len(old):]
        at += 8 + len(old)
    raise KeyError(field)


def without(found, kind, name=None):
    return [s for s in found if not (s[0] == kind and name in (None, s[2]))]


def hostile(found):
    """Name, sections, words of the message: a table of what is tried."""
    root = next(p for k, _, n, p, _ in found if n == b"disk.root")
    yield "newer", edit(found, 1, b"", lambda p: set_field(set_field(p, 1, b"\x63\0\0\0"), 2,
                                                           b"\x63\0\0\0")), ["version 99", "newer"]
    yield "feature", edit(found, 1, b"", lambda p: set_field(p, 3, b"\1" + bytes(7))), ["newer"]
    yield "arch", edit(found, 1, b"", lambda p: set_field(p, 5, b"riscv64".ljust(16, b"\0"))), [
        "riscv64"]
    yield "ram", edit(found, 1, b"", lambda p: set_field(p, 4, struct.pack("<Q", 8 * MIB))), [
        "memory", "bytes"]
    yield "no machine", without(found, 2), ["machine"]
    yield "no cpu", without(found, 3), ["cpu"]
    yield "no clock", without(found, 32), ["end", "clock"]
    yield "no chips", without(found, 33), ["end", "chips"]
    yield "no disk", without(found, 34, b"disk.root"), ["disk.root", "not saved"]
    yield "no vcpu 1", without(found, 35, b"1"), ["1 vCPUs were saved", "has 2"]
    yield "no vcpu 0", without(found, 35, b"0"), ["vcpu 1"]
    yield "no end", without(found, 36), ["end"]
    yield "unknown device", [*found[:-1], (34, 0, b"disk.data", root), found[-1]], ["disk.data"]
    yield "device twice", [s for f in found for s in ([f, f] if f[2] == b"disk.root" else [f])], [
        "disk.root", "twice"]
    yield "other kind", edit(found, 34, b"disk.root", lambda p: b"\x0a\0virtio-net" + p[12:]), [
        "disk.root", "virtio-net", "virtio-blk"]
    yield "unknown section", [*found[:-1], (99, 0, b"what", b"?"), found[-1]], ["what", "99"]
    yield "order", [*found[:3], *reversed(found[3:-1]), found[-1]], ["section"]
    yield "parts", edit(found, 34, b"disk.root",
                        lambda p: p[:12] + struct.pack("<H", 60000) + p[14:]), ["disk.root", "60000"]
    yield "part's length", edit(found, 34, b"disk.root", lambda p: p[:22] + b"\xff" * 4 + p[26:]), [
        "disk.root"]
    yield "rest", edit(found, 34, b"disk.root", lambda p: p + b"more"), ["disk.root", "4 bytes"]
    yield "leaves", edit(found, 3, b"", lambda p: set_field(p, 1, b"\xff\xff\0\0")), ["cpu", "65535"]
    yield "vendor", edit(found, 3, b"", lambda p: p.replace(b"cAMD", b"nope").replace(
        b"ntel", b"nope")), ["cpu", "vendor"]
    yield "not JSON", edit(found, 2, b"", lambda p: b"{"), ["machine", "JSON"]
    yield "other JSON", edit(found, 2, b"", lambda p: b'{"version": 1}'), ["machine", "config"]
    yield "JSON's memory", edit(found, 2, b"", lambda p: p.replace(b'"4M"', b'"6M"')), [
        "header", "RAM"]
    yield "JSON's path", edit(found, 2, b"", lambda p: p.replace(b'"path"', b'"paht"')), ["paht"]
    yield "msrs", edit(found, 35, b"0", lambda p: set_field(p, 48, b"\xff\xff\0\0")), [
        "vcpu 0", "msr_count"]
    yield "mp state", edit(found, 35, b"0", lambda p: set_field(p, 1, b"\x09\0\0\0")), [
        "vcpu 0", "mp_state"]


def test_hostile_state(snapshot, tmp_path):
    found = sections((snapshot / "state").read_bytes())
    tried = 0
    for name, bad, words in hostile(found):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        message = refused(copy_of(snapshot, tmp_path, rebuilt(bad)))
        assert all(word in message for word in words), f"{name}: {message}"
        tried += 1
    assert tried > 25


def test_optional_section_is_skipped(snapshot, tmp_path):
    found = sections((snapshot / "state").read_bytes())
    more = [*found[:5], (7000, 1, b"of the future", b"?"), *found[5:]]
    with Coracle(copy_of(snapshot, tmp_path, rebuilt(more)), command="restore") as m:
        m.send(b"still.")
        m.line("still")
        assert m.wait() == 0


@pytest.mark.parametrize("name", ["state", "memory"])
@pytest.mark.parametrize("what", ["missing", "symlink", "fifo", "directory", "empty", "foreign"])
def test_foreign_files(snapshot, tmp_path, name, what):
    directory = copy_of(snapshot, tmp_path)
    path = directory / name
    path.unlink()
    if what == "symlink":
        path.symlink_to(snapshot / name)
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "foreign":
        path.write_bytes(b"#!/bin/sh\necho hello\n")
    message = refused(directory)
    assert name in message, message


def test_sparse_monsters(snapshot, tmp_path):
    directory = copy_of(snapshot, tmp_path)
    os.truncate(directory / "state", 1 << 40)
    assert "state" in refused(directory)
    shutil.copy(snapshot / "state", directory / "state")
    os.truncate(directory / "memory", 1 << 40)
    assert "memory" in refused(directory)


def test_not_a_directory(tmp_path):
    assert "nowhere" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"")
    assert "file" in refused(tmp_path / "file")


# ---- a directory is whole or not there ----

def leftovers(directory):
    return sorted(p.name for p in directory.iterdir() if ".partial-" in p.name)


def test_name_taken(tmp_path):
    with Coracle("--kernel", guest("hello"), "--memory", "4M", "--cmdline", "echo") as m:
        m.line("ready")
        (tmp_path / "there").mkdir()
        done = m.ctl("snapshot", tmp_path / "there")
        assert done.returncode == 1 and "there already" in done.stderr
        done = m.ctl("snapshot", tmp_path / "no" / "such")
        assert done.returncode == 1 and "no" in done.stderr
        done = m.ctl("snapshot")
        assert done.returncode == 2
        assert not leftovers(tmp_path)
        m.send(b"alive.")
        m.line("alive")
        assert m.wait() == 0


FILES = {"memory", "state", "machine.json"}


def traced(path):
    """What a program does to files, with the names behind descriptors."""
    return ["strace", "-f", "-ttt", "-y", "-s", "0", "-o", str(path), "-e", "trace=fsync,fdatasync,rename,"
            "renameat2,write,writev,pwrite64,pwritev,pwritev2,ftruncate,fallocate"]


def steps_of(traces, directory):
    """(call, file) in order of time; "." is the snapshot's directory, ".." the one that it is in."""
    lines = sorted(line.split(maxsplit=2)[1:] for trace in traces
                   for line in trace.read_text(encoding="ascii").splitlines())
    for _, call in lines:
        name = re.match(r"\w*", call)[0]
        at = re.search(r"<([^<>]*)>", call)
        if re.search(rf'"{directory}\.partial-\w+", [^"]*"{directory}".* = 0$', call):
            yield "rename", "."
        elif at and at[1] == str(directory.parent):
            yield name, ".."
        elif at and re.fullmatch(rf"{directory}(\.partial-\w+)?", at[1]):
            yield name, "."
        elif at and at[1].startswith(f"{directory}.partial-"):
            yield name, os.path.basename(at[1])


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace here")
@pytest.mark.parametrize("stop", [[], ["--stop"]])
def test_on_stable_storage_before_it_has_its_name(stop, tmp_path):
    """Every file after its last byte, then the directory, then the name, then whoever keeps that."""
    directory, traces = tmp_path / "snapshot", [tmp_path / "machine", tmp_path / "ctl"]
    with Coracle("--kernel", guest("hello"), "--memory", "4M", "--cmdline", "echo",
                 prefix=traced(traces[0])) as m:
        m.line("ready")
        done = subprocess.run([*traced(traces[1]), PROGRAM, "ctl", m.socket_path, "snapshot", directory,
                               *stop], capture_output=True, text=True, check=False)
        if not stop:
            m.call("quit")
        assert m.wait() == 0 and done.returncode == 0, done.stderr + m.story()
    steps = list(steps_of(traces, directory))
    assert steps[-3:] == [("fsync", "."), ("rename", "."), ("fsync", "..")], steps
    assert {name for _, name in steps[:-3]} == FILES, steps
    for name in FILES:
        assert [call for call, at in steps if at == name][-1] == "fsync", (name, steps)


def small_filesystem(tmp_path, size):
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)],
                          capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs the right to mount")
    return mount


@pytest.mark.parametrize("stop", [[], ["--stop"]])
def test_disk_full(tmp_path, stop):
    mount = small_filesystem(tmp_path, "2M")
    try:
        with Coracle("--kernel", guest("churn"), "--memory", "32M", "--cmdline", "pages=2048") as m:
            m.line("ready")
            done = m.ctl("snapshot", mount / "snapshot", *stop)
            assert done.returncode == 1, done
            assert "No space left" in done.stderr
            assert os.listdir(mount) == []
            assert m.call("info")["state"] == "running"
            churned(m)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


BUSY = ("--kernel", guest("churn"), "--memory", "160M", "--hugepages", "off", "--cmdline",
        "pages=32768 depth=0")
TRIES = 20


def disturbed(m, directory, disturb):
    """Begin a snapshot and disturb(command, machine) once RAM is being written. The command's exit
    status and words; None: it was done sooner, and is away again.
    """
    with subprocess.Popen([PROGRAM, "ctl", m.socket_path, "snapshot", directory, "--json"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        event = json.loads(p.stdout.readline())
        assert event["method"] == "job-progress" and event["params"]["total"] == 160 * MIB
        disturb(p, m)
        _, said = p.communicate(timeout=TIMEOUT)
    if not directory.exists():
        return p.returncode, said
    shutil.rmtree(directory)
    return None


def cancel(_, m):
    try:
        m.call("cancel")
    except ControlError as e:
        assert "nothing to cancel" in str(e) or "no longer" in str(e)


@pytest.mark.parametrize("how,status,words", [
    ("ctrl-c", 1, "interrupted"), ("cancel", 1, "cancelled"), ("kill", -signal.SIGKILL, "")])
def test_interrupted(how, status, words, tmp_path):
    """Ctrl-C in the command, its death, another client's word: no snapshot, the machine works on."""
    disturb = {"ctrl-c": lambda p, _: p.send_signal(signal.SIGINT), "cancel": cancel,
               "kill": lambda p, _: p.kill()}[how]
    with Coracle(*BUSY) as m:
        m.line("ready")
        for _ in range(TRIES):
            seen = disturbed(m, tmp_path / "snapshot", disturb)
            if seen:
                break
        assert seen and seen[0] == status and words in seen[1], seen
        if how == "kill":   # nobody is left to clean up, but its name says what it is
            left = [tmp_path / name for name in leftovers(tmp_path)]
            assert len(left) == 1
            shutil.rmtree(left[0])
        assert os.listdir(tmp_path) == []
        assert m.call("info")["state"] == "running"
        while m.call("info")["job"]:
            pass
        m.snapshot(tmp_path / "snapshot")   # nothing is in the way of the next
        churned(m)
    with Coracle(tmp_path / "snapshot", command="restore") as m:
        churned(m)


@pytest.mark.parametrize("both", [False, True])
def test_killed_machine(both, tmp_path):
    """The machine dies in the middle, or both do: nothing bears the name; what is left is refused."""
    def disturb(p, m):
        m.process.kill()
        if both:
            p.kill()

    for _ in range(TRIES):
        with Coracle(*BUSY) as m:
            m.line("ready")
            seen = disturbed(m, tmp_path / "snapshot", disturb)
        if seen:
            break
    assert seen and seen[0] == (-signal.SIGKILL if both else 1), seen
    assert both or "ended" in seen[1]
    assert len(os.listdir(tmp_path)) == len(leftovers(tmp_path)) == int(both)
    for name in leftovers(tmp_path):    # it may have been whole, and only its name was not yet
        done = subprocess.run([PROGRAM, "inspect", tmp_path / name], capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0 or "it ends " in done.stderr, done


# ---- inspect ----

def test_inspect(snapshot):
    done = subprocess.run([PROGRAM, "inspect", snapshot, "--json"], capture_output=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["machine"]["config"]["memory"] == "4M"
    assert seen["machine"]["disks"]["root"]["size"] == MIB
    assert [d["name"] for d in seen["devices"]][:2] == ["pci0", "serial0"]
    root = next(d for d in seen["devices"] if d["name"] == "disk.root")
    assert root["type"] == "virtio-blk"
    assert [next(iter(part)) for part in root["state"]] == ["virtio", "virtq", "pci", "msix"]
    assert len(seen["vcpus"]) == 2 and seen["vcpus"][0]["rip"] > 0
    assert seen["end"]["sections"] == 2 + len(seen["devices"]) + len(seen["vcpus"])
    text = subprocess.run([PROGRAM, "inspect", snapshot], capture_output=True, text=True,
                          check=True).stdout
    for word in ("disk.root (virtio-blk)", "vcpu 1", "lapic", "driver_features", "guest_ns"):
        assert word in text


def test_inspect_damaged(snapshot, tmp_path):
    data = (snapshot / "state").read_bytes()
    directory = copy_of(snapshot, tmp_path, data[:-10])
    done = subprocess.run([PROGRAM, "inspect", directory], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 1 and "section end" in done.stderr and done.stdout == ""
