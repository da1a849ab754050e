"""The steps of `canonical.quicken`: each takes a graph, and leaves one that computes the same in less time."""
