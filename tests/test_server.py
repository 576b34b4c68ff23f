"""The real server, started once by the command: clients, hot loading, overload, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import pytest
from huggingface_hub import InferenceClient, QuestionAnsweringOutputElement
from huggingface_hub.errors import HfHubHTTPError
from prometheus_client.parser import text_string_to_metric_families

from prefixbank.model_store.address import Address
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.store import PromptStore
from prefixbank.serving.predict import Predictor
from tests.family_prompts import family_input, family_tasks
from tests.serving_cases import TEXT, TOKENS, random_prompt
from tests.tiny import SENTENCES, tiny_backbone_folder
from tests.wire_cases import is_refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefixbank.model_store.backbones.backbone import Backbone

pytestmark = [pytest.mark.server, pytest.mark.slow]

SENTIMENT, NER, HOT = Address("acme", "sentiment"), Address("acme", "ner"), Address("acme", "hot")
SQUAD, COPA, SRL = Address("families", "squad"), Address("families", "copa"), Address("families", "srl")
START_TIMEOUT_S, STOP_TIMEOUT_S = 90, 40


class Server(NamedTuple):
    url: str
    store: PromptStore
    backbone: Backbone
    process: subprocess.Popen[str]
    told: list[str]
    """What it has printed."""
    mark: str
    """In the environment of every process that it started."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    backbone_folder = tiny_backbone_folder(folder, "bert")
    backbone, store = load_backbone(str(backbone_folder)), PromptStore(folder / "store")
    for seed, (address, family) in enumerate({SENTIMENT: TEXT, NER: TOKENS}.items(), 1):
        store.promote(address, store.publish(address, random_prompt(backbone, 5, seed=seed, family=family)))
    for address in (SQUAD, COPA, SRL):
        store.promote(address, store.publish(address, family_tasks(backbone)[address]))
    mark = f"PREFIXBANK_TEST_MARK={uuid.uuid4()}"
    url = f"http://127.0.0.1:{_free_port()}"
    process = _start(url, backbone_folder, store, mark)
    told: list[str] = []
    listener = threading.Thread(target=_listen, args=(process, told))
    listener.start()
    _wait_for(lambda: process.poll() is not None or any("All tasks" in line for line in told), START_TIMEOUT_S, told)
    assert process.poll() is None, "".join(told)
    yield Server(url, store, backbone, process, told, mark)
    process.terminate()
    process.wait(STOP_TIMEOUT_S)
    listener.join()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _listen(process: subprocess.Popen[str], told: list[str]) -> None:
    assert process.stdout
    with process.stdout as lines:
        told.extend(iter(lines.readline, ""))


