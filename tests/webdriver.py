"""Just enough of the W3C WebDriver protocol to drive a headless Chromium: one JSON request per command."""

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "needs a browser: apt-get install chromium chromium-driver" if not (CHROMIUM and DRIVER) else ""

_FLAGS = (
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
_HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the driver is on this machine
KEYS = {"Right": "\ue014", "Left": "\ue012", "Down": "\ue015", "Up": "\ue013", "Tab": "\ue004"}

# Text whose contrast with what lies behind it is below 4.5 (WCAG 2, AA).
CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
function rgba(color) {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  const d = canvas.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255];
}
function over(top, under) { return [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])); }
function behind(e) {
  if (!e) { return [255, 255, 255]; }
  return over(rgba(getComputedStyle(e).backgroundColor), behind(e.parentElement));
}
function light(c) {
  const l = c.slice(0, 3).map(x => x / 255).map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2];
}
const poor = [];
for (const e of document.querySelectorAll('body *')) {
  if (!Array.from(e.childNodes).some(n => n.nodeType === 3 && n.data.trim())) { continue; }
  if (e.closest('script')) { continue; }
  const a = light(over(rgba(getComputedStyle(e).color), behind(e))), b = light(behind(e));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) { poor.push(e.outerHTML.slice(0, 60) + ' ' + ratio.toFixed(2)); }
}
return poor;
"""


class Browser:
  """A session of a browser; its pages have no network."""

  def __init__(self, driver: str, profile: str):
    self._driver = driver
    options = {"binary": CHROMIUM, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
    logs = {"browser": "ALL"}
    capabilities = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": logs}}
    value = self._send("POST", "/session", {"capabilities": capabilities})
    self._session = f"/session/{value['sessionId']}"

  def _send(self, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
      self._driver + path, data, {"Content-Type": "application/json"}, method=method
    )
    try:
      with _HTTP.open(request, timeout=180) as reply:
        return json.load(reply)["value"]
    except urllib.error.HTTPError as e:
      raise RuntimeError(json.load(e)["value"]["message"]) from None

  def _do(self, what: str, **body: Any) -> Any:
    return self._send("POST", f"{self._session}/{what}", body)

  def devtools(self, command: str, **params: Any) -> Any:
    """A command of the DevTools protocol."""
    return self._do("goog/cdp/execute", cmd=command, params=params)

  def size(self, width: int, height: int, phone: bool = False) -> None:
    self.devtools(
      "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1,
      mobile=phone,
    )  # fmt: skip

  def dark(self, dark: bool) -> None:
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    self.devtools("Emulation.setEmulatedMedia", features=features)

  def open(self, url: str) -> None:
    self._do("url", url=url)

  def run(self, script: str, *args: Any) -> Any:
    """What a function body in JavaScript returns."""
    return self._do("execute/sync", script=script, args=list(args))

  def keys(self, *names: str) -> None:
    """Presses keys, one after the other."""
    actions = [{"type": kind, "value": KEYS[n]} for n in names for kind in ("keyDown", "keyUp")]
    self._do("actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

  def point(self, selector: str) -> None:
    """Moves the mouse to the middle of an element, in the middle of the window."""
    self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
    element = self._do("element", using="css selector", value=selector)
    move = {"type": "pointerMove", "duration": 0, "origin": element, "x": 0, "y": 0}
    self._do("actions", actions=[{"type": "pointer", "id": "mouse", "actions": [move]}])

  def complaints(self) -> list[str]:
    """What the page wrote to the console since the last call."""
    return [entry["message"] for entry in self._do("se/log", type="browser")]

  def picture(self, path: Any, whole: bool = False) -> None:
    """A PNG of the window, or of the whole page."""
    shot = self.devtools("Page.captureScreenshot", captureBeyondViewport=whole)
    with open(path, "wb") as f:
      f.write(base64.b64decode(shot["data"]))

  def close(self) -> None:
    self._send("DELETE", self._session)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
  """A browser with a profile of its own."""
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    driver = subprocess.Popen(
      [str(DRIVER), "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
      assert driver.stdout is not None
      line = next(line for line in driver.stdout if "successfully on port " in line)
      session = Browser(f"http://127.0.0.1:{line.split('on port ')[1].strip().rstrip('.')}", profile)
      try:
        yield session
      finally:
        session.close()
    finally:
      driver.terminate()
      driver.wait(timeout=20)
