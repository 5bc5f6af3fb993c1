"""The page of a report: sections of HTML, put together into one file."""

from __future__ import annotations

import collections
import html
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fljax.experiment import as_flags, running
from fljax.experiment.comparing import summary
from fljax.experiment.pictures import styles
from fljax.experiment.report import charts, found, tables, verdict
from fljax.runtime import durable

_STYLE = pathlib.Path(__file__).with_name("style.css")
_ALERTS = 60  # that are listed; the rest is counted
_DASHES = {"-": "", "--": "6 3", "-.": "6 2 1 2", ":": "1.5 2.5"}


def write(
    folders: Iterable[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    command: str = "",
) -> None:
    """Writes what came of runs as one page, which needs nothing beside itself.

    Args:
      folders: run folders, or folders with such below, also of runs under way.
      path: of the file.
      command: that made all of them, if there was one.

    Raises:
      ValueError: no run has finished a round.
      OSError: the file cannot be written.
    """
    folders = [os.path.abspath(folder) for folder in folders]
    runs = found.runs(folders)
    settings = found.settings(runs)
    title = f"Report of {pathlib.Path(os.path.commonpath(folders)).name or 'runs'}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _about(runs),
        *(_setting(setting) for setting in settings),
        *([] if settings else ["<p>No run was evaluated yet.</p>"]),
        _alerts(runs),
        _differences(settings),
        _environment(runs),
        _commands(settings, command),
    ]
    durable.replace(pathlib.Path(path), _page(title, "\n".join(body)).encode())


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE.read_text()}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _about(runs: Sequence[found.Run]) -> str:
    """Says in a line what was trained, as far as it is the same everywhere."""
    said = [f"{len(runs)} run{'s' * (len(runs) != 1)}"]
    forms = {
        "network": "{}",
        "dataset": "on {}",
        "partition": "split {}",
        "num_clients": "{} clients",
        "clients_per_round": "{} a round",
        "rounds": "{} rounds",
    }
    for name, form in forms.items():
        values = {str(run.described.config.get(name)) for run in runs}
        if len(values) == 1 and (value := values.pop()) != "None":
            said.append(form.format(value))
    return f'<p class="soft">{html.escape(", ".join(said))}</p>'


def _setting(setting: found.Setting) -> str:
    """Lays out a setting: verdict, tables, curves."""
    figures = summary.summarize(setting.records, measure=setting.measure)
    said = verdict.sentences(setting, figures)
    order = verdict.ranked(setting, figures)
    looks = charts.looks(order)
    parts = [f"<h2>{html.escape(setting.name)}</h2>"] if setting.name else []
    sentences = "".join(f"<p>{html.escape(line)}</p>" for line in said)
    parts.append(f'<div class="verdict">{sentences}</div>')
    parts.append(tables.results(setting, figures))
    parts.append("<h3>Curves</h3>")
    parts.append(_legend(looks))
    parts.append(_charts(setting, charts.panels(setting), looks))
    if of_tiers := charts.tiers(setting):
        parts.append(
            f"<h3>Tiers of devices: test {setting.measure.title} on their own test "
            f"examples</h3>"
        )
        parts += [tables.tiers(setting, order), _legend(looks)]
        parts.append(_charts(setting, of_tiers, looks))
    parts += ["<h3>Costs</h3>", tables.costs({name: figures[name] for name in order})]
    return "\n".join(parts)


def _charts(
    setting: found.Setting,
    panels: Sequence[charts.Panel],
    looks: Mapping[str, styles.Style],
) -> str:
    drawn = [(panel, charts.draw(setting, panel, looks)) for panel in panels]
    made = (
        f"<figure><figcaption>{html.escape(panel.title)} by {panel.x}</figcaption>"
        f"{svg}</figure>"
        for panel, svg in drawn
        if svg
    )
    return f'<div class="charts">{"".join(made)}</div>'


