"""test_debian_demo_pod.py - what `make demo-pod` runs once the set-up is done (tools/demo-pod)"""
import os
import re
import subprocess
import termios

import pexpect
import pytest

from debian_pod import why_not  # first: it makes the others of tests/e2e known
from debian import IMAGE, TOP

DEMO = str(TOP / "tools/demo-pod")
SECONDS = 900
WHY_NOT = why_not()
pytestmark = [pytest.mark.debian, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


@pytest.fixture(autouse=True)
def nothing_left():
    """The image as it was; no pod's network, no loop device, no copy of the disk"""
    def looks():
        image = os.stat(IMAGE / "root.ext4")
        loops = subprocess.run(["losetup", "-l", "-n", "-O", "BACK-FILE"], check=True,
                               capture_output=True, text=True).stdout
        return (image.st_mtime_ns, image.st_size,
                [name for name in os.listdir("/var/tmp") if name.startswith("coracle-demo-pod-")],
                [name for name in os.listdir("/tmp") if name.startswith("coracle-pods-")],
                loops.count("coracle-demo-pod-"))

    before = looks()
    yield
    assert looks() == before


def run(*args):
    return subprocess.run([DEMO, *args], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=SECONDS, check=False)


def test_without_a_terminal():
    done = run()
    out = done.stdout
    assert done.returncode == 0, out + done.stderr
    mac, address = re.search(r"^    eth0: ([\da-f:]{17}), (10\.[\d.]+), MTU 1500$", out, re.M).groups()
    assert re.search(r"^Debian GNU/Linux 12 coracle-guest ttyS0$", out, re.M), out
    assert re.search(rf"^eth0 +UP +{re.escape(address)}/24 ", out, re.M), out
    assert re.search(rf"^eth0 +UP +{mac} ", out, re.M), out
    assert "3 packets transmitted, 3 received" in out, out
    assert "exit code 0 (Completed)" in out, out
    table = out[out.index("left behind:"):].splitlines()[1:]
    assert len(table) > 5 and all(line.endswith(" none") for line in table), table


def test_on_a_terminal():
    """The guest has the keys until Ctrl-]; then the pod is deleted and the terminal as it was."""
    demo = pexpect.spawn(DEMO, ["--transport", "mmio"], timeout=SECONDS)
    modes = termios.tcgetattr(demo.child_fd)
    try:
        demo.expect("login: root, password: coracle")
        demo.expect("login: $")
        assert termios.tcgetattr(demo.child_fd) != modes, "not raw while the guest has it"
        demo.send("root\n")
        demo.expect("Password: $")
        demo.send("coracle\n")
        demo.expect(r"coracle-guest:~# $")
        demo.send("\x1d")
        demo.expect("3 packets transmitted, 3 received")
        demo.expect(r"exit code 0 \(Completed\)")
        demo.expect(pexpect.EOF)
        demo.wait()
        assert demo.exitstatus == 0
        assert termios.tcgetattr(demo.child_fd) == modes, "the terminal is not as it was"
    finally:
        demo.close(force=True)


def test_a_guest_that_hangs():
    """It has to end, say so, and leave nothing, as always."""
    done = run("--timeout", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed: the login prompt: not within 1 s" in done.stderr
    assert "containerd.log" in done.stderr
