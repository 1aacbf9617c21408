"""test_control.py - the control socket and `coracle ctl` against real machines

docs/control.md is the list of what there is: every method in it is called here.
"""
import json
import os
import pathlib
import re
import signal
import socket
import stat
import subprocess
import threading

import pytest

from coracle import Coracle, ControlError, PROGRAM, TIMEOUT, TOP, guest, why_no_kvm

WHY_NOT = why_no_kvm()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
DOC = (TOP / "docs/control.md").read_text()


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", DOC, re.M | re.S).group(1)


METHODS = re.findall(r"^### `([^`]+)`", section("Methods"), re.M)
ALONE = ["info", "stats", "pause", "resume", "power-button", "reset", "quit"]  # take nothing
EVENTS = re.findall(r"^\| `([a-z-]+)` \|", section("Events"), re.M)


@pytest.fixture(name="home")
def home_(tmp_path, monkeypatch):
    """A directory of machines of its own."""
    monkeypatch.setenv("CORACLE_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture(name="halt")
def halt_(tmp_path):
    """A guest that halts for ever."""
    path = tmp_path / "halt.bin"
    path.write_bytes(b"\xf4\xeb\xfd")
    return ["--kernel", path, "--kernel-type", "flat32", "--memory", "16M"]


def ctl(*args, status=0):
    """Standard output of `coracle ctl`, or of one that fails what it says."""
    run = subprocess.run([PROGRAM, "ctl", *map(str, args)], capture_output=True, text=True,
                         timeout=TIMEOUT, check=False)
    assert run.returncode == status, (run.stdout, run.stderr)
    if status:
        assert run.stdout == "" and run.stderr.startswith("coracle ctl: ")
        return run.stderr
    assert run.stderr == ""
    return run.stdout


# ---- the protocol ----

def test_every_documented_method(halt):
    assert set(ALONE) <= set(METHODS)
    with Coracle(*halt, "--cpus", "2") as m:
        for method in sorted(METHODS, key=lambda name: name == "quit"):
            try:
                result = m.call(method)
            except ControlError as e:  # it is there, and wants parameters or something to cancel
                assert e.code in (-32001, -32602), (method, e.code)
                assert method not in ALONE
                continue
            for member in re.findall(r"^\| `([a-z-]+)` \|",
                                     section("Methods").split(f"### `{method}`")[1]
                                     .split("### ")[0], re.M):
                assert member in result, (method, member)
        assert m.wait() == 0
        names = {e["method"] for e in m.control.events}
        assert names and names <= set(EVENTS)


def test_info_is_true(halt):
    with Coracle(*halt, "--cpus", "2", "--transport", "mmio") as m:
        info = m.call("info")
        assert info["pid"] == m.pid
        assert info["cpus"] == 2 and info["memory"] == 16 << 20
        assert info["transport"] == "mmio" and info["state"] == "running" and info["id"] is None
        assert {"name": "rng", "type": "virtio-rng"} in info["devices"]
        before = m.call("stats")
        assert len(before["vcpus"]) == 2
        rss = int(re.search(r"^VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{m.pid}/status").read_text(),
                            re.M).group(1)) * 1024
        assert abs(before["process"]["rss"] - rss) < 4 << 20


def test_pause_holds_the_guest(tmp_path):
    """A guest that prints for ever prints nothing while it is paused."""
    code = tmp_path / "flood.bin"
    code.write_bytes(b"\xba\xf8\x03\x00\x00\xb0\x78\xee\xeb\xfd")  # mov edx, 3f8; al = x; out; jmp
    with Coracle("--kernel", code, "--kernel-type", "flat32", "--memory", "16M", "--serial",
                 "null") as m:
        def sent():
            return m.call("stats")["devices"]["serial0"]["tx-bytes"]

        while not sent():
            pass
        assert m.call("pause") == {"state": "paused"}
        assert m.call("pause") == {"state": "paused"}
        still = sent()
        assert [sent() for _ in range(50)] == [still] * 50
        m.call("resume")
        while sent() == still:
            pass
        m.event("resumed")


