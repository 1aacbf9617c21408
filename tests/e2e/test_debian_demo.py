"""test_debian_demo.py - what `make demo` runs once the set-up is done (tools/demo-machine)"""
import os
import re
import subprocess
import termios

import pexpect
import pytest

from coracle import PROGRAM, TOP, check_host

DEMO = str(TOP / "tools/demo-machine")
ROOT = TOP / "cache/guest/root.ext4"
SECONDS = 900


def why_not():
    if not os.path.exists(PROGRAM):
        return f"{PROGRAM} is not built"
    if not ROOT.exists():
        return "no guest image: guest-images/build makes it"
    return None if check_host()[0]["kvm"]["boots_linux"] else "this host's KVM boots no Linux"


WHY_NOT = why_not()
pytestmark = [pytest.mark.debian, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


@pytest.fixture(autouse=True)
def nothing_left():
    """The image as it was; no tap, no copy of the disk"""
    before = os.stat(ROOT)
    yield
    after = os.stat(ROOT)
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
    assert not os.path.exists("/sys/class/net/coracle-demo")
    assert not [n for n in os.listdir("/var/tmp") if n.startswith("coracle-demo-")]


def run(*args):
    return subprocess.run([DEMO, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=SECONDS, check=False)


def test_without_a_terminal():
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    out = done.stdout
    assert re.search(r"^Linux coracle-guest \S+ .* x86_64 GNU/Linux$", out, re.M), out
    assert re.search(r"^Hypervisor vendor: +KVM$|^ +Hypervisor vendor: +KVM$", out, re.M), out
    assert re.search(r"^eth0 +UP +192\.0\.2\.2/24", out, re.M), out
    assert re.search(r"^/ +/dev/vda ext4 +rw", out, re.M), out
    assert "3 packets transmitted, 3 received" in out, out


def test_on_a_terminal():
    demo = pexpect.spawn(DEMO, ["--transport", "mmio"], timeout=SECONDS)
    modes = termios.tcgetattr(demo.child_fd)
    try:
        demo.expect("login: $")
        assert termios.tcgetattr(demo.child_fd) != modes, "not raw while the guest has it"
        demo.send("root\n")
        demo.expect("Password: $")
        demo.send("coracle\n")
        demo.expect(r"coracle-guest:~# $")
        demo.send("\x01x")
        demo.expect(pexpect.EOF)
        demo.wait()
        assert demo.exitstatus == 0
        assert termios.tcgetattr(demo.child_fd) == modes, "the terminal is not as it was"
    finally:
        demo.close(force=True)


def test_a_guest_that_hangs():
    """It has to end, say so, and leave nothing, as always."""
    done = run("--timeout", "0.5")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed: the login prompt: nothing for" in done.stderr
    assert "console.log" in done.stderr
