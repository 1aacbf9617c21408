"""test_cli.py - what a person gets for a wrong command line, file or host, and what is generated

Every refusal is one sentence on standard error that names the culprit, a documented exit status, and
nothing left behind. No guest runs here.
"""
import json
import os
import pathlib
import re
import socket
import subprocess

import jsonschema
import pytest

from coracle import PROGRAM, TOP, guest

OK, HOST, USAGE = 0, 1, 2


def coracle(*args, **kwargs):
    return subprocess.run([PROGRAM, *map(str, args)], capture_output=True, text=True, timeout=60,
                          check=False, stdin=subprocess.DEVNULL, **kwargs)


def refused(status, says, *args, **kwargs):
    r = coracle("run", *args, **kwargs)
    assert r.returncode == status, r.stderr
    last = r.stderr.strip().splitlines()[-1]
    assert last.startswith("coracle run: "), r.stderr
    assert re.search(says, last), r.stderr
    assert not r.stdout


@pytest.fixture(name="kernel")
def any_kernel():
    return guest("hello")


# ---- the command line ----

@pytest.mark.parametrize("args,says", [
    ((), "no kernel to start: give --kernel FILE"),
    (("--kernel",), "--kernel needs a value"),
    (("--kernel", "--cpus", "2"), "--kernel needs a value .* --cpus follows"),
    (("vmlinuz",), "unexpected argument vmlinuz"),
    (("--dsk", "x"), "unknown option --dsk, the nearest is --disk"),
    (("--mem", "1G"), "unknown option --mem, the nearest is --memory"),
    (("--cpus", "0"), "--cpus 0: must be 1 to 64"),
    (("--cpus", "65"), "--cpus 65: must be 1 to 64"),
    (("--cpus", "two"), "--cpus two: must be"),
    (("--cpus", "99999999999999999999"), "--cpus 9+: must be 1 to 64"),
    (("--memory", "1K"), "--memory 1K: must be 2M to 16T"),
    (("--memory", "1M"), "--memory 1M: must be 2M to 16T"),
    (("--memory", "-1"), "--memory -1: must be"),
    (("--memory", "1M5"), "--memory 1M5: must be"),
    (("--memory", "5000001"), "--memory: 5000001 bytes is not a multiple of 4K"),
    (("--transport", "isa"), "--transport isa: must be pci or mmio"),
    (("--serial", "tcp:1"), "--serial tcp:1: must be stdio, null, pty, file:PATH or unix:PATH"),
    (("--cpu", "486"), "--cpu 486: must be host"),
    (("--disk", "path=a,queus=2"), "--disk: unknown key queus, the nearest is queues"),
    (("--disk", "a,queue-size=3"), "queue-size=3: must be"),
    (("--disk", "a,read-only=perhaps"), "read-only=perhaps: must be on or off"),
    (("--disk", "a,serial=123456789012345678901"), "serial=.*: must be 1 to 20"),
    (("--disk", "a,format=qcow2"), "format=qcow2: must be raw"),
    (("--disk", "a", "--disk", "a"), "a is given twice"),
    (("--disk", "a,id=x", "--disk", "b,id=x"), "the id x is used twice"),
    (("--net", "averyverylongname0"), "must be an interface name"),
    (("--net", "t,mac=01:00:00:00:00:01"), "must be a unicast MAC"),
    (("--net", "t,mac=52:54:00:00:00"), "must be a unicast MAC"),
    (("--net", "t,mtu=9"), "mtu=9: must be 68 to 65521"),
    (("--net", "t0,mac=52:54:00:00:00:01", "--net", "t1,mac=52:54:00:00:00:01"),
     "net0 and net1 have the same MAC"),
    (("--net", "fd=5,mac=52:54:00:00:00:01", "--net", "t1,mac=52:54:00:00:00:01"),
     "net0 and net1 have the same MAC"),
    (("--net", "t0", "--net", "t0"), "same tap t0"),
    (("--net", "fd=5:"), "fd=5:: must be 0 to 1048575, or up to 32 such numbers joined by ':'"),
    (("--net", "fd=5:6:5"), "same fd 5"),
    (("--net", "fd=5:6", "--net", "fd=6"), "same fd 6"),
    (("--net", "fd=5:6,queues=3"), "fd has 2 of the 3 descriptors that queues=3 takes"),
    (("--net", "fd=5,queues=2"), "fd has 1 of the 2 descriptors that queues=2 takes"),
    (("--net", "t0,vhost=off,vhostfd=5"), "both vhost=off and vhostfd=5"),
    (("--net", "t0,queues=2,vhostfd=5"), "vhostfd has 1 of the 2 descriptors"),
    (("--net", "fd=5,vhostfd=5"), "same fd 5"),
    (("--net", "t0,addr=192.0.2.1"), "an address with its prefix length"),
    (("--paused",), "nothing could resume the machine"),
    (("--id", "../../etc"), "--id .*: must be 1 to 63"),
    (("--load-address", "0x1000"), "--load-address is for flat images"),
], ids=lambda a: " ".join(a) if isinstance(a, tuple) else "")
def test_usage(args, says, kernel):
    given = () if not args or args[0] in ("--kernel", "vmlinuz") else ("--kernel", kernel)
    refused(USAGE, says, *given, *args)


