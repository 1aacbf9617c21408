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

from coracle import PROGRAM, TIMEOUT, Coracle, check_host, guest, verdicts, why_no_kvm

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
