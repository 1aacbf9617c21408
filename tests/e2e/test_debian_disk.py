"""test_debian_disk.py - a Debian guest's disks: data, caches, holes, names, and what survives

One guest has a disk for each way the VMM does I/O. fio writes at random with 16 requests in flight
and reads back what it wrote; the host looks at the same bytes from its side.
"""
import contextlib
import hashlib
import os
import re

import pytest

from debian import (Debian, MIB, allocated, check_host, host, kernel_warnings, needs, root_disk,
                    scratch_dir, sparse, why_not)

WHY_NOT = why_not()
pytestmark = [pytest.mark.debian, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
              needs("losetup")]

SIZE = 64 * MIB

# serial number -> (what it is on, options)
DISKS = {
    "uring-file": ("file", "aio=io_uring,direct=on,queues=2"),
    "threads-file": ("file", "aio=threads,queues=2,cache=writethrough"),
    "uring-loop": ("loop", "aio=io_uring"),
    "threads-loop": ("loop", "aio=threads,direct=on"),
    "thin": ("file", "discard=on"),
    "thick": ("file", "discard=off"),
    "locked": ("file", "read-only=on"),
}
WITH_URING = [s for s, (_, options) in DISKS.items() if "io_uring" in options]


class Disks:
    """Images of one machine, and the options that give them to it."""

    def __init__(self, stack):
        self.dir = stack.enter_context(scratch_dir())
        self.root = root_disk(self.dir)
        self.image, self.args = {}, []
        uring = check_host()[0]["checks"]["io_uring"]["has"] == "yes"
        for serial, (kind, options) in DISKS.items():
            if serial in WITH_URING and not uring:
                continue
            path = self.image[serial] = sparse(f"{self.dir}/{serial}", SIZE)
            if kind == "loop":
                path = host("losetup", "--find", "--show", path).strip()
                stack.callback(host, "losetup", "--detach", path)
            self.args += ["--disk", f"{path},serial={serial},id={serial},{options}"]
        with open(self.image["locked"], "r+b") as f:
            f.write(b"do not touch" * 1000)

    def sum_of(self, serial, length):
        with open(self.image[serial], "rb") as f:
            return hashlib.md5(f.read(length)).hexdigest()


@pytest.fixture(scope="module", name="debian", params=["pci", "mmio"])
def fixture_debian(request):
    with contextlib.ExitStack() as stack:
        disks = Disks(stack)
        m = stack.enter_context(Debian("--transport", request.param, "--cpus", 2, *disks.args,
                                       root=disks.root))
        m.disks, m.transport = disks, request.param
        yield m.login()


def dev(serial):
    return f"/dev/disk/by-id/virtio-{serial}"


def name(m, serial):
    return m.sh(f"basename $(readlink -f {dev(serial)})")


def stat(m, serial):
    return m.call("stats")["devices"][f"disk.{serial}"]


def image(m, serial):
    if serial not in m.disks.image:
        pytest.skip("this host has no io_uring")
    return m.disks.image[serial]


def test_serial_numbers(debian):
    names = debian.sh("udevadm settle; ls /dev/disk/by-id").split()
    assert sorted(names) == sorted(f"virtio-{serial}" for serial in debian.disks.image)
    assert debian.sh(f"blockdev --getsize64 {dev('thin')}") == str(SIZE)


@pytest.mark.parametrize("serial", [s for s in DISKS if s != "locked" and s[:2] != "th"] +
                         ["threads-file", "threads-loop"])
def test_fio_verifies(debian, serial):
    """Three jobs at once on parts of their own, from single sectors to 256 KiB."""
    image(debian, serial)
    before = stat(debian, serial)
    sizes = (("512", "256k"), ("4k", "2m"), ("256k", "16m"))
    jobs = " ".join(f"--name=b{i} --bs={bs} --offset={i * 16}m --size={size}"
                    for i, (bs, size) in enumerate(sizes))
    debian.sh(f"fio --thread --ioengine=libaio --direct=1 --iodepth=16 --rw=randrw --verify=crc32c "
              f"--verify_fatal=1 --eta=never --output=/run/fio --filename={dev(serial)} {jobs} || "
              f"{{ cat /run/fio; false; }}")
    assert debian.sh("grep -c 'err= 0' /run/fio") == "3"
    after = stat(debian, serial)
    assert after["errors"] == 0
    assert after["read-bytes"] - before["read-bytes"] >= 8 * MIB
    assert after["write-bytes"] - before["write-bytes"] >= 8 * MIB


@pytest.mark.parametrize("serial,queues", [("uring-file", 2), ("threads-file", 2),
                                           ("threads-loop", 1)])