def test_no_command():
    r = coracle()
    assert r.returncode == USAGE and "usage: coracle" in r.stdout


def test_unknown_command():
    r = coracle("frobnicate")
    assert r.returncode == USAGE and "no command frobnicate" in r.stderr


def test_every_command_has_help():
    names = re.findall(r"^  ([a-z-]+) +\S", coracle("help").stdout, re.M)
    assert {"run", "ctl", "check-host", "help", "version"} <= set(names)
    for name in set(names) - {"version", "help"}:
        r = coracle(name, "--help")
        assert r.returncode == OK and r.stdout and not r.stderr, name


# ---- files ----

def elf(kernel):
    return bytearray(pathlib.Path(kernel).read_bytes())


def test_kernel_files(tmp_path, kernel):
    for content, says in ((b"", "is an empty file"), (b"hello, world\n" * 9, "is a text file"),
                          (b"\x1f\x8b" + bytes(900), "is a gzip"), (bytes(4096), "is "),
                          (elf(kernel)[:100], "truncated|is ")):
        path = tmp_path / "kernel"
        path.write_bytes(content)
        refused(HOST, f"kernel {path} {says}", "--kernel", path)
    refused(HOST, "is a directory", "--kernel", tmp_path)
    os.mkfifo(tmp_path / "fifo")
    refused(HOST, "is a pipe", "--kernel", tmp_path / "fifo")
    refused(HOST, "cannot open kernel .*: No such file", "--kernel", tmp_path / "absent")
    refused(HOST, "cannot open initrd .*: No such file", "--kernel", kernel, "--initrd",
            tmp_path / "absent")


def test_kernel_type(tmp_path, kernel):
    refused(HOST, "kernel .* is .*, not bzImage as --kernel-type says", "--kernel", kernel,
            "--kernel-type", "bzimage")
    flat = guest("flat32.bin")
    refused(HOST, "kernel .* is .*, not multiboot as --kernel-type says", "--kernel", flat,
            "--kernel-type", "multiboot")


def test_disk_files(tmp_path, kernel):
    small = tmp_path / "small"
    small.write_bytes(bytes(100))
    refused(HOST, f"disk {small} has 100 bytes; a disk has at least 512", "--kernel", kernel,
            "--disk", small)
    refused(HOST, "cannot open disk .*absent: No such file", "--kernel", kernel, "--disk",
            tmp_path / "absent")
    refused(HOST, "is neither a regular file nor a block device", "--kernel", kernel, "--disk",
            tmp_path)
    refused(HOST, "is neither a regular file nor a block device", "--kernel", kernel, "--disk",
            "/dev/null")


