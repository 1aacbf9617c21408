"""test_races.py - pauses, resets, requests and ends that meet

The guest resets itself all the time while several clients ask for everything else. Whoever comes first,
each request is answered and the machine ends as it was told.
"""
import os
import random
import signal
import threading

import pytest

from coracle import Coracle, ControlError, TIMEOUT, why_no_kvm

WHY_NOT = why_no_kvm()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))

# mov ecx, n; out 80, al; loop; then what ends it; hlt
WAYS = {
    "ged": "ba06060000 b001 ee",   # the reset register
    "i8042": "b0fe e664",
    "triple": "0f0b",              # an exception without a table for it
    "panic": "ba05050000 b001 ee",  # with --on-panic reset
    "off": "ba04060000 b034 ee",   # the sleep register: S5
}


def restless(path, way, turns):
    path.write_bytes(bytes.fromhex("b9") + turns.to_bytes(4, "little")
                     + bytes.fromhex("e680 e2fc " + WAYS[way] + " f4 ebfd"))
    return ["--kernel", path, "--kernel-type", "flat32", "--memory", "16M", "--cpus", "2",
            "--on-panic", "reset"]


def ask(machine, seed, requests, answers):
    """One client, with a sequence of its own."""
    choice = random.Random(seed)
    client = machine.connect()
    try:
        for _ in range(requests):
            method = choice.choice(["pause", "resume", "resume", "reset", "info", "stats",
                                    "power-button"])
            try:
                client.call(method)
            except ControlError as e:
                assert "running" in str(e) or "power" in str(e), e
            answers.append(method)
    finally:
        client.close()


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize("way", ["ged", "i8042", "triple", "panic"])
def test_everybody_at_once(way, transport, tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    kernel = restless(tmp_path / "restless.bin", way, 20)
    with Coracle(*kernel, "--disk", disk, "--transport", transport) as m:
        m.connect().close()
        answers = []
        clients = [threading.Thread(target=ask, args=(m, seed, 40, answers)) for seed in range(3)]
        for c in clients:
            c.start()
        for c in clients:
            c.join()
        assert len(answers) == 3 * 40, m.story()
        m.call("resume")
        assert m.call("info")["resets"] > 0
        m.call("quit")
        assert m.wait() == 0, m.story()


@pytest.mark.parametrize("seed", range(4))
def test_ended_in_the_middle(seed, tmp_path):
    """Two SIGTERMs end it whatever it is at."""
    kernel = restless(tmp_path / "restless.bin", "ged", 5 + seed)
    with Coracle(*kernel) as m:
        c = m.connect()
        for method in ("pause", "resume", "reset", "pause")[:seed]:
            c.call(method)
        os.kill(m.pid, signal.SIGTERM)
        said = m.err.wait_for(lambda text: True if b"signal 15: " in text else None, TIMEOUT)
        assert said, m.story()
        os.kill(m.pid, signal.SIGTERM)  # a paused machine has ended at the first one
        assert m.wait() == 128 + signal.SIGTERM, m.story()
        c.close()


@pytest.mark.parametrize("turns", [1, 10, 100])
def test_off_while_asked(turns, tmp_path):
    """A power-off that races with pauses is not lost: after the last resume it comes."""
    kernel = restless(tmp_path / "restless.bin", "off", turns)
    with Coracle(*kernel, "--paused") as m:
        c = m.connect()
        try:
            for _ in range(50):
                c.call("resume")
                c.call("pause")
        except (AssertionError, OSError, ControlError):
            pass  # it has ended
        if m.process.poll() is None:
            try:
                c.call("resume")
            except (AssertionError, OSError, ControlError):
                pass
        assert m.wait() == 0, m.story()
        c.close()