def _legend(looks: Mapping[str, styles.Style]) -> str:
    shown = {name: look for name, look in looks.items() if look != charts.OTHERS}
    if left := len(looks) - len(shown):
        shown[f"{left} others"] = charts.OTHERS
    items = [
        f'<li><svg viewBox="0 0 36 12" aria-hidden="true"><line x1="1" y1="6" x2="35" '
        f'y2="6" stroke="{charts.variable(look)}" stroke-width="2.5" '
        f'stroke-dasharray="{_DASHES[look.line]}"/></svg>{html.escape(name)}</li>'
        for name, look in shown.items()
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _alerts(runs: Sequence[found.Run]) -> str:
    rows = []
    counts: collections.Counter[str] = collections.Counter()
    for run in runs:
        for alert in run.alerts:
            kind = str(alert.get("kind", ""))
            counts[kind] += 1
            rows.append((_place(run, runs), kind, str(alert.get("message", ""))))
    if not rows:
        return "<h2>Alerts</h2><p>None: no rollback, refused update or early end.</p>"
    total = ", ".join(f"{count} x {kind}" for kind, count in counts.most_common())
    more = len(rows) - _ALERTS
    left = f'<p class="note">{more} more are not listed.</p>' if more > 0 else ""
    body = tables.rows(("run", "kind", "message"), rows[:_ALERTS])
    return f"<h2>Alerts</h2><p>{html.escape(total)}</p>{body}{left}"


def _place(run: found.Run, runs: Sequence[found.Run]) -> str:
    common = os.path.commonpath([one.folder.parent for one in runs])
    return run.folder.relative_to(common).as_posix()


def _differences(settings: Sequence[found.Setting]) -> str:
    """Lists the fields in which the configurations differ, a column a variant."""
    parts = ["<h2>What differs between the configurations</h2>"]
    for setting in settings:
        first = {name: runs[0] for name, runs in setting.variants.items()}
        differing = found.differences(first)
        if setting.name:
            parts.append(f"<h3>{html.escape(setting.name)}</h3>")
        if not differing:
            parts.append("<p>Nothing but the seed.</p>")
            continue
        lines = [[f"--{name}", *map(_value, row)] for name, row in differing.items()]
        if len(first) > len(lines):  # a row a variant is easier to read
            titles, lines = (
                ["variant", *(line[0] for line in lines)],
                [
                    [name, *(line[place + 1] for line in lines)]
                    for place, name in enumerate(first)
                ],
            )
        else:
            titles = ["flag", *first]
        parts.append(tables.rows(titles, lines))
    if len(settings) > 1:
        shared = {s.name or "-": next(iter(s.variants.values()))[0] for s in settings}
        between = found.differences(shared)
        lines = [[f"--{name}", *map(_value, row)] for name, row in between.items()]
        parts.append("<h3>Between settings, of their first variants</h3>")
        parts.append(tables.rows(["flag", *shared], lines))
    return "\n".join(parts)


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    return str(value) if value != "" else "none"


def _environment(runs: Sequence[found.Run]) -> str:
    names = dict.fromkeys(n for run in runs for n in run.described.environment)
    lines = []
    for name in names:
        values = dict.fromkeys(
            str(run.described.environment.get(name, "unknown")) for run in runs
        )
        shown = (value[:12] if name == "source" else value for value in values)
        lines.append((name, "; ".join(shown)))
    note = (
        '<p class="note">Several values: runs of several environments, which may '
        "differ in last bits.</p>"
    )
    several = any("; " in value for _, value in lines)
    return f"<h2>Environment</h2>{tables.rows(('', ''), lines)}{note * several}"


def _commands(settings: Sequence[found.Setting], command: str) -> str:
    parts = ["<h2>Commands to repeat it</h2>"]
    if command:
        parts.append(
            f"<pre>{html.escape(command)}</pre><p>makes all of it. Run by run:</p>"
        )
    for setting in settings:
        for name, runs in setting.variants.items():
            lines = "\n".join(map(_repeated, runs))
            label = f"{setting.name}: {name}" if setting.name else name
            opened = "" if command or len(setting.variants) > 8 else " open"
            parts.append(
                f"<details{opened}><summary>{html.escape(label)}</summary>"
                f"<pre>{html.escape(lines)}</pre></details>"
            )
    return "\n".join(parts)


def _repeated(run: found.Run) -> str:
    given = [
        f"{name}: {value}"
        for name, value in run.described.config.items()
        if isinstance(value, str) and "(given in Python)" in value
    ]
    if given:
        return f"# with {'; '.join(given)}"
    try:
        settings = running.read_settings(run.folder)
        return as_flags.of_folder(settings, os.path.relpath(run.folder))
    except ValueError as error:
        return f"# no flags say it: {' '.join(str(error).split())}"
