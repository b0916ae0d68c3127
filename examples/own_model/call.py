"""Serve an artifact, and call it with Triton's client: python examples/own_model/call.py ARTIFACT [PORT]"""

import subprocess
import sys
import time

import numpy as np
import tritonclient.http as triton

artifact, port = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "8000"
server = subprocess.Popen([sys.executable, "-m", "burnish.cli", "serve", artifact, "--http", port, "--name", "ranker"])
client = triton.InferenceServerClient(f"localhost:{port}")


def ready():
    try:
        return client.is_server_ready()
    except OSError:
        return False


def tensor(name, array, datatype):
    sent = triton.InferInput(name, list(array.shape), datatype)
    sent.set_data_from_numpy(array)
    return sent


try:
    while not ready() and server.poll() is None:
        time.sleep(0.1)
    rng = np.random.default_rng(0)
    request = [tensor("user", np.array([7]), "INT64")]  # one row
    items, dense = rng.integers(0, 5000, 64), rng.random((64, 2), np.float32)
    answer = client.infer("ranker", [*request, tensor("item", items, "INT64"), tensor("dense", dense, "FP32")])
    print("best candidates:", np.argsort(-answer.as_numpy("score"))[:5].tolist())
finally:
    client.close()
    server.terminate()
    server.wait()
