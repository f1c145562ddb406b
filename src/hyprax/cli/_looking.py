"""Looking at runs: one as it goes, several beside each other, the weights of a model as a table."""

import csv
import http.server
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from ..recipes import Model, RecipeError
from ..report._page import render
from ..runs import Record, RunError, read

LOOPBACK = "127.0.0.1"
SECONDS = 3


def compared(folders: Sequence[Path]) -> tuple[list[dict[str, str]], list[str]]:
    """A row of texts for each run, and what stands in the way of comparing them, in sentences."""
    records = [read(folder) for folder in folders]
    rows = [_row(record) for record in records]
    first = records[0]
    said = []
    for record in records[1:]:
        of = [part for part in ("data", "split") if record.config.get(part) != first.config.get(part)]
        if of:
            said.append(f"{record.folder}: not of the same rows as {first.folder} ({' and '.join(of)} differ).")
        if record.summary.get("value_name") != first.summary.get("value_name"):
            said.append(f"{record.folder}: its value is another quantity than that of {first.folder}.")
    return rows, said


def _row(record: Record) -> dict[str, str]:
    summary = record.summary
    judged = summary["tables"][0]["rows"][-1] if "gain" in summary and summary.get("tables") else {}
    best = summary.get("best_value", math.nan)
    return {
        "": str(record.folder),
        "state": str(summary.get("result", "not finished")),
        "steps": str(len(record.history)),
        "best value": "–" if math.isnan(best) else f"{best:.6g}",
        "value of": str(summary.get("value_name", "–")),
        "test loss": judged.get("test loss", "–"),
        "gain over the single penalty": judged.get("gain over the single penalty", "–"),
    }


def weights_as_csv(model: Model) -> str:
    """The weights in the units of the table: output = intercept + Σ weight · value, a column for each class.

    **Raises:** `RecipeError` for a model with squares or products.
    """
    if model.prepare.expand != "none":
        raise RecipeError(
            f'must be "none" for weights in the units of the table; got "{model.prepare.expand}" (hyprax predict takes '
            "every model)",
            key="data.expand",
        )
    weights, intercept = model.in_units()
    names = model.features[: len(weights)]
    several = weights.ndim == 2
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["column", *(model.classes if several else ["weight"])])
    for name, row in [("intercept", intercept), *zip(names, weights, strict=True)]:
        writer.writerow([name, *(repr(float(x)) for x in (row if several else [row]))])
    return stream.getvalue()


def serve(folder: Path, port: int, say: Callable[[str], None]) -> None:
    """Serve the report of a run on the loopback, made anew at each request, until interrupted.

    **Raises:** `RunError` for a folder without a run, `OSError` for a port in use.
    """
    read(folder)

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/":
                self.send_error(404)
                return
            try:
                body, status = render(read(folder), refresh=SECONDS).encode(), 200
            except RunError as error:
                body, status = str(error).encode(), 500
            self.send_response(status)
            self.send_header("Content-Type", f"text/{'html' if status == 200 else 'plain'}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is said of each request."""

    with http.server.ThreadingHTTPServer((LOOPBACK, port), Page) as server:
        say(f"http://{LOOPBACK}:{server.server_address[1]}/ shows {folder}; Ctrl-C ends")
        server.serve_forever()
