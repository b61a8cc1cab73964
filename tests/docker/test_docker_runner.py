"""The pipeline's tasks in containers: what became of each is what we say became of it."""

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import docker as sdk
import pytest
from kfp import dsl, local

from twotower.errors import PipelineError
from twotower.pipeline.docker_runner import run_docker_container, truthful_docker_runner

pytestmark = pytest.mark.docker


@pytest.fixture
def client(docker) -> sdk.DockerClient:
    return sdk.from_env()


@pytest.fixture
def run_here(docker, tmp_path: Path) -> Callable[..., None]:
    """Makes kfp run what is called from now on in containers, with its outputs in this test's directory."""

    def initialise(**arguments: object) -> None:
        local.init(truthful_docker_runner(**arguments), pipeline_root=str(tmp_path / "root"))

    return initialise


def failing(image: str) -> Callable[..., object]:
    @dsl.component(base_image=image, install_kfp_package=False)
    def fail() -> None:
        raise SystemExit(3)

    return fail


def succeeding(image: str) -> Callable[..., object]:
    @dsl.component(base_image=image, install_kfp_package=False)
    def succeed(number: int) -> int:
        return number + 1

    return succeed


def test_a_component_that_must_fail_fails_forty_times_of_forty(run_here, pipeline_image) -> None:
    run_here()
    fail = failing(pipeline_image)
    refused = 0
    for _ in range(40):
        with contextlib.suppress(RuntimeError), contextlib.redirect_stdout(io.StringIO()):
            fail()
            continue
        refused += 1
    assert refused == 40


def test_a_component_that_must_succeed_succeeds_twenty_times_of_twenty(run_here, pipeline_image) -> None:
    run_here()
    succeed = succeeding(pipeline_image)
    assert [succeed(number=number).output for number in range(20)] == list(range(1, 21))


@pytest.mark.parametrize("status", [0, 1, 3, 125, 127, 255])
def test_the_status_of_the_shortest_container_is_its_own(client, pipeline_image, status: int) -> None:
    command = ["sh", "-c", f"exit {status}"]
    assert [run_docker_container(client, pipeline_image, command, {}) for _ in range(5)] == [status] * 5


def test_no_container_is_left_whatever_became_of_it(docker, client, pipeline_image) -> None:
    before = docker("ps", "--all", "--quiet").stdout
    for status in (0, 1):
        run_docker_container(client, pipeline_image, ["sh", "-c", f"exit {status}"], {})
    with pytest.raises(PipelineError, match="Docker cannot run a container"):
        run_docker_container(client, pipeline_image, ["no-such-program"], {})
    assert docker("ps", "--all", "--quiet").stdout == before


def test_a_callers_wish_to_remove_the_container_early_changes_nothing(client, pipeline_image) -> None:
    arguments = {"auto_remove": True, "remove": True, "detach": False}
    assert run_docker_container(client, pipeline_image, ["sh", "-c", "exit 7"], {}, **arguments) == 7


def test_all_that_a_container_prints_is_shown_also_what_is_no_text(client, pipeline_image, capsys) -> None:
    # 200 kB of two-byte letters come in chunks that cut some of them in two.
    script = r"""python3 -c 'print("ä" * 100_000)'; printf 'to stderr\n' >&2; printf '\377\n'"""
    run_docker_container(client, pipeline_image, ["sh", "-c", script], {})
    shown = capsys.readouterr().out
    assert shown.count("ä") == 100_000
    assert "to stderr" in shown
    assert shown.count("\N{REPLACEMENT CHARACTER}") == 1


def test_a_container_that_ran_out_of_memory_fails_and_says_so(client, pipeline_image, capsys) -> None:
    command = ["python3", "-c", "x = b'1' * 500_000_000"]
    status = run_docker_container(client, pipeline_image, command, {}, mem_limit="64m", memswap_limit="64m")
    assert status == 137
    assert "lack of memory" in capsys.readouterr().out


def test_a_task_writes_its_outputs_as_the_caller_and_nothing_else(run_here, pipeline_image, tmp_path: Path) -> None:
    @dsl.component(base_image=pipeline_image, install_kfp_package=False)
    def write(out: dsl.Output[dsl.Dataset]) -> str:
        from pathlib import Path

        import twotower.steps

        Path(out.path).mkdir(parents=True)
        (Path(out.path) / "table").write_text(twotower.steps.__name__)
        try:
            (Path(twotower.steps.__file__).parent / "x").write_text("")
        except OSError as fault:
            return str(fault.errno)
        return "written"

    run_here()
    task = write()
    assert task.outputs["Output"] == "30"  # EROFS
    table = Path(task.outputs["out"].path) / "table"
    assert table.read_text() == "twotower.steps"
    assert table.stat().st_uid == os.getuid()


def test_a_pipeline_stops_at_the_task_that_failed(run_here, pipeline_image) -> None:
    fail, succeed = failing(pipeline_image), succeeding(pipeline_image)

    @dsl.pipeline
    def two() -> None:
        first = fail()
        succeed(number=1).after(first)

    run_here()
    with pytest.raises(RuntimeError, match="fail"):
        two()


def test_an_image_that_cannot_be_had_is_told_in_one_line(client) -> None:
    with pytest.raises(PipelineError) as fault:
        run_docker_container(client, "twotower-pipeline:no-such-tag", ["true"], {})
    assert "\n" not in str(fault.value)
    assert "docker build --target pipeline -t twotower-pipeline:no-such-tag ." in str(fault.value)


def test_a_daemon_that_does_not_answer_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    where = f"unix://{tmp_path}/none.sock"
    monkeypatch.setenv("DOCKER_HOST", where)
    with pytest.raises(PipelineError, match=f"Docker does not answer at {where}") as fault:
        truthful_docker_runner()
    assert "\n" not in str(fault.value)
