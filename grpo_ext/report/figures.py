"""Panels as interactive figures of plotly."""

from collections.abc import Sequence
from html import escape
from typing import Any

from grpo_ext.report.panels import Panel, running_mean, series
from grpo_ext.report.pictures import COLOURS
from grpo_ext.report.reading import Run

GRID, TEXT = "#e6e8eb", "#5b6470"


def rounded(values: Sequence[float], digits: int = 5) -> list[float]:
    """Values with as many digits as a picture can show.

    Args:
        values: any.
        digits: significant ones.
    """
    return [float(f"{value:.{digits}g}") for value in values]


def _traces(run: Run, index: int, panel: Panel, alone: bool) -> list[Any]:
    from plotly import graph_objects

    scale = 100.0 if panel.unit == "%" else 1.0
    steps, values = series(run, panel.key)
    values = rounded([scale * value for value in values])
    colour, shown = COLOURS[index % len(COLOURS)], "%" if panel.unit == "%" else f" {escape(panel.unit)}"
    # Plotly reads tags in names and in what appears under the pointer
    common = {"x": rounded(steps), "name": escape(run.name), "legendgroup": str(index), "hoverinfo": "skip"}
    told = {
        "hoverinfo": "all",
        "hovertemplate": f"%{{y:.4g}}{shown}<extra>{'' if alone else escape(run.name)}</extra>",
    }
    found = []
    if panel.band is not None and alone:
        (_, low), (_, high) = series(run, panel.band[0]), series(run, panel.band[1])
        if len(low) == len(high) == len(values):
            edge: dict[str, Any] = {**common, "mode": "lines", "line": {"width": 0}}
            found.append(graph_objects.Scatter(y=rounded(low), **edge))
            found.append(graph_objects.Scatter(y=rounded(high), fill="tonexty", fillcolor=_pale(colour), **edge))
    smooth = panel.smooth and len(values) >= 20
    line = {"color": colour, "width": 1 if smooth else 1.8}
    mode = "lines+markers" if len(values) < 20 else "lines"
    drawn = {**common, **told, "mode": mode, "marker": {"size": 4}, "opacity": 0.35 if smooth else 1}
    found.append(graph_objects.Scatter(y=values, line=line, **drawn))
    if smooth:
        mean = rounded(running_mean(values))
        found.append(graph_objects.Scatter(y=mean, mode="lines", line={"color": colour, "width": 2.6}, **common))
    return found


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.12)"


def figure(runs: Sequence[Run], panel: Panel) -> dict[str, Any]:
    """One panel for plotly.js.

    Args:
        runs: a line each.
        panel: what is drawn.

    Returns:
        `data` and `layout`, ready for JSON.
    """
    from plotly import graph_objects

    made = graph_objects.Figure(
        [trace for index, run in enumerate(runs) for trace in _traces(run, index, panel, len(runs) == 1)]
    )
    axis = {"gridcolor": GRID, "zeroline": False, "linecolor": "#c9ced6", "ticks": "outside", "tickcolor": "#c9ced6"}
    made.update_layout(
        template="none",
        showlegend=False,
        hovermode="x unified",
        hoverlabel={"bgcolor": "white", "bordercolor": GRID},
        margin={"l": 58, "r": 10, "t": 8, "b": 40},
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12, "color": TEXT},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(255,255,255,0.8)", "color": "#9aa3ae", "activecolor": TEXT},
    )
    spike = {"spikecolor": "#9aa3ae", "spikethickness": 1, "spikedash": "solid"}
    made.update_xaxes(title={"text": "optimiser step", "standoff": 6}, showgrid=False, **axis, **spike)
    made.update_yaxes(
        title={"text": escape(panel.unit), "standoff": 6}, nticks=6, exponentformat="power", automargin=True, **axis
    )
    if panel.unit:
        made.update_yaxes(rangemode="tozero")
    if panel.unit == "%":
        top = max((value for run in runs for value in series(run, panel.key)[1]), default=0.0)
        made.update_yaxes(range=[0.0, max(1.0, 105.0 * top)])
    return made.to_plotly_json() | {"frames": []}
