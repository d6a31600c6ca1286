"""The HTML page: its style, its script, and how parts become one file that asks nobody for anything.

All text from outside goes through `html.escape`; the page's policy (CSP) lets no other script run than the one here, by its hash,
and lets nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..console.table import Table

LEAST_SIDE = 144  # pixels of a picture on the page; smaller ones are enlarged
LIGHT = ("#0b63b5", "#c2410c", "#157347", "#8b2fa8", "#a16207", "#0e7490", "#be123c", "#4d4d4d")
DARK = ("#6fb3f2", "#ff9f68", "#66cf97", "#d79af0", "#e5c15a", "#5fd0e0", "#ff8fa3", "#c8c8c8")
_COLOURS = {
    "light": {"ink": "#1b1f24", "faint": "#8a929c", "paper": "#ffffff", "panel": "#f4f6f8", "line": "#d5dae0"},
    "dark": {"ink": "#e7eaee", "faint": "#77808b", "paper": "#14171b", "panel": "#1e2329", "line": "#39414b"},
}


def _variables(theme: str, runs: Sequence[str]) -> str:
    named = {**_COLOURS[theme], **{f"run{number}": colour for number, colour in enumerate(runs)}}
    return "".join(f"--{name}:{value};" for name, value in named.items()) + f"color-scheme:{theme};"


STYLE = f""":root{{{_variables("light", LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables("dark", DARK)}}}}}
body{{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;max-width:90rem;
padding:1rem 1.5rem}}
h1{{font-size:1.5rem;margin:.2rem 0}}h2{{font-size:1.15rem;border-bottom:1px solid var(--line);margin:2rem 0 .6rem}}
h3{{font-size:1rem}}
h1,h2,h3,td,th,p,figcaption,li{{overflow-wrap:anywhere}}
nav{{position:sticky;top:0;background:var(--paper);padding:.4rem 0;border-bottom:1px solid var(--line);z-index:1}}
nav a{{margin-right:1rem;color:var(--ink)}}:focus-visible{{outline:2px solid var(--run0);outline-offset:2px}}
.charts{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem}}
figure{{margin:0;background:var(--panel);border-radius:6px;padding:.5rem}}figcaption{{font-weight:600}}
.plot{{position:relative}}.plot svg{{width:100%;height:auto;display:block}}
.plot i{{position:absolute;top:5%;bottom:17%;width:0;border-left:1px solid var(--ink);display:none}}
output{{display:block;min-height:1.5em;font-size:13px;white-space:pre-wrap;font-variant-numeric:tabular-nums}}
.pictures{{display:flex;flex-wrap:wrap;gap:1rem;margin-bottom:1rem}}.pictures figure{{max-width:100%;box-sizing:border-box}}
.pictures img{{max-width:100%;height:auto;image-rendering:pixelated;display:block}}
.pictures figcaption{{font:12px/1.3 system-ui,sans-serif;width:0;min-width:100%}}
.scroll{{overflow-x:auto}}table{{border-collapse:collapse;font-size:14px;margin:.5rem 0}}
td,th{{border:1px solid var(--line);padding:.15rem .5rem;text-align:right}}td:first-child,th:first-child{{text-align:left}}
.key{{display:inline-block;width:.9em;height:.9em;border-radius:3px;margin-right:.4em}}small{{color:var(--faint)}}
ul.runs{{list-style:none;padding:0}}
@media print{{:root{{{_variables("light", LIGHT)}}}nav,output,.keys{{display:none}}body{{font-size:10pt;max-width:none;padding:0}}
.charts{{grid-template-columns:1fr 1fr;gap:.6rem}}figure,tr,.charts>*{{break-inside:avoid}}h2,h3{{break-after:avoid}}
.scroll{{overflow:visible}}table{{font-size:9pt}}.key{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}}}"""
STYLE += "".join(f".key{number}{{background:var(--run{number})}}" for number in range(len(LIGHT)))

# A chart's data stand in the <script type="application/json"> behind it. AXIS: where the plot's axes begin and end, as in charts.
SCRIPT = """"use strict";
const AXIS = [0.12, 0.98];
for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot"), mark = plot.querySelector("i"), output = figure.querySelector("output");
  const steps = [...new Set(data.lines.flatMap((line) => line.step))].sort((a, b) => a - b);
  let at = steps.length - 1;
  const nearest = (list, step) => {
    let low = 0, high = list.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (list[middle] < step) low = middle; else high = middle; }
    return Math.abs(list[low] - step) <= Math.abs(list[high] - step) ? low : high;
  };
  const show = (place) => {
    at = Math.max(0, Math.min(steps.length - 1, place));
    const step = steps[at], share = (step - data.left) / (data.right - data.left);
    mark.style.left = 100 * (AXIS[0] + share * (AXIS[1] - AXIS[0])) + "%";
    mark.style.display = "block";
    const text = data.lines.map((line) => {
      const i = nearest(line.step, step), range = line.low[i] < line.high[i] ? ` (${line.low[i]} .. ${line.high[i]})` : "";
      return `${line.name}: ${line.mean[i]}${range}`;
    });
    output.textContent = `step ${Math.round(step).toLocaleString("en")}\\n` + text.join("\\n");
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width - AXIS[0]) / (AXIS[1] - AXIS[0]);
    show(nearest(steps, data.left + share * (data.right - data.left)));
  });
  figure.addEventListener("keydown", (event) => {
    const far = Math.max(1, Math.round(steps.length / 20));
    const move = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - far, PageDown: at + far, Home: 0, End: steps.length - 1 };
    if (event.key in move) { show(move[event.key]); event.preventDefault(); }
  });
  figure.addEventListener("focus", () => show(at));
}
"""


@dataclass(frozen=True)
class Section:
    """title: of the page's navigation too. body: HTML, whose text is escaped already."""

    title: str
    body: str


