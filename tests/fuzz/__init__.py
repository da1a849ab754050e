"""Fuzzing: payloads, images and URLs, mutated with their structure in mind. `python -m tests.fuzz --help`."""
