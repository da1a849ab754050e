"""Metrics and a status page, served from the data in Redis; needs the extra `metrics`."""
