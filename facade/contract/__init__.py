"""The shared vocabulary: names, errors, events, settings, data services. Pure data, no I/O."""
