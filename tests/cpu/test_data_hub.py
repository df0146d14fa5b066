"""Datasets come from the hub once, whole or not at all; without a connection the way out is said."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

LOAD = """
import sys
from pathlib import Path
from upshift.data.config import DataConfig
from upshift.data.prepare import prepare
from upshift.errors import BadInputError
calls = []
try:
    config = DataConfig(source=sys.argv[1])
    dataset = prepare(config, cache_dir=Path(sys.argv[2]), on_progress=lambda *call: calls.append(call))
    print(len(dataset.splits["train"]), dataset.info.label_names, [c for c in calls if c[0].startswith("down")][-1:])
except BadInputError as error:
    print(type(error).__name__, error)
"""


def load(source: str, cache: Path, endpoint: str) -> str:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "UPSHIFT_"))},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache / "hf"),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-c", LOAD, source, str(cache)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def parquet(rows: int) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"x": [float(i) for i in range(rows)], "label": ["a", "b"] * (rows // 2)}), stream)
    return stream.getvalue()


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as listing and fetching files takes."""

    files: dict[str, bytes]
    seconds = 0.0
    num_listings = 0

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        time.sleep(self.seconds)
        if path == "/api/datasets/owner/name":
            Hub.num_listings += 1
            siblings = [{"rfilename": name, "size": len(body)} for name, body in self.files.items()]
            body = json.dumps({"id": "owner/name", "sha": "0" * 40, "siblings": siblings}).encode()
            return self.reply(200, body, {"Content-Type": "application/json"}, with_body)
        if path.startswith("/api/datasets/owner/name/revision/"):
            return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"}, with_body)
        name = path.partition("/resolve/main/")[2]
        if path.startswith("/datasets/owner/name/resolve/") and name in self.files:
            body = self.files[name]
            tag = hashlib.sha256(body).hexdigest()
            return self.reply(200, body, {"ETag": f'"{tag}"', "X-Repo-Commit": "0" * 40}, with_body)
        return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)

    def reply(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_a_hub_dataset_is_fetched_once_and_then_found_without_a_connection(tmp_path, hub) -> None:
    Hub.files = {"README.md": b"x", "plain/train-0-of-1.parquet": parquet(8), "plain/test-0-of-1.parquet": parquet(4)}
    total = sum(len(body) for name, body in Hub.files.items() if name.endswith(".parquet"))
    assert (
        load("hub:owner/name", tmp_path, hub).strip() == f"8 ('a', 'b') [('downloading owner/name', {total}, {total})]"
    )
    assert load("hub:owner/name", tmp_path, "http://127.0.0.1:9").startswith("8 ('a', 'b') []")


@pytest.mark.slow
def test_two_processes_that_want_the_same_dataset_fetch_it_once(tmp_path, hub) -> None:
    Hub.files = {"train.parquet": parquet(8), "test.parquet": parquet(4)}
    Hub.seconds, Hub.num_listings = 0.5, 0
    try:
        with ThreadPoolExecutor(3) as pool:
            said = list(pool.map(lambda _: load("hub:owner/name", tmp_path, hub), range(3)))
    finally:
        Hub.seconds = 0.0
    assert all(line.startswith("8 ('a', 'b')") for line in said), said
    assert Hub.num_listings == 1


@pytest.mark.slow
def test_a_subset_must_be_chosen_where_there_are_several(tmp_path, hub) -> None:
    Hub.files = {f"{subset}/train.parquet": parquet(rows) for subset, rows in (("small", 8), ("large", 20))}
    assert "subsets large, small" in load("hub:owner/name", tmp_path, hub)
    assert load("hub:owner/name/small", tmp_path, hub).startswith("6 ")
    assert "its subsets: large, small" in load("hub:owner/name/huge", tmp_path, hub)


@pytest.mark.slow
def test_what_the_hub_lacks_is_said(tmp_path, hub) -> None:
    Hub.files = {"data.csv": b"a,b"}
    assert "must have parquet files" in load("hub:owner/name", tmp_path, hub)
    assert load("hub:owner/other", tmp_path, hub).startswith("DataError")
    assert "named by its owner" in load("hub:name", tmp_path, hub)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["mnist", "hub:owner/name"])
def test_without_a_connection_the_data_dir_is_named(tmp_path, source) -> None:
    said = load(source, tmp_path, "http://127.0.0.1:9")
    assert said.startswith("DataError") and "--data-dir" in said and "UPSHIFT_DATA_DIR" in said
    assert not list((tmp_path / "datasets").glob("[!.]*"))
