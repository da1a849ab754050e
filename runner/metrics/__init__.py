"""Metrics and a page for people, served from what Redis holds; needs the extra `metrics`."""
