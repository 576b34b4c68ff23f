"""Alias records, without files: a pointer with a bounded history."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefixbank.model_store import errors
from prefixbank.model_store.alias import MAX_HISTORY, AliasRecord, promoted, rolled_back

_REVISIONS = [character * 64 for character in "abc"]


@given(st.lists(st.sampled_from([*_REVISIONS, "rollback"]), max_size=30))
def test_an_alias_behaves_as_a_stack(deeds: list[str]) -> None:
    record: AliasRecord | None = None
    stack: list[str] = []
    for deed in deeds:
        if deed != "rollback":
            record = promoted(record, deed, "now")
            stack += [deed] if stack[-1:] != [deed] else []
        elif record is not None and len(stack) > 1:
            record = rolled_back(record, "now", lambda _: True)
            stack.pop()
        assert record is None or record.revision == stack[-1]
        assert record is None or AliasRecord.parse(record.to_bytes(), "here") == record


def test_an_alias_history_is_bounded() -> None:
    record = None
    for turn in range(MAX_HISTORY + 50):
        record = promoted(record, _REVISIONS[turn % 2], "now")
    assert record is not None
    assert len(record.history) == MAX_HISTORY


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"revision": "a" * 64, "history": []},
        {"revision": "a" * 64, "history": [{"revision": "b" * 64, "promoted": "t"}]},
        {"revision": "../../x", "history": [{"revision": "../../x", "promoted": "t"}]},
        {"revision": "a" * 64, "history": [{"revision": "a" * 64, "promoted": "t"}], "more": 1},
    ],
)
def test_an_alias_record_that_is_none(fields: dict[str, object]) -> None:
    with pytest.raises(errors.StoreCorrupt, match="here"):
        AliasRecord.parse(json.dumps(fields).encode(), "here")
