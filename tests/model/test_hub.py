"""Finding and downloading checkpoints, against a small imitation of the Hugging Face hub on this machine."""

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import huggingface_hub.file_download
import huggingface_hub.utils
import numpy as np
import pytest
from conftest import tiny_config
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from writers import tensor, torch_zip

import nanopatch
from nanopatch import NanopatchError
from nanopatch.model import hub, tokenizer
from nanopatch.model.checkpoint import tensor_shapes

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GIVE_A_FOLDER = "put its config.json and model.safetensors into a folder and give that folder"


def checkpoint(vocab_size=29):
    """The files of a tiny checkpoint's repository: {name: bytes}."""
    sizes = dict(n_layer=1, n_head=1, n_embd=2, n_positions=5, vocab_size=vocab_size, n_inner=3)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in tensor_shapes(tiny_config(**sizes)).items()
        if name != "lm_head.weight"
    }
    return {
        "config.json": json.dumps(sizes | {"model_type": "gpt2"}).encode(),
        "model.safetensors": save_tensors(tensors),
    }


def sharded_checkpoint(whole="model.safetensors", save=save_tensors):
    files = checkpoint()
    tensors = load_tensors(files.pop("model.safetensors"))
    halves = [dict(list(tensors.items())[:5]), dict(list(tensors.items())[5:])]
    names = [whole.replace(".", f"-0000{i}-of-00002.") for i in (1, 2)]
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    files |= {name: save(half) for name, half in zip(names, halves, strict=True)}
    return files | {f"{whole}.index.json": json.dumps({"weight_map": weight_map}).encode()}


def sharded_by_pytorch():
    return sharded_checkpoint("pytorch_model.bin", lambda half: torch_zip({n: tensor(a) for n, a in half.items()}))


@functools.cache
def gpt2_vocab():
    return json.dumps(tokenizer._published_vocabulary()).encode()


def foreign_vocab():
    return json.dumps({f"token{number}": number for number in range(tokenizer.N_VOCAB)}).encode()


