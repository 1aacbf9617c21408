"""test_kit.py - tiny guests (tests/guest) in real machines

They run on any KVM, software KVM too, so this is what a machine without virtualization can check of
the whole: processors, memory, chips, disks, NICs, resets, exit statuses.
"""
import re
import signal
import subprocess

import pytest

from coracle import Coracle, ControlError, PROGRAM, check_host, guest, verdicts, why_no_kvm
from netns import echo, network_namespace

WHY_NOT = why_no_kvm()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
TRANSPORTS = ("pci", "mmio")
MIB = 1 << 20


def run_kit(name, *args, cmdline="", memory="64M"):
    """Run a guest to its power-off and check its report; what it passed, and the machine."""
    with Coracle("--kernel", guest(name), "--memory", memory, "--cmdline", cmdline, *args) as m:
        status = m.wait()
        assert status == 0, m.story()
        return verdicts(m), m


# ---- boot ----

@pytest.mark.parametrize("name,how", [("hello", "pvh"), ("hello-mb", "multiboot")])
def test_boot(name, how):
    passed, m = run_kit(name, cmdline=f"boot={how} and=more")
    assert "boot" in passed
    assert re.search(r"^command line: .*and=more$", m.text(), re.M)


@pytest.mark.parametrize("name", ["hello", "hello-mb"])
def test_initrd(name, tmp_path):
    data = bytes(i * 7 & 0xff for i in range(10007))
    total = 0
    for b in data:
        total = (total * 31 + b) & 0xffffffff
    (tmp_path / "initrd").write_bytes(data)
    _, m = run_kit(name, "--initrd", tmp_path / "initrd")
    assert f"module {len(data)} bytes, sum {total:08x}" in m.lines()


@pytest.mark.parametrize("mode,letter,status", [(16, "6", 33), (32, "3", 65), (64, "4", 129)])
def test_flat(mode, letter, status):
    with Coracle("--kernel", guest(f"flat{mode}.bin"), "--kernel-type", f"flat{mode}",
                 "--memory", "16M", "--testdev", "on") as m:
        assert m.wait() == status, m.story()
        assert m.text() == letter


def test_testdev_off_by_default():
    """Without --testdev port 0xF4 is nothing: the guest goes on, and the machine is stopped."""
    with Coracle("--kernel", guest("hello"), "--memory", "64M", "--cmdline", "exit=testdev") as m:
        m.line("done")
        assert m.call("info")["state"] == "running"
        m.call("quit")
        assert m.wait() == 0


@pytest.mark.parametrize("failing,status", [("", 1), ("boot=nonsense", 3)])
def test_exit_status_of_testdev(failing, status):
    with Coracle("--kernel", guest("hello"), "--memory", "64M", "--testdev", "on",
                 "--cmdline", f"exit=testdev {failing}") as m:
        assert m.wait() == status, m.story()


# ---- processors and memory ----

@pytest.mark.parametrize("cpus", [1, 2, 3, 8])
def test_processors(cpus):
    _, m = run_kit("smp", "--cpus", cpus, cmdline=f"cpus={cpus}")
    started = [line for line in m.lines() if line.startswith("processor ")]
    assert started == [f"processor {i}" for i in range(1, cpus)]


# Up to the hole below 4 GiB, just over it, and well beyond; small pages, so that little is touched.
@pytest.mark.parametrize("size", [16 * MIB, 3072 * MIB, 3074 * MIB, 5000 * MIB])
def test_memory(size):
    run_kit("memory", "--hugepages", "off", cmdline=f"ram={size}", memory=f"{size // MIB}M")


# ---- chips ----

@pytest.mark.parametrize("transport", TRANSPORTS)
def test_devices(transport):
    passed, _ = run_kit("devices", "--transport", transport)
    assert {"uart-irq", "rtc", "pci-scan", "DSDT"} <= set(passed)


def test_serial_input():
    with Coracle("--kernel", guest("hello"), "--memory", "64M", "--cmdline", "echo") as m:
        m.line("ready")
        text = bytes(range(0x20, 0x7f)).replace(b".", b"") * 20  # more than the FIFO holds
        m.send(text + b".")
        m.line(re.escape(text.decode()))
        assert m.wait() == 0


# ---- virtio ----

def make_disk(path, size=1 * MIB):
    with open(path, "wb") as f:
        f.truncate(size)
    return path


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_disk(transport, aio, tmp_path):
    if aio == "io_uring" and check_host()[0]["checks"]["io_uring"]["has"] != "yes":
        pytest.skip("this host has no io_uring")
    disk = make_disk(tmp_path / "disk", 3 * MIB + 512)
    passed, m = run_kit("blk", "--transport", transport,
                        "--disk", f"{disk},serial=kit-disk,aio={aio}",
                        cmdline=f"sectors={3 * 2048 + 1} serial=kit-disk")
    assert f"transport {transport}" in m.lines()
    assert ("msix-pending" if transport == "pci" else "irq") in passed
    assert {"read", "framing", "discard", "write-zeroes"} <= set(passed)
    data = disk.read_bytes()
    assert len(data) == 3 * MIB + 512
    assert data[:512] == pattern(1, 512) and data[-512:] == pattern(4, 512)


