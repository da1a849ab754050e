"""Flags that several commands share."""

from __future__ import annotations

import argparse
from dataclasses import fields

from runner.settings import Settings

_LONGEST_SECONDS = 1_000_000  # a socket's timeout is at most 24 days


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting that has one."""
    for item in fields(Settings):
        about = item.metadata
        if about["flag"]:
            shown = f" (default: {about['default']})" if about["default"] else ""
            parser.add_argument(
                about["flag"], dest=item.name, metavar="VALUE", help=f"{about['help']} [{about['env']}]{shown}"
            )


def setting_flags(args: argparse.Namespace) -> dict[str, str | None]:
    """Return the values of the flags of `add_setting_flags`, as `settings.load` takes them."""
    return {item.name: getattr(args, item.name, None) for item in fields(Settings) if item.metadata["flag"]}


def add_cluster_flags(
    parser: argparse.ArgumentParser, *, release: str, default_context: str = "its current context"
) -> None:
    """Add the flags that choose cluster, namespace and release; `release` is the help of the last."""
    parser.add_argument("--context", help=f"context of the kubeconfig (default: {default_context})")
    parser.add_argument(
        "-n", "--namespace", help="namespace in which the chart is installed (default: that of the context)"
    )
    parser.add_argument("--release", help=release)


def add_job_flags(parser: argparse.ArgumentParser, *, timeout_seconds: float) -> None:
    """Add the flags of a Job in the cluster that is followed to its end."""
    parser.add_argument(
        "--template", metavar="FILE", help="YAML with the CronJob to use instead of the installed one; - reads it"
    )
    parser.add_argument("--keep", action="store_true", help="do not delete the Job when it has finished")
    parser.add_argument(
        "--timeout",
        type=positive_seconds,
        default=timeout_seconds,
        metavar="SECONDS",
        help="fail if the Job has not finished after this time (default: %(default)g)",
    )
    add_cluster_flags(parser, release="Helm release whose CronJob is used (default: the only one in the namespace)")


def positive_number(text: str, what: str = "number") -> float:
    """Return a number above 0, or raise `ArgumentTypeError`."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a {what} greater than 0 (got {text!r})")
    return value


def positive_seconds(text: str) -> float:
    """Return a number of seconds above 0, up to a million, or raise `ArgumentTypeError`."""
    seconds = positive_number(text, "number of seconds")
    if seconds > _LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"must be at most {_LONGEST_SECONDS} seconds (got {text!r})")
    return seconds
