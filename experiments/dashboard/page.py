"""The live page: what is on it, and what of it changes when files have grown."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import dash
from dash import ALL, Input, Output, State, dcc, html

from experiments.dashboard import figures, table, watch
from fljax.experiment.pictures import overlay
from fljax.runs import status

_HEIGHT = 270  # pixels of a panel
_ALERTS = 6  # that are shown at once
_AXES = {"round": "rounds", "clock": "devices' clock"}
_SEEDS = {"band": "as a band", "each": "each"}
_GRAPH: Any = {
    "displaylogo": False,
    "displayModeBar": "hover",
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}

# The colors of a page that is dark are asked for where it is shown.
_DARK = """(tick, was) => {
  const dark = window.matchMedia('(prefers-color-scheme: dark)').matches;
  return dark === was ? window.dash_clientside.no_update : dark;
}"""

# Parts of the page: name -> component and property.
_PARTS = {
    "summary": ("summary", "children"),
    "alerts": ("alerts", "children"),
    "filters": ("filters", "options"),
    "names": ("names", "options"),
    "legend": ("legend", "children"),
    "head": ("head", "children"),
    "body": ("body", "children"),
    "same": ("same", "children"),
}


def make(found: watch.Watch, seconds: float, where: str) -> dash.Dash:
    """Makes the page.

    Args:
      found: the run folders.
      seconds: between looks at them.
      where: they are, in words.

    Returns:
      The app, whose `server` answers requests.
    """
    app = dash.Dash(
        "fljax", title="fljax runs", update_title="", assets_folder=_assets()
    )
    app.layout = _layout(seconds, where)
    dark = Output("dark", "data"), Input("tick", "n_intervals"), State("dark", "data")
    app.clientside_callback(_DARK, *dark)
    outputs = {name: Output(*part) for name, part in _PARTS.items()}
    app.callback(
        output={
            **outputs,
            "shown": Output("shown", "data"),
            "figures": [Output(f"graph-{n}", "figure") for n in figures.NAMES],
            "panels": [Output(f"panel-{n}", "hidden") for n in figures.NAMES],
        },
        inputs={
            "tick": Input("tick", "n_intervals"),
            "dark": Input("dark", "data"),
            "filters": Input("filters", "value"),
            "names": Input("names", "value"),
            "axis": Input("axis", "value"),
            "seeds": Input("seeds", "value"),
            "order": Input("order", "data"),
            "shown": State("shown", "data"),
        },
        # A tick while another is answered would have its answer dropped.
        running=[(Output("tick", "disabled"), True, False)],
    )(lambda **asked: refreshed(found.board(), asked, where))
    app.callback(
        Output("order", "data"),
        Input({"column": ALL}, "n_clicks"),
        State("order", "data"),
        prevent_initial_call=True,
    )(_ordered)
    return app


def _assets() -> str:
    return str(pathlib.Path(__file__).parent / "assets")


def _layout(seconds: float, where: str) -> html.Main:
    graphs = [
        html.Div(
            dcc.Graph(id=f"graph-{name}", config=_GRAPH, style={"height": _HEIGHT}),
            id=f"panel-{name}",
            className="panel",
            hidden=True,
        )
        for name in figures.NAMES
    ]
    return html.Main(
        [
            dcc.Interval(id="tick", interval=1000 * seconds),
            dcc.Store(id="dark"),
            dcc.Store(id="shown", data={}),
            dcc.Store(id="order", data=[0, False]),
            html.Header(
                [html.H1(["fljax ", html.Small(where)]), html.Div(id="summary")]
            ),
            html.Section(id="alerts"),
            html.Section(
                [
                    _labelled(
                        "filter", _menu("filters", "any setting, such as lr = 0.1")
                    ),
                    _labelled("curves", _menu("names", "the newest")),
                    _labelled("over", _choice("axis", _AXES)),
                    _labelled("seeds", _choice("seeds", _SEEDS)),
                ],
                id="controls",
            ),
            html.Div(id="legend"),
            html.Section(graphs, id="graphs"),
            html.Section(
                html.Table([html.Thead(id="head"), html.Tbody(id="body")]), id="runs"
            ),
            html.Div(id="same"),
        ]
    )


def _labelled(text: str, control: Any) -> html.Div:
    return html.Div([html.Span(text, className="label"), control], className="control")


def _menu(name: str, hint: str) -> dcc.Dropdown:
    return dcc.Dropdown(id=name, multi=True, value=[], options=[], placeholder=hint)


def _choice(name: str, options: Mapping[str, str]) -> dcc.RadioItems:
    return dcc.RadioItems(dict(options), next(iter(options)), id=name, inline=True)


def _ordered(clicks: Sequence[int | None], order: Sequence[Any]) -> Any:
    """Sorts by the column that was clicked; again: the other way round."""
    if not any(clicks):  # the columns themselves have changed
        return dash.no_update
    column = dash.ctx.triggered_id["column"]
    return [column, not order[1] if order[0] == column else False]


def refreshed(
    board: watch.Board, asked: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Gives what of the page is to change.

    Args:
      board: the runs.
      asked: values of the page's controls, and `shown`: digests of what it shows.
      where: the runs are looked for, in words.

    Returns:
      New values by part, `dash.no_update` of what stays.
    """
    before = asked["shown"] or {}
    stands = [(run.status.name, table.left(run)) for run in board.runs.values()]
    whole = _digest([board.revision, *_asked(asked), asked["order"], stands])
    count = len(figures.NAMES)
    same: dict[str, Any] = dict.fromkeys([*_PARTS, "shown"], dash.no_update)
    same |= {"figures": [dash.no_update] * count, "panels": [dash.no_update] * count}
    if whole == before.get("whole"):
        return same
    runs = table.chosen(board.runs, asked["filters"] or ())
    laid = table.lay_out(runs.values(), *asked["order"])
    together = asked["seeds"] == "band"
    groups = table.grouped(runs, together, asked["names"] or ())
    looks = figures.looks(list(groups), bool(asked["dark"]))
    parts = {
        "summary": _summary(board, len(runs), where),
        "alerts": _alerts(table.alerts(runs.values())),
        "filters": table.choices(board.runs.values()),
        "names": sorted(
            overlay.groups({name: run.settings for name, run in runs.items()})
            if together
            else runs
        ),
        "legend": _legend(groups, looks),
        "head": _head(laid, asked["order"]),
        "body": _body(laid, groups, looks),
        "same": _same(laid, len(runs)),
    }
    digests = {name: _digest(part) for name, part in parts.items()}
    digests["whole"] = whole
    digests["figures"] = _digest([board.revision, *_asked(asked), list(groups)])
    new = {n: part for n, part in parts.items() if digests[n] != before.get(n)}
    result = same | new | {"shown": digests}
    if digests["figures"] != before.get("figures"):
        theme = figures.DARK if asked["dark"] else figures.LIGHT
        drawn = figures.draw(figures.Page(groups, looks, asked["axis"], theme))
        made = [drawn[name] for name in figures.NAMES]
        result["figures"] = [figure or dash.no_update for figure in made]
        result["panels"] = [figure is None for figure in made]
    return result


