"""The evolution strategy behind `ask` and `tell`: which candidates to try next, given how the last ones did.

Knows vectors and their fitness; knows nothing of memories, tasks, workers or files. A search is a pure
function of its configuration, its start and the fitness told: asked and told again from a record, it comes to
the same bits.
"""

from __future__ import annotations

import difflib
import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, get_args

import cma
import numpy as np
from cma.recombination_weights import RecombinationWeights
from cma.sampler import GaussFullSampler
from cma.sigma_adaptation import CMAAdaptSigmaCSA

Variant = Literal["diagonal", "isotropic", "full"]
FEWEST_TO_RANK = 3  # pycma updates from no fewer
RARELY = 10
"""Generations between two decompositions of a full covariance from which one that is a generation old will do."""


@dataclass(frozen=True)
class SearchConfig:
    """The evolution strategy's numbers; population, sigma0 and elite fraction are the paper's."""

    variant: Variant = "diagonal"
    """Covariance that is learnt: `diagonal` (sep-CMA), `isotropic` (none) or `full` (the paper's)."""
    population: int = 32
    """Candidates in a generation."""
    sigma0: float = 0.065
    """First step size: standard deviation of each parameter, in the parameter's own unit."""
    seed: int = 0
    """Seed of the candidates' random numbers, 0 to 2^32 - 1."""
    mirrored: bool = False
    """Whether candidates 2i and 2i + 1 lie symmetric about the mean."""
    elite_fraction: float = 0.5
    """Part of the population, best first, whose weighted mean is the next mean; between 0 and 1."""

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            near = difflib.get_close_matches(str(self.variant), get_args(Variant), n=1, cutoff=0.0)[0]
            raise ValueError(f"search.variant: no variant {self.variant!r}; did you mean {near!r}?")
        if self.population < 4:
            raise ValueError(f"search.population must be at least 4, not {self.population}")
        if self.mirrored and self.population % 2:
            raise ValueError(f"search.population must be even with mirrored pairs, not {self.population}")
        if not (math.isfinite(self.sigma0) and self.sigma0 > 0):
            raise ValueError(f"search.sigma0 must be above 0, not {self.sigma0}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"search.seed must lie in 0 to 2^32 - 1, not {self.seed}")
        if not 0 < self.elite_fraction < 1:
            raise ValueError(f"search.elite_fraction must lie between 0 and 1, not {self.elite_fraction}")


class Search:
    """Maximises a fitness over vectors of N numbers with pycma's CMA-ES and cumulative step-size adaptation.

    `start`: (N,) finite numbers, the first mean. Raises ValueError for another shape.
    Sources: N. Hansen, *The CMA Evolution Strategy: A Tutorial* (arXiv 1604.00772), whose equations are cited
    here; R. Ros and N. Hansen, *A Simple Modification in CMA-ES* (PPSN 2008), for `diagonal`.
    """

    def __init__(self, config: SearchConfig, start: np.ndarray) -> None:
        start = np.asarray(start, dtype=np.float64)
        if start.ndim != 1 or len(start) < 2 or not np.isfinite(start).all():
            odd = np.count_nonzero(~np.isfinite(start))
            raise ValueError(
                f"a search starts from one vector of 2 or more finite numbers, not from shape {start.shape} "
                f"with {odd} that are not finite"
            )
        self.config = config
        self.generation = 0
        """Generations told so far."""
        self.strategy = _Strategy(start, float(config.sigma0), self._options(len(start)))
        """The pycma object, to look at; it must not be asked or told but through this class."""
        self._weights_of_all = self.strategy.sp.weights = self._weights(config.population)
        self._asked: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """(N,) float32: the centre of the distribution, the vector to deploy."""
        return self.strategy.mean.astype(np.float32)

    @property
    def sigma(self) -> float:
        """Step size, in the parameters' unit."""
        return float(self.strategy.sigma)

    def ask(self) -> np.ndarray:
        """(population, N) float32: the candidates of this generation, the same ones until they are told."""
        if self._asked is None:
            candidates = self.strategy.ask(self.config.population)
            # pycma remembers what it sent at full precision; what counts is what is evaluated
            self.strategy.sent_solutions.clear()
            self._asked = np.asarray(candidates, dtype=np.float32)
        return self._asked.copy()

    def tell(self, fitness: np.ndarray, candidates: np.ndarray | None = None) -> None:
        """Learns from the generation that was asked, and moves on to the next.

        `fitness`: (population,), larger is better; a candidate whose fitness is not finite is missing, and
        takes no part. Only the order counts; of equals the first goes before. With fewer than 3 finite values
        there is no order to learn from, and the distribution stays as it is.
        `candidates`: (population, N), where others than the asked ones were evaluated.
        Raises ValueError where no fitness is finite, for a wrong shape, or where nothing was asked.
        """
        if self._asked is None:
            raise ValueError("tell follows ask: no generation is open")
        fitness = np.asarray(fitness, dtype=np.float64)
        candidates = self._asked if candidates is None else np.asarray(candidates)
        if fitness.shape != (self.config.population,) or candidates.shape != self._asked.shape:
            raise ValueError(
                f"fitness must have shape ({self.config.population},) and candidates {self._asked.shape}, "
                f"not {fitness.shape} and {candidates.shape}"
            )
        finite = np.flatnonzero(np.isfinite(fitness))
        if len(finite) == 0:
            raise ValueError(f"generation {self.generation}: no candidate has a finite fitness")
        if len(finite) >= FEWEST_TO_RANK:
            # A stable sort: the order of equals must not depend on the machine's sorting algorithm.
            best_first = finite[np.argsort(-fitness[finite], kind="stable")]
            self._update(candidates[best_first].astype(np.float64))
        self.generation += 1
        self._asked = None

    def _update(self, ranked: np.ndarray) -> None:
        """One generation's update from those of its candidates that have a fitness, best first: (told, N)."""
        parameters, told = self.strategy.sp, len(ranked)
        if told < self.config.population:
            # The same weights over fewer candidates, and a mean that moves in proportion to their number.
            parameters.weights = self._weights(told)
            parameters.cmean = told / self.config.population
        # pycma minimises: the best has rank 0. Points that lie far out it would draw in, which the paper does not.
        check = {"check_points": False} if self.config.variant == "full" else {}
        self.strategy.tell(list(ranked), list(range(told)), **check)
        parameters.weights, parameters.cmean = self._weights_of_all, 1.0

    def _weights(self, told: int) -> RecombinationWeights:
        """Recombination weights of `told` candidates by rank, the negative ones by eq. 53 (active update)."""
        weights = RecombinationWeights(_raw_weights(told, self.config.elite_fraction))
        parameters = self.strategy.sp
        if self.config.variant == "isotropic":
            weights.zero_negative_weights()
        elif self.config.variant == "diagonal":
            weights.finalize_negative_weights(self.strategy.N, parameters.c1_sep, parameters.cmu_sep, pos_def=False)
        else:
            rates = _paper_rates(self.strategy.N, weights.mueff)
            weights.finalize_negative_weights(self.strategy.N, rates["c1"], rates["cmu"])
        if self.config.mirrored:
            # Twins that are both selected cancel in the mean, so that its shift is shorter than mu_eff of
            # independent samples says: E|sum w y|^2 = (sum w^2 - n E[w w']) |y|^2, the ranks of twins random.
            # Uncorrected, the step size would shrink by itself.
            squares = 1 / weights.mueff
            weights.mueff = 1 / (squares - (1 - squares) / (told - 1))
        return weights

    def _options(self, dimension: int) -> dict:
        config = self.config
        generator = np.random.RandomState(config.seed)  # not a Generator: this stream is frozen (NEP 19)

        def normal(number: int, dimension: int) -> np.ndarray:
            if not config.mirrored:
                return generator.randn(number, dimension)
            half = generator.randn(number // 2, dimension)
            return np.stack((half, -half), axis=1).reshape(number, dimension)

        options = {
            "popsize": config.population,
            "CMA_recombination_weights": _raw_weights(config.population, config.elite_fraction),
            "AdaptSigma": CMAAdaptSigmaCSA,  # from 300 dimensions on pycma would choose another rule (TPA)
            "randn": normal,
            "seed": math.nan,  # leaves NumPy's global generator alone
            "verbose": -10,  # -10 also reads no signals file
            "verb_log": 0,
        }
        if config.variant == "full":
            rates = _paper_rates(dimension, _mu_eff(options["CMA_recombination_weights"]))
            options["AdaptSigma"] = _PaperStepSize
            options["CMA_sampler"] = _PaperCovariance
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


def _mu_eff(raw_weights: list[float]) -> float:
    return RecombinationWeights(raw_weights).mueff


def _paper_rates(dimension: int, mu_eff: float) -> dict[str, float]:
    """Learning rates of the rank-one and rank-mu updates as the paper's implementation has them (eq. 57, 58).

    pycma adds 1/4 to the numerator of `cmu`, and shrinks `c1` for populations below 6.
    """
    c1 = 2 / ((dimension + 1.3) ** 2 + mu_eff)
    cmu = min(1 - c1, 2 * (mu_eff - 2 + 1 / mu_eff) / ((dimension + 2) ** 2 + mu_eff))
    return {"c1": c1, "cmu": cmu}


class _Strategy(cma.CMAEvolutionStrategy):
    """pycma's, that does not copy a covariance which is still being learnt: it is the sampler's, `sm.C`."""

    def _updateBDfromSM(self, sm_: GaussFullSampler | None = None) -> None:
        sampler = self.sm if sm_ is None else sm_
        if not isinstance(sampler, _PaperCovariance):
            super()._updateBDfromSM(sm_)
            return
        self.B, self.D, self.dC = sampler.B, sampler.D, sampler.variances


class _PaperCovariance(GaussFullSampler):
    """Full covariance that starts at exactly I (pycma's: within 1e-4), with the paper's learning rates.

    It learns in a thread of its own, while candidates are evaluated. In many dimensions, where it is decomposed
    anew only every so many generations, that too is done meanwhile, from what was learnt one generation before.
    """

    def __init__(self, dimension: np.ndarray, **options) -> None:
        self._aside = ThreadPoolExecutor(1)  # one thread: what is handed in is done in that order
        self._learning: Future | None = None
        self._decomposing: Future[tuple[np.ndarray, np.ndarray]] | None = None
        super().__init__(dimension, **options)
        self.C = np.eye(self.dimension)
        self.B = np.eye(self.dimension)
        self.D = np.ones(self.dimension)

    @property
    def C(self) -> np.ndarray:
        """(N, N) the covariance matrix, with all that was told."""
        if self._learning is not None:
            self._learning.result()
        return self._covariance

    @C.setter
    def C(self, value: np.ndarray) -> None:
        self._covariance, self._variances = value, value.diagonal().copy()

    @property
    def variances(self) -> np.ndarray:
        """(N,) the diagonal of C, which need not be waited for."""
        return self._variances

    def parameters(self, mueff: float | None = None, lam: int | None = None) -> dict[str, float]:
        if mueff is not None:
            self._parameters = _paper_rates(self.dimension, mueff)
        return self._parameters

    def update(self, vectors: list, weights: list, c1_times_delta_hsigma: float = 0) -> None:
        """As pycma's, the sum of products aside."""
        vectors, weights = np.asarray(vectors), np.array(weights)
        decay = 1 + c1_times_delta_hsigma - sum(weights)
        against = weights < 0
        norms = np.linalg.norm(vectors[against] @ self.B / self.D, axis=1)
        weights[against] *= self.dimension / (norms + 1e-9) ** 2
        self._variances = decay * self._variances + weights @ vectors**2
        self._learning = self._aside.submit(self._learn, vectors, weights, decay)
        self.count_tell += 1

    def sample(self, number: int, *args, **kwargs) -> np.ndarray:
        drawn = super().sample(number, *args, **kwargs)
        due_next = self.count_tell + 1 >= self.last_update + self.lazy_update_gap
        if due_next and self.lazy_update_gap >= RARELY and self._decomposing is None:
            self._decomposing = self._aside.submit(self._decomposed)
        return drawn

    def _decompose_C(self) -> None:
        if self._decomposing is None:
            super()._decompose_C()
            return
        squares, vectors = self._decomposing.result()
        self._decomposing = None
        if squares[0] <= 0:
            super()._decompose_C()  # which knows what to do
            return
        self.B, self.D = vectors, np.sqrt(squares)
        self.count_eigen += 1

    def _learn(self, vectors: np.ndarray, weights: np.ndarray, decay: float) -> None:
        self._covariance *= decay
        self._covariance += np.dot(weights * vectors.T, vectors)

    def _decomposed(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues, ascending, and eigenvectors, of what has been learnt by now."""
        return self.eigenmethod((self._covariance + self._covariance.T) / 2)


class _PaperStepSize(CMAAdaptSigmaCSA):
    """Cumulative step-size adaptation with the tutorial's constants, which the paper's implementation uses.

    pycma 4.5 differs in c_sigma (n + mu_eff + 3 below the line), in the damping of large populations in few
    dimensions, and in the threshold of h_sigma.
    """

    def compute_cs(self, N: int, mueff: float) -> float:  # eq. 55
        return (mueff + 2) / (N + mueff + 5)

    def compute_damps(self, N: int, mueff: float, *args, **kwargs) -> float:  # eq. 55
        return 1 + 2 * max(0.0, math.sqrt((mueff - 1) / (N + 1)) - 1) + self.compute_cs(N, mueff)

    def hsig(self, es: cma.CMAEvolutionStrategy) -> bool:  # below eq. 45
        self._update_ps(es)
        unbiased = np.linalg.norm(self.ps) / math.sqrt(1 - (1 - self.cs) ** (2 * es.countiter))
        return bool(unbiased < (1.4 + 2 / (es.N + 1)) * _chi(es.N))

    def update2(self, es: cma.CMAEvolutionStrategy, **kwargs) -> float:  # eq. 44
        self._update_ps(es)
        return math.exp(self.cs / self.damps * (np.linalg.norm(self.ps) / _chi(es.N) - 1))


def _chi(dimension: int) -> float:
    """Expected length of a standard normal vector, as the tutorial approximates it."""
    return math.sqrt(dimension) * (1 - 1 / (4 * dimension) + 1 / (21 * dimension**2))
