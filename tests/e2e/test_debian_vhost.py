"""test_debian_vhost.py - NICs whose rings the host's kernel works on (vhost-net)

Real vhost-net, so only where /dev/vhost-net is: in the lab's nodes, or on a host with the module. First
the tiny guests of tests/guest, then one Debian guest. That the kernel did the work is asked of the VMM,
which says so at the start, and of the threads that vhost-net makes for it.
"""
import contextlib
import os
import pathlib
import re
import subprocess

import pytest

from coracle import PROGRAM, Coracle, guest, verdicts, why_no_kvm
from debian import BOOT, IMAGE, Debian, host, needs, scratch_dir, why_not
from migration import Hold, Proxy, Target, guest_memory
from netns import echo, network_namespace

WHY_NOT = why_no_kvm() or (None if os.path.exists("/dev/vhost-net") else
                           "no /dev/vhost-net here: the lab's nodes have it")
pytestmark = [pytest.mark.debian, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
              needs("ip", "nsenter", "unshare")]
TRANSPORTS = ("pci", "mmio")
MIB = 1 << 20


@pytest.fixture(scope="module", name="inside")
def fixture_inside():
    """A command prefix that enters a network namespace of the tests' own."""
    with network_namespace() as prefix:
        assert prefix
        yield prefix


def has_vhost(machine):
    machine.err.wait_for(lambda data: True if b", MAC " in data and data.endswith(b"\n") else None,
                         60)
    return ", vhost-net" in machine.errors()


# ---- tiny guests ----

@pytest.mark.parametrize("transport", TRANSPORTS)
def test_frames(transport, inside):
    """Of all lengths, there and back, with a reset of the ring's state in between: pause and resume."""
    with Coracle("--kernel", guest("net"), "--memory", "8M", "--transport", transport,
                 "--net", "kit0,vhost=on", "--cmdline", "frames=100 sync", prefix=inside) as m:
        m.line("ready")
        assert has_vhost(m)
        with echo(inside, "kit0"):
            m.send(b"x")
            m.line("sync 1")
            before = m.call("stats")["devices"]["net.net0"]
            assert before["rx-frames"] >= 100 and before["tx-frames"] >= 100, before
            assert {"name": "net.net0", "type": "virtio-net", "worker": "vhost-net"} in \
                m.call("info")["devices"]
            assert "virtio-net, by vhost-net" in m.ctl("info").stdout
            m.call("pause")
            m.call("resume")
            m.send(b"x")
            assert m.wait() == 0, m.story()
            assert {"frames", "frames-after-sync"} <= set(verdicts(m))


@needs("strace")
def test_the_kernels_thread_is_no_more_than_we_are(inside, tmp_path):
    """From Linux 6.4 on it is a thread of the VMM's with what that may do at its birth: so that comes after
    the capabilities are gone, and after whatever signals every thread of the process."""
    calls = tmp_path / "calls"
    with Coracle("--kernel", guest("net"), "--memory", "8M", "--net", "kit0,vhost=on", "--cmdline",
                 "frames=1 sync", prefix=[*inside, "strace", "-f", "-o", calls, "-e",
                                          "trace=capset,landlock_restrict_self,seccomp,ioctl"]) as m:
        m.line("ready")
        pid = m.call("info")["pid"]
        for status in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
            assert re.search(r"^CapEff:\s+0+$", status.read_text(encoding="ascii"), re.M), status
        with echo(inside, "kit0"):
            m.send(b"x")
            m.line("sync 1")
            m.send(b"x")
            assert m.wait() == 0, m.story()
    seen = re.findall(r"\b(capset|landlock_restrict_self|VHOST_SET_OWNER|SECCOMP_SET_MODE_FILTER)\b",
                      calls.read_text(encoding="ascii"))
    assert seen.count("VHOST_SET_OWNER") == 1, seen
    owned = seen.index("VHOST_SET_OWNER")
    assert {"capset", "landlock_restrict_self"} <= set(seen[:owned]), seen
    assert set(seen[owned + 1:]) == {"SECCOMP_SET_MODE_FILTER"}, seen


def test_descriptor_of_the_callers(inside):
    """vhostfd=: from whoever may open what we may not. It serves one machine in its life."""
    fd = os.open("/dev/vhost-net", os.O_RDWR)
    try:
        args = ["--kernel", guest("net"), "--memory", "8M", "--net", f"kit0,vhostfd={fd}", "--cmdline",
                "frames=100"]
        with Coracle(*args, prefix=inside, pass_fds=[fd]) as m:
            m.line("ready")
            assert has_vhost(m)
            with echo(inside, "kit0"):
                m.send(b"x")
                assert m.wait() == 0, m.story()
                assert "frames" in verdicts(m)
        with Coracle(*args, prefix=inside, pass_fds=[fd]) as m:
            assert m.wait() == 1, m.story()
            assert "net0: its /dev/vhost-net has been used already" in m.errors()
    finally:
        os.close(fd)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_misbehaving_driver(transport, inside):
    """What the kernel says of a broken ring becomes DEVICE_NEEDS_RESET; a reset makes all well."""
    with Coracle("--kernel", guest("badnet"), "--memory", "8M", "--transport", transport,
                 "--net", "kit0,vhost=on", prefix=inside) as m:
        m.line("ready")
        assert has_vhost(m)
        with echo(inside, "kit0"):
            m.send(b"x")
            assert m.wait() == 0, m.story()
            assert "receive-outside" in verdicts(m)
        assert "vhost-net cannot follow a ring" in m.errors()


def churn(inside, transport, vhost, tap, *, pages=1024):
    m = Coracle("--kernel", guest("netchurn"), "--memory", "16M", "--hugepages", "off",
                "--transport", transport, "--net", f"{tap},id=n0,vhost={vhost}",
                "--cmdline", f"pages={pages}", prefix=inside)
    m.line("ready")
    return m


