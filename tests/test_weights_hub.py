"""`hf:owner/name` against a small server on loopback that is shaped like the hub, and fails like one."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import textwrap
import threading
import urllib.parse

import pytest

from pasta_jax.model.errors import WeightsError
from pasta_jax.model.hub import HubSpec, parse_hub
from tests.weights_files import CONFIGS, tiny_params, write_gguf, write_hf

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
  ("text", "spec"),
  [
    ("hf:a/b", HubSpec("a/b")),
    ("hf:a-1/b.c_d@v1.0", HubSpec("a-1/b.c_d", "v1.0")),
    ("hf:a/b:m-Q4_K_M.gguf", HubSpec("a/b", None, "m-Q4_K_M.gguf")),
    ("hf:a/b@refs/pr/1:sub/m.gguf", HubSpec("a/b", "refs/pr/1", "sub/m.gguf")),
  ],
)
def test_a_hub_source_is_taken_apart(text, spec):
  assert parse_hub(text) == spec


@pytest.mark.parametrize(
  "text", ["hf:", "hf:a", "hf:a/b/c", "hf:a/b@", "hf:a/b:", "hf:a/b:m.bin", "hf:a b/c"]
)
def test_a_hub_source_of_another_form_is_refused(text):
  with pytest.raises(WeightsError, match="is not hf:owner/name"):
    parse_hub(text)


class Hub(http.server.BaseHTTPRequestHandler):
  """The few paths of the hub's API that a download asks for. `files` is by repository, set by the test."""

  files: dict[str, dict[str, bytes]]
  asked: list[str]
  protocol_version = "HTTP/1.1"

  def do_HEAD(self):
    self.answer(body=False)

  def do_GET(self):
    self.answer(body=True)

  def log_message(self, *args):
    pass

  def answer(self, body):
    path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
    self.asked.append(f"{self.command} {path}")
    repo = "/".join(path.removeprefix("/api/models").split("/")[1:3])
    if repo == "org/broken":
      return self.reply(500, b"{}", body=body)
    if repo not in self.files:
      return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
    if repo == "org/gated" and not path.startswith("/api/"):
      return self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"}, body=body)
    if "/no-such-branch" in path:
      return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
    files = self.files[repo]
    if path.startswith(f"/api/models/{repo}/tree/"):
      listing = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in files.items()]
      return self.reply(200, json.dumps(listing).encode(), body=body)
    if path.startswith(f"/api/models/{repo}"):
      info = {"id": repo, "sha": COMMIT, "private": False, "siblings": [{"rfilename": n} for n in files]}
      return self.reply(200, json.dumps(info).encode(), body=body)
    name = path.split("/resolve/", 1)[-1].split("/", 1)[-1]
    if name not in files:
      return self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body=body)
    data = files[name]
    headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
    cut = repo == "org/cut" and name.endswith(".safetensors")
    return self.reply(200, data, headers, body=body, cut=cut)

  def reply(self, status, data, headers=None, *, body, cut=False):
    self.send_response(status)
    for key, value in {"Content-Length": str(len(data)), "Content-Type": "text/plain"}.items():
      self.send_header(key, value)
    for key, value in (headers or {}).items():
      self.send_header(key, value)
    self.end_headers()
    if body:
      self.wfile.write(data[: len(data) // 2] if cut else data)
    if cut and body:
      self.wfile.flush()
      self.connection.close()
      self.close_connection = True


CLIENT = """
import sys, time
# The waits between attempts are huggingface_hub's own; the attempts themselves stay.
time.sleep = lambda seconds: None
from pasta_jax.model.errors import WeightsError
from pasta_jax.model.weights import load_model
for source in sys.argv[1:]:
  try:
    model = load_model(source)
    print("loaded", source, model.config.family, len(model.params), flush=True)
  except WeightsError as e:
    print(e, flush=True)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
  pytest.importorskip("huggingface_hub")
  pytest.importorskip("gguf")
  root = tmp_path_factory.mktemp("hub")
  cfg = CONFIGS["llama"]
  folder = write_hf(root / "m", cfg, tiny_params(cfg), shards=2)
  whole = {p.name: p.read_bytes() for p in folder.iterdir()}
  gguf_file = write_gguf(root / "m.gguf", CONFIGS["qwen3"], tiny_params(CONFIGS["qwen3"])).read_bytes()
  Hub.files = {
    "org/model": whole | {"pytorch_model.bin": b"not wanted", "m.gguf": gguf_file},
    "org/only-gguf": {"m.gguf": gguf_file},
    "org/gated": whole,
    "org/cut": whole,
  }
  Hub.asked = []
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  yield f"http://127.0.0.1:{server.server_port}", root
  server.shutdown()
  server.server_close()


def ask(endpoint, home, *sources):
  env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
  env |= {
    "HF_ENDPOINT": endpoint,
    "HF_HOME": str(home),
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "JAX_PLATFORMS": "cpu",
  }
  env |= {
    "PYTHONPATH": os.pathsep.join(sys.path),
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
  }
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(CLIENT), *sources],
    env=env, capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert len(lines) == len(sources), done.stdout  # one line for each
  return lines


def test_models_load_from_the_hub_and_only_what_is_needed_is_fetched(hub, tmp_path):
  endpoint, _ = hub
  sources = ["hf:org/model", "hf:org/model@main", "hf:org/model:m.gguf"]
  Hub.asked.clear()
  assert ask(endpoint, tmp_path, *sources) == [
    "loaded hf:org/model llama 30",
    "loaded hf:org/model@main llama 30",
    "loaded hf:org/model:m.gguf qwen3 36",
  ]
  assert any("model-00002-of-00002.safetensors" in a for a in Hub.asked)
  assert not any("pytorch_model.bin" in a for a in Hub.asked)
  # With the hub away, what is in the cache still loads.
  gone = "http://127.0.0.1:9"
  lines = ask(gone, tmp_path, "hf:org/model", "hf:org/other")
  assert lines[0] == "loaded hf:org/model llama 30"
  assert lines[1].startswith("hf:org/other: not in the cache, and the hub does not give it: ")


def test_every_failure_of_the_hub_is_one_clear_line(hub, tmp_path):
  endpoint, _ = hub
  lines = ask(
    endpoint, tmp_path, "hf:org/missing", "hf:org/model@no-such-branch", "hf:org/model:x.gguf",
    "hf:org/only-gguf", "hf:org/gated", "hf:org/broken", "hf:org/cut",
  )  # fmt: skip
  expected = [
    "hf:org/missing: no such repository, or a private one",
    "hf:org/model@no-such-branch: no such revision",
    "hf:org/model: has no file 'x.gguf'",
    "hf:org/only-gguf: has no .safetensors files; for a GGUF file write hf:org/only-gguf:FILE.gguf",
    "hf:org/gated: access is gated",
    "hf:org/broken: ",
    "hf:org/cut: the download failed: ",
  ]
  for line, start in zip(lines, expected, strict=True):
    assert line.startswith(start), (line, start)
  assert "500" in lines[5]
