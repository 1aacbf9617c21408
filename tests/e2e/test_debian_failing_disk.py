"""test_debian_failing_disk.py - disks of the host that fail under a Debian guest

One guest, one disk for each way to fail, and one that does not: an error is the guest's to see, the
log's to name and an event, and everything else goes on. And disks that may not be had at all.
"""
import contextlib
import os
import re
import signal

import pytest

from coracle import Coracle, guest
from debian import (Debian, IMAGE, MIB, assert_clean, host, needs, root_disk, scratch_dir, sparse,
                    why_not)

WHY_NOT = why_not()


def has_device_mapper():
    return os.geteuid() == 0 and os.path.exists("/dev/mapper/control") or WHY_NOT is not None


pytestmark = [pytest.mark.debian, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
              needs("losetup", "dmsetup", "e2fsck"),
              pytest.mark.skipif(not has_device_mapper(), reason="no device mapper here")]

SIZE = 64 * MIB
SECTORS = SIZE // 512


class Mapped:
    """A device mapper device on a loop device, whose table may change while it is used."""

    def __init__(self, stack, directory, label):
        self.name = f"coracle-{os.getpid()}-{label}"
        self.path = f"/dev/mapper/{self.name}"
        image = sparse(f"{directory}/{label}", SIZE)
        self.below = host("losetup", "--find", "--show", image).strip()
        stack.callback(host, "losetup", "--detach", self.below)
        host("dmsetup", "create", self.name, "--table", self.table("linear"))
        stack.callback(host, "dmsetup", "remove", "--retry", self.name)

    def table(self, kind):
        how = {
            "linear": f"linear {self.below} 0",
            "error": "error",
            # never up; while down, writes fail and reads succeed
            "flakey": f"flakey {self.below} 0 0 3600 1 error_writes",
        }[kind]
        return f"0 {SECTORS} {how}"

    def become(self, kind):
        host("dmsetup", "suspend", "--noflush", self.name)
        host("dmsetup", "load", self.name, "--table", self.table(kind))
        host("dmsetup", "resume", self.name)


class Disks:
    def __init__(self, stack):
        self.dir = stack.enter_context(scratch_dir())
        self.root = root_disk(self.dir)
        self.broken = Mapped(stack, self.dir, "broken")
        self.flakey = Mapped(stack, self.dir, "flakey")
        # A disk that promises more than its file system has.
        small = f"{self.dir}/small"
        os.mkdir(small)
        host("mount", "-t", "tmpfs", "-o", "size=8M", "none", small)
        stack.callback(host, "umount", small)
        self.full = sparse(f"{small}/full", SIZE)
        self.good = sparse(f"{self.dir}/good", SIZE)
        self.shared = sparse(f"{self.dir}/shared", MIB)
        with open(self.shared, "r+b") as f:
            f.write(b"shared by two\n")
        self.args = []
        for path, label, more in ((self.broken.path, "broken", "direct=on"),
                                  (self.flakey.path, "flakey", "direct=on,aio=threads"),
                                  (self.full, "full", ""), (self.good, "good", ""),
                                  (self.shared, "shared", "read-only=on")):
            self.args += ["--disk", f"{path},id={label},serial={label},{more}".rstrip(",")]


@pytest.fixture(scope="module", name="debian")
def fixture_debian():
    with contextlib.ExitStack() as stack:
        disks = Disks(stack)
        m = stack.enter_context(Debian(*disks.args, root=disks.root))
        m.disks = disks
        yield m.login()


def dev(label):
    return f"/dev/disk/by-id/virtio-{label}"


def write(m, label, count=16, seek=0):
    """dd's output and exit status, past the guest's page cache."""
    return m.run(f"dd if=/dev/zero of={dev(label)} bs=64k count={count} seek={seek} oflag=direct")


def read(m, label):
    return m.run(f"dd if={dev(label)} of=/dev/null bs=64k count=4 iflag=direct")


