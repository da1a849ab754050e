"""What `run` does, its modules in the order in which things happen."""