def _asked(asked: Mapping[str, Any]) -> list[Any]:
    return [asked[name] for name in ("dark", "filters", "names", "axis", "seeds")]


def _digest(part: Any) -> str:
    text = json.dumps(part, default=_plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(component: Any) -> Any:
    return component.to_plotly_json()


def _summary(board: watch.Board, shown: int, where: str) -> list[Any]:
    """Says how many runs there are, and how they stand."""
    names = [run.status.name for run in board.runs.values()]
    if not names:
        return [html.Span(f"no run folder below {where} yet", className="quiet")]
    chips = [
        html.Span([_dot(name), f"{names.count(name)} {name}"], className="chip")
        for name in status.NAMES
        if name in names
    ]
    if board.waiting:
        chips.append(html.Span(f"reading {board.waiting} more", className="quiet"))
    if shown < len(names):
        chips.append(html.Span(f"{shown} of {len(names)} pass", className="quiet"))
    return chips


def _dot(kind: str) -> html.Span:
    return html.Span(className=f"dot {kind}")


def _alerts(lines: Sequence[table.Line]) -> list[Any]:
    """Shows the gravest alerts, and the others on demand."""
    items = [
        html.Li(
            [
                _dot(line.kind),
                html.B(line.kind),
                html.Small(f" {line.times} times" if line.times > 1 else ""),
                html.Span(line.run, className="run"),
                html.Span(line.message),
            ]
        )
        for line in lines
    ]
    if not items:
        return []
    more = len(items) - _ALERTS
    rest = [html.Summary(f"{more} more"), html.Ul(items[_ALERTS:])]
    return [html.Ul(items[:_ALERTS]), *([html.Details(rest)] if more > 0 else [])]


def _legend(
    groups: figures.Groups, looks: Mapping[str, figures.Look]
) -> list[html.Span]:
    return [
        html.Span(
            [
                _swatch(looks[name]),
                name,
                html.Small(f" {len(runs)} seeds") if len(runs) > 1 else None,
            ],
            className="key",
        )
        for name, runs in groups.items()
    ]


def _swatch(look: figures.Look) -> html.Span:
    line = {"solid": "solid", "dot": "dotted"}.get(look.dash, "dashed")
    style = {"borderTop": f"3px {line} {look.color}"}
    return html.Span(className="swatch", style=style)


def _head(laid: table.Table, order: Sequence[Any]) -> html.Tr:
    """Titles of columns, each a button that sorts by it."""
    arrows = {order[0]: " ▾" if order[1] else " ▴"}
    return html.Tr(
        [
            html.Th(html.Button(title + arrows.get(i, ""), id={"column": i}))
            for i, title in enumerate(laid.titles)
        ]
    )


def _body(
    laid: table.Table, groups: figures.Groups, looks: Mapping[str, figures.Look]
) -> list[html.Tr]:
    drawn = {run.name: looks[name] for name, runs in groups.items() for run in runs}
    rows = [
        html.Tr(
            [
                html.Td(
                    [_swatch(drawn[row.name]) if row.name in drawn else None, row.name]
                ),
                html.Td([_dot(row.status), row.status]),
                html.Td([_bar(row), row.cells[0]]),
                *(html.Td(cell) for cell in row.cells[1:]),
            ]
        )
        for row in laid.rows
    ]
    if laid.left_out:
        note = f"and {laid.left_out} more: filter for them"
        rows.append(html.Tr(html.Td(note, colSpan=len(laid.titles), className="quiet")))
    return rows


def _bar(row: table.Row) -> html.Span:
    width = {"width": f"{100 * row.share:.1f}%"}
    return html.Span(html.Span(style=width, className=row.status), className="bar")


def _same(laid: table.Table, count: int) -> Any:
    """Lists the settings that do not differ."""
    if not laid.same:
        return None
    of = "all of these runs" if count > 1 else "this run"
    pairs = [html.Code(f"{name}={value}") for name, value in laid.same]
    return html.Details([html.Summary(f"settings of {of}"), html.Div(pairs)])
