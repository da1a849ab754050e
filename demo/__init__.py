"""The demonstration: everything the service needs, on one machine, without a cluster."""
