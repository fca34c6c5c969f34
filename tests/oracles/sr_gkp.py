"""SR-GKP cell by cell, selection by selection: lists, loops and sorts, after its description."""

from itertools import combinations

import numpy as np

Selection = tuple[int, ...]


def roughness(kernel: np.ndarray) -> float:
    """The sum over the cells of one kernel and the neighbours of each of |a^2 - b^2|."""
    total = 0.0
    for (i, j), a in np.ndenumerate(kernel):
        for (k, m), b in np.ndenumerate(kernel):
            if (i, j) != (k, m) and abs(i - k) <= 1 and abs(j - m) <= 1:
                total += abs(float(a) ** 2 - float(b) ** 2)
    return total


def groups(weight: np.ndarray, count: int) -> list[list[int]]:
    """Filters from smooth to rough, dealt out to the groups there and back again."""
    rough = [sum(roughness(kernel) for kernel in filter_) for filter_ in weight]
    order = sorted(range(len(weight)), key=lambda f: rough[f])
    found: list[list[int]] = [[] for _ in range(count)]
    way = [*range(count), *reversed(range(count))]
    for place, filter_ in enumerate(order):
        found[way[place % (2 * count)]].append(filter_)
    return [sorted(members) for members in found]


def kept(group: np.ndarray, keep: int) -> list[int]:
    """The input channels that a group of filters (F, I, kh, kw) keeps."""
    return Search(group.astype(np.float64), keep).best()


class Search:
    def __init__(self, group: np.ndarray, keep: int) -> None:
        self.count, self.keep = group.shape[1], keep
        kernels = [group[:, i].ravel() for i in range(self.count)]
        self.like = [[1.0 - float(np.sqrt(((a - b) ** 2).sum())) for b in kernels] for a in kernels]
        self.rough = [sum(roughness(f[i]) for f in group) for i in range(self.count)]
        self.balance: float | None = None

    def cost(self, chosen: Selection) -> float:
        gone = [i for i in range(self.count) if i not in chosen]
        pairs = list(combinations(chosen, 2))
        if self.balance is None:  # the first that is judged decides
            self.balance = len(pairs) / len(gone) if gone else 0.0
        inner = sum(self.like[i][j] for i, j in pairs)
        outer = sum(max(self.like[j][i] for j in chosen) for i in gone)
        return inner - self.balance * outer

    def grow(self, beam: list[Selection]) -> list[Selection]:
        grown = []
        for chosen in beam:
            free = [i for i in range(self.count) if i not in chosen]
            free.sort(key=lambda i: sum(self.like[j][i] for j in chosen))
            grown += [(*chosen, i) for i in free[:2]]
        return grown

    def check(self, beam: list[Selection]) -> list[Selection]:
        def places(values: list[float], order: list[int]) -> list[int]:
            return sorted(order, key=lambda b: -values[b])  # from worst to best, stable

        costs = [self.cost(chosen) for chosen in beam]
        by_cost = places(costs, [*range(len(beam))])
        by_rough = places([sum(self.rough[i] for i in chosen) for chosen in beam], by_cost)
        score = {b: 0.9 * by_cost.index(b) + 0.1 * by_rough.index(b) for b in by_rough}
        return [beam[b] for b in sorted(by_rough, key=lambda b: -score[b])[:2]]

    def best(self) -> list[int]:
        ends: list[Selection] = []
        for first in range(self.count):
            beam: list[Selection] = [(first,)]
            for step in range(1, self.keep):
                beam = self.grow(beam)
                if step % 3 == 0:
                    beam = self.check(beam)
            ends += beam
        return sorted(min(ends, key=self.cost))
