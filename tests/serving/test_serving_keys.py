"""Keys: made, kept as digests, shown, taken away."""

import hmac
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from twotower.cli.main import main
from twotower.errors import BusyError, TwotowerError
from twotower.serving.door import keys
from twotower.serving.door.keys import KeyRing, add_key, read_keys, remove_key

DIGEST = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
"""SHA-256 of "foo", as `printf foo | sha256sum` has it."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def entry(**other: Any) -> dict[str, Any]:
    return {"name": "a", "scopes": ["read"], "sha256": DIGEST, "created": "2025-01-01T00:00:00+00:00", **other}


def write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments], catch_exceptions=False)


def test_a_digest_of_the_file_opens_what_its_scopes_say(file: Path) -> None:
    write(file, json.dumps({"keys": [entry(scopes=["write", "read"])]}))
    found = KeyRing(file=file).find(b"foo")
    assert found is not None
    assert (found.name, set(found.scopes)) == ("a", {"read", "write"})


def test_a_key_is_256_random_bits_and_its_file_holds_all_but_the_key(file: Path) -> None:
    key = add_key(file, "web", scopes=["write", "read"])
    assert re.fullmatch(r"tt_[A-Za-z0-9_-]{43}", key)
    text = file.read_text(encoding="utf-8")
    assert key not in text
    assert key[3:] not in text
    (kept,) = json.loads(text)["keys"]
    assert (kept["name"], kept["scopes"]) == ("web", ["read", "write"])
    assert os.name == "nt" or file.stat().st_mode & 0o777 == 0o600
    assert add_key(file, "other", scopes=["admin"]) != key


def test_a_key_is_found_among_others_and_a_part_of_it_is_not(file: Path) -> None:
    made = {name: add_key(file, name, scopes=["read"]) for name in ("a", "b", "c")}
    ring = KeyRing(file=file)
    assert {name: key.name for name, shown in made.items() if (key := ring.find(shown.encode()))} == {
        name: name for name in made
    }
    assert ring.find(made["a"][:-1].encode()) is None
    assert ring.find(b"") is None


@given(shown=st.binary(max_size=80))
def test_nothing_but_the_key_opens(shown: bytes) -> None:
    ring = KeyRing.of({"TWOTOWER_API_KEY": "k" * 32})
    assert ring is not None
    assert (ring.find(shown) is not None) == (shown == b"k" * 32)


def test_all_keys_are_compared_whichever_is_shown(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [add_key(file, f"key-{place}", scopes=["read"]) for place in range(5)]
    ring = KeyRing(file=file)
    compared: list[int] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(1) or real(a, b))
    for shown in (made[0], made[4], "none of them"):
        compared.clear()
        ring.find(shown.encode())
        assert len(compared) == 5


def test_a_running_ring_learns_of_a_new_key_and_forgets_a_removed_one(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "LOOK_S", 0)
    first = add_key(file, "first", scopes=["read"])
    ring = KeyRing(file=file)
    second = add_key(file, "second", scopes=["write"])
    assert ring.find(second.encode()) is not None
    remove_key(file, "first")
    assert ring.find(first.encode()) is None
    assert len(ring) == 1


def test_a_file_is_looked_at_no_more_than_once_a_second(file: Path) -> None:
    first = add_key(file, "first", scopes=["read"])
    ring = KeyRing(file=file)
    remove_key(file, "first")
    assert ring.find(first.encode()) is not None


def test_a_damaged_file_leaves_the_keys_as_they_were_and_a_missing_one_leaves_those_of_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys, "LOOK_S", 0)
    made = add_key(file, "made", scopes=["read"])
    ring = KeyRing.of({"TWOTOWER_API_KEY": "lasting"}, file=file)
    assert ring is not None
    write(file, '{"keys": [')
    assert ring.find(made.encode()) is not None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    file.unlink()
    assert ring.find(made.encode()) is None
    assert ring.find(b"lasting") is not None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no key file"),
        ("[]", "no key file"),
        ("[" * 100_000, "no key file"),
        ('{"keys": {}}', "keys: Input should be a valid tuple"),
        (json.dumps({"keys": [entry(scopes=[])]}), "keys.0.scopes: "),
        (json.dumps({"keys": [entry(scopes=["all"])]}), "keys.0.scopes.0: "),
        (json.dumps({"keys": [entry(sha256="foo")]}), "keys.0.sha256: "),
        (json.dumps({"keys": [entry(name="a\nb")]}), "keys.0.name: "),
        (json.dumps({"keys": [entry(name="a\n")]}), "keys.0.name: "),
        (json.dumps({"keys": [entry(key="foo")]}), "keys.0.key: "),
        (json.dumps({"keys": [entry(), entry()]}), "two keys have one name"),
        (json.dumps({"keys": [entry(name=f"k{place}") for place in range(257)]}), "keys: "),
    ],
)
def test_a_file_that_is_none_of_ours_is_told_in_one_line(file: Path, text: str, told: str) -> None:
    write(file, text)
    with pytest.raises(TwotowerError) as fault:
        read_keys(file)
    assert told in str(fault.value)
    assert str(fault.value).startswith(f"{file}: ")
    assert "\n" not in str(fault.value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_file_that_others_may_write_is_refused(file: Path) -> None:
    add_key(file, "a", scopes=["read"])
    file.chmod(0o660)
    with pytest.raises(TwotowerError, match=r"others may write it.*chmod 600"):
        KeyRing(file=file)
    file.chmod(0o444)
    assert len(KeyRing(file=file)) == 1


def test_the_environment_gives_a_key_that_reads_and_writes_and_one_that_governs() -> None:
    ring = KeyRing.of({"TWOTOWER_API_KEY": "one\n", "TWOTOWER_ADMIN_KEY": "two"})
    assert ring is not None
    one, two = ring.find(b"one"), ring.find(b"two")
    assert one is not None
    assert two is not None
    assert (one.scopes, two.scopes) == (("read", "write"), ("admin",))


@pytest.mark.parametrize("environment", [{}, {"TWOTOWER_API_KEY": ""}, {"TWOTOWER_ADMIN_KEY": " \n"}])
def test_without_a_key_there_is_no_ring(environment: dict[str, str]) -> None:
    assert KeyRing.of(environment) is None


def test_one_key_for_both_purposes_is_refused() -> None:
    with pytest.raises(TwotowerError, match="TWOTOWER_ADMIN_KEY: the same key"):
        KeyRing.of({"TWOTOWER_API_KEY": "one", "TWOTOWER_ADMIN_KEY": "one "})


def test_commands_make_list_and_remove_a_key(file: Path) -> None:
    added = run("add", "shop", "--scope", "read", "--scope", "write", "--keys", str(file))
    assert added.exit_code == 0
    key = added.stdout.strip()
    ring = KeyRing(file=file)
    assert ring.find(key.encode()) is not None
    listed = run("list", "--keys", str(file)).stdout
    assert re.search(r"shop +read write +\d{4}-\d\d-\d\d \d\d:\d\d", listed)
    assert key not in listed
    assert run("remove", "shop", "--keys", str(file)).exit_code == 0
    assert read_keys(file) == ()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["add", "there", "--scope", "read"], "there is a key 'there'. Take another name"),
        (["add", "a b", "--scope", "read"], "'a b' is no name"),
        (["remove", "nobody"], "no key 'nobody'. There are: there."),
    ],
)
def test_what_a_command_cannot_do_is_one_line_and_changes_nothing(file: Path, arguments: list[str], told: str) -> None:
    add_key(file, "there", scopes=["read"])
    before = file.read_bytes()
    result = run(*arguments, "--keys", str(file))
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


def test_a_missing_file_or_folder_is_told(tmp_path: Path) -> None:
    for arguments in (["list"], ["remove", "a"]):
        result = run(*arguments, "--keys", str(tmp_path / "keys.json"))
        assert (result.exit_code, "no key file" in result.stderr) == (2, True)
    result = run("add", "a", "--scope", "read", "--keys", str(tmp_path / "no" / "keys.json"))
    assert (result.exit_code, "cannot be written" in result.stderr) == (2, True)


def test_while_a_file_is_rewritten_another_change_is_told_to_wait(file: Path) -> None:
    key = add_key(file, "there", scopes=["read"])
    held = file.with_name(".keys.json.unfinished")
    held.touch()
    result = run("remove", "there", "--keys", str(file))
    assert (result.exit_code, "is at work on the same file" in result.stderr) == (2, True)
    assert KeyRing(file=file).find(key.encode()) is not None
    assert held.exists()


def test_no_key_is_lost_where_several_are_made_at_once(file: Path) -> None:
    def add(name: str) -> str:
        while True:
            with suppress(BusyError):
                return add_key(file, name, scopes=["read"])

    names = [f"key-{place}" for place in range(24)]
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(add, names))
    ring = KeyRing(file=file)
    assert sorted(key.name for key in read_keys(file)) == sorted(names)
    assert [shown for shown in made if ring.find(shown.encode()) is None] == []
