"""Each prints a table beside a peer, in one run."""
