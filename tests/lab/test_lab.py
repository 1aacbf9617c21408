"""The lab itself: what it promises in README.md. Boots node 1 (and 2); /usr/bin/python3 -m pytest tests/lab"""
import os
import re
import signal
import subprocess
import time

import pexpect
import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
LAB = os.path.join(HERE, "lab")


def lab(*argv, **kwargs):
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([LAB, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          **kwargs)


def sh(script, *options):
    return lab("run", *options, "--", "sh", "-c", script)


@pytest.fixture(scope="module", autouse=True)
def node1():
    done = lab("up", "--node", "1")
    assert done.returncode == 0, done.stderr


def test_output_and_status_come_through():
    done = sh("echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert done.stderr.endswith("err\n")


def test_signal_is_told_like_a_shell_does():
    assert sh("kill -SEGV $$").returncode == 128 + signal.SIGSEGV


def test_unknown_command():
    done = lab("run", "--", "no-such-command")
    assert done.returncode == 127
    assert "no-such-command" in done.stderr


@pytest.mark.parametrize("size", [0, 1, 65536, 3_000_001])
def test_input_and_output_of_any_size(size, tmp_path):
    data = os.urandom(size)
    (tmp_path / "in").write_bytes(data)
    with open(tmp_path / "in", "rb") as f:
        done = subprocess.run([LAB, "run", "--", "cat"], stdin=f, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert done.stdout == data


def test_variables_and_directory():
    done = lab("run", "-e", "COLOUR=red", "-e", "HANDED", "--", "sh", "-c",
               'echo "$COLOUR $HANDED $CORACLE_LAB_NODE $PWD"', cwd=HERE, env=dict(os.environ, HANDED="on"))
    assert done.stdout == f"red on 1 {HERE}\n"


def test_checkout_is_read_only_but_for_the_results():
    assert sh(f"touch {TOP}/should-not-be").returncode != 0
    assert not os.path.exists(f"{TOP}/should-not-be")
    assert sh('echo written > "$CORACLE_LAB_RESULTS/test_lab"').returncode == 0
    with open(f"{TOP}/build/lab/results/test_lab") as f:
        assert f.read() == "written\n"
    os.unlink(f"{TOP}/build/lab/results/test_lab")


def test_timeout_ends_the_command_and_its_children():
    done = sh("trap '' TERM; sleep 4321 & wait; sleep 4321", "--timeout", "1")
    assert done.returncode == 124
    assert sh("pgrep -f '^sleep 4321'").returncode == 1


def test_what_a_command_leaves_is_ended_and_named():
    done = sh("sleep 5432 & echo started")
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert "left running" in done.stderr
    assert sh("pgrep -f '^sleep 5432'").returncode == 1


def test_a_killed_caller_takes_its_command_along():
    caller = subprocess.Popen([LAB, "run", "--", "sh", "-c", "echo up; exec sleep 6543"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert caller.stdout.readline() == b"up\n"
    caller.kill()
    caller.wait()
    assert sh("while pgrep -f '^sleep 6543'; do sleep 0.2; done", "--timeout", "60").returncode == 0


def test_commands_wait_for_one_another():
    first = subprocess.Popen([LAB, "run", "--", "sh", "-c", "echo up; cat; rm -f /tmp/held"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"up\n"
    assert sh("touch /tmp/held", "--shared").returncode == 0
    second = subprocess.Popen([LAB, "run", "--", "test", "!", "-e", "/tmp/held"],
                              stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert "busy" in second.stderr.readline()
    first.stdin.close()
    assert (first.wait(), second.wait()) == (0, 0)


def test_kvm_has_nested_paging():
    done = sh("cat /sys/module/kvm_amd/parameters/npt && test -c /dev/kvm")
    assert (done.returncode, done.stdout) == (0, "Y\n")


def test_no_way_out():
    done = sh("ip route show default; for a in 192.168.231.2 9.9.9.9; do "
              "timeout 5 bash -c \"echo > /dev/tcp/$a/53\" && echo reached; done; true")
    assert (done.returncode, done.stdout) == (0, "")


def test_shell_has_a_terminal():
    shell = pexpect.spawn(LAB, ["shell"], encoding="utf-8", timeout=60, dimensions=(31, 97))
    shell.sendline("tty; stty size; exit 5")
    shell.expect(r"/dev/pts/\d+\s+31 97")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 5


def test_nodes_reach_each_other():
    assert lab("up", "--node", "2").returncode == 0
    done = lab("run", "--node", "2", "--", "ping", "-c", "1", "-W", "30", "node1")
    assert done.returncode == 0, done.stdout


def test_a_crashed_node_is_reported_and_comes_again():
    done = lab("run", "--node", "2", "--", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60")
    assert done.returncode == 125
    assert re.search(r"node 2: .*panicked", done.stderr)
    assert "build/lab/node2" in done.stderr
    assert "panicked" in lab("status").stdout
    done = lab("run", "--node", "2", "--", "echo", "again")
    assert (done.returncode, done.stdout) == (0, "again\n")


def test_a_killed_lab_leaves_nothing_in_the_way():
    with open(f"{TOP}/build/lab/node2/pids.json") as f:
        os.kill(int(re.search(r'"supervisor": (\d+)', f.read())[1]), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while "node 2  down" not in lab("status", "--node", "2").stdout:
        assert time.monotonic() < deadline, "QEMU outlives its supervisor"
    assert lab("run", "--node", "2", "--", "true").returncode == 0
    assert lab("down", "--node", "2").returncode == 0
