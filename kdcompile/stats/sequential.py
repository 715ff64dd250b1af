"""Group-sequential tests: repeated looks at a comparison that share one false-alarm level.

Who looks after every block and stops at the first alarm finds one in the end, whatever is true. So
at most `LOOKS` looks are taken, and each may spend only its share of the level: Bonferroni's
inequality, which holds however the looks depend on each other (C. E. Bonferroni, "Teoria statistica
delle classi e calcolo delle probabilita", 1936). The boundary of Pocock (Biometrika 64, 1977) is a
few per cent narrower, but only for means of normal samples that come in equal groups. The samples
double from look to look, because a look that adds little could hardly tell more than the last.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kdcompile.stats.comparison import Comparison
from kdcompile.stats.samples import Samples

LOOKS = 5

Decide = Callable[[list[Samples], float], Comparison]


@dataclass
class Looks:
    """Counts the rounds of a measurement and looks after 1, 2, 4 and 8 times the first.

    The last look is kept for `final`, when the time or the rounds are at an end.

    Args:
        decide: a comparison of what was measured so far, at a level.
        level: chance of a false alarm that all looks may spend together.
        first: rounds before the first look; at least 1.
    """

    decide: Decide
    level: float
    first: int = 1
    rounds: int = 0
    taken: int = 0
    looked_at: int = 0
    last: Comparison | None = None

    @property
    def share(self) -> float:
        """The level of one look."""
        return self.level / LOOKS

    @property
    def most_rounds(self) -> int:
        """How many rounds there is a look for; more would be measured for nothing."""
        return int(self.first * 2 ** (LOOKS - 1))

    def __call__(self, found: list[Samples]) -> bool:
        """One more round is measured: whether it decides."""
        self.rounds += 1
        if self.taken == LOOKS - 1 or self.rounds != self.first * 2**self.taken:
            return False
        return self._look(found).decision != "inconclusive"

    def final(self, found: list[Samples]) -> Comparison:
        """The verdict when the measurement has ended: the one that stopped it, or the last look."""
        decided = self.last is not None and self.last.decision != "inconclusive"
        if self.last is not None and (decided or self.looked_at == self.rounds):
            return self.last
        return self._look(found)

    def _look(self, found: list[Samples]) -> Comparison:
        self.taken, self.looked_at = self.taken + 1, self.rounds
        self.last = self.decide(found, self.share)
        return self.last
