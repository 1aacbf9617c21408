"""test_known_bugs.py - what bit others and needs a whole machine to show; docs/known-bugs.md has the list"""
import re
import resource
import struct
import subprocess
import sys

import pytest

from coracle import Coracle, TOP, guest, verdicts, why_no_kvm

WHY_NOT = why_no_kvm()
needs_kvm = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
MIB = 1 << 20


def qcow2_header(backing, size):
    """Version 3, a backing file, no clusters (QEMU's docs/interop/qcow2.txt)."""
    head = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 512, len(backing), 16, size, 0, 0,
                       0x10000, 0x20000, 1, 0, 0, 0, 0, 0, 4, 104)
    return head.ljust(512, b"\0") + backing


@needs_kvm
def test_foreign_header_on_a_raw_disk(tmp_path):
    """A guest that writes another format's header onto its disk finds the same disk after a restart."""
    secret, disk = tmp_path / "secret", tmp_path / "disk"
    secret.write_bytes(b"the host's own" * 4096)
    disk.write_bytes(qcow2_header(str(secret).encode(), 64 * MIB).ljust(MIB, b"\0"))
    before = disk.read_bytes()
    for options in (",read-only=on", ""):
        with Coracle("--kernel", guest("blk"), "--memory", "64M", "--disk", f"{disk}{options}",
                     "--cmdline", f"sectors={MIB // 512}{' ro' if options else ''}") as m:
            assert m.wait() == 0, m.story()
            assert "capacity" in verdicts(m)
            assert "QFI" not in m.errors() and "secret" not in m.text()
        if options:
            assert disk.read_bytes() == before
    assert disk.stat().st_size == MIB
    assert secret.read_bytes() == b"the host's own" * 4096


# Stores and loads by REP that end at the last address and port there is, and over the edge of a window.
STRINGS = bytes.fromhex(
    "fc b844332211"
    "bff0ffffff b904000000 f3ab"  # rep stosd to 0xfffffff0
    "bef0ffffff b904000000 f3ad"  # rep lodsd
    "bffe0f00d0 b940000000 f3ab"  # across the ends of virtio-mmio windows, not aligned
    "befe0f00d0 b940000000 f3ad"
    "bffeff0fe0 b904000000 f3ab"  # and of configuration space
    "baffff0000 bf00900000 b904000000 f36d"  # rep insd from port 0xffff
    "baffff0000 be00900000 b904000000 f36f"  # rep outsd
    "bafeff0000 bf00900000 b904000000 f36d"
    "baf4000000 b02a ee f4")


@needs_kvm
@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_strings_over_the_edge(transport, tmp_path):
    kernel = tmp_path / "strings.bin"
    kernel.write_bytes(STRINGS)
    with Coracle("--kernel", kernel, "--kernel-type", "flat32", "--memory", "16M", "--testdev", "on",
                 "--transport", transport) as m:
        assert m.wait() == 42 << 1 | 1, m.story()


@needs_kvm
def test_io_errors_do_not_drown_clients(tmp_path):
    """A guest that hammers a failing disk takes neither the socket from its clients nor memory."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    with Coracle("--kernel", guest("ioerrors"), "--memory", "64M", "--disk", disk,
                 preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))) as m:
        m.line("ready")
        idle = m.connect()
        idle.call("info")
        assert m.event("io-error")["device"] == "disk.disk0"
        seen = 0
        while seen < 20000:  # of them a client gets a handful
            seen = m.call("stats")["devices"]["disk.disk0"]["errors"]
        told = [e for e in m.control.events if e["method"] == "io-error"]
        assert len(told) < 100
        assert idle.call("info")["state"] == "running"  # it has read nothing meanwhile
        m.send(b"x")
        assert m.wait() == 0, m.story()
        assert "errors" in verdicts(m)
        assert len(re.findall("write of 512 bytes .* failed: File too large", m.errors())) < 100


def test_every_named_test_exists():
    r = subprocess.run([sys.executable, str(TOP / "tools/known-bugs")], capture_output=True,
                       text=True, check=False)
    assert r.returncode == 0, r.stderr


def test_a_wrong_name_is_found(tmp_path):
    text = (TOP / "docs/known-bugs.md").read_text(encoding="utf-8")
    wrong = tmp_path / "known-bugs.md"
    wrong.write_text(re.sub(r"`(test_virtq\.c)::\w+`", r"`\1::no_such_test`", text, count=1),
                     encoding="utf-8")
    r = subprocess.run([sys.executable, str(TOP / "tools/known-bugs"), str(wrong)],
                       capture_output=True, text=True, check=False)
    assert r.returncode == 1 and "no_such_test" in r.stderr
