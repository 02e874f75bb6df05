"""What is no error in a file and yet most likely not meant: programs, directories and users that aren't here, pools, keys."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from kybernate.doctor.config_lint import advice
from kybernate.settings import Settings

pytestmark = pytest.mark.unit

PROGRAM = "/bin/sh"


def model(port: int = 8000, **settings: Any) -> dict[str, Any]:
    return {"command": [PROGRAM], "port": port} | settings


def said(**data: Any) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in advice(Settings.model_validate(data)))


def of_model(**settings: Any) -> dict[str, str]:
    return {place.removeprefix("models.m."): text for place, text in said(models={"m": model(**settings)}).items()}


def test_of_what_is_here_nothing_is_said() -> None:
    assert said() == {}
    assert of_model() == {}
    assert said(jobs={"j": {"command": [PROGRAM], "user": pwd.getpwuid(os.geteuid()).pw_name}}) == {}


def test_a_program_is_looked_for_on_its_own_path_and_in_its_own_directory(tmp_path: Path) -> None:
    program = tmp_path / "serve"
    program.write_text("#!/bin/sh\n")
    assert of_model(command=["./serve"], directory=str(tmp_path)) == {"command": "there is no program ./serve here"}
    program.chmod(0o755)
    assert of_model(command=["./serve"], directory=str(tmp_path)) == {}
    assert of_model(command=["serve"]) == {"command": "there is no program serve here"}
    assert of_model(command=["serve"], environment={"PATH": str(tmp_path)}) == {}
    assert of_model(command=["sh"], environment={"PATH": str(tmp_path)}) == {"command": "there is no program sh here"}


def test_directories_and_users_that_are_not_here_are_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert of_model(directory=missing)["directory"] == f"there is no directory {missing} here"
    assert of_model(user="nobody-of-that-name") == {"user": "there is no user nobody-of-that-name here"}
    assert of_model(user="54321") == {}, "a number needs no name"


def test_a_path_for_probes_needs_a_way_to_the_model() -> None:
    assert "nobody can ask there" in of_model(health="/health")["health"]
    assert of_model(health="/health", hosts=["a.org"]) == {}
    assert of_model(health="/health", paths=["/m"]) == {}


def test_a_pool_should_hold_all_that_may_be_paused_where_there_are_several() -> None:
    small = {"agent": {"pool": {"size": "10GiB"}}}
    two = {"a": model(1, vram="6GiB"), "b": model(2, vram="5GiB")}
    assert said(models=two, **small) == {
        "agent.pool.size": "models and jobs take 11.0 GiB, the pool has 10.0 GiB: some go to the disk and back, slowly"
    }
    assert said(models={"a": model(1, vram="6GiB"), "b": model(2, vram="4GiB")}, **small) == {}, "exactly"
    assert said(models={"a": model(1, vram="60GiB")}, **small) == {}, "who is alone gives way to nobody"
    assert said(models={"a": model(1), "b": model(2)}, **small) == {}, "nobody knows"
    assert "agent.pool.size" in said(
        models={"a": model(1, vram=["3GiB", "3GiB"])}, jobs={"j": {"command": [PROGRAM], "vram": "5GiB"}}, **small
    )


def test_places_of_the_store_are_looked_at(tmp_path: Path) -> None:
    lost = tmp_path / "mount" / "store"
    assert said(agent={"store": {"directory": str(lost)}}) == {
        "agent.store.directory": f"there is no directory {lost.parent} here in which to make it"
    }
    assert said(agent={"store": {"directory": str(tmp_path / "made-later")}}) == {}
    assert said(agent={"store": {"object": {"url": f"file://{lost}"}}}) == {
        "agent.store.object.url": f"there is no directory {lost} here"
    }
    assert said(agent={"store": {"object": {"url": "s3://bucket"}}}) == {}


def test_files_of_the_activator_are_looked_for(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    found = said(activator={"keys_file": missing, "tls": {"certificate": missing, "key": missing}})
    assert found == {
        f"activator.{name}": f"there is no {missing} here" for name in ("keys_file", "tls.certificate", "tls.key")
    }


@pytest.mark.parametrize(
    ("activator", "open_", "pages"),
    [
        pytest.param({}, False, False, id="loopback by default"),
        pytest.param({"listen": "[::1]:8000"}, False, False, id="loopback"),
        pytest.param({"listen": "0.0.0.0:8000"}, True, True, id="every address"),
        pytest.param({"listen": "10.0.0.1:8000"}, True, True, id="an address"),
        pytest.param({"listen": "0.0.0.0:8000", "hosts": ["a.org"]}, True, False, id="with names"),
        pytest.param({"listen": "0.0.0.0:8000", "keys_file": "/etc/passwd"}, False, False, id="with keys"),
    ],
)
def test_who_may_ask_without_a_key_is_said_where_others_reach_it(
    activator: dict[str, Any], *, open_: bool, pages: bool
) -> None:
    text = said(models={"m": model()}, activator=activator).get("activator.keys_file", "")
    assert ("may ask the models" in text) is open_
    assert ("any page in a browser" in text) is pages
    assert "activator.keys_file" not in said(activator=activator), "there is nothing to ask for"
