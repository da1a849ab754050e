"""Redis: the leased lists that jobs are taken from."""
