"""The default solver of a denoiser, from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dmd.models.loading import student_calls
from dmd.models.outside_config import ZERO_SNR
from dmd.models.student_calls import Calls
from dmd.sampling import schedulers
from dmd.sampling.noise import level_range, trained_range
from dmd.sampling.ode_solvers import SOLVERS
from dmd.sampling.stochastic_solvers import STOCHASTIC

RHO = 7.0  # of EDM (Karras et al. 2022, Table 1)


def default_solver(metadata: dict[str, Any], name: str | None, steps: int | None, path: Path) -> dict[str, Any]:
    """The solver of `dmd.load`: a student's own calls, or for a teacher the named solver, with defaults.

    The default for teachers with a scheduler is PNDM in 50 steps (51 calls), or DDIM if there is no signal at the last
    timestep; for others it is Heun in 18 steps (35 calls) on EDM's noise levels, limited to those of the teacher.

    Raises:
        ValueError: a solver or steps for a student, or an unknown solver.
    """
    if metadata["kind"] == "generator":
        if steps is not None or name not in (None, "student"):
            raise ValueError(f"{path} is a student: solver {name!r} and steps {steps} are for teachers only")
        return {"name": "student"}
    flow = (metadata.get("preconditioning") or {}).get("kind") == "flow"
    if flow and name == schedulers.FLOW:
        return {"name": name, "steps": 50 if steps is None else steps}
    if metadata.get("scheduler") and name in (None, *schedulers.CLASSES):
        default = "ddim" if metadata["scheduler"].get(ZERO_SNR) else "pndm"
        return {"name": name or default, "steps": 50 if steps is None else steps}
    if name not in (None, *SOLVERS):
        raise ValueError(
            f"solver {name!r}: {path} is a teacher; use one of {[*SOLVERS]}, "
            f"if the teacher comes with a scheduler, one of {[*schedulers.CLASSES]}, "
            f"or, if it is a rectified flow, {schedulers.FLOW!r}"
        )
    solver = {"name": name or "heun", "steps": 18 if steps is None else steps, "rho": RHO}
    return within_range(solver, metadata, path)


def within_range(solver: dict[str, Any], metadata: dict[str, Any], path: Path, key: str = "solver") -> dict[str, Any]:
    """The solver; one on EDM's noise levels gets a missing or null sigma_min and sigma_max from the teacher.

    These are EDM's, limited to the range of noise levels that the teacher's file names.

    Raises:
        ValueError: a sigma_min or sigma_max outside that range; `key` is the solver's name in the message.
    """
    if solver["name"] not in (*SOLVERS, *STOCHASTIC):
        return solver
    sigma_min, sigma_max = level_range(
        solver.get("sigma_min"), solver.get("sigma_max"), trained=trained_range(metadata), key=key, teacher=path
    )
    return {**solver, "sigma_min": sigma_min, "sigma_max": sigma_max}


def resolve_solver(solver: dict[str, Any], metadata: dict[str, Any], path: Path) -> tuple[dict[str, Any], float]:
    """The solver and the noise level that it starts from; solver student gets its calls from the file.

    Schedulers start at the teacher's highest noise level.

    Raises:
        ValueError: solver student for a file that is not a student's, or noise levels that are not the teacher's.
    """
    if solver["name"] != "student":
        solver = within_range(solver, metadata, path)
        return solver, solver["sigma_max"] if "sigma_max" in solver else metadata["sigma_max"]
    calls = Calls.of(solver["calls"]) if "calls" in solver else student_calls(metadata, path)
    return {"name": "student", "calls": calls.facts()}, calls.sigmas[0]
