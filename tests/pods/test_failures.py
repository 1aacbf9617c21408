"""test_failures.py - whatever is killed, at whichever step: nothing may be left, and nobody hangs

Where something is killed "at every step", the moments are spread over the time the whole takes. None
of them decides the verdict: after each, everything is removed and what is left is looked for.
"""
import contextlib
import itertools
import os
import pathlib
import select
import signal
import socket
import subprocess
import threading
import time

import pytest

import cri
from node import SHIM, TIMEOUT, Node, Pod, guest, ours, until, why_not
from ttrpc import Client, field, frame, request, varint

MIB = 1 << 20
ROOT = "/dev/rootdisk"


def kernel(node, name, cmdline=""):
    node.configure(kernel=str(guest(name)), cmdline=cmdline)


def daemons(node):
    """The shims themselves, without the pods' own processes."""
    out = []
    for pid in ours(SHIM, node):
        with contextlib.suppress(OSError):  # it may just have ended
            if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == "coracle-shim":
                out.append(pid)
    return out


def kill(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def running(node, pods, device):
    """A pod whose machine stays until it is told to end."""
    kernel(node, "poweroff", "button")
    pod = pods().start(devices=[(ROOT, device())])
    pod.line("ready")
    return pod


def test_table_of_leftovers(node, running):
    """Every row of it sees what a running pod has, or it would never see what is left."""
    assert [row for row, found in node.leftovers().items() if not found] == []


# ---- something dies under a running pod ----

def test_machine_killed(node, running):
    kill([running.pid()])
    status = running.ended()
    assert status.exit_code == 137
    assert "coracle: the machine's process was killed by signal 9" in running.log()
    running.remove_container()
    node.check_clean(pod=running)


def test_termination_message(node, pods, device, tmp_path):
    """Why it ended is where kubelet looks for it; `kubectl describe pod` shows it."""
    kernel(node, "poweroff", "button")
    message = tmp_path / "message"
    message.touch()
    pod = pods().start(devices=[(ROOT, device())],
                       mounts=[("/dev/termination-log", str(message))])
    pod.line("ready")
    kill([pod.pid()])
    pod.ended()
    assert message.read_text() == (
        "coracle: the machine's process was killed by signal 9 (exit status 137)")


def test_shim_killed(node, running):
    machine = running.pid()
    kill(daemons(node))
    running.ended()
    until("the machine has died with its shim", lambda: machine not in ours("coracle", node))
    running.remove()
    node.check_clean()


def test_node_shuts_down(node, running):
    """A node sends SIGTERM to everything: the guest gets to shut down."""
    for pid in daemons(node):
        os.kill(pid, signal.SIGTERM)
    assert running.ended().exit_code == 0
    assert "ok button" in running.log()


def test_pods_own_process_killed(node, running):
    kill(set(ours(SHIM, node)) - set(daemons(node)))
    until("the pod is not ready", lambda: node.cri(
        "PodSandboxStatus", pod_sandbox_id=running.id).status.state == 1)
    running.remove()
    node.check_clean()


def test_containerd_restarted(node, running):
    shim, machine = daemons(node), running.pid()
    node.kill()
    node.start()
    assert daemons(node) == shim and running.pid() == machine
    assert running.status().state == 1
    running.stop(timeout=int(TIMEOUT))
    assert running.ended().exit_code == 0
    assert "ok button" in running.log()


def test_machine_ends_while_containerd_is_away(node, running):
    """From 1.7 on it forgets a task that has no process, and how that has ended."""
    machine, one = running.pid(), field(1, running.container)
    node.kill()
    kill([machine])
    shim = Client(node.socket(running.id), TIMEOUT)
    assert varint(137) in shim.call("Wait", one)
    assert shim.call("Pids", one, 3) == field(2, field(1, field(1, machine)))
    shim.close()
    node.start()
    assert running.ended().exit_code == 137


def test_exit_is_told_to_a_containerd_that_is_back(node, running):
    """The event waits for containerd: whoever listens there hears of it."""
    machine = running.pid()
    node.process.send_signal(signal.SIGSTOP)
    kill([machine])
    until("the machine has gone", lambda: machine not in ours("coracle", node))
    node.process.send_signal(signal.SIGCONT)
    assert running.ended().exit_code == 137


def test_events_wait_for_containerd_in_their_order(node, running):
    """What happens while it does not listen; test_shim_events.c has one that was killed."""
    events, one = node.events(), field(1, running.container)
    machine, shim = running.pid(), Client(node.socket(running.id), TIMEOUT)
    node.process.send_signal(signal.SIGSTOP)
    for stream, method in ((1, "Pause"), (3, "Resume"), (5, "Pause"), (7, "Resume")):
        assert shim.call(method, one, stream) == b""
    kill([machine])
    shim.call("Wait", one, 9)
    shim.close()
    node.process.send_signal(signal.SIGCONT)

    def seen():
        return [topic for topic, text in events.seen()
                if f'"{running.container}"' in text and "/tasks/" in topic]

    until("all are told", lambda: "/tasks/exit" in seen())
    events.close()
    assert seen()[:5] == [f"/tasks/{t}" for t in ("paused", "resumed", "paused", "resumed", "exit")]
    assert running.ended().exit_code == 137


def freezer(node, pod):
    """The control group that makes the pod's machine deaf to SIGKILL, as a disk that hangs does."""
    group = pathlib.Path(f"/sys/fs/cgroup/freezer/{node.name}/{pod.container}/freezer.state")
    if not group.exists():
        pytest.skip("no freezer of control groups version 1 here")
    return group


def test_machine_that_cannot_be_killed(node, running):
    """Its process is in the kernel (a disk hangs): the shim waits for it without standing still."""
    state, pid = freezer(node, running), running.pid()
    state.write_text("FROZEN")
    try:
        for _ in range(2):
            with pytest.raises(cri.Refused, match="(?i)deadline|context|RST_STREAM"):
                node.cri("StopContainer", container_id=running.container, timeout=0, _timeout=2)
        shim = Client(node.socket(running.id), TIMEOUT)
        assert shim.call("Pids", field(1, running.container))
        assert b"has not ended yet" in shim.call("Delete", field(1, running.container), 3)
        assert shim.call("Stats", field(1, running.container), 5)
        shim.close()
        assert running.status().state == 1 and pid in ours("coracle", node)
    finally:
        state.write_text("THAWED")
    assert running.ended().exit_code == 137


def test_vmm_that_hangs(node, running):
    """It does not answer, so nobody waits for it to press the button: after the grace period it is killed."""
    os.kill(running.pid(), signal.SIGSTOP)
    node.cri("StopContainer", container_id=running.container, timeout=1)
    assert running.status().exit_code == 137
    running.remove_container()
    node.check_clean(pod=running)


def test_machine_that_cannot_be_killed_without_a_shim(node, running):
    """Nobody is left to wait for it: it ends when it can, and its disk is not free before."""
    state, pid = freezer(node, running), running.pid()
    state.write_text("FROZEN")
    try:
        kill(daemons(node))
        running.ended()
        assert pid in ours("coracle", node)
        assert node.leftovers()["locks on disks"]
    finally:
        state.write_text("THAWED")
    until("it has ended", lambda: pid not in ours("coracle", node))
    running.remove()
    node.check_clean("control groups")  # kubelet's: it removes the pod's with all that is in it
    for path in (p for p in node.leftovers()["control groups"]):
        os.rmdir(path)


def memory_limit(node):
    """The file that limits what all pods of the node have together, and what lifts the limit."""
    for path, none in ((f"/sys/fs/cgroup/memory/{node.name}/memory.limit_in_bytes", "-1"),
                       (f"/sys/fs/cgroup/{node.name}/memory.max", "max")):
        if os.path.exists(path):
            return pathlib.Path(path), none
    return pytest.skip("no control groups here that limit memory")


# Says that it is there, but has no serial port, and cannot be killed before the test lets it.
STUCK = """#!/bin/sh
/usr/bin/python3 - "$@" <<'END' &
import json, os, re, socket, sys
with open(f"/proc/{os.getppid()}/cgroup", encoding="ascii") as f:
    group = re.search(r":freezer:(.*)", f.read()).group(1)
for path, text in (("/cgroup.procs", "0"), (f"{group}/freezer.state", "FROZEN")):
    with open("/sys/fs/cgroup/freezer" + path, "w", encoding="ascii") as f:
        f.write(text)
with open(sys.argv[-1], encoding="utf-8") as f:
    control = json.load(f)["control"]
listener = socket.socket(socket.AF_UNIX)
listener.bind(control)
listener.listen()
client, _ = listener.accept()
request = json.loads(client.recv(65536))
client.sendall(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {}}).encode() + b"\\n")
client.recv(1)
END
exec sleep 1000
"""


def test_shutdown_before_the_last_process_has_ended(node, pods, device, tmp_path):
    """containerd asks once; the shim goes as soon as it can, not after its time of waiting for tasks."""
    if not os.path.exists("/sys/fs/cgroup/freezer"):
        pytest.skip("no freezer of control groups version 1 here")
    script, vmm = tmp_path / "coracle", node.config["vmm"]
    script.write_text(STUCK)
    script.chmod(0o755)
    pod = pods()
    try:
        node.configure(vmm=str(script))
        with pytest.raises(cri.Refused, match="serial port"):
            pod.start(devices=[(ROOT, device())])
    finally:
        node.configure(vmm=vmm)
    group = freezer(node, pod)
    pod.remove()
    assert daemons(node)
    group.write_text("THAWED")
    node.check_clean()


def test_out_of_memory(node, pods, device):
    """The pod's group is too small for what the guest touches."""
    kernel(node, "churn", "pages=40000")
    pod = pods().create(devices=[(ROOT, device())], memory=256 * MIB)
    limit, none = memory_limit(node)
    limit.write_text(str(48 * MIB))
    try:
        pod.start()
        status = pod.ended()
        assert (status.exit_code, status.reason) == (137, "OOMKilled"), status
    finally:
        limit.write_text(none)


def test_no_kvm(node, pods, device, tmp_path):
    script = tmp_path / "coracle"
    script.write_text("#!/bin/sh\nexec unshare -m sh -c 'mount --bind /dev/null /dev/kvm && "
                      f"exec {node.config['vmm']} \"$@\"' coracle \"$@\"\n")
    script.chmod(0o755)
    vmm = node.config["vmm"]
    pod = pods()
    try:
        node.configure(vmm=str(script))
        with pytest.raises(cri.Refused, match="/dev/kvm"):
            pod.start(devices=[(ROOT, device())])
    finally:
        node.configure(vmm=vmm)


def test_kubelet_asks_twice(node, running):
    with pytest.raises(cri.Refused):
        node.cri("StartContainer", container_id=running.container)
    assert running.status().state == 1
    running.stop()
    running.stop()
    node.cri("StopPodSandbox", pod_sandbox_id=running.id)
    node.cri("StopPodSandbox", pod_sandbox_id=running.id)
    node.cri("RemovePodSandbox", pod_sandbox_id=running.id)
    node.cri("RemovePodSandbox", pod_sandbox_id=running.id)
    running.id = None


def test_delete_of_one_that_is_being_made(node, pods, device, tmp_path):
    """As containerd from 1.7 on does, once, when it was killed meanwhile and is back."""
    script, vmm = tmp_path / "coracle", node.config["vmm"]
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    script.chmod(0o755)
    pod = pods().create(devices=[(ROOT, device())])
    refused = []

    def start():
        try:
            pod.start()
        except cri.Refused as e:
            refused.append(str(e))

    thread = threading.Thread(target=start)
    try:
        node.configure(vmm=str(script))
        thread.start()
        one, shim = field(1, pod.container), Client(node.socket(pod.id), TIMEOUT)
        streams = itertools.count(1, 2)
        until("it is being made", lambda: b"no task" not in shim.call("State", one, next(streams)))
        assert shim.call("Pids", one, next(streams)) == b""
        assert b"has gone" in shim.call("Delete", one, next(streams))
        assert b"no task" in shim.call("State", one, next(streams))
        shim.close()
        thread.join()
    finally:
        node.configure(vmm=vmm)
    assert "was killed by signal 9" in refused[0]
    node.check_clean(pod=pod)


def test_delete_again_by_hand(node, running):
    """containerd may run `delete` any time, for anything: a sibling's machine must not die of it."""
    bundle = node.dir / "state/io.containerd.runtime.v2.task/k8s.io" / running.container
    gone = subprocess.run([str(node.shim), "-namespace", "k8s.io", "-address",
                           str(node.dir / "containerd.sock"), "-id", "nobody", "delete"],
                          cwd=node.dir, capture_output=True, check=True, timeout=TIMEOUT)
    assert gone.stdout and not gone.stderr
    assert bundle.exists() and running.status().state == 1


@pytest.mark.parametrize("dies", [True, False])
def test_delete_beside_a_daemon_that_dies(node, tmp_path, dies):
    """It still listens, and will not answer: its socket goes with it. One that is only busy keeps it."""
    path = node.socket("dying")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with subprocess.Popen([str(node.shim), "-namespace", "k8s.io", "-address",
                               str(node.dir / "containerd.sock"), "-id", "dying", "delete"],
                              cwd=tmp_path, stdout=subprocess.DEVNULL) as delete:
            select.select([listener], [], [], TIMEOUT)
            if dies:
                listener.close()
            assert delete.wait(TIMEOUT) == 0
    assert os.path.exists(path) != dies
    if not dies:
        os.unlink(path)


# ---- something dies at every step ----

def start_pod(node, disk):
    """From nothing to a running machine, in a thread of its own; errors are expected."""
    pod = Pod(node)

    def run():
        with contextlib.suppress(cri.Refused):
            pod.run().start(devices=[(ROOT, disk)])

    thread = threading.Thread(target=run)
    thread.start()
    return pod, thread


STEPS = [i * 0.02 for i in range(18)]


@pytest.fixture
def steps(node, device):
    kernel(node, "hello", "exit=halt")
    yield device()
    node.remove_all()
    node.check_clean()


@pytest.mark.parametrize("after", STEPS)
def test_shim_killed_during_start(node, steps, after):
    _, thread = start_pod(node, steps)
    until("there is a shim", lambda: daemons(node) or not thread.is_alive())
    time.sleep(after)
    kill(daemons(node))
    thread.join()
    node.remove_all()
    node.check_clean()


@pytest.mark.parametrize("after", STEPS[:6])
def test_machine_killed_during_start(node, steps, after):
    _, thread = start_pod(node, steps)
    until("there is a machine", lambda: ours("coracle", node) or not thread.is_alive())
    time.sleep(after / 4)
    kill(ours("coracle", node))
    thread.join()
    node.remove_all()
    node.check_clean()


@pytest.mark.parametrize("after", STEPS[:8])
@pytest.mark.parametrize("what", ["shim", "machine"])
def test_killed_during_stop(node, steps, what, after):
    pod, thread = start_pod(node, steps)
    thread.join()
    pod.line("done")

    def stop():
        with contextlib.suppress(cri.Refused):
            node.remove_all()

    thread = threading.Thread(target=stop)
    thread.start()
    time.sleep(after)
    kill(daemons(node) if what == "shim" else ours("coracle", node))
    thread.join()
    node.remove_all()
    node.check_clean()


# A stop's steps in their order: what has just happened to the pod (stop_pod()) when something dies.
STOP = {
    "asked": lambda node, pod: "StopContainer for" in node.log(),
    "button pressed": lambda node, pod: "ok button" in pod.log(),
    "machine ended": lambda node, pod: not ours("coracle", node),
    "machine taken apart": lambda node, pod: not node.leftovers()["state and temporary files"],
    "task deleted": lambda node, pod: len(node.leftovers()["bundles"]) < 2,
    "pod stopped": lambda node, pod: len(ours(SHIM, node)) < 2,
    "network gone": lambda node, pod: not node.leftovers()["network namespaces"],
    "shim ended": lambda node, pod: not ours(SHIM, node),
    "pod removed": lambda node, pod: not node.leftovers()["bundles"],
}


def stop_pod(pod):
    """In a thread of its own, as kubelet does it; errors are expected."""
    def run():
        with contextlib.suppress(cri.Refused, ValueError):  # a channel that is closed
            pod.stop()
            pod.remove_container()
            pod.remove()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("step", STOP)
@pytest.mark.parametrize("what", ["shim", "machine"])
def test_killed_at_step_of_stop(node, steps, what, step):
    kernel(node, "poweroff", "button")
    pod, thread = start_pod(node, steps)
    thread.join()
    pod.line("ready")
    thread = stop_pod(pod)
    until(step, lambda: STOP[step](node, pod) or not thread.is_alive())
    kill(daemons(node) if what == "shim" else ours("coracle", node))
    thread.join()
    node.remove_all()
    node.check_clean()


@pytest.fixture
def own_node():
    """A node of the test's own: containerd's leaks are not ours, and must not hide them."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    node = Node()
    yield node
    node.close()


def restart_and_remove(node):
    node.kill()
    node.start()
    node.remove_all()
    for task in node.ctr("tasks", "ls", "-q").split():
        node.ctr("tasks", "rm", "-f", task)


# What containerd 1.6 itself forgets when it is killed between making or removing a thing and noting it.
# It alone makes and removes these.
CONTAINERDS_OWN = ("network namespaces", "links on the bridge", "addresses")


@pytest.mark.parametrize("after", STEPS)
def test_containerd_killed_during_start(own_node, device, after):
    kernel(own_node, "hello", "exit=halt")
    _, thread = start_pod(own_node, device())
    until("there is a shim", lambda: daemons(own_node) or not thread.is_alive())
    time.sleep(after)
    restart_and_remove(own_node)
    thread.join()
    own_node.check_clean(*CONTAINERDS_OWN)


@pytest.mark.parametrize("step", STOP)
def test_containerd_killed_during_stop(own_node, device, step):
    kernel(own_node, "poweroff", "button")
    pod, thread = start_pod(own_node, device())
    thread.join()
    pod.line("ready")
    thread = stop_pod(pod)
    until(step, lambda: STOP[step](own_node, pod) or not thread.is_alive())
    restart_and_remove(own_node)
    thread.join()
    own_node.check_clean(*CONTAINERDS_OWN)


def test_a_shim_that_nobody_asks_ends(node, tmp_path):
    """containerd was killed between `start` and Create."""
    (tmp_path / "config.json").write_text("{}")
    run = subprocess.run([str(node.shim), "-namespace", "k8s.io", "-address",
                          str(node.dir / "containerd.sock"), "-id", "lonely", "start"],
                         cwd=tmp_path, capture_output=True, text=True, check=True,
                         env={**os.environ, "CORACLE_RUNTIME_DIR": f"{node.dir}/run"})
    address = run.stdout.removeprefix("unix://")
    assert address == node.socket("lonely") == (tmp_path / "address").read_text()[7:]
    assert not run.stderr and os.stat(address).st_mode & 0o777 == 0o600
    # The socket first: right after `start` the daemon may not be seen yet.
    until("it has gone", lambda: not os.path.exists(address) and not daemons(node))


# ---- clients that are no containerd ----

@pytest.fixture
def client(node, running):
    made = []

    def connect():
        made.append(Client(node.socket(running.id), TIMEOUT))
        return made[-1]

    connect.pod = running
    yield connect
    for c in made:
        c.close()
    assert running.status().state == 1
    assert f"{running.pid()}" in node.ctr("tasks", "ls")


def test_half_a_frame(client):
    half = client()
    half.send(frame(1, request("Connect"))[:17])
    assert client().call("Connect", field(1, client.pod.id))
    half.send(frame(1, request("Connect"))[17:])
    assert half.answer()[0] == 1


def test_five_mebibytes(client):
    c = client()
    c.send(frame(1, bytes(5 * MIB)))
    assert b"exceeds maximum message size" in c.answer()[1]
    assert c.call("Connect", stream=3)


def test_a_thousand_waits(client):
    waiting, one = client(), field(1, client.pod.container)
    for i in range(1000):
        waiting.send(frame(2 * i + 1, request("Wait", one)))
    assert b"task" in client().call("State", one)
    assert waiting.call("Connect", stream=5001)


def test_a_thousand_waits_are_answered(node, running):
    waiting, one = Client(node.socket(running.id), TIMEOUT), field(1, running.container)
    for i in range(1000):
        waiting.send(frame(2 * i + 1, request("Wait", one)))
    kill([running.pid()])
    answers = dict(waiting.answer() for _ in range(1000))
    waiting.close()
    assert sorted(answers) == list(range(1, 2000, 2))
    assert len(set(answers.values())) == 1 and varint(137) in answers[1]
    assert running.ended().exit_code == 137


def test_asked_twice(client):
    """As a containerd that was restarted in between might."""
    one, bundle = field(1, client.pod.container), field(2, "/nowhere")
    c = client()
    assert b"exists already" in c.call("Create", one + bundle, 1)
    assert b"is not waiting to be started" in c.call("Start", one, 3)
    assert b"has not ended yet" in c.call("Delete", one, 5)
    assert b"is not paused" in c.call("Resume", one, 7)
    first = c.call("Connect", one, 9)
    assert first and c.call("Connect", one, 11) == first


@pytest.mark.parametrize("data", [
    os.urandom(64), frame(2, request("State")), frame(1, b"\xff" * 100), frame(1, b""),
    frame(1, request("State", b"\xff" * 40)), frame(1, request("Nothing")), frame(1, b"", kind=9),
    frame(1, request("State", service="other")), frame(0xffffffff, request("Shutdown", b"\x0a"))])
def test_nonsense(client, data):
    c = client()
    c.send(data)
    assert client().call("Connect", field(1, client.pod.id))


@pytest.mark.parametrize("number,sentence", [
    (10, b"means nothing to a machine"), (0, b"means nothing to a machine"),
    (1 << 31, b"means nothing to a machine")])
def test_signals_without_a_meaning(client, number, sentence):
    assert sentence in client().call("Kill", field(1, client.pod.container) + field(3, number))
    assert b"signal 99: Invalid argument" in client().call(
        "Kill", field(1, client.pod.id) + field(3, 99))


def test_shutdown_of_a_pod_that_lives(client):
    assert client().call("Shutdown", field(1, client.pod.id)) == b""
    assert client().call("Connect")
