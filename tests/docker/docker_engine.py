"""A Docker daemon, found or started, and the images built by it from this checkout: for the tests and the benchmarks.

Where there is no daemon, root on a Debian with `docker.io`, `iptables` and, where no base image can be pulled,
`debootstrap` starts one of its own. Its data lie in TWOTOWER_DOCKER_ROOT, where the next run finds them, or else in a
temporary directory.
"""

import ast
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
"""How the Dockerfile says that the images run."""
STAND_IN = "twotower-base:bookworm"
CA = "/run/secrets/ca.crt"
"""Where the Dockerfile puts the certificates that only the build trusts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Docker:
    """A client that reaches a daemon and can build with BuildKit."""

    program: str
    host: str
    hardened: tuple[str, ...] = HARDENED

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
        """Run one docker command; what it printed is the fault's text where it fails."""
        finished = subprocess.run(
            [self.program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=os.environ | {"DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "1"},
        )
        assert not check or finished.returncode == 0, (arguments, finished.stdout[-3000:], finished.stderr[-3000:])
        return finished

    def run(self, image: str, *command: str, options: Sequence[str] = (), check: bool = True) -> str:
        """What a container of the image prints, run as the Dockerfile says; `options` go before the image."""
        return self("run", "--rm", *self.hardened, *options, image, *command, check=check).stdout.strip()

    def inspect(self, image: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(self("image", "inspect", image).stdout)[0]
        return found


class NoDockerError(Exception):
    """Containers cannot be had here; the message says what is missing."""


@contextmanager
def running_docker() -> Iterator[Docker]:
    """A daemon that answers; what runs in this process finds it by DOCKER_HOST.

    Raises:
        NoDockerError: there is none, and none can be started.
    """
    usual = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    given = os.environ.get("TWOTOWER_DOCKER_ROOT")
    root = Path(given if given else tempfile.mkdtemp(prefix="twotower-docker-")).resolve()
    own = f"unix://{root / 'docker.sock'}"
    before = os.environ.get("DOCKER_HOST")
    daemon: subprocess.Popen[bytes] | None = None
    try:
        program = _client()
        host = next((host for host in (usual, own) if _answers(program, host)), None)
        if host is None:
            daemon, host = _start(program, root), own
        os.environ["DOCKER_HOST"] = host
        yield Docker(program=program, host=host)
    finally:
        if before is None:
            os.environ.pop("DOCKER_HOST", None)
        else:
            os.environ["DOCKER_HOST"] = before
        if daemon is not None:
            daemon.terminate()
            daemon.wait(60)
        if not given:
            shutil.rmtree(root)


def commit() -> str:
    """The tag of the images: the commit, of which what is built here may differ as far as the work tree does.

    Raises:
        NoDockerError: this is no git checkout.
    """
    finished = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise NoDockerError("no git checkout, whose commit is the images' tag")
    return finished.stdout.strip()


def package_version() -> str:
    """The package's version, as its metadata say it."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def write_secrets(directory: Path) -> dict[str, Path]:
    """How this machine reaches package registries, as the secrets that the Dockerfile names; for the build alone."""
    found = {"pip.conf": _pip_conf(), "apt.conf": _apt_conf(), "ca.crt": _certificates()}
    for name, text in found.items():
        (directory / name).write_text(text, encoding="utf-8")
    return {name: directory / name for name in found}


def find_base(docker: Docker, scratch: Path) -> str:
    """What the Dockerfile builds on; where it cannot be pulled, the same distribution made by debootstrap.

    Raises:
        NoDockerError: it can be neither pulled nor made.
    """
    default = re.search(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert default is not None
    if not docker("image", "inspect", default[1], check=False).returncode:
        return default[1]
    if docker("image", "inspect", STAND_IN, check=False).returncode:
        pulled = docker("pull", "--quiet", default[1], check=False)
        if not pulled.returncode:
            return default[1]
        _make_stand_in(docker, scratch / "root", reason=pulled.stderr.strip())
    return STAND_IN


def build(docker: Docker, target: str, *, base: str, secrets: dict[str, Path]) -> str:
    """The name of an image, built from this checkout."""
    tag = commit()
    name = f"twotower-{target}:{tag}"
    arguments = {"BASE": base, "REVISION": tag, "VERSION": package_version()}
    docker(
        "build",
        "--progress=plain",
        "--network=host",
        *(f"--secret=id={secret},src={path}" for secret, path in secrets.items()),
        *(f"--build-arg={argument}={value}" for argument, value in arguments.items()),
        f"--target={target}",
        f"--tag={name}",
        str(ROOT),
        timeout=1800,
    )
    # What had this name before has none now, and is ours by its label.
    docker("image", "prune", "--force", f"--filter=label=org.opencontainers.image.title=twotower-{target}")
    return name


def _client() -> str:
    """The first docker client on this machine that can build with BuildKit: one of old times, or one with buildx."""
    for program in (shutil.which("docker"), "/usr/bin/docker"):
        if program is None or not Path(program).exists():
            continue
        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        major = re.search(r"version (\d+)", told)
        buildx = subprocess.run([program, "buildx", "version"], capture_output=True, check=False).returncode == 0
        if buildx or (major is not None and int(major[1]) < 23):
            return program
    raise NoDockerError("no docker client that builds with BuildKit; on Debian: apt-get install docker.io")


def _answers(program: str, host: str) -> bool:
    command = [program, "--host", host, "version"]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _start(program: str, root: Path) -> "subprocess.Popen[bytes]":
    """A daemon of our own, all of it below one directory."""
    dockerd = shutil.which("dockerd")
    if sys.platform != "linux" or os.geteuid() or dockerd is None:
        raise NoDockerError("no Docker daemon answers, and only root on Linux with dockerd can start one")
    root.mkdir(parents=True, exist_ok=True)
    config = {
        "data-root": str(root / "data"),
        "exec-root": str(root / "exec"),
        "pidfile": str(root / "docker.pid"),
        "hosts": [f"unix://{root / 'docker.sock'}"],
        "storage-driver": "overlay2",
    }
    (root / "daemon.json").write_text(json.dumps(config), encoding="utf-8")
    log = root / "dockerd.log"
    with log.open("wb") as out:
        command = [dockerd, "--config-file", str(root / "daemon.json")]
        daemon = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    for _ in range(120):
        if _answers(program, config["hosts"][0]):
            return daemon
        if daemon.poll() is not None:
            break
        time.sleep(0.5)
    daemon.terminate()
    daemon.wait(60)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["it said nothing"]
    raise NoDockerError(f"dockerd does not come up here: {lines[-1]}")


def _make_stand_in(docker: Docker, tree: Path, *, reason: str) -> None:
    """The smallest Debian 12, without what the official slim image leaves out as well."""
    if os.geteuid() or shutil.which("debootstrap") is None:
        raise NoDockerError(f"no base image: {reason}; and only root with debootstrap can make one")
    command = ["debootstrap", "--variant=minbase", "bookworm", str(tree), *_mirror()]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise NoDockerError(f"debootstrap cannot make a base image: {made.stdout.strip().splitlines()[-1:]}")
    for place in ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "var/lib/apt/lists"):
        shutil.rmtree(tree / place)
    shutil.rmtree(tree / "var/cache/apt")
    (tree / "var/lib/apt/lists/partial").mkdir(parents=True)
    (tree / "var/cache/apt/archives/partial").mkdir(parents=True)
    packed = tree.parent / "root.tar"
    subprocess.run(["tar", "-C", str(tree), "--numeric-owner", "-cf", str(packed), "."], check=True)
    docker("import", str(packed), STAND_IN)
    shutil.rmtree(tree)
    packed.unlink()


def _mirror() -> list[str]:
    """The mirror that this machine takes the same distribution from; debootstrap knows one where it takes none."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [line.split()[0] for line in listed.splitlines() if line.endswith(" bookworm")][:1]


def _pip_conf() -> str:
    """pip's settings that say where packages come from; folders of this machine are not seen by a build."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    settings = {"cert": CA, "timeout": "180"}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in ("index-url", "extra-index-url", "trusted-host", "proxy"):
            remote = [word for word in str(ast.literal_eval(value)).split() if not word.startswith("file:")]
            settings |= {key: "\n    ".join(remote)} if remote else {}
    return "[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items())


def _apt_conf() -> str:
    """apt's settings that say how it gets through, where there is an apt."""
    if shutil.which("apt-config") is None:
        return ""
    listed = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    wanted = re.compile(r'Acquire::(https?::Proxy|Check-Valid-Until|Check-Date)\b.* ".+";')
    return "".join(f"{line}\n" for line in listed.splitlines() if wanted.match(line))


def _certificates() -> str:
    """Every certificate that this machine trusts, an own proxy's among them."""
    places = (os.environ.get("PIP_CERT"), os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile)
    found = next((Path(place) for place in places if place and Path(place).is_file()), None)
    if found is not None:
        return found.read_text(encoding="utf-8")
    authorities = ssl.create_default_context().get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, authorities))