class Hub:
    """A server that answers as the hub does for `repos`, {"org/name": {file: bytes}}, all at the commit `COMMIT`.

    requests: "METHOD file" of each request, and " from N" where it resumes at byte N; gated: names of
    gated repositories; cut_at: while set, no byte of model.safetensors from that position on is sent;
    lost: files that are answered with an error, as by a busy hub; revisions: those asked for, by file.
    """

    def __init__(self):
        self.repos, self.requests, self.gated, self.cut_at = {}, [], set(), None
        self.lost, self.revisions = set(), {}

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(handler):
                self.answer(handler)

            do_GET = do_HEAD

            def log_message(*args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()

    def answer(self, handler):
        path = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+).*", handler.path)
        if not path:  # huggingface_hub asks on the side who its callers may be
            return self.send(handler, 404, {})
        repo, revision, name = path.groups()
        first = int(re.search(r"\d+", handler.headers.get("Range", "0")).group())
        self.requests.append(f"{handler.command} {name}" + (f" from {first}" if first else ""))
        self.revisions.setdefault(name, set()).add(revision)
        if name in self.lost:
            return self.send(handler, 503, {})
        commit = {"X-Repo-Commit": COMMIT}
        if repo not in self.repos:
            return self.send(handler, 401, {"X-Error-Code": "RepoNotFound"})
        if repo in self.gated:
            return self.send(handler, 403, {"X-Error-Code": "GatedRepo"})
        if revision not in ("main", COMMIT):
            return self.send(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        if name not in self.repos[repo]:
            return self.send(handler, 404, {"X-Error-Code": "EntryNotFound"} | commit)
        content = self.repos[repo][name]
        last = len(content) if self.cut_at is None or name != "model.safetensors" else self.cut_at
        if handler.command == "GET" and first >= last > 0:
            return None  # the connection closes without an answer
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"} | commit
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return self.send(handler, 206 if first else 200, headers, content[first:], content[first:last])

    @staticmethod
    def send(handler, status, headers, content=b"", sent=b""):
        handler.send_response(status)
        for header in ({"Content-Length": str(len(content))} | headers).items():
            handler.send_header(*header)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(sent)


def forget_connections():
    reset = getattr(huggingface_hub.utils, "close_session", None) or huggingface_hub.utils.reset_sessions
    reset()  # the first in huggingface_hub from 1.0 on


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A `Hub` that huggingface_hub takes for the real one, with an empty cache and nothing in `weights/`."""
    fake = Hub()
    settings = {
        "ENDPOINT": fake.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": fake.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "AGENT_HARNESSES_PATH": str(tmp_path / "harnesses"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": None,
        "DOWNLOAD_CHUNK_SIZE": 1000,
    }
    # It reads the environment once, when imported; older versions copy the values into further modules.
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "huggingface_hub":
            for setting, value in settings.items():
                if setting in vars(module):
                    monkeypatch.setattr(module, setting, value)
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(hub, "weights_folder", lambda: tmp_path / "weights")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # it waits between tries
    forget_connections()
    yield fake
    forget_connections()
    fake.close()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def publish(server, monkeypatch, files, sha256=None, name="gpt2"):
    """Serve `files` as the published model `name`, with their own hash pinned, or the one given."""
    published = hub.PUBLISHED[name]
    server.repos[published.repo] = files
    sha256 = sha256 or hashlib.sha256(files["model.safetensors"]).hexdigest()
    monkeypatch.setitem(hub.PUBLISHED, name, hub.Published(published.repo, COMMIT, sha256))


def put_into_cache(cache, repo, files):
    """What other libraries leave in the cache after loading `files` of a repository."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


def error_of(name):
    with pytest.raises(NanopatchError) as caught:
        nanopatch.load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def whole_files(cache, content):
    """The files of the cache, under whatever name, that hold this content, and those named model.safetensors."""
    paths = [path for path in cache.rglob("*") if path.is_symlink() or path.is_file()]
    return [
        path for path in paths if path.name == "model.safetensors" or path.exists() and path.read_bytes() == content
    ]


# ---- downloading ----------------------------------------------------------------------------------


def test_a_published_model_is_downloaded_once(server, cache, monkeypatch, capfd):
    files = checkpoint(vocab_size=tokenizer.N_VOCAB) | {"pytorch_model.bin": b"pickle", "vocab.json": gpt2_vocab()}
    publish(server, monkeypatch, files)
    model = nanopatch.load("gpt2")
    tensors = load_tensors(files["model.safetensors"])
    np.testing.assert_array_equal(model.wte, tensors["wte.weight"], strict=True)
    assert model.reads_text and model.tokenize("Hello").tolist() == [15496]
    assert model.source.files == (
        cache / "models--openai-community--gpt2" / "snapshots" / COMMIT / "model.safetensors",
    )
    assert model.source.sha256 == hashlib.sha256(files["model.safetensors"]).hexdigest()
    # Only what is needed, the weights before the config that makes the checkpoint count as whole.
    assert [request for request in server.requests if request.startswith("GET")] == [
        "GET model.safetensors",
        "GET config.json",
    ]
    assert capfd.readouterr() == ("", "")  # no bar where nobody looks

    server.requests.clear()
    again = nanopatch.load("gpt2")
    np.testing.assert_array_equal(again.wte, model.wte, strict=True)
    assert server.requests == []
    server.close()
    np.testing.assert_array_equal(nanopatch.load("gpt2").wte, model.wte, strict=True)


def test_the_hash_is_checked_after_the_download_only(server, cache, monkeypatch):
    publish(server, monkeypatch, checkpoint())
    checked = []
    check = hub._check_sha256
    monkeypatch.setattr(hub, "_check_sha256", lambda *args: checked.append(args) or check(*args))
    nanopatch.load("gpt2")
    nanopatch.load("gpt2")
    assert [path.name for path, _ in checked] == ["model.safetensors"]


def test_a_wrong_hash_deletes_the_file(server, cache, monkeypatch):
    right = checkpoint()
    expected = hashlib.sha256(right["model.safetensors"]).hexdigest()
    wrong = right | {"model.safetensors": right["model.safetensors"][:-1] + b"\x01"}
    publish(server, monkeypatch, wrong, sha256=expected)
    message = error_of("gpt2")
    assert (
        f"has SHA-256 {hashlib.sha256(wrong['model.safetensors']).hexdigest()}, but {expected} is expected" in message
    )
    assert whole_files(cache, wrong["model.safetensors"]) == []

    assert error_of("gpt2") == message  # not taken from the cache

    server.repos["openai-community/gpt2"] = right
    nanopatch.load("gpt2")
    assert len(whole_files(cache, right["model.safetensors"])) == 2  # the blob, and its name in the snapshot


def test_an_interrupted_check_is_made_up_for(server, monkeypatch):
    files = checkpoint()
    publish(server, monkeypatch, files, sha256="0" * 64)

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(hub, "_check_sha256", interrupt)
        with pytest.raises(KeyboardInterrupt):
            nanopatch.load("gpt2")
    assert "has SHA-256" in error_of("gpt2")


def test_a_connection_cut_in_the_middle_leaves_nothing_under_the_final_name(server, cache, monkeypatch):
    files = checkpoint(vocab_size=tokenizer.N_VOCAB)
    publish(server, monkeypatch, files)
    server.cut_at = len(files["model.safetensors"]) // 2
    message = error_of("gpt2")
    assert message.startswith(f"cannot download gpt2 from {server.url} (")
    assert message.endswith(f"): check the network and try again, or {GIVE_A_FOLDER}")
    assert whole_files(cache, files["model.safetensors"]) == []

    server.cut_at = None
    server.requests.clear()
    model = nanopatch.load("gpt2")
    assert any(request.startswith("GET model.safetensors") for request in server.requests)
    assert model.source.files[0].read_bytes() == files["model.safetensors"]


def test_a_connection_that_comes_back_is_resumed(server, monkeypatch):
    files = checkpoint(vocab_size=tokenizer.N_VOCAB)
    publish(server, monkeypatch, files)
    server.cut_at = 150_000

    def mend(seconds=0):
        server.cut_at = None

    monkeypatch.setattr(time, "sleep", mend)  # newer huggingface_hub waits, and goes on within the same call
    with contextlib.suppress(NanopatchError):  # older keeps what it has, and goes on when called again
        nanopatch.load("gpt2")
    mend()
    model = nanopatch.load("gpt2")
    first, second = [request for request in server.requests if request.startswith("GET model.safetensors")]
    assert first == "GET model.safetensors"
    assert 140_000 <= int(second.removeprefix("GET model.safetensors from ")) <= 150_000
    assert model.source.files[0].read_bytes() == files["model.safetensors"]


def test_a_repository_by_its_name(server):
    server.repos["org/tiny"] = checkpoint()
    model = nanopatch.load("org/tiny")
    assert model.run([1, 2, 3]).logits.shape == (3, 29)
    assert model.reads_text is False
    assert server.revisions["model.safetensors"] == {COMMIT}  # that of its config, though "main" may have moved on
    server.requests.clear()
    nanopatch.load("org/tiny")
    assert server.requests == []  # that it has no tokenizer files is remembered too


@pytest.mark.parametrize("files", [sharded_checkpoint(), sharded_by_pytorch()], ids=["safetensors", "PyTorch"])
def test_a_sharded_repository(server, cache, files):
    server.repos["org/sharded"] = files
    model = nanopatch.load("org/sharded")
    tensors = load_tensors(checkpoint()["model.safetensors"])
    np.testing.assert_array_equal(model.wte, tensors["wte.weight"], strict=True)
    np.testing.assert_array_equal(model.h[0].mlp.c_proj.weight, tensors["h.0.mlp.c_proj.weight"], strict=True)
    assert [path.name for path in model.source.files] == [name for name in files if "-of-00002" in name]
    server.close()
    np.testing.assert_array_equal(nanopatch.load("org/sharded").wte, model.wte, strict=True)


@pytest.mark.parametrize(
    "file, vocabulary, reads_text",
    [("vocab.json", gpt2_vocab, True), ("tokenizer.json", gpt2_vocab, True), ("vocab.json", foreign_vocab, False)],
)
def test_text_only_where_the_vocabulary_is_known(server, file, vocabulary, reads_text):
    content = vocabulary() if file == "vocab.json" else b'{"model": {"vocab": %s}}' % vocabulary()
    server.repos["org/tiny"] = checkpoint(vocab_size=tokenizer.N_VOCAB) | {file: content}
    model = nanopatch.load("org/tiny")
    assert model.reads_text is reads_text
    assert model.tokenize([15496]).tolist() == [15496]
    if not reads_text:
        with pytest.raises(NanopatchError, match="vocabulary is not known"):
            model.run("Hello")
    server.requests.clear()
    assert nanopatch.load("org/tiny").reads_text is reads_text
    assert server.requests == []


# ---- the cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo", ["gpt2", "openai-community/gpt2"])
def test_a_cached_model_is_found_under_its_old_and_its_new_name(server, cache, monkeypatch, repo):
    publish(server, monkeypatch, checkpoint())
    snapshot = put_into_cache(cache, repo, checkpoint())
    assert hub.find("gpt2") == snapshot
    assert server.requests == []


def test_another_revision_in_the_cache_is_not_the_pinned_one(server, cache, monkeypatch):
    publish(server, monkeypatch, checkpoint())
    snapshot = put_into_cache(cache, "gpt2", checkpoint())
    snapshot.rename(snapshot.with_name("f" * 40))
    assert hub.find("gpt2") == cache / "models--openai-community--gpt2" / "snapshots" / COMMIT


def test_shards_in_the_cache_are_found_without_network(server, cache):
    snapshot = put_into_cache(cache, "org/sharded", sharded_checkpoint() | {"vocab.json": b"{}"})
    server.close()
    assert hub.find("org/sharded") == snapshot
    assert nanopatch.load("org/sharded").n_vocab == 29


@pytest.mark.parametrize(
    "missing", ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "vocab.json"]
)
def test_an_incomplete_cache_is_completed(server, cache, missing):
    files = sharded_checkpoint() | {"vocab.json": b"{}"}
    put_into_cache(cache, "org/sharded", {name: content for name, content in files.items() if name != missing})
    server.repos["org/sharded"] = files
    assert nanopatch.load("org/sharded").n_vocab == 29
    assert f"GET {missing}" in server.requests
    assert not {f"GET {name}" for name in files if name != missing} & set(server.requests)


