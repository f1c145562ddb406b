"""A page as a browser sees it: nothing on its console, nothing asked of the network, and one that draws."""

import html.parser
import re
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from hyprax import report
from hyprax.cli import main

REFERENCES = {"src", "href", "xlink:href", "srcset", "poster", "action", "data", "background"}
pytestmark = pytest.mark.slow
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Outside(html.parser.HTMLParser):
    """What a page refers to beyond itself."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        self.found += [
            (tag, key, to) for key, to in attrs if key in REFERENCES and not (to or "").startswith(("#", "data:image/"))
        ]
        self.found += [(tag, key, to) for key, to in attrs if key.startswith("on") or tag == "script"]


def alone(page: str) -> None:
    parser = Outside()
    parser.feed(page)
    assert parser.found == []
    assert re.search(r"@import|url\((?!#|\"#|'#)", page) is None


def run(folder: Path) -> Path:
    def inner(w, hyper, data):
        return 0.5 * jnp.sum((w - 1) ** 2) + 0.5 * jnp.sum(hyper["scale"] * w**2)

    objective = hx.ImplicitObjective(hx.Optimum(inner, jnp.zeros(4)), lambda w, hyper, data: jnp.sum((w - 0.5) ** 2))
    config = {"<img src=x onerror=alert(1)>": "</script><script>console.error('no')</script>"}
    hx.tune(objective, {"scale": hx.Positive(np.full(4, 0.3))}, steps=3, run=hx.Run(folder, config=config))
    return folder


def looked_at(page: Path, *settings: str) -> tuple[str, str]:
    """What stands in the page when it is drawn, and what the browser says meanwhile."""
    if BROWSER is None:
        pytest.skip("no Chromium to look with")
    asked = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--enable-logging=stderr",
        "--virtual-time-budget=3000",
    ]
    done = subprocess.run(
        [BROWSER, *asked, *settings, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout, done.stderr


def test_a_page_refers_to_nothing_outside(tmp_path):
    alone(report.write(run(tmp_path / "run"), tmp_path / "page.html").read_text())


def test_a_browser_has_nothing_to_say_of_a_page_and_asks_for_nothing(tmp_path):
    page = report.write(run(tmp_path / "run"), tmp_path / "page.html")
    drawn, said = looked_at(page, "--dump-dom", f"--log-net-log={tmp_path / 'net.json'}")
    assert "CONSOLE" not in said
    assert drawn.count("<svg") == page.read_text().count("<svg") > 0
    alone(drawn)
    asked = re.findall(r'"url":"((?:https?|ftp|wss?)://[^"]*)"', (tmp_path / "net.json").read_text())
    own = ("google", "gstatic", "gvt1", "chromium")  # what the browser itself asks for when it starts
    assert [url for url in asked if not any(name in url for name in own)] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_drawn_in_the_colours_of_its_reader(tmp_path, scheme):
    from matplotlib.image import imread

    page = report.write(run(tmp_path / "run"), tmp_path / "page.html")
    picture = tmp_path / "page.png"
    preferred = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    looked_at(page, preferred, "--hide-scrollbars", "--window-size=900,2400", f"--screenshot={picture}")
    pixels = np.asarray(imread(picture))[..., :3]
    assert (pixels[0, 0].mean() < 0.2) == (scheme == "dark")
    figures = pixels[800:2000]
    assert len(np.unique((figures.reshape(-1, 3) * 16).astype(int), axis=0)) > 10  # curves and letters, not blanks


def test_the_page_of_a_command_line_run_is_alone_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = [
        f"{x:.3f},{kind},{'Yes' if x > 0 else 'No'}" for x, kind in zip(rng.normal(size=60), "ab" * 30, strict=True)
    ]
    Path("t.csv").write_text("\n".join(["size,kind <b>,bought", *rows]))
    with pytest.raises(SystemExit) as ended:
        main(["tune", "t.csv", "--target", "bought", "--out", "run", "--set", "search.steps=2"])
    assert ended.value.code == 0
    page = tmp_path / "run" / "report.html"
    alone(page.read_text())
    assert "CONSOLE" not in looked_at(page, "--dump-dom")[1]