def assert_told(m, label, path, operation, reason):
    """An event, and a line in the log that names the disk."""
    event = m.event("io-error")
    assert event["device"] == f"disk.{label}"
    assert event["operation"] == operation
    assert re.search(reason, event["error"]), event
    m.log_line(rf"disk\.{label}: {operation} of \d+ bytes at offset \d+ failed: "
               rf"({reason})[^\n]*{re.escape(path)}")
    forget_events(m)


def forget_events(m):
    """Those of before: an answer comes after them."""
    m.call("info")
    m.control.events.clear()


def assert_rest_works(m):
    text, status = write(m, "good")
    assert status == 0, text
    assert m.call("info")["state"] == "running"
    m.sh("echo alive > /root/alive && sync && grep -q alive /root/alive")


def errors(m, label):
    return m.call("stats")["devices"][f"disk.{label}"]["errors"]


def test_device_that_fails_for_good(debian):
    broken = debian.disks.broken
    assert write(debian, "broken")[1] == 0
    assert errors(debian, "broken") == 0
    broken.become("error")
    text, status = write(debian, "broken")
    assert status == 1 and "Input/output error" in text
    assert_told(debian, "broken", broken.path, "write", "Input/output error")
    text, status = read(debian, "broken")
    assert status == 1 and "Input/output error" in text
    assert errors(debian, "broken") >= 2
    assert_rest_works(debian)


def test_device_that_recovers(debian):
    debian.disks.broken.become("linear")
    assert write(debian, "broken")[1] == 0
    assert read(debian, "broken")[1] == 0


def test_file_system_on_a_device_that_fails(debian):
    """ext4 in the guest notices, and does what it was mounted to do."""
    debian.sh(f"mkfs.ext4 -q -F {dev('broken')} && mount -o errors=remount-ro {dev('broken')} /mnt "
              "&& echo before >/mnt/before && sync")
    debian.disks.broken.become("error")
    text, status = debian.run("echo after >/mnt/after && sync -f /mnt")
    assert status != 0, text
    assert "I/O error" in debian.sh("dmesg | grep -E '(EXT4-fs|I/O) error'")
    debian.run("umount /mnt")
    debian.disks.broken.become("linear")
    assert_rest_works(debian)
    debian.sh(f"e2fsck -fp {dev('broken')} >/dev/null; mount {dev('broken')} /mnt && "
              "grep -q before /mnt/before && umount /mnt", timeout=480)


def test_device_that_fails_writes(debian):
    flakey = debian.disks.flakey
    flakey.become("flakey")
    forget_events(debian)
    assert read(debian, "flakey")[1] == 0
    text, status = write(debian, "flakey")
    assert status == 1 and "Input/output error" in text
    assert_told(debian, "flakey", flakey.path, "write", "Input/output error")
    assert_rest_works(debian)
    flakey.become("linear")
    assert write(debian, "flakey")[1] == 0


def test_host_file_system_that_is_full(debian):
    """What fits is written, what does not is an error; nothing was lost of what fitted."""
    text, status = write(debian, "full", count=16)
    assert status == 0, text
    text, status = write(debian, "full", count=256, seek=16)
    assert status == 1, text
    assert_told(debian, "full", debian.disks.full, "write", "No space left on device")
    assert_rest_works(debian)
    # Room again: the guest gives some back by itself.
    debian.sh(f"blkdiscard -f {dev('full')}")
    assert write(debian, "full", count=16, seek=16)[1] == 0


# ---- disks that somebody has ----

def start_with(*disks):
    """A machine that has no time to run: it is refused, or ends at once."""
    args = [a for d in disks for a in ("--disk", d)]
    return Coracle("--kernel", IMAGE / "vmlinuz", "--initrd", IMAGE / "initrd.img", *args,
                   "--cmdline", "console=ttyS0")


@pytest.mark.parametrize("which,options", [
    ("good", ""), ("good", ",read-only=on"), ("broken", ""), ("shared", "")])
def test_second_machine_is_refused(debian, which, options):
    disk = getattr(debian.disks, which)
    path = getattr(disk, "path", disk)
    with start_with(path + options) as second:
        assert second.wait() == 1
        assert second.text() == ""
        assert f"disk {path} is in use" in second.errors()
        assert len(second.errors().splitlines()) == 1, second.errors()
    assert_rest_works(debian)


