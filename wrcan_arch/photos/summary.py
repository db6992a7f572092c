"""Sum up what became of many photographs."""

import json
from collections import Counter
from dataclasses import dataclass, field

NAMES_SHOWN = 3  # of the photographs that a warning is about
LARGE = 2000  # pixels of the longer side; beyond, a shake is often longer than one in the paper's frames (1280 x 720)


@dataclass
class Summary:
    """What became of the photographs; its size does not grow with those that were restored."""

    restored: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)  # one message each
    failed: list[str] = field(default_factory=list)  # the photographs that have no result
    not_shown: list[str] = field(default_factory=list)  # those whose picture of before and after was not written
    warnings: Counter[str] = field(default_factory=Counter)  # number of photographs, by warning
    examples: dict[str, list[str]] = field(default_factory=dict)  # some of their names, by warning
    qualities: Counter[int] = field(default_factory=Counter)  # number of JPEGs, by quality
    large: int = 0  # number of those restored at their full size, of more than LARGE pixels a side

    def add(self, other: 'Summary') -> None:
        self.restored += other.restored
        self.skipped += other.skipped
        self.failures += other.failures
        self.failed += other.failed
        self.not_shown += other.not_shown
        self.warnings += other.warnings
        self.qualities += other.qualities
        self.large += other.large
        for warning, names in other.examples.items():
            self.examples[warning] = (self.examples.get(warning, []) + names)[:NAMES_SHOWN]

    def to_json(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> 'Summary':
        values = json.loads(text)
        qualities = Counter({int(quality): count for quality, count in values['qualities'].items()})
        return cls(**{**values, 'warnings': Counter(values['warnings']), 'qualities': qualities})

    def lines(self) -> list[str]:
        """The lines to print, without the failures."""
        done = f'{self.restored:,} of {self.restored + self.skipped + len(self.failed):,} restored'
        lines = [f'{done}, {self.skipped:,} had a result already' if self.skipped else done]
        if self.qualities:
            low, high = min(self.qualities), max(self.qualities)
            lines.append(f'JPEG quality of the photographs: {low}' + (f' to {high}' if low < high else ''))
        if self.large:
            lines.append(
                f'photographs of more than {LARGE} pixels a side: {self.large:,}; if still blurred, the shake may be '
                'too long for the weights at this size: try --largest 1600'
            )
        for warning, count in self.warnings.items():
            names = ', '.join(self.examples[warning])
            more = f' and {count - NAMES_SHOWN:,} more' if count > NAMES_SHOWN else ''
            lines.append(f'warning: {names}{more}: {warning}')
        return lines
