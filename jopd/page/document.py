"""The page: one HTML file that opens from a disk, with no network, and sends nothing anywhere.

What models and data have said is text to it and nothing else: it travels as JSON in which no tag
can end or begin, the script puts it on the screen as text nodes, and the page's own policy lets no
other script run and no other address be asked.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

# In the order in which the browser reads them.
SCRIPTS = ("elements.js", "tokens.js", "curves.js", "profiles.js", "tables.js", "page.js")
PLOTS = ("uPlot.iife.min.js", "uPlot.min.css", "uPlot.LICENSE")


def document(runs: Sequence[dict[str, Any]], *, live: bool = False) -> str:
    """The page of some runs (`jopd.page.records`); live, it asks for their data every few
    seconds.
    """
    own = "\n".join(_asset(name) for name in SCRIPTS)
    library, styles, licence = (_asset(name) for name in PLOTS)
    script = f'"use strict";\n/*! uPlot\n{licence}*/\n{library}\n(() => {{\n{own}\n}})();\n'
    names = ", ".join(run["name"] for run in runs)
    # Placeholders are replaced from the back, so that no text that was put in is looked at again.
    parts = {
        "SCRIPT": script,
        "DATA": as_json({"live": live, "runs": list(runs)}),
        "STYLES": f"{styles}\n{_asset('page.css')}",
        "TITLE": html.escape(f"jopd: {names}"),
        "POLICY": policy(script, live=live),
    }
    page = _asset("page.html")
    for name, text in parts.items():
        before, after = page.split(f"[[{name}]]", 1)
        page = before + text + after
    return page


def write(file: Path, page: str) -> None:
    """The file, whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(file)


def policy(script: str, *, live: bool) -> str:
    """What the page may do: run this very script, and if live ask where it came from."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = [
        "default-src 'none'",
        f"script-src 'sha256-{digest}'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join([*rules, "connect-src 'self'"] if live else rules)


def as_json(data: Any) -> str:
    """JSON that can stand in HTML whatever its texts are."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return (resources.files("jopd.page") / "assets" / name).read_text(encoding="utf-8")
