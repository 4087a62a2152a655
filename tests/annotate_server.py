"""A chat endpoint on loopback that marks lists, and fails in the ordinary ways when a prompt asks for it."""

import contextlib
import http.server
import json
import re
import threading
import time

LINE = "a way to travel that is described here in enough words to be worth a chunk"


def answer_for(tag):
  return (
    f"Two ways for {tag}:\n\n- **Train.** It is {LINE}.\n- **Plane.** It is {LINE}.\n\nSo take the train."
  )


def rows_for(tags):
  """Rows whose prompts hold a tag, by which the endpoint knows what to do."""
  return [{"prompt": f"How to travel? [{tag}]", "answer": answer_for(tag), "id": tag} for tag in tags]


def marked(answer):
  """What a good model returns."""
  chunks = re.sub(r"^- (.*)$", r'- <promise topic="way" tokens="20"/><async>\1</async>', answer, flags=re.M)
  return chunks.replace("So take", "<sync/>So take")


class Endpoint(http.server.ThreadingHTTPServer):
  """Counts and records what is asked.

  Attributes:
    plans: for a tag, what happens at its first, second, ... request; the last one goes on. A plan's step is
      "good", "slow", "cut", "closed", "html", "not json", "no choices", "null", "changed", "broken",
      "spelling", "around", "unmarked", "half a pair", "length", "filter", "bare", or (status,
      headers, JSON body).
    asked: (time, tag, path, headers, body) of each request.
  """

  daemon_threads = True
  allow_reuse_address = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.plans = {}
    self.asked = []
    self.together = self.most_together = 0
    self.lock = threading.Lock()
    self.delay = 0.0
    self.released = threading.Event()

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}/v1"

  def count(self, tag):
    return sum(t == tag for _, t, *_ in self.asked)

  def handle_error(self, request, client_address):
    pass  # clients that hang up are part of the tests


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True  # head and body are written apart: each reply would wait 40 ms

  def log_message(self, *args):
    pass

  def do_POST(self):
    server = self.server
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    gemini = "generateContent" in self.path
    if gemini:
      turns = [p["parts"][0]["text"] for p in body["contents"] if p["role"] == "user"]
    else:
      turns = [m["content"] for m in body["messages"] if m["role"] == "user"]
    task = next(t for t in reversed(turns) if "The answer to mark:\n" in t)
    tag = re.search(r"\[([\w -]*)\]", task)[1]
    answer = task.partition("The answer to mark:\n")[2]
    with server.lock:
      nth = server.count(tag)
      server.asked.append((time.monotonic(), tag, self.path, dict(self.headers), body))
      server.together += 1
      server.most_together = max(server.most_together, server.together)
    plan = server.plans.get(tag, ["good"])
    try:
      if server.delay:
        time.sleep(server.delay)
      self.answer(plan[min(nth, len(plan) - 1)], answer, gemini)
    finally:
      with server.lock:
        server.together -= 1

  def answer(self, step, answer, gemini):
    if isinstance(step, tuple):
      status, headers, body = step
      return self.reply(status, json.dumps(body).encode(), headers)
    if step == "slow":
      self.server.released.wait(20)
    if step == "closed":
      self.close_connection = True
      return self.connection.close()
    if step == "html":
      return self.reply(502, b"<html>Bad gateway</html>")
    if step == "not json":
      return self.reply(200, b'{"choices": [{"mess')
    text = {
      "changed": marked(answer).replace("take the train", "never take the plane"),
      "broken": answer.replace("- ", "- <promise/><async></async>", 1),
      "mendable": marked(answer).replace("</async>", "", 1),
      "spelling": marked(answer).replace("\n\n", "\n").replace("'", "’").replace("two", "two "),
      "around": f"Sure! Here it is:\n\n```\n{marked(answer)}\n```\nAnything else?",
      "unmarked": answer,
      "half a pair": marked(answer).replace("the train", "the \ud83d"),
      "empty": "",
    }.get(step, marked(answer))
    finish = {"length": "length", "filter": "content_filter"}.get(step, "stop")
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    payload = {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 50}}
    if step == "no choices":
      payload["choices"] = []
    if step == "null":
      payload = None
    if step == "bare":
      del payload["usage"], choice["finish_reason"]
    if gemini:
      reason = {"length": "MAX_TOKENS", "filter": "SAFETY"}.get(step, "STOP")
      content = {"parts": [{"text": "I think.", "thought": True}, {"text": text}], "role": "model"}
      usage = {"promptTokenCount": 100, "candidatesTokenCount": 40, "thoughtsTokenCount": 10}
      payload = {"candidates": [{"content": content, "finishReason": reason}], "usageMetadata": usage}
      if step == "no choices":
        payload = {"usageMetadata": usage}
      if step == "blocked":
        payload = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage}
    self.reply(200, json.dumps(payload).encode(), cut=step == "cut")

  def reply(self, status, data, headers=(), cut=False):
    self.send_response(status)
    for key, value in {"Content-Length": str(len(data)), **dict(headers)}.items():
      self.send_header(key, value)
    self.end_headers()
    self.wfile.write(data[: len(data) // 2] if cut else data)
    if cut:
      self.wfile.flush()
      self.close_connection = True
      self.connection.close()


@contextlib.contextmanager
def endpoint():
  server = Endpoint()
  thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.released.set()
    server.shutdown()
    server.server_close()