def good_end(m):
    m.send(b"x")
    assert m.wait() == 0, m.story()
    assert "netchurn" in verdicts(m)


@contextlib.contextmanager
def migrating(m, address):
    """The guest never rests, and this host is slow: whatever it has written last may take its time."""
    with subprocess.Popen([PROGRAM, "ctl", m.socket_path, "migrate", address, "--downtime-ms",
                           "10000"], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("there", ["on", "off"])
def test_every_page_is_the_sources(transport, there, inside, tmp_path):
    """The kernel writes to the guest's memory while it moves; at the switch all of it is the same at
    both ends, whoever works on the rings there."""
    size = 16 * MIB
    hold = Hold("ready")
    with churn(inside, transport, "on", "kit0") as m, \
            Target(tmp_path, "--net", f"id=n0,tap=kit1,vhost={there}", prefix=inside) as t, \
            Proxy(tmp_path, t.address, hold) as proxy, echo(inside, "kit0"):
        assert has_vhost(m)
        m.send(b"x")
        m.line("all pages")
        with migrating(m, proxy.address) as process:
            hold.wait()
            ours, theirs = guest_memory(m, size), guest_memory(t, size)
            wrong = [i for i in range(0, size, 4096) if ours[i:i + 4096] != theirs[i:i + 4096]]
            assert not wrong, f"{len(wrong)} pages differ, the first at {wrong[0]:#x}"
            with echo(inside, "kit1"):
                hold.release()
                assert process.wait() == 0, process.stdout.read()
                assert has_vhost(t) == (there == "on")
                good_end(t)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_there_and_back(transport, inside, tmp_path):
    """From vhost-net to this process's own loop and back, four times."""
    m = churn(inside, transport, "on", "kit0", pages=128)
    with echo(inside, "kit0"):
        m.send(b"x")
        m.line("all pages")
    for i in range(1, 5):
        with m:
            t = Target(tmp_path, "--net", f"id=n0,tap=kit{i},vhost={'on' if i % 2 == 0 else 'off'}",
                       prefix=inside)
            done = m.ctl("migrate", t.address)
            assert done.returncode == 0, done.stderr + m.story()
            assert has_vhost(t) == (i % 2 == 0)
        m = t
    with m, echo(inside, "kit4"):
        good_end(m)


@pytest.mark.parametrize("vhost", ["on", "off"])
def test_snapshot(vhost, inside, tmp_path):
    """Taken under the kernel's hands, restored to either."""
    with churn(inside, "pci", "on", "kit0", pages=128) as m, echo(inside, "kit0"):
        m.send(b"x")
        m.line("all pages")
        m.snapshot(tmp_path / "snap")
        good_end(m)
    with Coracle(tmp_path / "snap", "--net", f"id=n0,tap=kit0,vhost={vhost}", command="restore",
                 prefix=inside) as m:
        assert has_vhost(m) == (vhost == "on")
        with echo(inside, "kit0"):
            good_end(m)


def test_cancelled_migration(inside, tmp_path):
    """Logging goes on and off again, and frames go on."""
    with churn(inside, "pci", "on", "kit0", pages=128) as m, echo(inside, "kit0"):
        m.send(b"x")
        m.line("all pages")
        for _ in range(3):
            hold = Hold("round-end")
            with Target(tmp_path, "--net", "id=n0,tap=kit1", prefix=inside) as t, \
                    Proxy(tmp_path, t.address, hold) as proxy, migrating(m, proxy.address) as process:
                hold.wait()
                hold.release("cut")
                assert process.wait() != 0
        good_end(m)


def up(m):
    """The NIC of a kernel that has just started, and frames from the host and back."""
    m.sh("mount -t sysfs none /sys; mount -t proc none /proc; mount -t tmpfs none /run; "
         "modprobe virtio_net; n=$(ls /sys/class/net | grep -v lo); "
         "ip link set $n up; ip addr add 192.0.2.2/24 dev $n")
    host("ping", "-c", 3, "-i", 0.2, "-W", 60, "192.0.2.2")


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_kexec():
    """A kernel that starts another, without a firmware in between, gives its rings back and takes new ones."""
    with scratch_dir() as d, contextlib.ExitStack() as stack:
        disks = []
        for name in ("vmlinuz", "initrd.img"):
            data = (IMAGE / name).read_bytes()
            path = pathlib.Path(d, name)
            path.write_bytes(data + bytes(-len(data) % 512))
            disks += ["--disk", f"{path},read-only=on"]
        m = stack.enter_context(Debian(
            "--net", "tap=kexec0,addr=192.0.2.1/24,vhost=on", *disks, init="/bin/sh", memory="384M"))
        m.shell.prompt(BOOT)
        up(m)
        m.sh("cp /dev/vdb /run/k; cp /dev/vdc /run/i; perl -e 'open(K, \"</run/k\"); "
             "open(I, \"</run/i\"); $c = \"console=ttyS0 root=/dev/vda rw quiet init=/bin/sh second=kernel\\0\"; "
             "exit(syscall(320, fileno(K), fileno(I), length($c), $c, 0) != 0)'")  # kexec_file_load
        m.send(b"perl -e 'syscall(169, 0xfee1dead, 672274793, 0x45584543, 0)'\n")  # reboot, into it
        m.shell.prompt(BOOT)
        up(m)
        assert "second=kernel" in m.sh("cat /proc/cmdline")
        assert has_vhost(m) and "served by this process" not in m.errors(), m.errors()
        m.send(b"poweroff -ff\n")
        assert m.wait() == 0, m.story()