def test_unreadable_disk(tmp_path, kernel):
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    disk.chmod(0o600)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    r = subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", PROGRAM,
                        "run", "--kernel", kernel, "--disk", disk], capture_output=True,
                       text=True, check=False, timeout=60, stdin=subprocess.DEVNULL)
    if r.returncode == 126 or "exec" in r.stderr:
        pytest.skip("the checkout is not readable to others")
    assert r.returncode == HOST
    assert "Permission denied" in r.stderr or "no permission" in r.stderr, r.stderr


def test_no_dev_kvm(tmp_path, kernel):
    """In a mount namespace of its own /dev/kvm is gone."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for a mount namespace")
    r = subprocess.run(["unshare", "-m", "sh", "-c",
                        f"mount -t tmpfs none /dev && exec {PROGRAM} run --serial null "
                        f"--kernel {kernel}"],
                       capture_output=True, text=True, check=False, timeout=60, input="")
    assert r.returncode == HOST
    assert "/dev/kvm is not there: enable virtualization" in r.stderr, r.stderr


def test_not_a_tap(kernel):
    refused(HOST, "lo is a network interface but not a tap", "--kernel", kernel, "--net", "lo")


def test_no_vhost(kernel):
    """Asked for by name it has to be there; what is inherited has to be it."""
    if not os.path.exists("/dev/vhost-net"):
        refused(HOST, "--net: net0: this host has no /dev/vhost-net: load the driver with modprobe "
                "vhost_net", "--kernel", kernel, "--net", "coraclet7,vhost=on")
    refused(HOST, "--net: net0: vhostfd=0 is no /dev/vhost-net that can be used", "--kernel", kernel,
            "--net", "coraclet7,vhostfd=0")
    refused(HOST, "--net: net0: vhostfd=77 is not open", "--kernel", kernel,
            "--net", "coraclet7,vhostfd=77")
    assert not os.path.exists("/sys/class/net/coraclet7")


def test_tap_without_permission(tmp_path, kernel):
    if os.geteuid() != 0:
        pytest.skip("needs root, to give it up")
    r = subprocess.run(["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", PROGRAM,
                        "run", "--serial", "null", "--kernel", kernel, "--net", "coraclet9"],
                       capture_output=True, text=True, check=False, timeout=60, input="")
    assert r.returncode == HOST
    assert "coraclet9" in r.stderr and "CAP_NET_ADMIN" in r.stderr, r.stderr


def test_nothing_left_behind(tmp_path, kernel):
    """A start that fails late takes back what it made: the tap, the lock, the socket."""
    disk, control = tmp_path / "disk", tmp_path / "control"
    disk.write_bytes(bytes(1 << 20))
    for _ in range(2):
        refused(HOST, "cannot open disk .*absent", "--kernel", kernel, "--disk", disk, "--disk",
                tmp_path / "absent", "--control", control, "--serial", "null")
    assert not control.exists()
    assert not os.path.exists("/sys/class/net/coraclet8")


def test_live_control_socket_is_refused(tmp_path, kernel):
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
        s.listen()
        refused(HOST, f"{path}", "--kernel", kernel, "--control", path, "--serial", "null")
    assert path.exists()


# ---- JSON ----

@pytest.mark.parametrize("text,says", [
    ("", "."), ("[]", "object"), ('{"kernel": 5}', "kernel"), ('{"kernel": "k", "cpus": 0}', "1 to 64"),
    ('{"kernel": "k", "cpu": "host", "cpu": "host"}', "twice|again"),
    ('{"kernell": "k"}', "kernell.*nearest is kernel"),
    ('{"kernel": "k", "disk": "a"}', "array"), ('{"kernel": "k", "disk": [{"paht": "a"}]}', "paht"),
    ('{"kernel": "k", "disk": [{"path": "a", "read-only": "yes"}]}', "read-only"),
    ('{"kernel": "k"', "."), ('{"kernel": "k"} x', "."), ("[" * 5000, "."),
    ('{"kernel": "k", "memory": 1e300}', "memory"), ('{"kernel": "k\\u0000x"}', "kernel"),
], ids=range(14))
def test_bad_json(tmp_path, text, says):
    path = tmp_path / "vm.json"
    path.write_text(text)
    refused(USAGE, f"--config {path}.*({says})", "--config", path)


def test_config_file_and_options(tmp_path, kernel):
    path = tmp_path / "vm.json"
    path.write_text(json.dumps({"kernel": kernel, "memory": "64M", "cpus": 2,
                                "disk": [{"path": "a", "id": "one"}]}))
    r = coracle("run", "--config", path, "--memory", "128M", "--disk", "b", "--check")
    assert r.returncode == OK, r.stderr
    whole = json.loads(r.stdout)
    assert whole["cpus"] == 2 and whole["memory"] in ("128M", 128 << 20)
    assert [d["path"] for d in whole["disk"]] == ["a", "b"]
    # what --check shows is a configuration that gives the same again
    path.write_text(r.stdout)
    assert coracle("run", "--config", path, "--check").stdout == r.stdout


# ---- what is made from the table ----

def schema():
    return json.loads(coracle("help", "--schema").stdout)


def test_schema_in_docs_is_current():
    assert json.loads((TOP / "docs/config.schema.json").read_text()) == schema(), \
        "run `make -B docs/config.schema.json`"


def test_schema_agrees_with_the_parser(tmp_path, kernel):
    validator = jsonschema.Draft202012Validator(schema())
    examples = re.findall(r"```json\n(.*?)```", (TOP / "docs/user-guide.md").read_text(), re.S)
    assert examples
    for text in examples:
        validator.validate(json.loads(text))
        path = tmp_path / "vm.json"
        path.write_text(text)
        assert coracle("run", "--config", path, "--check").returncode == OK
    for bad in ({"kernel": "k", "cpus": 0}, {"kernel": "k", "nonsense": 1},
                {"kernel": "k", "disk": [{"id": "x"}]}, {"kernel": "k", "transport": "isa"}):
        assert list(validator.iter_errors(bad)), bad
        path = tmp_path / "vm.json"
        path.write_text(json.dumps(bad))
        assert coracle("run", "--config", path, "--check").returncode == USAGE


def complete(line):
    """What bash offers at the end of @line."""
    script = coracle("help", "--completion").stdout
    words = line.split(" ")
    quoted = " ".join(f"'{w}'" for w in words)
    run = subprocess.run(
        ["bash", "-c", f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
         f"COMP_LINE='{line}'; COMP_POINT={len(line)}\n"
         "f=$(complete -p coracle | sed -E 's/.*-F ([^ ]+).*/\\1/'); $f coracle "
         f"'{words[-1]}' '{words[-2]}'; printf '%s\\n' \"${{COMPREPLY[@]}}\""],
        capture_output=True, text=True, check=True, env={**os.environ, "PATH":
            f"{pathlib.Path(PROGRAM).parent}:{os.environ['PATH']}"})
    return [w.strip() for w in run.stdout.split("\n") if w.strip()]


def test_completion():
    assert "check-host" in complete("coracle ch")
    assert "--memory" in complete("coracle run --me")
    assert set(complete("coracle run --transport ")) == {"pci", "mmio"}
    assert any(w.startswith("read-only=") for w in complete("coracle run --disk a,rea")) or \
        any("read-only=" in w for w in complete("coracle run --disk a,rea"))


def test_every_option_is_in_help_and_manual():
    keys = schema()["properties"].keys()
    text, manual = coracle("run", "--help").stdout, coracle("help", "--man-options").stdout
    for key in keys:
        assert f"--{key}" in text, key
        assert f"-{key}" in manual, key