def pattern(seed, length):
    """As tests/guest/blk.c has it."""
    out = b""
    for _ in range(length // 4):
        seed = (seed * 1664525 + 1013904223) & 0xffffffff
        out += seed.to_bytes(4, "little")
    return out


def test_disk_read_only(tmp_path):
    disk = make_disk(tmp_path / "disk")
    passed, _ = run_kit("blk", "--disk", f"{disk},read-only=on", cmdline="ro")
    assert "read-only" in passed
    assert disk.read_bytes() == bytes(MIB)


def test_disk_in_use(tmp_path):
    disk = make_disk(tmp_path / "disk")
    with Coracle("--kernel", guest("hello"), "--memory", "64M", "--disk", disk,
                 "--cmdline", "exit=halt") as first:
        first.line("done")
        with Coracle("--kernel", guest("hello"), "--memory", "64M", "--disk", disk) as second:
            assert second.wait() == 1
            assert str(disk) in second.errors()
        first.call("quit")
        assert first.wait() == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_entropy(transport):
    run_kit("rng", "--transport", transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_misbehaving_driver(transport):
    passed, m = run_kit("misbehave", "--transport", transport)
    assert len(passed) >= 30
    # Each breach was told, and not without end (log_guest's budget).
    told = [line for line in m.errors().splitlines() if "broke a rule" in line]
    assert 10 <= len(told) <= 20


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("aio", ["auto", "threads"])
def test_misbehaving_disk_driver(transport, aio, tmp_path):
    disk = make_disk(tmp_path / "disk")
    passed, _ = run_kit("badblk", "--transport", transport, "--disk", f"{disk},aio={aio}")
    assert {"same-head-refused", "reset-quiet", "never-reaped"} <= set(passed)


@pytest.fixture(name="network")
def fixture_network():
    """A command prefix that enters a network of the test's own."""
    with network_namespace() as prefix:
        if not prefix:
            pytest.skip("needs the right to make a network namespace")
        yield prefix


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_net(transport, network):
    """Frames of all lengths to the host's side of the tap and back."""
    if check_host()[0]["checks"]["tun"]["has"] == "no":
        pytest.skip("this host has no tun")
    with Coracle("--kernel", guest("net"), "--memory", "64M", "--transport", transport,
                 "--net", "kit0", "--cmdline", "frames=200", prefix=network) as m:
        m.line("ready")
        with echo(network, "kit0"):
            m.send(b"x")
            assert m.wait() == 0, m.story()
            assert "frames" in verdicts(m)
    left = subprocess.run([*network, "ip", "link", "show", "kit0"], capture_output=True,
                          check=False)
    assert left.returncode != 0, "the tap is still there"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_misbehaving_net_driver(transport, network):
    if check_host()[0]["checks"]["tun"]["has"] == "no":
        pytest.skip("this host has no tun")
    with Coracle("--kernel", guest("badnet"), "--memory", "8M", "--transport", transport,
                 "--net", "kit0,vhost=off", prefix=network) as m:
        m.line("ready")
        with echo(network, "kit0"):
            m.send(b"x")
            assert m.wait() == 0, m.story()
            assert {"head-beyond", "outside", "receive-outside"} <= set(verdicts(m))


# ---- life ----

@pytest.mark.parametrize("how", ["ged", "i8042", "cf9", "triple"])
def test_reset(how):
    passed, m = run_kit("reset", cmdline=f"how={how}")
    assert passed == ["memory-cleared"]
    assert [line for line in m.lines() if line.startswith("start")] == ["start 1", "start 2"]


@pytest.mark.parametrize("how", ["ged", "triple"])
def test_no_reboot(how):
    with Coracle("--kernel", guest("reset"), "--memory", "64M", "--cmdline", f"how={how}",
                 "--no-reboot") as m:
        assert m.wait() == 4, m.story()
        assert "start 2" not in m.text()


def panicking(*args, event=1, **kwargs):
    return Coracle("--kernel", guest("panic"), "--memory", "64M", "--cmdline", f"event={event}",
                   *args, **kwargs)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_panic_ends_the_machine(transport):
    with panicking("--paused", "--transport", transport) as m:
        client = m.connect()
        client.call("resume")
        assert client.event("guest-panic") == {"action": "exit"}
        assert client.event("shutdown") == {"reason": "guest-panic", "status": 6}
        assert m.wait() == 6, m.story()
        assert "still here" not in m.text()
        assert "error: the guest's kernel panicked" in m.story()


def test_panic_starts_again():
    with panicking("--on-panic", "reset") as m:
        assert m.wait() == 0, m.story()
        assert [line for line in m.lines() if line.startswith("start")] == ["start 1", "start 2"]
        assert "still here" not in m.text()
    with panicking("--on-panic", "reset", "--no-reboot") as m:
        assert m.wait() == 4, m.story()


def test_panic_stands_still():
    with panicking("--on-panic", "pause", "--paused") as m:
        client = m.connect()
        client.call("resume")
        assert client.event("guest-panic") == {"action": "pause"}
        client.event("paused")
        assert m.call("info")["state"] == "paused"
        assert "still here" not in m.text()
        m.call("resume")
        assert m.wait() == 0, m.story()
        assert "still here" in m.lines()


@pytest.mark.parametrize("event,args", [(1, ["--on-panic", "ignore"]), (2, []), (0xfc, [])])
def test_panic_and_on(event, args):
    """One that is ignored, one whose crash kernel goes on, and events that nobody knows."""
    with panicking("--paused", *args, event=event) as m:
        client = m.connect()
        client.call("resume")
        if event != 0xfc:
            assert client.event("guest-panic") == {
                "action": "ignore" if event == 1 else "crash-kernel"}
        assert m.wait() == 0, m.story()
        assert "still here" in m.lines()


@pytest.mark.parametrize("press", ["signal", "control"])
def test_power_button(press):
    with Coracle("--kernel", guest("poweroff"), "--memory", "64M", "--cmdline", "button") as m:
        m.line("ready")
        if press == "signal":
            m.signal()
        else:
            m.call("power-button")
        assert m.wait() == 0, m.story()
        assert set(verdicts(m)) == {"button", "button-once"}


def test_second_signal_ends():
    with Coracle("--kernel", guest("hello"), "--memory", "64M", "--cmdline", "exit=halt") as m:
        m.line("done")
        m.signal()
        m.err.wait_for(lambda data: True if b"power button" in data else None, 30)
        m.signal()
        assert m.wait() == 128 + signal.SIGTERM


def test_pause_resume():
    """Nothing comes from a paused guest; after the resume it is where it was."""
    with Coracle("--kernel", guest("hello"), "--memory", "64M", "--cmdline", "echo") as m:
        m.line("ready")
        m.call("pause")
        assert m.call("info")["state"] == "paused"
        before = m.text()
        m.send(b"abc.")
        assert m.call("info")["state"] == "paused"
        assert m.text() == before
        m.call("resume")
        m.line("abc")
        assert m.wait() == 0


def test_paused_start_and_reset():
    with Coracle("--kernel", guest("hello"), "--memory", "64M", "--cmdline", "exit=halt",
                 "--paused") as m:
        assert m.call("info")["state"] == "paused"
        assert m.text() == ""
        m.call("resume")
        m.line("done")
        m.call("reset")
        m.line("hello from a guest .*")
        m.line("done")
        m.call("quit")
        assert m.wait() == 0


def test_unknown_request():
    with Coracle("--kernel", guest("hello"), "--memory", "64M", "--cmdline", "exit=halt") as m:
        m.line("done")
        with pytest.raises(ControlError):
            m.call("no-such-method")
        m.call("quit")
        assert m.wait() == 0


# ---- refusals: one message, nothing left ----

@pytest.mark.parametrize("args,status,word", [
    (["--kernel", "/nonexistent"], 1, "/nonexistent"),
    (["--kernel", __file__], 1, "test_kit.py"),
    (["--memory", "1G", "--disk", "/nonexistent.img"], 1,
     "/nonexistent.img"),
    (["--no-such-option"], 2, "no-such-option"),
])
def test_refused_start(args, status, word):
    kernel = [] if "--kernel" in args else ["--kernel", guest("hello")]
    with Coracle(*kernel, *args) as m:
        assert m.wait() == status, m.story()
        assert word in m.errors()
        assert m.text() == ""


def test_model_lacking_features():
    """A baseline that this host cannot be is refused by the names of what it lacks."""
    checks = check_host()[0]["checks"]
    for model in ("x86-64-v2", "x86-64-v3", "x86-64-v4"):
        with Coracle("--kernel", guest("hello"), "--memory", "64M", "--cpu", model) as m:
            status = m.wait()
            if checks[model]["has"] == "yes":
                assert status == 0, m.story()
            else:
                assert status == 1 and "lacks" in m.errors(), m.story()


# ---- check-host ----

def test_check_host():
    host, status = check_host()
    kvm = host["kvm"]
    assert kvm["kind"] in ("hardware", "nested", "software")
    assert kvm["api_version"] == 12
    assert status == (0 if kvm["boots_linux"] else 5)
    assert kvm["boots_linux"] == (not kvm["missing_instructions"])
    table = subprocess.run([PROGRAM, "check-host"], capture_output=True, text=True, check=False)
    assert table.returncode == status
    for key, check in host["checks"].items():
        assert check["has"] in ("yes", "partly", "no")
        assert key in table.stdout
