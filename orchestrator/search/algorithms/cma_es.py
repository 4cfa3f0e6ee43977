"""CMA-ES on pycma, with diagonal, no or full covariance, and mirrored pairs where they are asked for.

Sources: N. Hansen, *The CMA Evolution Strategy: A Tutorial* (arXiv 1604.00772), whose equations are cited here;
R. Ros and N. Hansen, *A Simple Modification in CMA-ES* (PPSN 2008), for `diagonal`. What `full` has in pycma's place
is in `full_covariance`. Knows vectors and their fitness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from namm_core.config import Range
from orchestrator.search.base import AskAndTell
from orchestrator.search.config import SearchConfig

if TYPE_CHECKING:
    from cma.recombination_weights import RecombinationWeights

FEWEST_TO_RANK = 3  # pycma updates from no fewer


@dataclass(frozen=True)
class CMAESConfig(SearchConfig):
    """CMA-ES's numbers; population, sigma0 and elite fraction are the paper's."""

    algorithm: str = "cma_es"
    variant: Literal["diagonal", "isotropic", "full"] = "diagonal"
    """Covariance that is learnt: `diagonal` (sep-CMA), `isotropic` (none) or `full` (the paper's)."""
    mirrored: bool = False
    """Whether candidates 2i and 2i + 1 lie symmetric about the mean."""
    elite_fraction: Annotated[float, Range(above=0, below=1)] = 0.5
    """Part of the population, best first, whose weighted mean is the next mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mirrored and self.population % 2:
            raise ValueError(f"population must be even with mirrored pairs, not {self.population}")

    @property
    def elite(self) -> int:
        """How many of a generation's best candidates the next mean is made of."""
        return elite_of(self.population, self.elite_fraction)

    @property
    def summary(self) -> str:
        """The search in a few words."""
        return f"{self.variant} CMA-ES, sigma0 {self.sigma0:g}, elite {self.elite_fraction:g}"

    def allowed_population(self, wanted: int) -> int:
        """The next even number, with mirrored pairs."""
        return wanted + wanted % 2 if self.mirrored else wanted


class CMAES(AskAndTell):
    """pycma's CMA-ES with cumulative step-size adaptation, whatever the number of dimensions.

    Only the order of fitness counts; equals share what their ranks weigh. A missing candidate takes no part: its place
    and vector count for nothing, and the mean moves in proportion to how many were told. With fewer than 3 finite
    values, or if all are equal, there is no order to learn from, and the distribution stays as it is.

    pycma is imported where it is used: it takes a second, which a job that is only read need not wait for.
    """

    Config = CMAESConfig
    config: CMAESConfig

    def __init__(self, config: CMAESConfig, start: np.ndarray) -> None:
        from orchestrator.search.full_covariance import Strategy

        super().__init__(config, start)
        self.strategy = Strategy(self.start, float(config.sigma0), self._options(len(self.start)))
        """The pycma object, to look at; it must not be asked or told but through this class."""
        self._weights_of_all = self.strategy.sp.weights = self._weights(config.population)

    @property
    def mean(self) -> np.ndarray:
        """(N,) float32: the centre of the distribution, the vector to deploy."""
        return self.strategy.mean.astype(np.float32)

    @property
    def sigma(self) -> float:
        """Step size, in the parameters' unit."""
        return float(self.strategy.sigma)

    def _sample(self) -> np.ndarray:
        candidates = self.strategy.ask(self.population)
        # pycma remembers what it sent at full precision; what counts is what is evaluated
        self.strategy.sent_solutions.clear()
        return candidates

    def _learn(self, candidates: np.ndarray, fitness: np.ndarray) -> None:
        finite = np.flatnonzero(np.isfinite(fitness))
        if len(finite) >= FEWEST_TO_RANK:
            # A stable sort: the order of equals must not depend on the machine's sorting algorithm.
            best_first = finite[np.argsort(-fitness[finite], kind="stable")]
            _, sizes = np.unique(-fitness[best_first], return_counts=True)
            if len(sizes) > 1:
                self._update(candidates[best_first], sizes)

    def _update(self, ranked: np.ndarray, sizes: np.ndarray) -> None:
        """One generation's update from those of its candidates that have a fitness, best first: (told, N); sizes: of
        the groups of equals among them."""
        parameters, told = self.strategy.sp, len(ranked)
        if told < self.population:
            # The same weights over fewer candidates, and a mean that moves in proportion to their number.
            parameters.weights = self._weights(told)
            parameters.cmean = told / self.population
        if len(sizes) < told:
            parameters.weights = self._tied(told, sizes)
        # pycma minimises: the best has rank 0. Points that lie far out it would draw in, which the paper does not.
        check = {"check_points": False} if self.config.variant == "full" else {}
        self.strategy.tell(list(ranked), list(range(told)), **check)
        parameters.weights, parameters.cmean = self._weights_of_all, 1.0
        if self.config.variant == "full":
            self.strategy.sm.hold_rates(None)

    def _weights(self, told: int) -> RecombinationWeights:
        """Recombination weights of `told` candidates by rank, the negative ones by eq. 53 (active update)."""
        from cma.recombination_weights import RecombinationWeights

        from orchestrator.search.full_covariance import learning_rates

        weights = RecombinationWeights(_raw_weights(told, self.config.elite_fraction))
        parameters = self.strategy.sp
        if self.config.variant == "isotropic":
            weights.zero_negative_weights()
        elif self.config.variant == "diagonal":
            weights.finalize_negative_weights(self.strategy.N, parameters.c1_sep, parameters.cmu_sep, pos_def=False)
        else:
            rates = learning_rates(self.strategy.N, weights.mueff)
            weights.finalize_negative_weights(self.strategy.N, rates["c1"], rates["cmu"])
        self._correct(weights)
        return weights

    def _tied(self, told: int, sizes: np.ndarray) -> RecombinationWeights:
        """The same, shared within groups of equals, whose sizes are given best first; there are two groups or more."""
        from orchestrator.search.tied_weights import TiedWeights

        weights = self._weights(told)
        if self.config.variant == "full":
            self.strategy.sm.hold_rates(weights.mueff)  # ties change who counts how much, not how fast is learnt
        weights = TiedWeights(weights, sizes)
        self._correct(weights)
        return weights

    def _correct(self, weights: RecombinationWeights) -> None:
        """Mirrored: twins that are both selected cancel in the mean, so that its shift is shorter than mu_eff of
        independent samples says: E|sum w y|^2 = (sum w^2 - n E[w w']) |y|^2, the ranks of twins random. Uncorrected,
        the step size would shrink by itself."""
        if self.config.mirrored:
            squares = 1 / weights.mueff
            weights.mueff = 1 / (squares - (1 - squares) / (len(weights) - 1))

    def _options(self, dimension: int) -> dict[str, Any]:
        """pycma's options."""
        from cma.recombination_weights import RecombinationWeights
        from cma.sigma_adaptation import CMAAdaptSigmaCSA

        from orchestrator.search.full_covariance import FullCovariance, PathLength, learning_rates

        config = self.config
        generator = np.random.RandomState(config.seed)

        def normal(number: int, dimension: int) -> np.ndarray:
            if not config.mirrored:
                return generator.randn(number, dimension)
            half = generator.randn(number // 2, dimension)
            return np.stack((half, -half), axis=1).reshape(number, dimension)

        raw_weights = _raw_weights(config.population, config.elite_fraction)
        options: dict[str, Any] = {
            "popsize": config.population,
            "CMA_recombination_weights": raw_weights,
            "AdaptSigma": CMAAdaptSigmaCSA,  # from 300 dimensions on pycma would choose another rule (TPA)
            "randn": normal,
            "seed": math.nan,  # leaves NumPy's global generator alone
            "verbose": -10,  # -10 also reads no signals file
            "verb_log": 0,
        }
        if config.mirrored:
            options["CMA_mirrors"] = 0  # below a population of 6 pycma mirrors the worst ones, which have twins already
        if config.variant == "full":
            rates = learning_rates(dimension, RecombinationWeights(raw_weights).mueff)
            options["AdaptSigma"] = PathLength
            options["CMA_sampler"] = FullCovariance
            options["CMA_sampler_options"] = {
                "randn": normal,
                # pycma's rule, in generations: decompose again only when C can have changed by 1 / (10 N)
                "lazy_update_gap": 1 / (rates["c1"] + rates["cmu"]) / dimension / 10,
            }
        else:
            options["CMA_diagonal"] = True
            options["CMA_on"] = int(config.variant == "diagonal")
        return options


def elite_of(told: int, elite_fraction: float) -> int:
    """How many of `told` candidates the next mean is made of."""
    return min(max(int(told * elite_fraction), 1), told - 1)


def _raw_weights(told: int, elite_fraction: float) -> list[float]:
    """Logarithmic weights by rank, the elite's above 0 (eq. 49)."""
    elite = elite_of(told, elite_fraction)
    return [math.log(elite + 0.5) - math.log(rank) for rank in range(1, told + 1)]
