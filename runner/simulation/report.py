"""The report of a simulation: one HTML page that loads nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

from runner.output import printable
from runner.simulation import plots
from runner.simulation.outcome import Criterion, Outcome

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(
    title: str,
    outcomes: Sequence[Outcome],
    chosen: Outcome,
    criterion: Criterion,
    *,
    rows: Sequence[Sequence[str]],
    assumptions: Mapping[str, str],
) -> str:
    """Return the page. `rows` is the table of all settings, its heading first."""
    style = (resources.files("runner") / "report.css").read_text(encoding="utf-8")
    shown = _text(title)
    several = len(outcomes) > 1
    return "\n".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            f"<meta http-equiv='Content-Security-Policy' content=\"{_POLICY}\">",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            f"<title>{shown}</title><style>{style}</style></head><body><main><h1>{shown}</h1>",
            _facts(chosen),
            f"<p>Recommended: {_text(criterion.value)}.</p>" if several else "",
            f"<h2>{'The recommended setting' if several else 'What happens'}</h2>{plots.timeline(chosen.example)}",
            f"<h2>Every setting: p95 over pod-seconds</h2>{plots.sweep(outcomes, chosen)}" if several else "",
            f"<h2>Settings</h2><div class='wide'><table>{_rows(rows, outcomes.index(chosen))}</table></div>",
            f"<h2>Assumptions</h2><div class='wide'><table>{_pairs(assumptions.items())}</table></div>",
            "</main></body></html>",
        ]
    )


def _text(text: str) -> str:
    return html.escape(printable(text))


def _facts(chosen: Outcome) -> str:
    setting = chosen.setting
    facts = {
        "jobsPerPod": f"{setting.jobs_per_pod}",
        "pollingInterval": f"{setting.polling_interval:g} s",
        "maxReplicas": f"{setting.max_replicas}",
        "median wait": f"{chosen.p50:.2f} s",
        "p95": f"{chosen.p95:.2f} s",
        "longest": f"{chosen.longest:.2f} s",
        "pod-seconds": f"{chosen.pod_seconds:,.0f}",
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f"<dl class='facts'>{items}</dl>"


def _rows(rows: Sequence[Sequence[str]], chosen: int) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr{' class=best' if number == chosen else ''}>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>"
        for number, row in enumerate(rows[1:])
    )
    return f"<tr>{head}</tr>{body}"


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<tr><th>{_text(name)}</th><td class='reason'>{_text(value)}</td></tr>" for name, value in pairs)
