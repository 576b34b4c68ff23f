"""Keys and admission."""

import hashlib
from pathlib import Path

import pytest

from prefixbank.model_store.errors import InvalidConfig, Overloaded, Unauthorized
from prefixbank.serving.access import Access, Admission
from tests.serving_cases import FakeClock


def keys_file(folder: Path, **tenants_by_key: list[str]) -> Path:
    file = folder / "keys.toml"
    entries = (
        f'[[keys]]\nname = "{key}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\ntenants = {tenants}\n'
        for key, tenants in tenants_by_key.items()
    )
    file.write_text("\n".join(entries))
    return file


def test_without_keys_everybody_sees_everything() -> None:
    caller = Access.open().identify(None)
    assert caller.sees("acme")
    assert caller.sees_everything


def test_a_key_sees_its_tenants_only(tmp_path: Path) -> None:
    access = Access.from_file(keys_file(tmp_path, secret=["acme"], admin=["*"]))
    caller = access.identify(b"Bearer secret")
    assert (caller.name, caller.sees("acme"), caller.sees("globex")) == ("secret", True, False)
    assert access.identify(b"bearer  admin").sees_everything


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Basic secret", b"secret"])
def test_no_key_and_a_wrong_key_are_unauthorized(tmp_path: Path, header: bytes | None) -> None:
    access = Access.from_file(keys_file(tmp_path, secret=["acme"]))
    with pytest.raises(Unauthorized):
        access.identify(header)
    assert not access.identify_or_nobody(header).sees("acme")


@pytest.mark.parametrize(
    "content", ["", "keys = []", '[[keys]]\nname = "a"\nsha256 = "plain"\ntenants = ["a"]', "[[keys]", "keys = 1"]
)
def test_a_broken_keys_file_is_refused_without_quoting_it(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(content)
    with pytest.raises(InvalidConfig) as caught:
        Access.from_file(file)
    assert "plain" not in str(caught.value)


def test_admission_is_bounded_and_its_advice_follows_the_durations() -> None:
    clock = FakeClock()
    admission = Admission(1, clock)
    for _ in range(100):
        with admission.permit():
            clock.now += 3
    with admission.permit(), pytest.raises(Overloaded) as caught, admission.permit():
        pass
    assert caught.value.retry_after_s == pytest.approx(3, abs=0.1)
    assert admission.in_flight == 0


def test_a_failed_request_gives_its_place_back() -> None:
    admission = Admission(1)
    with pytest.raises(ValueError, match="x"), admission.permit():
        raise ValueError("x")
    assert admission.in_flight == 0
