"""test_debian_boot.py - Debian starts, comes to its login prompt, starts again, and ends

Its own kernel as a distribution ships it (bzImage), and the ELF file in it by PVH.
"""
import signal
import time

import pytest

from debian import Debian, assert_clean, kernel_warnings, needs, why_not

WHY_NOT = why_not()
pytestmark = [pytest.mark.debian, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

# What differs between the machines, and how each is to end.
MACHINES = {
    "bzimage-pci-1": ("vmlinuz", "pci", 1),
    "bzimage-mmio-4": ("vmlinuz", "mmio", 4),
    "pvh-pci-2": ("vmlinux", "pci", 2),
}


@pytest.fixture(scope="module", name="debian", params=MACHINES)
def fixture_debian(request):
    kernel, transport, cpus = MACHINES[request.param]
    with Debian("--transport", transport, "--cpus", cpus, kernel=kernel) as m:
        m.transport, m.cpus, m.format = transport, cpus, request.param.split("-", maxsplit=1)[0]
        yield m.login()


def test_loader(debian):
    described = debian.call("info")["kernel"]["format"]
    assert ("bzImage" if debian.format == "bzimage" else "PVH") in described


def test_processors(debian):
    cpus = debian.cpus
    assert debian.sh("nproc") == str(cpus)
    # One socket, a core for each processor, one thread for each core.
    table = [line.split(",") for line in debian.sh("lscpu -p=CPU,CORE,SOCKET,ONLINE").splitlines()
             if not line.startswith("#")]
    assert table == [[str(i), str(i), "0", "Y"] for i in range(cpus)]
    ids = debian.sh("grep ^apicid /proc/cpuinfo | cut -d: -f2").split()
    assert len(set(ids)) == cpus
    # Each of them does work of its own.
    assert debian.sh(f"for i in $(seq 0 {cpus - 1}); do taskset -c $i sh -c 'echo $((6 * 7))'; done"
                     ).split() == ["42"] * cpus


def test_virtio_by_the_transport_asked_for(debian):
    devices = debian.sh("for d in /sys/bus/virtio/devices/*; do readlink -f $d; done").splitlines()
    assert len(devices) == 2, devices     # the root disk, entropy
    for path in devices:
        assert ("/pci0000:00/" in path) == (debian.transport == "pci"), path
        assert ("/LNRO0005:" in path) == (debian.transport == "mmio"), path
    assert "virtio_rng" in debian.sh("cat /sys/class/misc/hw_random/rng_current")


def test_panic_device_is_found(debian):
    """By the firmware's tables; udev has loaded its driver."""
    assert "QEMU0001:00" in debian.sh("ls /sys/bus/platform/drivers/pvpanic-mmio")


def test_time(debian):
    """The RTC gave the guest the host's time; kvm-clock keeps it."""
    assert abs(int(debian.sh("date +%s")) - time.time()) < 120
    assert debian.sh("cat /sys/devices/system/clocksource/clocksource0/current_clocksource") \
        in ("kvm-clock", "tsc")


def test_kernel_complains_of_nothing(debian):
    assert kernel_warnings(debian.shell) == []


def test_no_unit_failed(debian):
    assert debian.sh("systemctl --failed --plain --no-legend --no-pager") == ""
    assert debian.sh("systemctl is-active multi-user.target") == "active"


def test_reboot_in_place(debian):
    """The same process, a machine as new: all processors, the same disk, no complaints."""
    if debian.format == "pvh":
        pytest.skip("one reboot of each transport is enough")
    pid, boot_id = debian.pid, debian.sh("cat /proc/sys/kernel/random/boot_id")
    debian.sh("echo written before > /root/reboot-test && sync")
    debian.reboot()
    assert debian.pid == pid == debian.call("info")["pid"]
    assert debian.call("info")["resets"] == 1
    assert debian.sh("cat /proc/sys/kernel/random/boot_id") != boot_id
    assert debian.sh("cat /root/reboot-test") == "written before"
    assert debian.sh("nproc") == str(debian.cpus)
    assert kernel_warnings(debian.shell) == []


@needs("e2fsck", "dumpe2fs")
def test_end(debian):
    """Status 0 whoever asked, and a root file system that was unmounted."""
    if debian.format == "pvh":
        debian.signal(signal.SIGTERM)
        debian.log_line("power button")
        assert debian.wait() == 0, debian.story()
    else:
        debian.power_off()
    assert_clean(debian.root)


# ---- ends that need no login: a command in place of systemd ----

def test_no_reboot():
    with Debian("--no-reboot", init='/bin/sh -- -c "echo going; exec reboot -ff"') as m:
        assert m.wait(600) == 4, m.story()
        assert "going" in m.text()


def test_panic_resets():
    """A kernel that panics stays where it is; with panic=-1 it resets the machine at once."""
    with Debian("--no-reboot", cmdline="panic=-1",
                init='/bin/sh -- -c "echo c >/proc/sysrq-trigger"') as m:
        assert m.wait(600) == 4, m.story()
        assert "Kernel panic - not syncing: sysrq triggered crash" in m.text()


def test_panic_ends():
    """Its driver tells of it, so the machine need not stand still for ever."""
    with Debian(init='/bin/sh -- -c "modprobe pvpanic-mmio; echo c >/proc/sysrq-trigger"') as m:
        assert m.wait(600) == 6, m.story()
        assert "Kernel panic - not syncing: sysrq triggered crash" in m.text()
        assert "the guest's kernel panicked" in m.story()


def test_second_sigterm_at_once():
    """While the kernel starts nobody hears the power button; the second signal needs nobody."""
    with Debian(loud=True) as m:
        m.shell.wait_for("Linux version", 600)
        m.signal(signal.SIGTERM)
        m.log_line("power button")
        m.signal(signal.SIGTERM)
        assert m.wait() == 128 + signal.SIGTERM, m.story()
