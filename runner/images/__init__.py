"""Images: fetching bytes over HTTP, and decoding them into pixels."""
