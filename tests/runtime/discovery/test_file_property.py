"""Any sequence of births, withdrawals and deaths leaves every watcher with the same map as a plain dict."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dynamo.runtime.discovery.file import FileDiscovery, FileRegistration
from dynamo.testing.discovery import follow

KEYS = st.sampled_from(["a", "a/b", "Ä", "." * 300])
OWNERS = st.integers(0, 2)


class FileDiscoveryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._root = tempfile.TemporaryDirectory()
        self._directory = Path(self._root.name) / "discovery"
        self._owners = [self._participant() for _ in range(3)]
        self._watcher = self._participant()
        self._model: dict[str, tuple[int, bytes]] = {}
        self._registrations: dict[str, FileRegistration] = {}
        self._runner.run(self._start_watch())

    @rule(key=KEYS, owner=OWNERS, value=st.binary(max_size=20))
    def register(self, key: str, owner: int, value: bytes) -> None:
        registering = self._owners[owner].register(key, value)
        if key in self._model:
            with pytest.raises(ValueError, match="already registered"):
                self._runner.run(registering)
            return
        self._registrations[key] = self._runner.run(registering)
        self._model[key] = (owner, value)

    @rule(key=KEYS)
    def withdraw(self, key: str) -> None:
        if key in self._registrations:
            self._runner.run(self._registrations[key].withdraw())
            self._model.pop(key, None)

    @rule(owner=OWNERS)
    def kill(self, owner: int) -> None:
        """The kernel closes the files of a dead process, and nobody tidies up."""
        self._owners[owner].release_locks()
        self._forget(owner)
        self._owners[owner] = self._participant()

    @rule(owner=OWNERS)
    def close(self, owner: int) -> None:
        self._runner.run(self._owners[owner].close())
        self._forget(owner)
        self._owners[owner] = self._participant()

    @rule()
    def clean_up_by_hand(self) -> None:
        for path in self._directory.glob("*"):
            path.unlink()

    @invariant()
    def newcomers_and_old_watchers_agree_with_the_model(self) -> None:
        expected = {key: value for key, (_, value) in self._model.items()}
        self._runner.run(self._agree(expected))

    def teardown(self) -> None:
        for participant in (*self._owners, self._watcher):
            self._runner.run(participant.close())
        self._runner.close()
        self._root.cleanup()

    def _participant(self) -> FileDiscovery:
        return FileDiscovery(self._directory, poll_interval_s=0.001)

    async def _start_watch(self) -> None:
        self._view: dict[str, bytes] = {}
        self._watch = self._watcher.watch("")

    async def _agree(self, expected: dict[str, bytes]) -> None:
        await follow(self._watch, expected, view=self._view)
        newcomer = self._participant()
        try:
            await follow(newcomer.watch(""), expected)
        finally:
            await newcomer.close()

    def _forget(self, owner: int) -> None:
        self._model = {key: entry for key, entry in self._model.items() if entry[0] != owner}


FileDiscoveryMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestFileDiscovery = FileDiscoveryMachine.TestCase
