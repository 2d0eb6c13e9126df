"""Each figure against its peer, in one run."""
