"""Trajectories from D4RL's HDF5 files as they are published, and D4RL's normalised score. Not a task source.

A file holds arrays with one entry for each step: `observations`, `actions`, `rewards`, `terminals`, and usually
`timeouts`; anything else (`next_observations`, `infos/...`, `metadata/...`) is not read. Knows no models and no
environments.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workers.control.trajectories import Trajectory

WANTED = {"observations": 2, "actions": 2, "rewards": 1, "terminals": 1}
"""Datasets that each file must have, and their dimensions."""


@dataclass(frozen=True)
class Reference:
    """The two returns that D4RL's score is measured between."""

    random: float
    """Return of random actions, score 0."""
    expert: float
    """Return of a trained expert, score 100."""

    def score(self, total: float) -> float:
        """D4RL's normalised score of a return: 0 is random, 100 the expert (elsewhere in this project, 0 and 1)."""
        return 100.0 * (total - self.random) / (self.expert - self.random)


REFERENCES = {
    "halfcheetah": Reference(-280.178953, 12135.0),
    "hopper": Reference(-20.272305, 3234.3),
    "walker2d": Reference(1.629008, 4592.3),
    "ant": Reference(-325.6, 3879.7),
    "maze2d-open": Reference(0.01, 20.66),
    "maze2d-umaze": Reference(23.85, 161.86),
    "maze2d-medium": Reference(13.13, 277.39),
    "maze2d-large": Reference(6.7, 273.99),
    "maze2d-open-dense": Reference(11.17817, 27.166538620695782),
    "maze2d-umaze-dense": Reference(68.537689, 193.66285642381482),
    "maze2d-medium-dense": Reference(44.264742, 297.4552547777125),
    "maze2d-large-dense": Reference(30.569041, 303.4857382709002),
    "antmaze": Reference(0.0, 1.0),
    "pen": Reference(96.262799, 3076.8331017826877),
    "hammer": Reference(-274.856578, 12794.134825156867),
    "relocate": Reference(-6.425911, 4233.877797728884),
    "door": Reference(-56.512833, 2880.5693087298737),
    "kitchen": Reference(0.0, 4.0),
}
"""REF_MIN_SCORE and REF_MAX_SCORE of d4rl/infos.py (github.com/Farama-Foundation/D4RL), which are the same for all data
sets of an environment."""


def reference(name: str) -> Reference | None:
    """D4RL's reference returns; None if it has none.

    name: of a data set ("hopper-medium-v2") or of an environment of gymnasium ("Hopper-v5").
    """
    fits = [key for key in REFERENCES if f"{name.lower()}-".startswith(f"{key}-")]
    return REFERENCES[max(fits, key=len)] if fits else None


def read(file: str | Path) -> list[Trajectory]:
    """The file's episodes, which end at `terminals` or `timeouts`; steps after the last end are left out.

    Raises ValueError, one line that names the file and the cause, for anything that is missing or damaged.
    """
    arrays = _arrays(Path(file))
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"{file}: its datasets are of unequal length ({listed})")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            step = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise ValueError(f"{file}: {name} holds numbers that are not finite, first at step {step}")
    ends = arrays["terminals"].astype(bool)
    if "timeouts" in arrays:
        ends = ends | arrays["timeouts"].astype(bool)
    if not ends.any():
        raise ValueError(f"{file}: no episode ends in it (terminals and timeouts are false, or timeouts are missing)")
    bounds = [0, *(np.flatnonzero(ends) + 1).tolist()]
    return [
        Trajectory(
            arrays["observations"][a:b].astype(np.float32),
            arrays["actions"][a:b].astype(np.float32),
            arrays["rewards"][a:b].astype(np.float64),
        )
        for a, b in zip(bounds, bounds[1:], strict=False)
    ]


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays that are read, by name, with the right number of dimensions."""
    try:
        import h5py
    except ModuleNotFoundError:
        raise ValueError(f"{file}: reading HDF5 needs the package h5py: pip install 'namm[control]'") from None
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file")
    try:
        with h5py.File(file, "r") as store:
            return {
                name: _array(file, store, name, dimensions)
                for name, dimensions in {**WANTED, "timeouts": 1}.items()
                if name in WANTED or name in store
            }
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{file}: cannot be read as HDF5, damaged or cut short? ({_line(error)})") from None


def _array(file: Path, store, name: str, dimensions: int) -> np.ndarray:
    import h5py

    found = store.get(name)
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{file}: the dataset {name!r} is missing; found: {', '.join(store) or 'none'}")
    if found.dtype.kind not in "biuf":
        raise ValueError(f"{file}: {name} holds {found.dtype}, not numbers")
    shape = found.shape[:1] if dimensions == 1 and found.shape[1:] == (1,) else found.shape
    if len(shape) != dimensions or 0 in shape:
        wanted = "(steps, numbers)" if dimensions == 2 else "(steps,)"
        raise ValueError(f"{file}: {name} has the shape {found.shape}, not {wanted}")
    return found[()].reshape(shape)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