def page(title: str, lead: str, sections: Iterable[Section], refresh: float | None = None) -> str:
    """One HTML file. lead: HTML under the title. Sections without a body are left out. refresh: seconds after which a browser
    loads the file again."""
    shown = [section for section in sections if section.body]
    links = "".join(f'<a href="#s{number}">{html.escape(s.title)}</a>' for number, s in enumerate(shown))
    bodies = "".join(
        f'<section id="s{number}"><h2>{html.escape(s.title)}</h2>{s.body}</section>' for number, s in enumerate(shown)
    )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    again = f'<meta http-equiv="refresh" content="{max(1, round(refresh))}">' if refresh else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'{again}<link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><header><h1>{html.escape(title)}</h1>{lead}</header>"
        f'<nav aria-label="Sections">{links}</nav><main>{bodies}</main><script>{SCRIPT}</script></body></html>\n'
    )


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def table(shown: Table) -> str:
    return f'<div class="scroll" tabindex="0">{shown.html()}</div>' if shown.rows else ""


def picture(caption: str, frames: NDArray[np.uint8], milliseconds: int = 250) -> str:
    """frames: (H, W, 3), or (T, H, W, 3): an animation that loops. Lossless PNG or WebP."""
    from PIL import Image

    buffer, images = io.BytesIO(), [Image.fromarray(frame) for frame in (frames if frames.ndim == 4 else frames[None])]
    if len(images) == 1:
        kind = "png"
        images[0].save(buffer, "png", optimize=True)
    else:
        kind = "webp"
        images[0].save(
            buffer, "webp", save_all=True, append_images=images[1:], duration=milliseconds, loop=0, quality=80
        )
    text = html.escape(caption, quote=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = frames.shape[-3:-1]
    times = max(1, LEAST_SIDE // min(height, width))
    size = f'width="{times * width}" height="{times * height}"'
    return f'<figure><img alt="{text}" {size} src="data:image/{kind};base64,{data}"><figcaption>{text}</figcaption></figure>'
