"""Programs for the people who work on the project: generators, policy scan, image base. Not in the wheel."""
