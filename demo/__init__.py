"""The demonstration: the whole service on one machine, without a cluster."""