def test_a_cache_with_a_config_alone_or_a_dangling_link_is_not_whole(server, cache, monkeypatch):
    files = checkpoint()
    publish(server, monkeypatch, files)
    snapshot = put_into_cache(cache, "openai-community/gpt2", {"config.json": files["config.json"]})
    (snapshot / "model.safetensors").symlink_to("../../blobs/gone")
    assert hub.cached_folder("openai-community/gpt2", COMMIT, needs_vocabulary=False) is None
    assert nanopatch.load("gpt2").source.files[0].read_bytes() == files["model.safetensors"]


def test_weights_of_a_checkout_come_first(server, tmp_path):
    folder = tmp_path / "weights" / "distilgpt2"
    folder.mkdir(parents=True)
    for name, content in checkpoint().items():
        (folder / name).write_bytes(content)
    assert hub.find("distilgpt2") == folder
    assert server.requests == []


# ---- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "org/tiny"])
def test_no_network(server, cache, name):
    server.close()
    assert re.fullmatch(
        rf"cannot download {name} from {server.url} \(.*[Cc]onnection.*\): check the network and try again, or "
        + GIVE_A_FOLDER,
        error_of(name),
    )
    assert list(cache.rglob("model.safetensors")) == []


def test_no_network_and_only_the_vocabulary_missing(server, cache):
    put_into_cache(cache, "org/tiny", checkpoint(vocab_size=tokenizer.N_VOCAB))
    server.close()
    assert error_of("org/tiny").startswith(f"cannot download org/tiny from {server.url} (")


