"""Who is let in, what is trusted, and what is too much."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import burnish
from burnish import testing
from burnish.cli import main
from burnish.errors import ArtifactError, ServeError
from burnish.serve.process import Server, free_port
from burnish.serve.server import Options, serve
from burnish.serve.sign import sign
from burnish.serve.versions import Versions, publish

pytest.importorskip("onnxruntime")
TABLE = {"dense": np.ones((3, 5), np.float32), "cat": np.ones((3, 6), np.int64)}
BODY = json.dumps(
    {
        "inputs": [
            {"name": "dense", "shape": [3, 5], "datatype": "FP32", "data": TABLE["dense"].tolist()},
            {"name": "cat", "shape": [3, 6], "datatype": "INT64", "data": TABLE["cat"].tolist()},
        ]
    }
).encode()
USER, ADMIN = "user-token-0123456789", "admin-token-0123456789"


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    made = burnish.compile(testing.dcn_v2(dense=5, ids=6, width=4, cross=1, deep=(16, 8)), "fp32", backend="onnxruntime")
    return made.save(tmp_path_factory.mktemp("safe") / "ranker").path


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> dict[str, Path]:
    """Signing keys, and an authority with certificates of a server and a client, as openssl makes them."""
    pytest.importorskip("cryptography")
    folder = tmp_path_factory.mktemp("keys")

    def run(*command: str) -> None:
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)

    try:
        for name in ("key", "other"):
            run("genpkey", "-algorithm", "ed25519", "-out", f"{name}.pem")
            run("pkey", "-in", f"{name}.pem", "-pubout", "-out", f"{name}.pub")
        run("genpkey", "-algorithm", "rsa", "-out", "rsa.pem")
        new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        run(*new, "-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority")
        for name in ("server", "client"):
            run(*new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
            (folder / "ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
            signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext")
            run("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return {file.name: file for file in folder.iterdir()}


def ask(server: Server, path: str, data: bytes | None = None, token: str = "", context: Any = None) -> tuple[int, Any]:
    sent = urllib.request.Request(server.url + path, data, {"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(sent, timeout=30, context=context) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


def test_callers_need_a_token_and_changing_what_is_served_needs_one_of_its_own(path, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"# who may call\n{USER}\nadmin:{ADMIN}\n")
    publish(path, tmp_path / "ranker")
    publish(path, tmp_path / "ranker")
    infer, load = "/v2/models/ranker/infer", "/v2/repository/models/ranker/load"
    with Server(tmp_path / "ranker", admin=True, tokens=tokens, grpc=free_port()) as server:
        for address in ("/v2/health/ready", "/v2/health/live"):
            assert ask(server, address)[0] == 200
        for address, data in ((infer, BODY), ("/v2", None), ("/metrics", None), ("/v2/models/ranker", None), (load, b"")):
            assert ask(server, address, data) == (401, "this server wants a token. Send the header Authorization: Bearer TOKEN")
            assert ask(server, address, data, USER[:-1]) == (401, "the token is not one of this server's")
        assert ask(server, infer, BODY, USER)[0] == ask(server, infer, BODY, ADMIN)[0] == 200
        assert ask(server, load, b'{"parameters": {"version": "1"}}', USER) == (403, "the token may not change what is served")
        assert ask(server, load, b'{"parameters": {"version": "1"}}', ADMIN) == (200, None)
        triton = pytest.importorskip("tritonclient.grpc")
        with triton.InferenceServerClient(f"{server.host}:{server.options['grpc']}") as client:
            assert client.is_server_live() and client.is_server_ready()
            with pytest.raises(triton.InferenceServerException, match=r"UNAUTHENTICATED.*this server wants a token"):
                client.get_model_metadata("ranker")
            assert client.get_model_metadata("ranker", headers={"authorization": f"Bearer {USER}"}).name == "ranker"
            with pytest.raises(triton.InferenceServerException, match=r"PERMISSION_DENIED.*may not change what is served"):
                client.load_model("ranker", headers={"authorization": f"Bearer {USER}"})
            client.load_model("ranker", headers={"authorization": f"Bearer {ADMIN}"})
        assert USER not in server.log and ADMIN not in server.log


@pytest.mark.parametrize(
    "text, admin, sentence",
    [
        ("", False, r"there is no token in .*tokens\. Write one a line"),
        (USER, True, r"--admin needs a token that may change what is served\. Write it into .*tokens behind admin:"),
        ("short", False, r"a token in .*tokens has fewer than 16 characters"),
    ],
)
def test_tokens_that_protect_nothing_are_refused(path, tmp_path, text, admin, sentence):
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ServeError, match=sentence):
        serve(path, Options(http=free_port(), admin=admin, tokens=tmp_path / "tokens"))


def test_tls_and_certificates_of_clients_on_both_protocols(path, keys):
    certificates = {"tls_cert": keys["server.crt"], "tls_key": keys["server.key"], "client_ca": keys["ca.crt"]}
    with Server(path, name="ranker", grpc=free_port(), **certificates) as server:
        known = ssl.create_default_context(cafile=str(keys["ca.crt"]))
        with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):  # no certificate of ours
            ask(server, "/v2", context=known)
        known.load_cert_chain(keys["client.crt"], keys["client.key"])
        assert ask(server, "/v2/models/ranker/infer", BODY, context=known)[0] == 200
        with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException)):
            urllib.request.urlopen(server.url.replace("https", "http"), timeout=5)
        triton = pytest.importorskip("tritonclient.grpc")
        pair = {"private_key": str(keys["client.key"]), "certificate_chain": str(keys["client.crt"])}
        address = f"localhost:{server.options['grpc']}"
        with triton.InferenceServerClient(address, ssl=True, root_certificates=str(keys["ca.crt"]), **pair) as client:
            assert client.is_server_ready()
        stranger = triton.InferenceServerClient(address, ssl=True, root_certificates=str(keys["ca.crt"]))
        with stranger, pytest.raises(triton.InferenceServerException):
            stranger.is_server_ready(client_timeout=3)


def test_half_of_tls_is_a_sentence(path, keys, tmp_path):
    with pytest.raises(ServeError, match="Give both --tls-cert and --tls-key"):
        serve(path, Options(tls_cert=keys["server.crt"]))
    with pytest.raises(ServeError, match="Give --tls-cert and --tls-key, too"):
        serve(path, Options(client_ca=keys["ca.crt"]))
    with pytest.raises(ServeError, match=r"none\.crt cannot be read: No such file"):
        serve(path, Options(tls_cert=tmp_path / "none.crt", tls_key=keys["server.key"]))
    with pytest.raises(ServeError, match="has no certificate or key in PEM"):
        serve(path, Options(tls_cert=path / "golden.npz", tls_key=keys["server.key"]))


def test_only_what_a_trusted_key_signed_is_served_and_a_changed_byte_is_named(path, keys, tmp_path, capsys):
    versions = Versions(tmp_path / "ranker")
    publish(path, versions.path, key=keys["key.pem"])
    for _ in range(4):
        publish(path, versions.path)
    versions.point("1")
    assert main(["sign", str(versions.where("3")), "--key", str(keys["key.pem"])]) == 0
    assert "manifest.sig signs every file of" in capsys.readouterr().out
    sign(versions.where("4"), keys["other.pem"])
    sign(versions.where("5"), keys["key.pem"])
    changed = next((versions.where("5") / "program").rglob("model.onnx"))
    text = bytearray(changed.read_bytes())
    text[100] ^= 1
    changed.unlink()
    changed.write_bytes(text)
    with Server(versions.path, admin=True, trust=keys["key.pub"]) as server:
        for version, sentence in (
            ("2", "is not signed, and only what"),
            ("4", "manifest.sig of the artifact at"),
            ("5", "model.onnx in the artifact at"),
        ):
            status, error = ask(server, "/v2/repository/models/ranker/load", json.dumps({"parameters": {"version": version}}).encode())
            assert status == 400 and sentence in error
            assert ask(server, "/v2/models/ranker/infer", BODY)[1]["model_version"] == "1"
        assert ask(server, "/v2/repository/models/ranker/load", b'{"parameters": {"version": "3"}}') == (200, None)
    for version, sentence in (("2", "is not signed"), ("4", "or another key signed"), ("5", "is damaged: its sha256 is not the one")):
        with pytest.raises(ArtifactError, match=sentence):
            serve(versions.where(version), Options(trust=keys["key.pub"]))


def test_a_signature_goes_where_its_artifact_goes(path, keys, tmp_path):
    signed = burnish.runtime.artifact.Artifact.read(path).save(tmp_path / "signed").path
    sign(signed, keys["key.pem"])
    publish(signed, tmp_path / "ranker")
    assert (tmp_path / "ranker" / "versions" / "1" / "manifest.sig").read_bytes() == (signed / "manifest.sig").read_bytes()
    assert main(["verify", str(signed)]) == 0


@pytest.mark.parametrize("name, half", [("rsa.pem", "private"), ("key.pub", "private"), ("ca.crt", "private")])
def test_keys_that_do_not_sign_are_a_sentence(path, keys, name, half):
    with pytest.raises(ServeError, match=rf"{name} has no {half} ed25519 key in PEM\. Make one: openssl genpkey -algorithm ed25519"):
        sign(path, keys[name])


def test_a_key_that_is_not_there_is_a_sentence(path, tmp_path):
    pytest.importorskip("cryptography")
    with pytest.raises(ServeError, match=r"the key .*none cannot be read: No such file"):
        sign(path, tmp_path / "none")


def test_what_is_beyond_a_limit_is_refused_and_the_server_goes_on(path):
    limits = {"body_bytes": 4096, "rows": 10, "tensors": 3}
    with Server(path, name="ranker", limits=limits) as server:
        infer = "/v2/models/ranker/infer"
        many = {"name": "dense", "shape": [11, 5], "datatype": "FP32", "data": [0.0] * 55}
        assert ask(server, infer, json.dumps({"inputs": [many]}).encode()) == (413, "input 'dense' has 11 rows; at most 10 are allowed")
        assert ask(server, infer, json.dumps({"inputs": [many] * 4}).encode())[1] == (
            "the request has 4 input tensors; at most 3 are allowed"
        )
        assert ask(server, infer, b" " * 5000) == (413, "the body has 5000 bytes; at most 4096 are allowed")
        for deep in (
            b"[" * 4000,
            b'{"inputs": ' * 300,
            b'{"inputs": [{"name": "dense", "shape": [1, 5], "datatype": "FP32", "data": ' + b"[" * 3000,
        ):
            assert ask(server, infer, deep)[0] == 400
        assert ask(server, infer, BODY)[0] == 200
        for outside in ("/v2/repository/models/..%2F..%2Fetc/load", "/v2/models/../../etc/passwd", "/v2/models/%2e%2e/infer"):
            assert ask(server, outside, b"{}")[0] in (403, 404)
        assert "Traceback" not in server.log