def _start(url: str, backbone: Path, store: PromptStore, mark: str) -> subprocess.Popen[str]:
    port = url.rpartition(":")[2]
    command = [sys.executable, "-m", "prefixbank.cli", "serve", "--port", port, "--set", "max_in_flight=4"]
    name, _, value = mark.partition("=")
    return subprocess.Popen(
        [*command, "--backbone", str(backbone), "--store", str(store.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", name: value},
    )


def _wait_for(happened: Callable[[], bool], timeout_s: float, told: list[str]) -> None:
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end, "".join(told)
        time.sleep(0.02)


def ask(server: Server, address: Address, text: str = SENTENCES[0]) -> httpx.Response:
    return httpx.post(f"{server.url}/models/{address}", json={"inputs": text}, timeout=10)


def test_it_tells_curl_lines_that_work_with_their_answers(server: Server) -> None:
    lines = [number for number, line in enumerate(server.told) if line.startswith("curl ")]
    assert len(lines) == 5
    for number in lines:
        done = subprocess.run(["sh", "-c", f"{server.told[number].strip()} -s"], capture_output=True, check=True)
        assert json.loads(done.stdout) == _near(json.loads(server.told[number + 1]))


def _near(value: object) -> object:
    """The same answer, but for rounding: the rows of a batch do not change it by more."""
    if isinstance(value, list):
        return [_near(item) for item in value]
    if isinstance(value, dict):
        return {key: _near(item) for key, item in value.items()}
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


def test_the_hugging_face_client_classifies_unchanged(server: Server) -> None:
    text = InferenceClient(model=f"{server.url}/models/{SENTIMENT}").text_classification(SENTENCES[0], top_k=2)
    assert [type(label.score) for label in text] == [float, float]
    assert text[0].label.startswith("seed 1 label")
    tokens = InferenceClient(model=f"{server.url}/models/{NER}").token_classification(
        SENTENCES[2], aggregation_strategy="simple"
    )
    assert all(SENTENCES[2][entity.start : entity.end].lower() == entity.word.lower() for entity in tokens)
    assert tokens[0].entity_group


def test_the_hugging_face_client_asks_questions_unchanged(server: Server) -> None:
    context = " ".join(SENTENCES)
    client = InferenceClient(model=f"{server.url}/models/{SQUAD}")
    best = client.question_answering("who flew to Oslo?", context)
    assert isinstance(best, QuestionAnsweringOutputElement)
    assert context[best.start : best.end] == best.answer != ""
    several = client.question_answering("who flew to Oslo?", context, top_k=3, max_answer_len=5, doc_stride=4)
    assert isinstance(several, list)
    assert [type(answer) for answer in several] == [QuestionAnsweringOutputElement] * 3
    assert several[0].score >= several[1].score >= several[2].score
    with pytest.raises(HfHubHTTPError, match="422"):
        client.question_answering("who flew to Oslo?", "")


def test_the_server_answers_as_the_predictor_does(server: Server) -> None:
    with Predictor(server.backbone, server.store) as predictor:
        for address in (SENTIMENT, NER):
            assert ask(server, address).json() == _near(predictor.answer(address, SENTENCES[0]).value)
        for address, prompt in family_tasks(server.backbone).items():
            if address in (SQUAD, COPA, SRL):
                inputs = family_input(prompt, " ".join(SENTENCES[:4]))
                answer = httpx.post(f"{server.url}/models/{address}", json={"inputs": inputs}, timeout=10)
                assert answer.json() == _near(predictor.answer(address, inputs).value)


def test_a_promoted_prompt_is_served_within_a_second(server: Server) -> None:
    for seed in (11, 12, 13):
        revision = server.store.publish(HOT, random_prompt(server.backbone, 17, seed=seed))
        server.store.promote(HOT, revision)
        promoted = time.monotonic()
        while (response := ask(server, HOT)).headers.get("x-prefixbank-revision") != revision:
            assert response.status_code in (200, 404)
            assert time.monotonic() - promoted < 1
        assert response.json()[0][0]["label"].startswith(f"seed {seed} ")


def test_refusals_pass_through_the_front_in_the_one_shape(server: Server) -> None:
    for method, path, status in (
        ("GET", "/nope", 404),
        ("DELETE", "/health", 405),
        ("BREW", "/health", 405),
        ("POST", "/models/acme/ner", 400),
    ):
        response = httpx.request(method, server.url + path, headers={"X-Request-Id": "mine"})
        assert (response.status_code, is_refusal(response)) == (status, True), response.text
        assert method == "BREW" or response.headers.get_list("x-request-id") == ["mine"]


def test_headers_that_ray_would_trip_over_do_no_harm(server: Server) -> None:
    for name, value in ((b"x-request-id", b"\xff"), (b"x-request-timeout-seconds", b"soon"), (b"x-other", b"\xff")):
        assert httpx.get(f"{server.url}/health", headers=[(name, value)]).status_code == 200


def test_an_unknown_task_is_404(server: Server) -> None:
    response = ask(server, Address("acme", "nope"))
    assert (response.status_code, is_refusal(response)) == (404, True)


def test_more_than_the_door_admits_is_told_429(server: Server) -> None:
    body = {"inputs": [SENTENCES[number % len(SENTENCES)] for number in range(60)]}
    with httpx.Client(timeout=60) as http, ThreadPoolExecutor(32) as threads:
        url = f"{server.url}/models/{NER}"
        responses = [flood.result() for flood in [threads.submit(http.post, url, json=body) for _ in range(96)]]
    assert {response.status_code for response in responses} == {200, 429}
    refused = [response for response in responses if response.status_code == 429]
    assert all(int(response.headers["retry-after"]) >= 1 and is_refusal(response) for response in refused)


def test_metrics_are_read_by_prometheus(server: Server) -> None:
    families = {family.name for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)}
    assert families
    assert all(re.match(r"prefixbank_|python_|process_", name) for name in families)


def test_ctrl_c_ends_everything_it_started(server: Server) -> None:
    """The last test of this file. The whole process group is interrupted, as a terminal does."""
    assert any("haproxy" in command for command in _commands(server.mark))
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.process.wait(STOP_TIMEOUT_S) == 0, "".join(server.told)
    _wait_for(lambda: not _commands(server.mark), 10, server.told)
    with socket.create_server(("127.0.0.1", int(server.url.rpartition(":")[2]))):
        pass
    assert not any("Traceback" in line for line in server.told), "".join(server.told)


def _commands(mark: str) -> list[str]:
    """Command lines of the processes that inherited the server's mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found
