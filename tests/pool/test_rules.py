"""Whatever happens in whatever order, frequencies and validation keep to the method's rules."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from svgd_label.pool import Database, Pool, RankingRow

IMAGES = [f"{i:02}" for i in range(12)]
MOST = 3
image = st.sampled_from(IMAGES)
client = st.sampled_from(["anna", "ben", "cleo"])


class Rules(RuleBasedStateMachine):
    """A model in plain Python beside the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 0.0
        self.database = Database(Path(self.folder.name), task="t")
        with self.database.transaction() as connection:
            connection.executemany(
                "INSERT INTO images (image, name, ext, fingerprint) VALUES (?, ?, '', '')", [(i, i) for i in IMAGES]
            )
        self.pool = Pool(self.database, validation="fifth", max_frequency=MOST, clock=lambda: self.now)
        self.decided: dict[str, bool] = {}
        self.frequency: dict[str, int] = {}  # of labelled images
        self.outside: set[str] = set()
        self.version = 0
        self.leases: dict[str, tuple[str, float]] = {}  # image -> client, since

    def teardown(self) -> None:
        self.database.close()
        self.folder.cleanup()

    @rule(image=image)
    def save(self, image: str) -> None:
        self.pool.label_saved(image)
        self.decided.setdefault(image, len(self.decided) % 5 == 4)
        self.frequency.setdefault(image, 0 if self.decided[image] else 1)
        self.leases.pop(image, None)

    @rule(image=image)
    def delete(self, image: str) -> None:
        self.pool.label_removed(image)
        self.frequency.pop(image, None)

    @rule(image=image)
    def flag(self, image: str) -> None:
        self.pool.flag(image, "motion")
        self.outside.add(image)
        self.leases.pop(image, None)

    @rule(image=image)
    def unflag(self, image: str) -> None:
        self.pool.flag(image, None)
        self.outside.discard(image)

    @rule(order=st.permutations(IMAGES), queries=st.integers(1, 5), twice=st.booleans())
    def step(self, order: list[str], queries: int, twice: bool) -> None:
        self.version += 1
        self.pool.replace_ranking(self.version, [RankingRow(i) for i in order])
        picks = [
            i
            for i in order
            if i not in self.outside and not self.decided.get(i, False) and self.frequency.get(i, 0) < MOST
        ][:queries]
        for _ in range(2 if twice else 1):
            assert self.pool.acquire(self.version, "entropy_mi", queries).picks == picks
        for i in picks:
            if i in self.frequency:
                self.frequency[i] += 1

    @rule(client=client, seconds=st.sampled_from([0.0, 11.0, 2000.0]))
    def ask(self, client: str, seconds: float) -> None:
        self.now += seconds
        proposal = self.pool.next_image(client)
        others = {i for i, (owner, since) in self.leases.items() if owner != client and self.now - since < 3600}
        free = set(IMAGES) - set(self.frequency) - self.outside - others
        self.leases = {i: lease for i, lease in self.leases.items() if lease[0] != client}
        if proposal is None:
            assert not free
        else:
            assert proposal.image in free
            self.leases[proposal.image] = (client, self.now)

    @precondition(lambda self: self.version)
    @rule()
    def reopen(self) -> None:
        self.database.close()
        self.database = Database(Path(self.folder.name), task="t")
        self.pool = Pool(self.database, validation="fifth", max_frequency=MOST, clock=lambda: self.now)

    @invariant()
    def lists_are_the_models(self) -> None:
        training = {c.image: c.frequency for c in self.pool.training_list()}
        usable = {i: f for i, f in self.frequency.items() if i not in self.outside}
        assert training == {i: f for i, f in usable.items() if not self.decided[i]}
        assert set(self.pool.validation_list()) == {i for i in usable if self.decided[i]}
        assert set(self.pool.labelled()) == set(training)
        assert not set(self.pool.validation_list()) & set(self.pool.pool_images())
        assert not set(self.pool.queue()) & set(self.frequency)


TestRules = Rules.TestCase
TestRules.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
