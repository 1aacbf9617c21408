"""test_golden.py - snapshots of every version of the format (tests/golden) still load

Every field that the version had is still there with the value it had; where this host can be the
processor that the guest has seen, the guest goes on, to its end.
"""
import json
import pathlib
import socket
import subprocess

import pytest

from coracle import PROGRAM, TIMEOUT, Coracle, check_host, verdicts, why_no_kvm
from netns import echo, network_namespace

TOP = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = sorted(p for p in (TOP / "tests/golden").glob("v*/*") if p.is_dir())


def names(path):
    return f"{path.parent.name}-{path.name}"


def missing(old, new, where=""):
    """What of @old is not in @new."""
    if isinstance(old, dict):
        for key, value in old.items():
            if not isinstance(new, dict) or key not in new:
                yield f"{where}.{key} is gone"
            else:
                yield from missing(value, new[key], f"{where}.{key}")
    elif isinstance(old, list) and old and isinstance(old[0], (dict, list)):
        if not isinstance(new, list) or len(new) < len(old):
            yield f"{where} has fewer elements"
        else:
            for i, value in enumerate(old):
                yield from missing(value, new[i], f"{where}[{i}]")
    elif old != new:
        yield f"{where} was {old}, is {new}"


def test_there_are_some():
    assert len(GOLDEN) >= 2


@pytest.mark.parametrize("snapshot", GOLDEN, ids=names)
def test_fields(snapshot):
    old = json.loads(snapshot.with_suffix(".json").read_text(encoding="ascii"))
    run = subprocess.run([PROGRAM, "inspect", snapshot, "--json"], capture_output=True, text=True,
                         check=False)
    assert run.returncode == 0, run.stderr
    assert not list(missing(old, json.loads(run.stdout)))


def goes_on(snapshot, tmp_path, *args, prefix=()):
    """The machine, or a skip where this host's processor is another one."""
    why = why_no_kvm()
    if why:
        pytest.skip(why)
    disk = tmp_path / "disk"
    with open(disk, "wb") as f:
        f.truncate(1 << 20)
    machine = Coracle(snapshot, "--disk", f"id=root,path={disk}", "--paused", *args,
                      command="restore", prefix=prefix)
    machine.err.wait_for(lambda data: True if b"go on" in data or b"section" in data else None, 30)
    for word in ("lacks", "vendor", "address bits", "keeps FPU state", "time stamp counter"):
        if word in machine.errors():
            machine.close()
            pytest.skip(f"this host's processor is another: {machine.errors().splitlines()[-1]}")
    return machine


@pytest.mark.parametrize("snapshot", [p for p in GOLDEN if p.name == "pci"], ids=names)
def test_pci_goes_on(snapshot, tmp_path):
    with goes_on(snapshot, tmp_path) as m:
        assert m.call("info")["state"] == "paused"
        m.call("resume")
        m.send(b"x")
        m.line("sync 2")
        m.send(b"x")
        m.line("sync 3")
        m.send(b"x")
        assert m.wait() == 0, m.story()
        assert verdicts(m) == ["kept", "timer"]


@pytest.mark.parametrize("snapshot", [p for p in GOLDEN if p.name == "console"], ids=names)
def test_console_goes_on(snapshot, tmp_path):
    with goes_on(snapshot, tmp_path, "--console", f"unix:{tmp_path}/c") as m:
        assert m.call("info")["state"] == "paused"
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(TIMEOUT)
            line.connect(f"{tmp_path}/c")
            line.sendall(b"after.")
            m.call("resume")
            m.send(b"x")
            seen = b""
            while b"after." not in seen:
                seen += line.recv(4096)
        assert b"size 100x40\r\n" in seen
        assert m.wait() == 0, m.story()
        assert "done" in m.lines() and "fail" not in m.text()


@pytest.mark.parametrize("snapshot", [p for p in GOLDEN if p.name == "mmio"], ids=names)
def test_mmio_goes_on(snapshot, tmp_path):
    """With a tap of its own, and a peer that answers frames."""
    if check_host()[0]["checks"]["tun"]["has"] == "no":
        pytest.skip("this host has no tun")
    with network_namespace() as enter:
        if not enter:
            pytest.skip("needs the right to make a network namespace")
        with goes_on(snapshot, tmp_path, "--net", "id=n0,tap=kit0", prefix=enter) as m:
            assert m.call("info")["state"] == "paused"
            m.call("resume")
            with echo(enter, "kit0"):
                m.send(b"x")
                m.line("sync 1")
                m.send(b"x")
                assert m.wait() == 0, m.story()
                assert {"frames", "frames-after-sync"} <= set(verdicts(m))