def test_queues(debian, serial, queues):
    image(debian, serial)
    assert debian.sh(f"ls /sys/block/{name(debian, serial)}/mq | wc -l") == str(queues)
    if debian.transport == "pci":
        # An interrupt of its own for each queue, and each was used (by fio above).
        table = debian.sh("cat /proc/interrupts")
        virtio = debian.sh(f"basename $(readlink -f /sys/block/{name(debian, serial)}/device)")
        rows = [line.split() for line in table.splitlines() if f"{virtio}-req." in line]
        assert len(rows) == queues
        assert all(int(row[1]) + int(row[2]) > 0 for row in rows), table


def test_cache_modes(debian):
    """The guest is told of a write cache, and flushes it, unless there is none."""
    for serial, mode in (("thin", "write back"), ("threads-file", "write through")):
        assert debian.sh(f"cat /sys/block/{name(debian, serial)}/queue/write_cache") == mode
    before = stat(debian, "thin")["flush-ops"]
    debian.sh(f"dd if=/dev/zero of={dev('thin')} bs=1M count=1 conv=fsync")
    assert stat(debian, "thin")["flush-ops"] > before


def test_write_zeroes(debian):
    """A request that carries no data."""
    debian.sh(f"tr '\\0' x </dev/zero | head -c {32 * MIB} >{dev('thick')}; sync")
    before = stat(debian, "thick")
    debian.sh(f"blkdiscard --zeroout --offset {4 * MIB} --length {24 * MIB} {dev('thick')}")
    after = stat(debian, "thick")
    assert after["write-bytes"] - before["write-bytes"] == 24 * MIB
    assert after["write-ops"] - before["write-ops"] <= 4
    debian.sh(f"cmp -n {24 * MIB} -i {4 * MIB}:0 {dev('thick')} /dev/zero")
    with open(image(debian, "thick"), "rb") as f:
        data = f.read(32 * MIB)
    assert data == b"x" * (4 * MIB) + bytes(24 * MIB) + b"x" * (4 * MIB)


def test_discard_gives_space_back(debian):
    path = image(debian, "thin")
    debian.sh(f"mkfs.ext4 -q -F {dev('thin')} && mount {dev('thin')} /mnt")
    empty = allocated(path)
    debian.sh("tr '\\0' y </dev/zero | head -c 32M >/mnt/file && sync")
    assert allocated(path) >= empty + 32 * MIB
    debian.sh("rm /mnt/file && sync && fstrim /mnt")
    assert allocated(path) < empty + 8 * MIB
    assert stat(debian, "thin")["discard-ops"] > 0
    debian.sh(f"umount /mnt && blkdiscard -f {dev('thin')}")
    assert allocated(path) < MIB


def test_discard_off(debian):
    path = image(debian, "thick")
    before = allocated(path)
    text, status = debian.run(f"blkdiscard -f {dev('thick')}")
    assert status != 0 and "not supported" in text
    assert allocated(path) == before > 0


def test_read_only(debian):
    path, disk = image(debian, "locked"), name(debian, "locked")
    before = debian.disks.sum_of("locked", SIZE)
    assert debian.sh(f"cat /sys/block/{disk}/ro") == "1"
    text, status = debian.run(f"dd if=/dev/zero of={dev('locked')} bs=4k count=1 conv=fsync")
    assert status != 0 and re.search("not permitted|Read-only", text), text
    assert debian.sh(f"head -c 12 {dev('locked')}") == "do not touch"
    assert debian.disks.sum_of("locked", SIZE) == before
    assert os.stat(path).st_size == SIZE


def test_no_complaints(debian):
    assert stat(debian, "locked")["errors"] == 0
    assert kernel_warnings(debian.shell) == []


def test_data_survives(debian):
    """A reboot in place; the machine's end, and another machine after it by the other transport."""
    length = 2 * MIB
    keepers = [s for s in ("uring-file", "threads-file", "uring-loop", "threads-loop")
               if s in debian.disks.image]
    for serial in keepers:
        debian.sh(f"head -c {length} /dev/urandom | dd of={dev(serial)} bs=64k iflag=fullblock "
                  "conv=fsync")
    # fsync has brought them to the host.
    sums = [debian.disks.sum_of(serial, length) for serial in keepers]
    assert len(set(sums)) == len(keepers)
    read = "; ".join(f"head -c {length} {dev(serial)} | md5sum" for serial in keepers)
    assert re.findall(r"[0-9a-f]{32}", debian.sh(read)) == sums
    if debian.transport == "pci":
        debian.reboot()
        assert re.findall(r"[0-9a-f]{32}", debian.sh(read)) == sums
    debian.power_off()
    if debian.transport == "mmio":
        return
    letters = "bcde"[:len(keepers)]
    assert list(DISKS)[:4] == ["uring-file", "threads-file", "uring-loop", "threads-loop"]
    read = f"for d in {' '.join(letters)}; do head -c {length} /dev/vd$d | md5sum; done"
    with Debian("--transport", "mmio", *debian.disks.args, root=debian.disks.root,
                init=f'/bin/sh -- -c "{read}; exec poweroff -ff"') as m:
        assert m.wait(600) == 0, m.story()
        assert re.findall(r"[0-9a-f]{32}", m.text()) == sums, m.story()
