"""The page's files go out whole, once, and under a policy that lets nothing else in."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from twotower.serving.api.page_routes import FOLDER, add_page, page_files


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI(openapi_url=None)
    add_page(app)
    return TestClient(app)


def test_the_page_and_all_that_it_names_are_there(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:src|href)="([^#"]+)"', page.text)
    assert {client.get(f"/{path}").status_code for path in named} == {200}
    assert client.get("/page/page.js").headers["content-type"] == "text/javascript; charset=utf-8"


def test_every_module_that_a_script_imports_is_there(client: TestClient) -> None:
    scripts = [path for path in FOLDER.iterdir() if path.suffix == ".js"]
    imported = {name for script in scripts for name in re.findall(r'from "\./([^"]+)"', script.read_text("utf-8"))}
    assert imported | {"page.js"} == {script.name for script in scripts}


def test_a_copy_that_is_still_the_file_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page/page.css")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/page/page.css", headers={"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/page/page.css", headers={"If-None-Match": '"other"'}).content == first.content


def test_the_head_of_a_file_has_its_length_and_no_body(client: TestClient) -> None:
    head = client.head("/page/icon.svg")
    assert int(head.headers["content-length"]) == len((FOLDER / "icon.svg").read_bytes())
    assert head.content == b""


def test_nothing_but_the_servers_own_files_may_run(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    page = client.get("/").text
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style| style=| on\w+=", page) == []
    assert re.findall(r"https?://|//\w+\.\w", page) == []


def test_the_frame_of_the_report_has_no_origin_and_no_network(client: TestClient) -> None:
    policy = client.get("/page/report.html").headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts; default-src 'none'; ")
    assert "allow-same-origin" not in policy
    assert "connect-src" not in policy


def test_no_script_makes_markup_of_what_it_is_given() -> None:
    # Data goes in by `append` and `textContent`; the report's frame, which has no origin, is the one that writes.
    made = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function")
    found = {path.name for path in FOLDER.iterdir() if made.search(path.read_text("utf-8"))}
    assert found == {"report.html"}


@pytest.mark.parametrize(
    "path", ["/page/", "/page/../page_routes.py", "/page/%2e%2e/page_routes.py", "/page/index.html"]
)
def test_no_other_file_is_reached(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_every_file_in_the_folder_is_served() -> None:
    served = {"index.html" if path == "/" else Path(path).name for path in page_files()}
    assert served == {path.name for path in FOLDER.iterdir()}
