"""Programs for developers of the project: generators, policy scan, image base. Not part of the wheel."""
