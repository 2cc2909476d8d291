"""A dataset in a bucket, by way of s3fs: packed, asked, added to, and every refusal in one line.

The server is moto's, in this process; ``tox -e object-store`` has what it needs.
"""

import re

import pytest
from builders import as_rows, measured_block, run_at, write_run
from typer.testing import CliRunner

from gradbench.cli import app
from gradbench.errors import StoreError
from gradbench.history import parquet_write, series
from gradbench.history.chosen import Chosen
from gradbench.history.dataset_store import DatasetStore
from gradbench.history.parquet_read import read
from gradbench.history.parquet_write import pack

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

RUNS = [run_at(24 * day) for day in (0, 1, 30)]
PACK = "s3://fleet/deep/pack"


@pytest.fixture(scope="module")
def server():
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def client(server, monkeypatch):
    """Let s3fs find the server as it finds any other: by the environment."""
    for name, value in (
        ("AWS_ENDPOINT_URL", server),
        ("AWS_ACCESS_KEY_ID", "made-up"),
        ("AWS_SECRET_ACCESS_KEY", "made-up"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/nowhere"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nowhere"),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield s3fs.S3FileSystem()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(client):
    client.mkdir("fleet")
    yield
    client.rm("fleet", recursive=True)


def test_what_is_packed_into_a_bucket_comes_back(bucket):
    assert pack(RUNS, PACK).runs == len(RUNS)
    assert as_rows(read(PACK)) == as_rows(series.of(RUNS))
    assert pack([*RUNS, run_at(2)], PACK).runs == 1
    assert as_rows(read(PACK)) == as_rows(series.of([*RUNS, run_at(2)]))


def test_a_filter_goes_to_the_bucket(bucket):
    runs = [
        run_at(n, [*measured_block(model="conv"), *measured_block(model="mlp")]) for n in range(3)
    ]
    pack(runs, PACK)
    chosen = Chosen(models=("mlp",), meters=("step_time",))
    figures = read(PACK, chosen)
    assert set(figures.frame["meter"]) == {"step_time"}
    found, _ = series.history(figures, chosen=chosen)
    assert {one.cell.model for one in found} == {"mlp"}


def test_small_files_of_a_bucket_are_put_together(bucket, monkeypatch):
    monkeypatch.setattr(parquet_write, "SMALL_FILES", 3)
    runs = [run_at(number) for number in range(4)]
    for run in runs:
        pack([run], PACK)
    assert len(DatasetStore(PACK).files()) == 2
    assert as_rows(read(PACK)) == as_rows(series.of(runs))


def test_the_commands_take_a_bucket(bucket, tmp_path):
    for run in RUNS:
        write_run(run, tmp_path)
    packed = CliRunner().invoke(app, ["pack", str(tmp_path), "-o", PACK])
    assert (packed.exit_code, "added 3 runs" in packed.output) == (0, True)
    shown = CliRunner().invoke(app, ["history", PACK, "--all", "--since", "2026-01-02"])
    assert shown.exit_code == 0
    assert "series changed their level" in shown.output


@pytest.mark.parametrize("command", [["history", PACK], ["pack", ".", "-o", PACK]])
def test_a_bucket_that_is_not_there_is_one_line_and_is_not_made(
    command, client, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write_run(RUNS[0], tmp_path)
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 2
    assert re.search("bucket", answer.output)
    assert len(answer.output.strip().splitlines()) == 1
    assert not client.exists("fleet")


def test_no_credentials_are_one_line(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=r"cannot read 's3://fleet/deep/pack': .*credentials"):
        read(PACK)
