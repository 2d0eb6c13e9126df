"""The lower tier: object model of the data services, and the engine that does the I/O."""
