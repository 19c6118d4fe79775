"""After set-up, the demo and the site ask nothing of any network but this machine's own.

Two witnesses. A hook in every Python process, kernels too, writes down each address that is asked
for. It does not see the sockets of C code, so where the system permits it the whole run is also put
where there is nothing but loopback, and there the system counts every packet without a way out.
"""

from __future__ import annotations

import ast
import ipaddress
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from safety_lib.artifacts import CHECKOUT
from safety_lib.pipeline.plan import STAGES

# Python imports this by itself in each process that has its folder on the path. A request to
# anywhere passes one of these events, as long as no proxy stands in between.
HOOK = """
import os, sys

BY_NAME = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
BY_ADDRESS = {"socket.connect", "socket.sendto", "socket.sendmsg"}
written = os.open(os.environ["SEEN"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def write(*noted):
    os.write(written, ascii(noted).encode() + b"\\n")

def note(event, arguments):
    if event in BY_NAME:
        write(event, arguments[0])
    elif event in BY_ADDRESS:
        # Of the families in use, only that of AF_UNIX is no tuple.
        write(event, arguments[1][0] if isinstance(arguments[1], tuple) else None)

write("process", " ".join(sys.orig_argv))
sys.addaudithook(note)
"""
# Loopback is down at first. The counts are of this namespace alone.
ALONE = """
import fcntl, socket, struct, subprocess, sys
from pathlib import Path

with socket.socket() as some:
    fcntl.ioctl(some, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
code = subprocess.run(sys.argv[2:]).returncode
names, counts = Path("/proc/net/snmp").read_text().splitlines()[:2]
lost = int(dict(zip(names.split(), counts.split()))["OutNoRoutes"])
six = Path("/proc/net/snmp6")  # not there where the system has no IPv6
for line in six.read_text().splitlines() if six.exists() else ():
    lost += int(line.split()[1]) if line.startswith("Ip6OutNoRoutes") else 0
Path(sys.argv[1]).write_text(str(lost))
sys.exit(code)
"""
DEMO = ("-m", "safety_lib", "demo", "--rollouts", "4", "--artifacts")
HTML = "import sys, pathlib, safety_lib.pipeline.site as s; s.build_site(pathlib.Path(sys.argv[1]))"
# What asks for an address that is kept for documentation. Nothing leaves the machine even where
# there is a network: to connect a datagram socket sends nothing, a number needs no look-up, and a
# stream that is not connected cannot send.
PLANTED = (
    "socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))",
    "socket.getaddrinfo('192.0.2.2', 9)",
    "socket.socket().sendto(b'', ('192.0.2.3', 9))",
    "socket.socket().sendmsg([b''], [], 0, ('192.0.2.4', 9))",
    "socket.socket(type=socket.SOCK_DGRAM).connect(('127.0.0.1', 9))",
    "socket.socket(socket.AF_UNIX).connect('/nowhere')",
)


class Seen(NamedTuple):
    """What the witnesses of one run saw; there is no count where no namespace can be had."""

    processes: list[str]
    outside: list[tuple[str, str]]
    no_way_out: int | None


def on_this_machine(host: str | None) -> bool:
    if host in (None, "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0


def watched(folder: Path, *arguments: str) -> Seen:
    """Run Python with these arguments under both witnesses and require success."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    (folder / "alone.py").write_text(ALONE, encoding="utf-8")
    seen, counted = folder / "seen.txt", folder / "counted.txt"
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(folder), str(CHECKOUT)]), "SEEN": str(seen)}
    command = [sys.executable, *arguments]
    if namespaces():
        command = ["unshare", "-rn", sys.executable, "alone.py", str(counted), *command]
    ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    noted = [ast.literal_eval(line) for line in seen.read_text(encoding="utf-8").splitlines()]
    return Seen(
        [said for event, said in noted if event == "process"],
        sorted({n for n in noted if n[0] != "process" and not on_this_machine(n[1])}),
        int(counted.read_text()) if counted.exists() else None,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("demo")
    return watched(folder / "watched", *DEMO, str(folder / "artifacts"))


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("html")
    for path in (CHECKOUT / "artifacts").glob("*.*"):
        shutil.copy(path, folder)
    return watched(folder / "watched", "-c", HTML, str(folder))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Return what is seen of a process whose child asks for addresses outside."""
    tries = "".join(f"with contextlib.suppress(OSError): {line}\n" for line in PLANTED)
    child = f"import contextlib, socket\n{tries}"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    return watched(tmp_path_factory.mktemp("planted") / "watched", "-c", parent)


needs_namespace = pytest.mark.skipif(
    not namespaces(), reason="no network namespace may be made here (unshare -rn fails)"
)


@pytest.mark.slow
def test_the_demo_asks_only_this_machine(demo: Seen) -> None:
    kernels = [line for line in demo.processes if "ipykernel_launcher" in line]
    assert len(kernels) == len(STAGES)
    assert demo.outside == []


@pytest.mark.slow
def test_the_site_is_built_without_asking_anybody(html: Seen) -> None:
    assert any("build_site" in line for line in html.processes)
    assert html.outside == []


@pytest.mark.slow
@needs_namespace
def test_demo_and_site_succeed_where_there_is_no_network(demo: Seen, html: Seen) -> None:
    assert (demo.no_way_out, html.no_way_out) == (0, 0)


def test_the_hook_sees_what_a_child_process_asks_for(planted: Seen) -> None:
    assert planted.outside == [
        ("socket.connect", "192.0.2.1"),
        ("socket.getaddrinfo", "192.0.2.2"),
        ("socket.sendmsg", "192.0.2.4"),
        ("socket.sendto", "192.0.2.3"),
    ]


@needs_namespace
def test_the_system_counts_what_a_child_process_asks_for(planted: Seen) -> None:
    assert planted.no_way_out == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_installs_nothing_once_it_has_set_up(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    for name in ("Makefile", "pyproject.toml", ".lock/core.txt"):
        shutil.copy(CHECKOUT / name, tmp_path / name)
        os.utime(tmp_path / name, (1, 1))
    for name in ("bin/python", "made", "core"):
        made = tmp_path / ".venv" / name
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text("#!/bin/sh\n", encoding="utf-8")
        made.chmod(0o755)  # an environment that works
        os.utime(made, (2, 2))

    def commands() -> str:
        make = ["make", "--dry-run", "demo", "html"]
        alone = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return subprocess.run(
            make, cwd=tmp_path, env=alone, capture_output=True, text=True, check=True
        ).stdout

    assert "safety_lib demo" in commands()
    assert "build_site" in commands()
    assert "pip" not in commands().replace("pipeline", "")
    os.utime(tmp_path / "pyproject.toml", (3, 3))  # what is needed has changed
    assert "pip install" in commands()
