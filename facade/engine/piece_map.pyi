class PieceMap:
    size_bytes: int
    wanted_ever: int
    def __init__(self, size_bytes: int) -> None: ...
