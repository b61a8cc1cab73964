"""Both images, built and run for real: what is inside, what is not, and what they may do."""

import re

import pytest

pytestmark = pytest.mark.docker

IMAGES = ("serve_image", "pipeline_image")
MODULES_MISSING = "import importlib.util as u, sys; print(*(n for n in sys.argv[1:] if u.find_spec(n) is None))"


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    """Each of both images."""
    return str(request.getfixturevalue(request.param))


def sh(docker, image: str, script: str, *, options: tuple[str, ...] = ()) -> str:
    return docker.run(image, "-c", script, options=("--entrypoint", "sh", *options))


def test_the_serving_image_is_smaller_than_400_mb(docker, serve_image) -> None:
    assert docker.inspect(serve_image)["Size"] < 400e6


def test_an_image_runs_as_nobody_of_note_without_capabilities_on_a_file_system_that_it_cannot_write(
    docker, image
) -> None:
    told = sh(docker, image, "id -u; id -g; grep -E '^(Cap|NoNew)' /proc/self/status")
    assert told.split("\n")[:2] == ["10001", "10001"]
    assert set(re.findall(r"Cap\w+:\s+(\w+)", told)) == {"0" * 16}
    assert re.search(r"NoNewPrivs:\s+1", told)
    written = sh(
        docker, image, "for place in / /opt/twotower /etc; do touch $place/x 2> /dev/null && echo $place; done; :"
    )
    assert written == ""


def test_code_belongs_to_root_even_where_the_file_system_could_be_written(docker, image) -> None:
    script = "touch /opt/twotower/x; find /opt/twotower -not -user root -o -perm -o+w -not -type l | head"
    assert docker("run", "--rm", "--entrypoint", "sh", image, "-c", script).stdout == ""


def test_no_compiler_and_no_installer_is_left_inside(docker, image) -> None:
    tools = "gcc cc c++ g++ clang tcc make ld as strip pip pip3 uv hatchling git curl wget"
    assert sh(docker, image, f"for tool in {tools}; do command -v $tool; done; :") == ""
    assert sh(docker, image, f"python3 -c '{MODULES_MISSING}' pip ensurepip setuptools hatchling numpy") == (
        "pip ensurepip setuptools hatchling"
    )


def test_the_serving_image_has_nothing_that_trains(docker, serve_image) -> None:
    names = "keras keras_rs jax jaxlib jax2onnx tensorflow kfp kubernetes duckdb ibis scipy pandas onnx"
    assert sh(docker, serve_image, f"python3 -c '{MODULES_MISSING}' {names} onnxruntime faiss") == names


def test_the_pipeline_image_has_all_that_a_task_needs_first_on_its_path(docker, pipeline_image, version) -> None:
    assert docker.run(pipeline_image, "twotower", "--version") == f"twotower {version}"
    script = "command -v python3; python3 -c 'import kfp, jax, keras, twotower.steps; print(keras.backend.backend())'"
    # kfp starts every task by `sh -c`, which is no login shell.
    assert docker.run(pipeline_image, "sh", "-c", script).splitlines() == ["/opt/twotower/bin/python3", "jax"]


def test_a_task_can_run_as_a_user_whom_the_image_does_not_know(docker, pipeline_image) -> None:
    code = "import getpass, keras, kfp, twotower.steps; print(getpass.getuser())"
    found = docker.run(pipeline_image, "python3", "-c", code, options=("--user", "54321:54321"))
    assert found == "twotower"


def test_labels_and_tag_say_which_code_is_inside(docker, image, revision, version) -> None:
    labels = docker.inspect(image)["Config"]["Labels"]
    name, tag = image.split(":")
    assert tag == labels["org.opencontainers.image.revision"] == revision
    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.title"] == name


def test_nothing_of_the_build_machine_is_in_an_image(docker, image, build_secrets) -> None:
    places = "/etc/pip.conf /run/secrets /etc/apt/apt.conf.d/99build /root/.cache /root/.config /build"
    assert sh(docker, image, f"ls -d {places} 2> /dev/null; :", options=("--user", "0")) == ""
    told = docker("history", "--no-trunc", image).stdout + str(docker.inspect(image))
    own = [line for name in ("pip.conf", "apt.conf") for line in build_secrets[name].read_text().splitlines()]
    addresses = [word for line in own for word in re.findall(r"https?://[^\s\"']+", line)]
    assert [address for address in addresses if address in told] == []


def compiled_now(told: str) -> list[str]:
    """Modules whose source had to be compiled, as `python -v` tells it."""
    return re.findall(r"code object from (\S+\.py)$", told, re.MULTILINE)


def test_a_start_of_the_server_finds_every_module_compiled(docker, serve_image) -> None:
    assert compiled_now(sh(docker, serve_image, "python3 -v -c 'import twotower.serving.http' 2>&1")) == []
    # What nobody imports is not compiled, which tells that the question is the right one.
    assert compiled_now(sh(docker, serve_image, "python3 -v -c 'import rich.markdown' 2>&1")) != []


def test_a_start_of_a_task_finds_every_module_compiled(docker, pipeline_image) -> None:
    script = "python3 -v -c 'import kfp.dsl.executor_main, twotower.steps' 2>&1"
    assert compiled_now(docker.run(pipeline_image, "sh", "-c", script)) == []


def test_a_change_of_code_moves_one_small_layer(docker, image) -> None:
    steps = docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", image).stdout
    sizes = [int(step.split()[0]) for step in steps.splitlines() if "COPY /package" in step]
    assert len(sizes) == 1
    assert sizes[0] < 5e6