def test_both_read_only(debian):
    assert debian.sh(f"head -n 1 {dev('shared')}") == "shared by two"
    with Debian("--disk", f"{debian.disks.shared},read-only=on",
                init='/bin/sh -- -c "head -n 1 /dev/vdb; exec poweroff -ff"') as second:
        assert second.wait(600) == 0, second.story()
        assert "shared by two" in second.text()
    assert debian.sh(f"head -n 1 {dev('shared')}") == "shared by two"


def test_end(debian):
    debian.power_off()
    assert_clean(debian.root)
    # Everything is free again.
    for path in (debian.disks.good, debian.disks.broken.path, debian.disks.root):
        with start_with(path) as m:
            assert m.call("info")["state"] == "running"
            m.call("quit")
            assert m.wait() == 0, m.story()


# ---- disks that never answer ----

@pytest.fixture(name="hung")
def fixture_hung():
    with contextlib.ExitStack() as stack:
        yield Mapped(stack, stack.enter_context(scratch_dir()), "hung")


@contextlib.contextmanager
def with_requests_in_hand(disk, options):
    """A machine whose disk has stopped to answer in the middle of its work, and answers in the end."""
    with Coracle("--kernel", guest("churn"), "--memory", "8M", "--disk", f"{disk.path},id=d{options}",
                 "--cmdline", "depth=8") as m:
        m.line("ready")
        host("dmsetup", "suspend", "--nolockfs", disk.name)
        try:
            before = after = None
            while before is None or before != after:
                before, after = after, m.call("stats")["devices"]["disk.d"]
            yield m
        finally:
            host("dmsetup", "resume", disk.name)


def assert_gone(m, disk):
    """All that a process can be while the kernel waits for a device on its behalf; then gone."""
    assert m.err.wait_for(lambda d: b"in hand is left to the host" in d or None, 60), m.story()
    state = ""
    while state not in ("Z", "X"):
        with open(f"/proc/{m.pid}/stat", encoding="ascii") as f:
            state = f.read().rpartition(")")[2].split()[0]
    assert not os.path.exists(m.socket_path)
    host("dmsetup", "resume", disk.name)
    assert m.wait() == 128 + signal.SIGTERM, m.story()


def test_second_signal_while_a_disk_hangs(hung):
    """The first presses the power button, which this guest does not know; the second ends the machine, which
    waits for its disk; and the process, which does not."""
    with with_requests_in_hand(hung, ",direct=on") as m:
        m.signal(signal.SIGTERM)
        assert m.err.wait_for(lambda d: b"power button pressed" in d or None, 60), m.story()
        m.signal(signal.SIGTERM)
        assert_gone(m, hung)


def test_signals_while_a_pause_waits_for_a_disk(hung):
    """The main loop waits, too, and answers nobody."""
    with with_requests_in_hand(hung, ",aio=threads") as m:
        asked = m.connect()
        asked.socket.sendall(b'{"jsonrpc": "2.0", "id": 1, "method": "pause"}\n')
        asked.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            asked.receive()
        m.signal(signal.SIGTERM)
        sent = 1    # signals that are not heard yet are one
        while not m.err.wait_for(lambda d: b"in hand is left to the host" in d or None, 1):
            m.signal(signal.SIGTERM)
            sent += 1
        assert sent > 1
        asked.close()
        assert_gone(m, hung)


def test_a_disk_that_answers_after_the_second_signal(hung):
    """Late, but not too late: the machine ends as ever."""
    with with_requests_in_hand(hung, ",direct=on") as m:
        m.signal(signal.SIGTERM)
        assert m.err.wait_for(lambda d: b"power button pressed" in d or None, 60), m.story()
        m.signal(signal.SIGTERM)
        assert m.err.wait_for(lambda d: b"stopping at once" in d or None, 60), m.story()
        host("dmsetup", "resume", hung.name)
        assert m.wait() == 128 + signal.SIGTERM, m.story()
        assert "left to the host" not in m.errors()
