"""`make faults`: run all fault-injection campaigns in full, and write `fault-out/faults.json` and a table."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tests.faults.campaigns import Campaign, campaigns, disk_campaign, run, small_disk, summary_row
from tests.faults.pictures import kinds


def main() -> int:
    """Run the selected campaigns and return 0 if all of them pass."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="campaigns to run (default: all)")
    parser.add_argument("--out", type=Path, default=Path("fault-out"), help="output folder (default: fault-out)")
    parser.add_argument("--short", action="store_true", help="with the smaller numbers of jobs of `make test`")
    parser.add_argument("--list", action="store_true", help="list the campaigns and exit")
    args = parser.parse_args()
    with ExitStack() as stack:
        chosen = [*campaigns(), _on_disk(stack)]
        unknown = set(args.names) - {campaign.name for campaign in chosen}
        if unknown:
            parser.error(f"no such campaign: {', '.join(sorted(unknown))} (--list shows all)")
        if args.list:
            print("\n".join(f"{campaign.name:<36} {campaign.title}" for campaign in chosen))
            return 0
        chosen = [c for c in chosen if c.name in (args.names or {c.name}) and (c.short or not args.short)]
        return _run(chosen, args.out, short=args.short)


def _on_disk(stack: ExitStack) -> Campaign:
    return disk_campaign(stack.enter_context(small_disk(48)))


def _run(chosen: list[Campaign], out: Path, *, short: bool) -> int:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "faults.json"
    rows = json.loads(path.read_text("utf-8")) if path.exists() and not short else []
    rows = [row for row in rows if row["name"] not in {campaign.name for campaign in chosen}]
    pictures = kinds()
    failed = 0
    for campaign in chosen:
        print(f"{time.strftime('%H:%M:%S')}  {campaign.title} …", flush=True)
        verdict = run(campaign, pictures, short=short)
        rows.append(summary_row(campaign.name, campaign.title, verdict.counts, verdict.wrong))
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")
        failed += bool(verdict.wrong)
        injected = ", ".join(f"{count} {name}" for name, count in verdict.counts.get("faults", {}).items())
        print(f"          {'FAILED' if verdict.wrong else 'passed'}: {injected}; {verdict.counts}", flush=True)
        for violation in verdict.wrong[:8]:
            print(f"          - {violation}", flush=True)
    order = {campaign.name: number for number, campaign in enumerate(campaigns())}
    rows.sort(key=lambda row: order.get(row["name"], len(order)))
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (out / "faults.md").write_text(table(rows), "utf-8")
    print(f"{sum(row['passed'] for row in rows)} of {len(rows)} campaigns passed: {path}, {out / 'faults.md'}")
    return 1 if failed else 0


def table(rows: list[dict[str, object]]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| fault | jobs | runs | faults seen | exit codes | retried, released, lost | dead letters | passed |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:

        def count(name: str, row: dict[str, object] = row) -> int:
            value = row.get(name, 0)
            return value if isinstance(value, int) else 0

        def pairs(name: str, row: dict[str, object] = row) -> str:
            value = row.get(name)
            return ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else ""

        cells = [
            str(row["title"]),
            str(count("photos") + count("comparisons")),
            str(count("runs")),
            pairs("faults"),
            pairs("exits"),
            f"{count('retried')}, {count('released')}, {count('lost')}",
            pairs("dead letters"),
            "yes" if row["passed"] else "NO",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
