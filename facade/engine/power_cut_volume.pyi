from facade.engine.volume import Volume

EXIT_STATUS_POWER_CUT: int

class PowerSupply:
    volumes: list[PowerCutVolume]
    seed: int
    exits: bool
    def __init__(
        self, cut_at: int = 0, seed: int = 0, exits: bool = False, flush_delay_us: int = 0
    ) -> None: ...
    @property
    def changes(self) -> int: ...
    @property
    def is_off(self) -> bool: ...
    def cut(self, seed: int | None = None) -> None: ...

class PowerCutVolume(Volume):
    lower: Volume
    supply: PowerSupply
    def __init__(self, lower: Volume, supply: PowerSupply | None = None) -> None: ...
    @property
    def held_changes(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
