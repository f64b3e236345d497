"""Pages tried in a headless browser: what a script sees there, with nothing complained of on the console."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)

needs_browser = pytest.mark.skipif(
    CHROMIUM is None,
    reason=f"the page was not tried in a browser: install Chromium (none of {', '.join(BROWSERS)} is on the path)",
)

_ACTS = """
const refused = [], said = [], wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
const press = name => dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
addEventListener("error", event => said.push("error " + event.message));
addEventListener("securitypolicyviolation", event => refused.push(event.blockedURI));
addEventListener("load", async () => {
  const found = {};
  try {
    ACTS
  } catch (error) { said.push(String(error)); }
  Object.assign(found, { said, refused, wide: document.documentElement.scrollWidth - innerWidth });
  document.body.textContent = "RESULT" + JSON.stringify(found) + "TLUSER";
});
"""


def in_browser(
    page: Path, acts: str, window: tuple[int, int] = (1366, 768), allowed: str = "no such line"
) -> dict[str, Any]:
    """What `acts`, JavaScript that fills `found` after the page has loaded, found there.

    Beside its own: `said`, errors on the page; `refused`, addresses that its policy did not let it load; `wide`, pixels
    by which it is wider than the window.

    Args:
        page: a file.
        acts: may use `wait(milliseconds)` and `press(key)`.
        window: size in pixels, no narrower than 500.
        allowed: words of console lines that are no complaint.
    """
    assert CHROMIUM is not None
    script = _ACTS.replace("ACTS", acts)
    tried = page.with_name(f"tried_{page.name}")
    text = page.read_text(encoding="utf-8")
    assert "</body>" in text
    tried.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=20000"]
    size = f"--window-size={window[0]},{window[1]}"
    run = subprocess.run(
        [CHROMIUM, *flags, size, "--dump-dom", tried.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    complaints = [line for line in run.stderr.splitlines() if "CONSOLE" in line and allowed not in line]
    assert not complaints
    result = re.search("RESULT(.*?)TLUSER", run.stdout, re.DOTALL)
    assert result is not None, run.stdout[-500:] + run.stderr[-500:]
    found: dict[str, Any] = json.loads(result[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return found
