"""Plan of a parent process that keeps its children alive: when to start which one again."""

from dataclasses import dataclass, field

BACK_OFF_FIRST_S = 0.5
BACK_OFF_LIMIT_S = 10.0
STEADY_S = 30.0
"""A child that lived this long starts again without a pause."""


@dataclass(frozen=True)
class ChildSpec:
    """One worker to run."""

    bean: str
    jobs: bool

    @property
    def name(self) -> str:
        """Give its name within the host."""
        return f"{self.bean}.jobs" if self.jobs else self.bean


@dataclass
class ChildState:
    """What is known of one worker's process."""

    spec: ChildSpec
    pid: int | None = None
    """Set while it runs."""
    started_s: float = 0.0
    due_s: float = 0.0
    """When to start it; valid while `pid` is None."""
    back_off_s: float = BACK_OFF_FIRST_S

    def started(self, pid: int, now_s: float) -> None:
        """Note a start."""
        self.pid, self.started_s = pid, now_s

    def ended(self, now_s: float) -> float:
        """Note an end; gives the pause before the next start."""
        self.pid = None
        if now_s - self.started_s >= STEADY_S:
            self.back_off_s = BACK_OFF_FIRST_S
        pause_s = self.back_off_s
        self.due_s = now_s + pause_s
        self.back_off_s = min(self.back_off_s * 2, BACK_OFF_LIMIT_S)
        return pause_s


@dataclass
class Family:
    """All children of one parent."""

    states: list[ChildState] = field(default_factory=list)

    def due(self, now_s: float) -> list[ChildState]:
        """Give the children to start now."""
        return [state for state in self.states if state.pid is None and state.due_s <= now_s]

    def wait_s(self, now_s: float, limit_s: float) -> float:
        """Give how long nothing is to be started, at most `limit_s`."""
        pauses = [state.due_s - now_s for state in self.states if state.pid is None]
        return max(0.0, min([limit_s, *pauses]))

    def by_pid(self, pid: int) -> ChildState | None:
        """Find a running child."""
        return next((state for state in self.states if state.pid == pid), None)

    def running(self) -> list[ChildState]:
        """Give the children that run."""
        return [state for state in self.states if state.pid is not None]
