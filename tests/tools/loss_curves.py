# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Compare the losses of a run on one device with those on meshes and of several processes, in float32.

python tests/tools/loss_curves.py [STEPS]
"""

import dataclasses
import pathlib
import sys
import tempfile

import clusters
import fault_drill
from clusters import Plan

MESHES = {  # processes, devices of each, mesh
    "2 processes": (2, 2, {}),
    "4 processes": (4, 2, {}),
    "fsdp 8": (1, 8, {"data": 1, "fsdp": 8}),
    "tensor 2": (1, 2, {"data": 1, "tensor": 2}),
    "sequence 2": (1, 2, {"data": 1, "sequence": 2}),
    "data 2, fsdp 2, tensor 2": (1, 8, {"data": 2, "fsdp": 2, "tensor": 2}),
    "4 processes, fsdp 2, sequence 2": (4, 1, {"data": 1, "fsdp": 2, "sequence": 2}),
    "4 processes, fsdp 2, tensor 2": (4, 1, {"data": 1, "fsdp": 2, "tensor": 2}),
}


def difference(plan: Plan, reference: Plan) -> float:
    """Return the largest relative difference of the losses of two runs."""
    got, want = clusters.losses(plan.workdir), clusters.losses(reference.workdir)
    assert got.keys() == want.keys() and want
    return max(abs(got[step] - want[step]) / abs(want[step]) for step in want)


def main(steps: int) -> None:
    """Run all meshes in a temporary folder and print the differences."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        reference = fault_drill.plan(root / "reference" / "run", root / "compiled", steps=steps, every=steps)
        clusters.finish(reference)
        worst = 0.0
        for name, (processes, devices, mesh) in MESHES.items():
            changes = reference.changes | {f"mesh.{axis}": size for axis, size in mesh.items()}
            where = root / name / "run"
            plan = dataclasses.replace(reference, workdir=where, processes=processes, devices=devices, changes=changes)
            clusters.finish(plan)
            worst = max(worst, found := difference(plan, reference))
            print(f"{name:<34}{found:.1e}", flush=True)
        assert worst < 1e-5, f"{worst:.1e} over {steps} steps"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
