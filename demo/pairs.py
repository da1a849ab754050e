"""`python -m demo.pairs FOLDER`: the sample album as files, with a CSV of pairs for `spottmee-worker evaluate`."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from demo.album import Album, sample_album
from runner.bake.samples import sample_images


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m demo.pairs", description="Write the sample album as files.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder, which is created if necessary")
    folder = parser.parse_args().folder
    count = write_pairs(sample_album(sample_images()), folder)
    print(f"{count} pairs of photos: {folder / 'pairs.csv'}")


def write_pairs(album: Album, folder: Path) -> int:
    """Write photos, selfies and pairs.csv with every selfie beside every photo with faces; return their number."""
    photos = [photo for photo in album.photos if photo.people]
    for below, items in (("album", photos), ("selfies", album.selfies)):
        (folder / below).mkdir(parents=True, exist_ok=True)
        for item in items:
            (folder / below / item.name).write_bytes(item.data)
    rows = [
        (f"selfies/{selfie.name}", f"album/{photo.name}", int(selfie.person in (photo.people or ())))
        for selfie in album.selfies
        for photo in photos
    ]
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("first", "second", "same"), *rows])
    return len(rows)


if __name__ == "__main__":
    main()
