"""node.py - a Kubernetes node without Kubernetes: a containerd of its own, and pods on it

Root, state, socket, CNI configuration and node configuration are in a temporary directory; only the
kernel's own things (cgroups, namespaces, loop devices) and /run/containerd/s are shared with the host.
leftovers() tells what a test has left of those.
"""
import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import uuid

import cri
import images

TOP = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("CORACLE_BUILD", TOP / "build/release")).resolve()
GUESTS = pathlib.Path(os.environ.get("CORACLE_GUESTS", TOP / "build/guest"))
CNI = pathlib.Path("/usr/lib/cni")
TIMEOUT = float(os.environ.get("CORACLE_TEST_TIMEOUT", "60"))
SHIM = "containerd-shim-coracle-v2"

# NRI's socket would be the host's.
CONFIG = """\
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.nri.v1.nri"]
[grpc]
  address = "{dir}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
{first}
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."{cri}".cni]
    {bin_dir}
    conf_dir = "{dir}/cni"
  [plugins."{cri}".containerd]
    default_runtime_name = "coracle"
    [plugins."{cri}".containerd.runtimes.coracle]
      runtime_type = "io.containerd.coracle.v2"
      privileged_without_host_devices = true
      pod_annotations = ["vm.coracle.dev/*"]
      [plugins."{cri}".containerd.runtimes.coracle.options]
        ConfigPath = "{dir}/coracle.json"
    [plugins."{cri}".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""
# containerd 1.6 and 1.7, and 2, where the runtime has a part of its own.
FIRST = {2: '  sandbox_image = "coracle.test/pause:1"', 3: """\
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "coracle.test/pause:1"
[plugins."io.containerd.cri.v1.runtime"]"""}


POD_ROWS = {"shims and pods' processes", "shims' sockets", "network namespaces",
            "links on the bridge", "addresses"}


def guest(name):
    path = GUESTS / f"{name}.elf"
    assert path.exists(), f"{path}: run `make guest-kit` first"
    return path


class Late(AssertionError):
    """What was waited for did not come in time."""


def until(what, found, timeout=TIMEOUT):
    """found() until it is true. What has no event to wait for is asked often."""
    end = time.monotonic() + timeout
    while True:
        value = found()
        if value:
            return value
        if time.monotonic() > end:
            raise Late(f"{what}: not within {timeout:.0f} s")
        time.sleep(0.01)


def containerd_version():
    """(major, minor) of the containerd in PATH."""
    said = subprocess.run(["containerd", "--version"], check=True, capture_output=True,
                          text=True).stdout
    return tuple(map(int, re.search(r" v?(\d+)\.(\d+)\.", said).groups()))


def containerd_config(where):
    """The configuration of a node in a directory, as the containerd in PATH wants it."""
    version = containerd_version()
    new = version >= (2,)
    return f"version = {3 if new else 2}\n" + CONFIG.format(
        dir=where, first=FIRST[3 if new else 2],
        cri="io.containerd.cri.v1.runtime" if new else "io.containerd.grpc.v1.cri",
        bin_dir=f'bin_dirs = ["{where}/bin"]' if version >= (2, 1) else f'bin_dir = "{where}/bin"')


def why_not():
    """None where pods run, otherwise the reason to skip."""
    if os.geteuid():
        return "needs root"
    if not CNI.is_dir():
        return f"no CNI plugins in {CNI} (tools/setup test)"
    for program in ("containerd", "ctr", "ip", "losetup", "protoc"):
        if not shutil.which(program):
            return f"{program} is not installed (tools/setup test)"
    if not (BUILD / SHIM).exists():
        return f"{BUILD / SHIM} is not built"
    if not os.path.exists("/dev/kvm"):
        return "no /dev/kvm"
    return None


class Node:
    def __init__(self, prefix=(), pause=b"", attachments=(), bridge=None, six=False, **config):
        """prefix: a command that becomes containerd. pause: the program of ordinary pods' sandboxes,
        if there are to be such. attachments: what each pod has beside eth0, as Multus' users write it.
        bridge: more keys for eth0's plugin; six: with IPv6. config: of the node's coracle.json."""
        self.prefix = prefix
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="coracle-pods-"))
        self.name = "ct" + uuid.uuid4().hex[:6]  # of the bridge and the cgroup
        # Another run of the tests may be on this host: its bridge must not have our addresses.
        a, b = uuid.uuid4().bytes[:2]
        self.subnet = f"10.{128 + a % 64}.{b}.0/24"
        subnets = [self.subnet] + ([f"fd00:{a:x}:{b:x}::/64"] if six else [])
        self.process = self.cri = None
        self.shim = BUILD / SHIM
        self.images, self.disks = set(), set()
        if "kernel" not in config:
            config["kernel"] = str(guest("hello"))
        self.config = {"vmm": str(BUILD / "coracle"), "memory": "64M", "log-level": "debug",
                       **config}
        self.first = dict(self.config)
        (self.dir / "cni").mkdir()
        self.configure()
        (self.dir / "bin").mkdir()
        for plugin in [*CNI.iterdir(), TOP / "tests/pods/multus"]:
            (self.dir / "bin" / plugin.name).symlink_to(plugin)
        eth0 = {"type": "bridge", "bridge": self.name, "isGateway": True, **(bridge or {}),
                "ipam": self.ipam(*subnets)}
        self.network("10-pods", {"type": "multus", "delegates": [eth0, *attachments]}
                     if attachments else eth0)
        (self.dir / "config.toml").write_text(containerd_config(self.dir))
        self.pods = []
        self.start()
        self.image("coracle.test/pause:1", {"pause": pause}, ("/pause",))
        self.image("coracle.test/vm:1", {"vm": b""})

    # ---- containerd ----

    def configure(self, **changes):
        """Write the node configuration; None takes a key out."""
        self.config.update(changes)
        (self.dir / "coracle.json").write_text(
            json.dumps({k: v for k, v in self.config.items() if v is not None}))

    def reset(self):
        """The configuration the node had at first."""
        self.config = dict(self.first)
        self.configure()

    def ipam(self, *subnets):
        """host-local, with its leases in the node's directory."""
        routes = [{"dst": "::/0" if ":" in s else "0.0.0.0/0"} for s in subnets]
        return {"type": "host-local", "dataDir": f"{self.dir}/ipam", "routes": routes,
                "ranges": [[{"subnet": s}] for s in subnets]}

    def network(self, name, *plugins):
        (self.dir / "cni" / f"{name}.conflist").write_text(json.dumps(
            {"cniVersion": "0.4.0", "name": name, "plugins": list(plugins)}))

    def start(self):
        env = {**os.environ, "PATH": f"{BUILD}:{os.environ['PATH']}",
               "CORACLE_RUNTIME_DIR": str(self.dir / "run")}
        (self.dir / "run").mkdir(mode=0o700, exist_ok=True)
        with open(self.dir / "containerd.log", "ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, "containerd", "--config", str(self.dir / "config.toml"), "--log-level", "debug"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        self.cri = cri.Cri(self.dir / "containerd.sock", TIMEOUT)
        until("containerd is ready", self._ready)

    def _ready(self):
        assert self.process.poll() is None, self.log()
        try:
            # Another one, later, is about what containerd will not have in its next version.
            return all(c.status for c in self.cri("Status").status.conditions
                       if c.type in ("RuntimeReady", "NetworkReady"))
        except cri.Refused as e:
            early = e.code.name == "UNAVAILABLE" or "not initialized" in e.details
            assert early, f"{e}\n{self.log()}"
            return False

    def kill(self):
        """containerd, not its pods."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.cri.close()

    def log(self):
        return (self.dir / "containerd.log").read_text(errors="replace")

    def ctr(self, *args):
        return subprocess.run(["ctr", "-a", str(self.dir / "containerd.sock"), "-n", "k8s.io",
                               *map(str, args)], check=True, capture_output=True, text=True,
                              timeout=TIMEOUT).stdout

    def events(self):
        """What containerd tells from now on."""
        return Events(self)

    def image(self, name, files, command=("vm",)):
        path = self.dir / "image.tar"
        images.write(path, name, files, command)
        self.ctr("images", "import", path)
        path.unlink()
        until(f"CRI has heard of {name}", lambda: self.cri(
            "ImageStatus", image={"image": name}).HasField("image"))
        return name

    def remove(self, pod_id):
        """
        As a kubelet, which asks again: from 1.7 on containerd takes a moment to notice that a shim was
        killed, and refuses meanwhile.
        """
        def removed():
            try:
                self.cri("StopPodSandbox", pod_sandbox_id=pod_id)
                self.cri("RemovePodSandbox", pod_sandbox_id=pod_id)
            except cri.Refused as e:
                if re.search("is still running, to stop first|ttrpc: closed", e.details):
                    return False
                raise
            return True

        until("the pod is removed", removed)

    def remove_all(self):
        for pod in self.cri("ListPodSandbox").items:
            self.remove(pod.id)

    def info(self):
        """What the one machine that runs says of itself."""
        path, = (self.dir / "run/pods").glob("*/control")
        return json.loads(subprocess.run(
            [self.config["vmm"], "ctl", path, "info", "--json"], check=True, capture_output=True,
            text=True, timeout=TIMEOUT).stdout)

    def close(self):
        """Everything of this node ends, also when a test has left it in a bad state."""
        with contextlib.suppress(cri.Refused, Late):
            self.remove_all()
        self.cri.close()
        self.process.terminate()
        self.process.wait()
        for pid in ours(SHIM, self) + ours("coracle", self):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for mount in reversed(mounts()):
            if mount.startswith(f"{self.dir}/"):
                subprocess.run(["umount", "-l", mount], check=False)
        subprocess.run(["ip", "link", "del", self.name], stderr=subprocess.DEVNULL, check=False)
        for path in below("/sys/fs/cgroup", lambda p: p.endswith(f"/{self.name}")):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        shutil.rmtree(self.dir, ignore_errors=True)

    # ---- what is left ----

    def socket(self, pod_id):
        """Where a pod's shim listens."""
        key = f"{self.dir}/containerd.sock/k8s.io/{pod_id}"
        return f"/run/containerd/s/{hashlib.sha256(key.encode()).hexdigest()}"

    def namespaces(self):
        """The pods' network namespaces, as files."""
        return (self.dir / "state/io.containerd.grpc.v1.cri/netns").glob("cni-*")

    def leftovers(self):
        """
        The table of what was looked for: {what: list of what is there}. With no pod on the node all
        lists are empty. Those of POD_ROWS are the pod's, the others' come and go with a container.
        """
        sockets = pathlib.Path("/proc/net/unix").read_text().splitlines()
        locks = pathlib.Path("/proc/locks").read_text()
        run, state = self.dir / "run", self.dir / "state"
        spaces = sorted(self.namespaces())
        return {
            "machines": ours("coracle", self),
            "machines' sockets": [s.split()[-1] for s in sockets if str(run) in s],
            "state and temporary files": below(run, lambda p: p != str(run / "pods")),
            "locks on disks": [d for d in self.disks if inode(d) in locks],
            "taps": [f"{n.name}: {name}" for n in spaces for name in links(n, "type", "tun")],
            "tc qdiscs and rules": [f"{n.name}: {rule}" for n in spaces for rule in rules(n)],
            "mounts": [m for m in mounts() if m.startswith(f"{self.dir}/")
                       and ("/rootfs" in m or "/shm" in m)],
            # With a dot: containerd is about to remove it, and if killed then does not look again.
            "bundles": sorted(map(str, (state / "io.containerd.runtime.v2.task/k8s.io").glob("[!.]*"))),
            "FIFOs": below(state, is_fifo),
            "control groups": below("/sys/fs/cgroup", lambda p: f"/{self.name}/" in p and
                                    os.path.isdir(p)),
            "shims and pods' processes": ours(SHIM, self),
            "shims' sockets": [s for s in map(self.socket, self.pods) if os.path.exists(s)],
            "network namespaces": [n.name for n in spaces],
            "links on the bridge": links(None, "master", self.name),
            "addresses": below(self.dir / "ipam", lambda p: "/10." in p),
        }

    def check_clean(self, *but, pod=None):
        """
        Nothing is left, @but for some rows of the table. @pod: it lives, its container has gone.
        Processes that were told to end may take a moment.
        """
        for trouble in ("Sanitizer: ", "runtime error: ", "BUG: "):
            assert trouble not in self.log(), self.log()[-20000:]

        def left():
            found = self.leftovers()
            if pod:  # what it needs for itself
                found = {k: [x for x in v if pod.id not in str(x)]
                         for k, v in found.items() if k not in POD_ROWS}
            return {k: v for k, v in found.items() if v and k not in but}
        try:
            until("nothing is left", lambda: not left(), 10)
        except Late:
            raise AssertionError(f"left behind: {json.dumps(left(), indent=2)}\n"
                                 f"{self.log()[-5000:]}") from None

    def shims(self):
        return ours(SHIM, self)


def ours(name, node):
    """Pids of that program that a node's containerd has started, however indirectly."""
    mark, out = f"CORACLE_RUNTIME_DIR={node.dir}/run".encode(), []
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            if (os.path.basename(words[0].decode(errors="replace")) == name and
                    mark in (path / "environ").read_bytes().split(b"\0")):
                out.append(int(path.name))
    return out


def below(top, want):
    """Paths below a directory that want(path) takes. What disappears meanwhile is not there."""
    found = []
    for where, dirs, files in os.walk(top):  # unlike glob, it does not mind
        found += [path for name in dirs + files if want(path := os.path.join(where, name))]
    return sorted(found)


def mounts():
    return [m.split()[4] for m in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]


def inode(path):
    """A file as /proc/locks names it."""
    s = os.stat(path)
    return f" {os.major(s.st_dev):02x}:{os.minor(s.st_dev):02x}:{s.st_ino} "


def _inside(space, *command):
    """What a command says in a network namespace; one that has just gone has nothing."""
    prefix = ["nsenter", f"--net={space}"] if space else []
    return subprocess.run([*prefix, *command], capture_output=True, text=True, check=False).stdout


def links(space, *which):
    return re.findall(r"^\d+: ([^:@]*)", _inside(space, "ip", "-o", "link", "show", *which), re.M)


def rules(space):
    """Qdiscs that redirect, and their rules. A link has none of its own."""
    return [f"{link}: {line.strip()}" for link in links(space)
            for what in (["qdisc", "show", "dev", link, "clsact"],
                         ["filter", "show", "dev", link, "ingress"])
            for line in _inside(space, "tc", *what).splitlines() if "clsact" in line or "pref" in line]


def is_fifo(path):
    try:
        return stat.S_ISFIFO(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


class Events:
    """`ctr events` in the background."""

    def __init__(self, node):
        self.path = node.dir / "events"
        with open(self.path, "wb") as out:
            self.process = subprocess.Popen(
                ["ctr", "-a", str(node.dir / "containerd.sock"), "-n", "k8s.io", "events"],
                stdout=out, stdin=subprocess.DEVNULL)
        # It says nothing until something happens: make it happen until it does.
        until("events are told", lambda: self._nudge(node))

    def _nudge(self, node):
        node.ctr("images", "label", "coracle.test/pause:1", f"nudge={time.monotonic()}")
        return self.path.stat().st_size

    def seen(self):
        """[(topic, the event as text)]"""
        lines = (line.split(" ", 6) for line in self.path.read_text().splitlines())
        return [(words[5], words[6]) for words in lines if len(words) == 7]

    def close(self):
        self.process.terminate()
        self.process.wait()


class Pod:
    """A sandbox, and its containers one after the other."""

    def __init__(self, node, annotations=None, name=None, runtime="coracle", **sandbox):
        self.node, self.name = node, name or "pod-" + uuid.uuid4().hex[:6]
        self.runtime = runtime
        self.logs = node.dir / "logs" / self.name
        self.logs.mkdir(parents=True)
        self.attempt = 0
        self.id = self.container = None
        self.config = {
            "metadata": {"name": self.name, "uid": uuid.uuid4().hex, "namespace": "default"},
            "hostname": self.name, "log_directory": str(self.logs),
            "dns_config": {"servers": ["192.0.2.53"], "searches": ["example.test"]},
            "annotations": annotations or {}, "linux": {"cgroup_parent": f"/{node.name}"},
            **sandbox}

    def run(self):
        self.id = self.node.cri("RunPodSandbox", config=self.config,
                                runtime_handler=self.runtime).pod_sandbox_id
        self.node.pods.append(self.id)
        return self

    def ip(self):
        return self.node.cri("PodSandboxStatus", pod_sandbox_id=self.id).status.network.ip

    def netns(self):
        """The path of its network namespace."""
        info = json.loads(self.node.cri("PodSandboxStatus", pod_sandbox_id=self.id,
                                        verbose=True).info["info"])
        return next(n["path"] for n in info["runtimeSpec"]["linux"]["namespaces"]
                    if n["type"] == "network")

    def ip_json(self, *args):
        """`ip -j` in its network namespace, where the links are that the guest has as NICs."""
        return json.loads(subprocess.run(
            ["nsenter", f"--net={self.netns()}", "ip", "-j", *args], check=True, timeout=TIMEOUT,
            capture_output=True, text=True).stdout)

    def create(self, devices=(), image="coracle.test/vm:1", memory=None, cpus=None, mounts=(),
               **config):
        """devices: (path in the pod, path on the host, and "r" if it may only be read)."""
        resources = {"cpu_shares": 512}
        if memory:
            resources["memory_limit_in_bytes"] = memory
        self.node.disks.update(path for _, path, *_ in devices)
        if cpus:
            resources.update(cpu_period=100000, cpu_quota=int(cpus * 100000))
        self.attempt += 1
        self.container = self.node.cri(
            "CreateContainer", pod_sandbox_id=self.id, sandbox_config=self.config, config={
                "metadata": {"name": "vm", "attempt": self.attempt}, "image": {"image": image},
                "command": ["vm"], "log_path": f"{self.attempt}.log",
                "devices": [{"container_path": a, "host_path": b, "permissions": "".join(p) or "rwm"}
                            for a, b, *p in devices],
                "mounts": [{"container_path": a, "host_path": b, "readonly": True}
                           for a, b in mounts],
                "linux": {"resources": resources}, **config}).container_id
        return self

    def start(self, **create):
        if create or not self.container:
            self.create(**create)
        self.node.cri("StartContainer", container_id=self.container)
        return self

    # ---- what it says ----

    def log(self):
        """The text of the container's log, as `kubectl logs` shows it."""
        path, text = self.logs / f"{self.attempt}.log", ""
        if not path.exists():
            return text
        # The last one may be half written; and a CR of the container's ends no line.
        for line in path.read_bytes().decode(errors="replace").split("\n")[:-1]:
            _, _, tag, rest = line.split(" ", 3)
            text += rest + ("\n" if tag == "F" else "")
        return text

    def line(self, pattern, timeout=TIMEOUT):
        """Wait for a line in the log. Returns the match."""
        def look():
            return re.search(rf"^(?:{pattern})$", self.log(), re.M)
        try:
            return until(f"line {pattern!r}", look, timeout)
        except Late as e:
            raise Late(f"{e}\n--- log ---\n{self.log()}") from None

    def status(self):
        return self.node.cri("ContainerStatus", container_id=self.container).status

    def ended(self, timeout=TIMEOUT):
        """Wait until the container has exited; its status."""
        until("the container has exited", lambda: self.status().state == 2, timeout)
        return self.status()

    def info(self):
        """containerd's inner view of the container."""
        return json.loads(self.node.cri("ContainerStatus", container_id=self.container,
                                        verbose=True).info["info"])

    def pid(self):
        return self.info()["pid"]

    # ---- its end ----

    def stop(self, timeout=30):
        """As `kubectl delete` with that grace period."""
        self.node.cri("StopContainer", container_id=self.container,
                      _timeout=timeout + TIMEOUT, timeout=timeout)

    def remove_container(self):
        self.node.cri("RemoveContainer", container_id=self.container)
        self.container = None

    def remove(self):
        if self.id:
            self.node.remove(self.id)
        self.id = None
