"""Tests on a Ray cluster and on an S3 server, both of this machine alone: not part of the gate, since their
environment takes 450 MB."""

import json
import logging
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

REASON = (
    "runs in an environment with Ray, s3fs and moto: `python tests/scale/environment.py FOLDER` makes one, then "
    "`FOLDER/bin/python -m pytest tests/scale`"
)
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


def pytest_configure(config):
    config.addinivalue_line("markers", "scale: runs in an environment with Ray, s3fs and moto")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("scale") and not all(map(find_spec, ("ray", "s3fs", "moto"))):
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="session")
def environment():
    """What Ray's processes are told: as little of the machine as they can do with."""
    given = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    given |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def bucket(environment):
    """`bucket(**{name: content})` puts files into `s3://pictures`, on a server of this process."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    given |= {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "NO_PROXY": "127.0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="pictures")

        def put(files: dict[str, bytes]):
            for name, content in files.items():
                client.put_object(Bucket="pictures", Key=name, Body=content)

        yield put
    server.stop()


@pytest.fixture(scope="session")
def node():
    """What a node of the cluster is made with."""
    return NODE


@pytest.fixture(scope="session")
def cluster(bucket):
    """A cluster of one node, to which a test may add others; its processes know the bucket."""
    from ray.cluster_utils import Cluster

    # Ray gives a node 30 seconds to start; on a busy machine it takes longer.
    patient = SimpleNamespace(**{**vars(time), "monotonic": lambda: time.monotonic() / 10})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray._private.node.time", patient)
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        yield cluster
        cluster.shutdown()


DRIVER = """
import json, sys
from jminigpt4.data.pictures import FilePicture
from jminigpt4.train import ray_features
from jminigpt4.train.recipe import Recipe

given = json.loads(sys.argv[1])
ray_features.DECODED_TOGETHER = given["together"]
job = ray_features.Job(given["model"], given["cache"], Recipe(cache_dtype="float32"))
pictures = map(FilePicture, given["pictures"])
store, bad = ray_features.fill_on_ray(
    job, pictures, given["address"], pictures_per_block=given["together"], progress=False
)
print(json.dumps([[each.name, each.reason] for each in bad]))
"""


class Driver:
    """A program that fills a store on a cluster, and may be killed."""

    def __init__(self, **given):
        command = [sys.executable, "-c", DRIVER, json.dumps(given)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.cache = Path(given["cache"])

    def blocks(self) -> dict[str, tuple[int, bytes]]:
        """Time of change and content of each block of the store."""
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in self.cache.glob("block-*")}

    def wait_for_blocks(self, count: int):
        """Returns when there are so many, in the middle of the work."""
        end = time.monotonic() + 300
        while len(list(self.cache.glob("block-*"))) < count:
            assert time.monotonic() < end and self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.05)

    def end(self) -> list[list[str]]:
        """The bad pictures, when all is done."""
        said, errors = self.process.communicate(timeout=600)
        assert self.process.returncode == 0, errors
        return json.loads(said.splitlines()[-1])


@pytest.fixture
def driver():
    """`driver(**given)` starts a [`Driver`], which does not outlive the test."""
    started = []

    def start(**given) -> Driver:
        started.append(Driver(**given))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.fixture
def drawings(tmp_path, draw):
    """`drawings(count)`: paths of so many pictures."""

    def make(count: int) -> list[str]:
        folder = tmp_path / "drawings"
        folder.mkdir()
        for number in range(count):
            draw(number).save(folder / f"{number}.png")
        return [str(folder / f"{number}.png") for number in range(count)]

    return make
