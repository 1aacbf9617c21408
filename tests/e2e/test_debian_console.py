"""test_debian_console.py - Debian's serial port by socket, terminal, file, and to nowhere; its hvc0"""
import os
import tty

import pytest

from coracle import Reader
from debian import (BOOT, Debian, MIB, Shell, UnixConsole, kernel_warnings, scratch_dir, sparse,
                    why_not)

WHY_NOT = why_not()
pytestmark = [pytest.mark.debian, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


def test_unix_socket():
    """Log in, leave in the middle, come back, go on."""
    with scratch_dir() as d:
        path = os.path.join(d, "console")
        with Debian("--serial", f"unix:{path}") as m:
            m.log_line("serial port: ")
            console = UnixConsole(path)
            shell = Shell(console.reader, console.send, m.story)
            shell.login()
            assert shell.sh("tty") == "/dev/ttyS0"
            text = shell.sh("seq 2000")
            assert text.splitlines() == [str(i) for i in range(1, 2001)]
            # Gone: the guest goes on, and the next client is at the same shell.
            shell.start("i=0; while [ $i -lt 300 ]; do i=$((i + 1)); echo unread $i; done; "
                        "echo > /run/printed")
            shell.wait_for("unread 1\r?\n")
            console.close()
            console = UnixConsole(path)
            shell.reader, shell.send, shell.seen = console.reader, console.send, 0
            shell.send(b"\n")
            assert "unread 300" in shell.finish()[0]
            assert shell.sh("ls /run/printed") == "/run/printed"
            shell.send(b"systemctl poweroff\n")
            assert m.wait() == 0, m.story()
            console.close()
        assert not os.path.exists(path)


def terminal_of(m):
    """The path of --serial pty, from the log."""
    return m.log_line(r"serial port: pty (/dev/pts/\d+)")[1].decode()


def test_pty():
    """A shell on a pseudo-terminal, which a user of it has made raw."""
    with Debian("--serial", "pty", init="/bin/bash") as m:
        path = terminal_of(m)
        with open(os.open(path, os.O_RDWR | os.O_NOCTTY), "r+b", buffering=0) as pty:
            tty.setraw(pty)
            shell = Shell(Reader(pty), pty.write, m.story)
            shell.prompt(BOOT)
            assert shell.sh("echo $((6 * 7))") == "42"
            assert m.call("info")["console"] == f"pty {path}"
            shell.send(b"exec poweroff -ff\n")
            assert m.wait() == 0, m.story()
            shell.reader.join()     # the hang-up


def test_file():
    """Appends, and what the guest says last is there when the machine has ended."""
    with scratch_dir() as d:
        path = os.path.join(d, "log")
        with open(path, "w", encoding="ascii") as f:
            f.write("from before\n")
        with Debian("--serial", f"file:{path}", loud=True,
                    init='/bin/sh -- -c "echo last words; exec poweroff -ff"') as m:
            assert m.wait(BOOT) == 0, m.story()
        with open(path, encoding="utf-8", errors="replace") as f:
            lines = f.read().splitlines()
        assert lines[0] == "from before"
        assert any("Linux version" in line for line in lines)
        assert "last words" in lines
        assert "Power down" in lines[-1]


def test_null():
    """The guest is the same without a reader: it writes to its disk that it was there."""
    with scratch_dir() as d:
        disk = sparse(os.path.join(d, "disk"), MIB)
        with Debian("--serial", "null", "--disk", disk,
                    init='/bin/sh -- -c "echo to nobody; echo was here >/dev/vdb; '
                         'exec poweroff -ff"') as m:
            assert m.wait(BOOT) == 0, m.story()
            assert m.text() == ""
        with open(disk, "rb") as f:
            assert f.read(9) == b"was here\n"


def test_virtio():
    """A login on hvc0 without a word of configuration in the guest, and a size that is followed."""
    with scratch_dir() as d:
        path = os.path.join(d, "console")
        with Debian("--console", f"unix:{path}", "--serial", f"file:{d}/serial", loud=True,
                    cmdline="console=hvc0") as m:
            m.log_line("virtio console: ")
            m.call("console-resize", cols=100, rows=40)
            console = UnixConsole(path)
            shell = Shell(console.reader, console.send, m.story)
            shell.login()
            assert b"systemd[1]: " in console.reader.data   # it is the kernel's console, too
            assert shell.sh("tty") == "/dev/hvc0"
            assert shell.sh("stty size") == "40 100"
            for cols, rows in ((200, 50), (80, 24)):
                m.ctl("console-resize", "--cols", cols, "--rows", rows)
                shell.sh(f'while [ "$(stty size)" != "{rows} {cols}" ]; do sleep 0.1; done')
            text = shell.sh("seq 2000")
            assert text.splitlines() == [str(i) for i in range(1, 2001)]
            # The serial port is still there, and somebody to log in.
            assert shell.sh("cat /proc/consoles").splitlines()[0].startswith("hvc0")
            assert "ttyS0" in shell.sh("cat /sys/class/tty/console/active")
            assert kernel_warnings(shell) == []
            shell.send(b"systemctl poweroff\n")
            assert m.wait() == 0, m.story()
            console.close()
        with open(f"{d}/serial", encoding="utf-8", errors="replace") as f:
            text = f.read()
        assert "Linux version " in text and "login: " in text
