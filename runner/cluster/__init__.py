"""What the command line needs of Kubernetes, and of the lists in Redis, for `status`, `debug` and `inspect`."""
