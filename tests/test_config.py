"""Settings: sources, their order, and what is refused."""

from pathlib import Path

import pytest

from prefixbank.model_store.errors import InvalidConfig
from prefixbank.serving.config import ServeConfig, load_config


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('port = 1000\nhost = "file"\ndtype = "float16"\n[limits]\ntoken_budget = 10\nmax_rows = 20\n')
    environment = {"PREFIXBANK__HOST": "environment", "PREFIXBANK__LIMITS__TOKEN_BUDGET": "30", "PREFIXBANK__PORT": "2"}
    config = load_config(file, environment=environment, overrides={"port": 3, "limits.max_queued_tokens": "40"})
    assert (config.dtype, config.host, config.port) == ("float16", "environment", 3)
    assert (config.limits.token_budget, config.limits.max_rows, config.limits.max_queued_tokens) == (30, 20, 40)


def test_the_variables_that_kubernetes_injects_are_not_settings() -> None:
    assert load_config(environment={"PREFIXBANK_PORT": "tcp://10.0.0.1:8000"}) == ServeConfig()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"prot": 8000}, "prot"),
        ({"limits.token_buget": 1}, "token_buget"),
        ({"limits.token_budget": 0}, "token_budget"),
        ({"limits.timeout_s": float("nan")}, "timeout_s"),
        ({"port": 70000}, "port"),
        ({"dtype": "int8"}, "dtype"),
        ({"prefix_dtype": "float16"}, "prefix_dtype"),
        ({"port": 2, "port.x": 1}, "port"),
        ({"num_replicas": 0}, "num_replicas"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(overrides: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidConfig, match=named):
        load_config(environment={}, overrides=overrides)


@pytest.mark.parametrize("content", ["port = ", b"\xff", "[[limits]]"])
def test_an_unreadable_file_is_refused(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "serve.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidConfig):
        load_config(file, environment={})


def test_a_config_survives_the_way_to_a_replica() -> None:
    config = load_config(environment={}, overrides={"keys": "keys.toml", "limits.timeout_s": 5})
    assert ServeConfig.model_validate(config.model_dump(mode="json")) == config


def test_every_field_carries_advice() -> None:
    source = Path(__file__).parent.parent.joinpath("serving", "config.py").read_text()
    for name in ServeConfig.model_fields:
        line = source[source.index(f"    {name}: ") :].splitlines()[1]
        assert line.startswith('    """'), name