def test_reset_and_events():
    with Coracle("--kernel", guest("hello"), "--memory", "64M", "--cmdline", "echo=yes") as m:
        m.line("ready")
        m.send(b"abc")
        other = m.connect()
        assert m.call("reset") == {"state": "running"}
        m.line("ready")
        assert m.call("info")["resets"] == 1
        assert other.event("reset") == {}
        m.call("pause")
        assert m.call("reset") == {"state": "paused"}  # and stays so
        m.call("resume")
        m.line("ready")
        m.call("quit")
        assert other.event("shutdown") == {"reason": "quit", "status": 0}
        assert m.wait() == 0


def test_power_button():
    with Coracle("--kernel", guest("poweroff"), "--memory", "64M", "--cmdline", "button=yes") as m:
        m.line("ready")
        m.call("power-button")
        assert m.event("shutdown") == {"reason": "guest-power-off", "status": 0}
        assert m.wait() == 0


def test_started_paused(halt):
    with Coracle(*halt, "--paused") as m:
        assert m.call("info")["state"] == "paused"
        assert m.call("stats")["vcpus"][0]["exits"] == 0
        m.call("resume")
        m.event("resumed")


def test_refusals(halt):
    with Coracle(*halt) as m:
        for method, params, code in (("nonsense", {}, -32601), ("info", {"x": 1}, -32602)):
            with pytest.raises(ControlError) as e:
                m.call(method, **params)
            assert e.value.code == code


def test_nonsense_does_no_harm(halt):
    """Each on a connection of its own; the machine answers the next client."""
    with Coracle(*halt) as m:
        m.call("info")
        for text in (b"nonsense\n", b"\0\n", b"[" * 100000 + b"\n", b"{}\n[]\n1\n", b"\xff\xfe\n",
                     b'{"jsonrpc":"2.0","method":"info","id":{}}\n', b"x" * (2 << 20), b"half a line"):
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(TIMEOUT)
                s.connect(m.socket_path)
                try:
                    s.sendall(text)
                    s.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # dropped while it was sending
                answers = b""
                try:
                    while piece := s.recv(65536):
                        answers += piece
                except ConnectionResetError:
                    pass
            for line in answers.splitlines():
                assert json.loads(line)["error"]["code"] in (-32700, -32600)
            assert m.call("info")["state"] == "running"


def test_many_clients(halt):
    """All 64 at once are answered, one more is told why not."""
    with Coracle(*halt) as m:
        m.call("info")
        clients = [m.connect() for _ in range(63)]
        for c in clients:
            assert c.call("info")["pid"] == m.pid
        more = m.connect()
        assert more.receive()["error"]["code"] == -32004
        more.close()
        for c in clients:
            c.close()
        assert m.call("info")["pid"] == m.pid


# ---- where it is ----

def test_socket_file(halt, home):
    with Coracle(*halt, "--id", "web") as m:
        m.call("info")
        assert stat.S_IMODE(os.stat(m.socket_path).st_mode) == 0o600
        assert os.path.realpath(home / "web.sock") == os.path.realpath(m.socket_path)
        assert stat.S_IMODE(os.stat(home).st_mode) == 0o700
        with Coracle(*halt, "--id", "web") as second:
            assert second.wait() == 1
            assert "web" in second.errors() and "runs already" in second.errors()
        m.call("quit")
        assert m.wait() == 0
        assert not os.path.lexists(home / "web.sock") and not os.path.exists(m.socket_path)


def test_after_a_crash(halt, home):
    """What a killed machine leaves behind is not in the way, and is no machine."""
    for how in ({"control": False}, {}):
        for _ in range(2):
            with Coracle(*halt, "--id", "web", **how) as m:
                m.err.wait_for(lambda data: True if b"vCPU" in data else None, TIMEOUT)
                assert "running" in ctl("web", "info")
                m.signal(signal.SIGKILL)
                m.wait()
            assert ctl() == "no machine runs that was started with --id\n"


# ---- coracle ctl ----