@pytest.mark.parametrize("lost", ["model.safetensors", "vocab.json", "tokenizer.json"])
def test_a_hub_that_fails_between_two_files(server, lost):
    server.repos["org/tiny"] = checkpoint(vocab_size=tokenizer.N_VOCAB)
    server.lost.add(lost)
    for _ in range(2):  # not taken for a repository without that file, now or later
        assert error_of("org/tiny").startswith(f"cannot download org/tiny from {server.url} (")
    server.lost.clear()
    assert nanopatch.load("org/tiny").n_vocab == tokenizer.N_VOCAB


def test_offline_mode(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for module in (huggingface_hub.utils._http, huggingface_hub.file_download):
        if "HF_HUB_OFFLINE" in vars(module):
            monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    forget_connections()
    assert error_of("gpt2") == (
        f"gpt2 is not cached, and HF_HUB_OFFLINE forbids a download: unset HF_HUB_OFFLINE, or {GIVE_A_FOLDER}"
    )
    assert server.requests == []


def test_no_such_repository(server):
    assert error_of("org/nothing") == (
        f"no model 'org/nothing': neither a folder here nor a repository at {server.url}; if it is private, set "
        "HF_TOKEN"
    )


def test_a_gated_repository(server):
    server.repos["org/gated"] = checkpoint()
    server.gated.add("org/gated")
    assert error_of("org/gated") == (
        f"org/gated is gated: ask for access at {server.url}/org/gated, then set HF_TOKEN to your token and try again"
    )


def test_a_revision_that_is_gone(server):
    server.repos["openai-community/gpt2"] = checkpoint()
    assert error_of("gpt2") == (
        f"openai-community/gpt2 at {server.url} does not have the revision that nanopatch needs: {GIVE_A_FOLDER}"
    )


def test_a_repository_without_a_config(server):
    server.repos["org/tiny"] = {"model.safetensors": checkpoint()["model.safetensors"]}
    assert error_of("org/tiny") == (
        f"org/tiny at {server.url} has no config.json: it is not a checkpoint that can be loaded"
    )


@pytest.mark.parametrize("other", ["tf_model.h5", "model.pt", "README.md"])
def test_a_repository_without_known_weights_is_refused(server, cache, other):
    server.repos["org/other"] = {"config.json": checkpoint()["config.json"], other: b"pickle"}
    assert error_of("org/other") == "org/other has no model.safetensors and no pytorch_model.bin"
    assert [request for request in server.requests if other in request] == []


def test_a_repository_that_lacks_a_shard(server):
    files = sharded_checkpoint()
    del files["model-00002-of-00002.safetensors"]
    server.repos["org/sharded"] = files
    assert error_of("org/sharded") == (
        "org/sharded lacks model-00002-of-00002.safetensors, which its model.safetensors.index.json lists: it is "
        "incomplete"
    )


def test_another_architecture_is_refused_before_its_weights_are_downloaded(server, cache):
    server.repos["org/llama"] = checkpoint() | {"config.json": b'{"model_type": "llama"}'}
    assert error_of("org/llama") == (
        "org/llama is a model of type 'llama', not a GPT-2: its weights were not downloaded"
    )
    assert list(cache.rglob("model.safetensors")) == []


@pytest.mark.parametrize("config", [b"{", b"[]", b"\xff", b"{}"])
def test_a_broken_config_in_a_repository(server, config):
    server.repos["org/tiny"] = checkpoint() | {"config.json": config}
    assert "config.json" in error_of("org/tiny")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_is_full_or_read_only(server, cache, monkeypatch, number):
    server.repos["org/tiny"] = checkpoint()

    def fail(*args, **options):
        raise OSError(number, os.strerror(number), str(cache / "blobs"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert error_of("org/tiny") == (
        f"cannot write org/tiny into {cache} ({os.strerror(number)}): make room there, or set HF_HUB_CACHE to a "
        "writable folder that has room"
    )


def test_a_cache_that_cannot_be_made(server, cache):
    server.repos["org/tiny"] = checkpoint()
    cache.write_text("a file where the folder should be")
    assert error_of("org/tiny").startswith(f"cannot write org/tiny into {cache} (")


@pytest.mark.parametrize("name", ["gpt2", "org/tiny"])
def test_without_huggingface_hub(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(hub, "weights_folder", lambda: tmp_path)
    assert error_of(name) == (
        f'{name} is not here: to download it, run pip install "nanopatch[hub]" first; or {GIVE_A_FOLDER}'
    )


@pytest.mark.parametrize(
    "name",
    ["gpt3", "", "nano ", "GPT2", "/no/such/folder", "./gpt2", "~nobody/gpt2", "a/b/c", "org/", "a\0b", "x" * 5000],
)
def test_an_unknown_name(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert error_of(name) == (
        f"no model {name!r}: give nano, gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, a repository as org/name, "
        "or a folder that exists"
    )


@pytest.mark.parametrize("name", ["org/..", "org/a..b", "org/x.git", "-org/tiny", "o/" + "x" * 100])
def test_a_name_that_no_repository_can_have(server, name):
    assert error_of(name).startswith(f"{name!r} cannot be the name of a repository: ")
    assert server.requests == []


@pytest.mark.parametrize("file", ["config.json", "weights", "model.pkl", "checkpoint.pth.tar"])
def test_a_file_in_place_of_a_folder(tmp_path, file):
    path = tmp_path / file
    path.write_bytes(b"")
    assert error_of(path) == (
        f"{path}: a file of weights ends in .bin, .pt, .pth, .ckpt, .safetensors: rename it, or give its folder"
    )


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_a_file_of_no_known_format(tmp_path, file):
    path = tmp_path / file
    path.write_bytes(b"GIF89a")
    assert error_of(path) == (
        f"{path} begins with b'GIF89a': it is no file of safetensors, PyTorch or llm.c, or not a whole one"
    )


# ---- the progress bar -----------------------------------------------------------------------------


def test_a_terminal_sees_a_progress_bar_on_stderr(server, tmp_path):
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    server.repos["org/tiny"] = checkpoint()
    environment = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
    terminal, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("4H", 24, 200, 0, 0))
    script = "from nanopatch.model import hub; print(hub.find('org/tiny').name)"
    with subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=its_end, text=True
    ) as process:
        os.close(its_end)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: how Linux says that the other end was closed
            while piece := os.read(terminal, 1000):
                shown += piece
        assert process.stdout.read() == f"{COMMIT}\n"
    os.close(terminal)
    assert process.returncode == 0
    assert re.search(rb"model\.safetensors: 100%.*B/s", shown)


def test_a_notebook_is_told_of_a_download(server, monkeypatch):
    class Cell(io.StringIO):
        __module__ = "ipykernel.iostream"

    server.repos["org/tiny"] = checkpoint()
    monkeypatch.setattr(sys, "stderr", Cell())
    said = f"downloading org/tiny from {server.url}/org/tiny ...\n"
    nanopatch.load("org/tiny")
    assert sys.stderr.getvalue() == said
    nanopatch.load("org/tiny")  # from the cache
    assert sys.stderr.getvalue() == said
