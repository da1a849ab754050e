"""A release from one commit: packages, images, chart, SBOMs, provenance, checksums (docs/how-to/release.md)."""