def test_ctl(halt, home):
    with Coracle(*halt, "--id", "web", "--cpus", "2") as m, Coracle(*halt, "--id", "db") as db:
        m.call("info")
        db.call("info")
        table = ctl().splitlines()
        assert [line.split()[:2] for line in table[1:]] == [["db", "running"], ["web", "running"]]
        assert [i["id"] for i in json.loads(ctl("list", "--json"))] == ["db", "web"]
        assert re.search(r"^pid +%d$" % m.pid, ctl("web", "info"), re.M)
        assert json.loads(ctl("web", "info", "--json"))["pid"] == m.pid
        assert json.loads(ctl(m.socket_path, "info", "--json"))["pid"] == m.pid
        assert re.search(r"^serial0 +tx-bytes +0$", ctl("web", "stats"), re.M)
        assert ctl("web", "pause") == "web: paused\n"
        assert json.loads(ctl("--json", "web", "resume")) == {"state": "running"}
        assert ctl("web", "reset", "--timeout=30") == "web: running\n"
        assert ctl("web", "power-button") == "web: running\n"
        assert ctl("web", "quit") == "web: stopped\n"
        assert m.wait() == 0
        assert ctl("db", "quit", "--json") == '{"state":"stopped"}\n'


def test_ctl_errors(halt, home, tmp_path):
    with Coracle(*halt, "--id", "web") as m:
        m.call("info")
        assert "there are: web" in ctl("wab", "info", status=1)
        assert str(tmp_path) in ctl(tmp_path / "nothing", "info", status=1)
        assert "lists them" in ctl("web", "explode", status=2)
        assert "what should web do" in ctl("web", status=2)
        assert "one word too many" in ctl("web", "info", "now", status=2)
        assert "no option" in ctl("web", "info", "--fast", status=2)
        for bad in ("0", "-1", "x", "1x", "nan", "inf", "1e9"):
            assert "seconds" in ctl("web", "info", "--timeout", bad, status=2)
        assert "seconds" in ctl("web", "info", "--timeout", status=2)
        m.signal(signal.SIGSTOP)
        assert "in time" in ctl("web", "info", "--timeout", "0.2", status=1)
        m.signal(signal.SIGCONT)
    (home / "file.sock").write_text("")
    assert "none does" in ctl("web", "info", status=1)


def test_ctl_with_something_else(home, tmp_path):
    """On the socket is no machine of ours: said so, within bounds."""
    for answer in (b"HTTP/1.0 400\r\n\r\n", b"[]\n", b"{}\n", b"", b"{" * (20 << 20)):
        path = tmp_path / "s"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
            server.listen()

            def serve(server=server, answer=answer):
                peer, _ = server.accept()
                with peer:
                    peer.recv(4096)
                    try:
                        peer.sendall(answer)
                    except OSError:
                        pass

            thread = threading.Thread(target=serve)
            thread.start()
            assert "machine" in ctl(path, "info", status=1)
            thread.join()


@pytest.mark.parametrize("as_json", [False, True])
def test_ctl_events(halt, as_json):
    with Coracle(*halt) as m:
        m.call("info")
        words = [PROGRAM, "ctl", m.socket_path, "events"] + ["--json"] * as_json
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as p:
            # It is connected once an event reaches it; which one is first is not ours to say.
            lines = []
            reader = threading.Thread(target=lambda: lines.append(p.stdout.readline()))
            reader.start()
            while reader.is_alive():
                m.call("pause")
                m.call("resume")
            m.call("reset")
            m.call("quit")
            lines += p.stdout.readlines()
            assert p.wait(TIMEOUT) == 0
        if as_json:
            events = [json.loads(line) for line in lines]
            assert [e["method"] for e in events[-2:]] == ["reset", "shutdown"]
            assert events[-1]["params"] == {"reason": "quit", "status": 0}
        else:
            assert lines[-2:] == ["reset\n", "shutdown reason=quit status=0\n"]


def test_ctl_events_for_a_while(halt):
    with Coracle(*halt) as m:
        m.call("info")
        assert ctl(m.socket_path, "events", "--timeout", "0.1") == ""


def test_ctl_help():
    text = ctl("--help")
    for verb in ALONE + ["events", "--json", "--timeout"]:
        assert re.search(rf"^ +{verb}\b", text, re.M), verb
