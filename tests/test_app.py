"""A server of this machine that does not come up: one sentence, and nothing is left running."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from prefixbank.model_store.errors import ServerNotStarted
from prefixbank.serving.config import ServeConfig

if TYPE_CHECKING:
    from pathlib import Path


def test_a_proxy_that_does_not_come_up_in_time_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = pytest.importorskip("prefixbank.serving.app")

    def never(**_: object) -> None:
        raise app.RayError("The actor died unexpectedly before finishing this task.\n\tclass_name: HAProxyManager")

    monkeypatch.setattr(app, "_start_cluster", lambda *_: None)
    monkeypatch.setattr(app.serve, "start", never)
    sentence = "Ray Serve's proxy did not come up in its time (RayError): is the machine busy?"
    with (
        pytest.raises(ServerNotStarted, match=re.escape(sentence)),
        app.running(ServeConfig(), tmp_path, lambda: None),
    ):
        pass
