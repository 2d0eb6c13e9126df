"""The engine: the only code that touches volume data; it needs no broker and no bean."""
