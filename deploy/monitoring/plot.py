"""Draw the time series of dashboard.json from Prometheus as a PNG, without Grafana.

python deploy/monitoring/plot.py [--prometheus http://127.0.0.1:9090] [--minutes 5] [--window 1m] [--output FILE.png]

Panels without data are left out. In panels with more than MOST_CURVES curves, those that are always 0 are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

DASHBOARD = Path(__file__).parents[1] / "helm" / "deeplab-triton" / "monitoring" / "dashboard.json"
UNITS = {
    "s": "seconds (lower is better)",
    "reqps": "per second",
    "percentunit": "share (0 to 1)",
    "watt": "watts",
    "none": "number",
}
COLUMNS = 2
POINTS = 300
MOST_CURVES = 8


def filled(expression: str, *, dashboard: dict[str, Any], window: str) -> str:
    """Return a query with the default values of Grafana's variables."""
    text = expression.replace("$__rate_interval", window)
    for variable in dashboard["templating"]["list"]:
        text = text.replace(f"${variable['name']}", variable.get("allValue", ""))
    return text


def history(prometheus: str, query: str, *, begin: float, end: float) -> list[dict[str, Any]]:
    """Return the series of a query between two times in seconds since 1970."""
    arguments = {"query": query, "start": begin, "end": end, "step": max(1.0, (end - begin) / POINTS)}
    url = f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(arguments)}"
    with urllib.request.urlopen(url, timeout=30) as reply:  # noqa: S310 - the URL comes from the user
        return json.load(reply)["data"]["result"]


def label(series: dict[str, Any], legend: str) -> str:
    """Return a legend with the labels of a series."""
    for name in ("model", "reason", "pod", "instance", "gpu_uuid"):
        legend = legend.replace("{{" + name + "}}", series["metric"].get(name, ""))
    return legend.strip()


def curves(
    panel: dict[str, Any], prometheus: str, *, dashboard: dict[str, Any], window: str, begin: float, end: float
) -> list[tuple[str, list[float], list[float]]]:
    """Return name, seconds since `begin` and values of every curve of a panel that is not only NaN."""
    found: list[tuple[str, list[float], list[float]]] = []
    for target in panel["targets"]:
        query = filled(target["expr"], dashboard=dashboard, window=window)
        for series in history(prometheus, query, begin=begin, end=end):
            seconds = [float(at) - begin for at, _ in series["values"]]
            values = [float(value) for _, value in series["values"]]
            if not all(map(math.isnan, values)):
                found.append((label(series, target["legendFormat"]), seconds, values))
    if len(found) > MOST_CURVES:
        return [curve for curve in found if any(curve[2])] or found[:1]
    return found


def main() -> None:
    """Read the command line, ask Prometheus, write the picture."""
    parser = argparse.ArgumentParser(description="Draw the dashboard's time series from Prometheus as a PNG.")
    parser.add_argument(
        "--prometheus", default="http://127.0.0.1:9090", metavar="URL", help="URL of Prometheus (default: %(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="length of the period that ends now (default: %(default)s)"
    )
    parser.add_argument(
        "--window",
        default="1m",
        help="window of rates, at least four scrape intervals; recorded rates keep theirs (default: %(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("out/monitoring.png"), metavar="FILE", help="PNG (default: %(default)s)"
    )
    options = parser.parse_args()
    dashboard = json.loads(DASHBOARD.read_text())
    end = time.time()
    begin = end - options.minutes * 60
    url, window = options.prometheus, options.window
    try:
        drawn = [
            (panel, found)
            for panel in dashboard["panels"]
            if panel["type"] == "timeseries"
            and (found := curves(panel, url, dashboard=dashboard, window=window, begin=begin, end=end))
        ]
    except (urllib.error.URLError, ValueError) as error:
        parser.exit(1, f"{url} does not answer like Prometheus: {error}\n")
    if not drawn:
        parser.exit(
            1, f"{url} has no data for the last {options.minutes:g} minutes; check that it scrapes the server\n"
        )
    mpl.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    rows = math.ceil(len(drawn) / COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(10, 3 * rows), layout="constrained", squeeze=False)
    figure.suptitle(f"{dashboard['title']}: the last {options.minutes:g} minutes", fontsize=14)
    for axis, (panel, found) in zip(axes.flat, drawn, strict=False):
        for name, seconds, values in found:
            axis.plot(seconds, values, linewidth=1.5, label=name)
        axis.set_title(textwrap.fill(panel["title"], 42), loc="left", fontweight="bold", fontsize=11)
        axis.set_ylabel(UNITS[panel["fieldConfig"]["defaults"]["unit"]])
        axis.set_xlabel("time in seconds")
        axis.set_xlim(0, end - begin)
        axis.set_ylim(bottom=0)
        # Below the axis and its label, so that it covers no curve.
        axis.legend(fontsize=9, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.5)
    for axis in list(axes.flat)[len(drawn) :]:
        axis.remove()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=130)


if __name__ == "__main__":
    main()
