"""Compiles the kernels for GPUs that need not be here; prints what each takes, one JSON object a line.

    python tests/namm_core/attention/compile_kernel.py 80 90

Arguments are compute capabilities without the dot. Head size and groups are Llama-3-8B's. TRITON_INTERPRET must be off.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parents[3]))

from namm_core.attention.triton_kernels import attention_kernel, spectrogram_kernel  # noqa: E402

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
FLOATS = ("scaling", "softcap", "decay")
STRIDES = {f"{of}_{to}" for of in ("query", "key", "value", "out") for to in ("row", "head", "token")}
"""Multiples of 16, as those of the state's heads are not; its keys stand next to one another."""


def compiled(function, pointers: dict[str, str], constants: dict, capability: int, warps: int) -> dict:
    """One kernel for one kind of GPU; pointers: Triton's types of the tensors."""
    names = function.arg_names
    types = {name: "fp32" if name in FLOATS else pointers.get(name, "i32") for name in names}
    types |= dict.fromkeys(constants, "constexpr")
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in names if n in pointers or n in STRIDES}
    source = ASTSource(function, types, {(names.index(n),): value for n, value in constants.items()}, aligned)
    options = {"num_warps": warps, "num_stages": 2}
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(result.asm["ptx"])
        file.flush()
        name = f"sm_{capability}{'a' if capability >= 90 else ''}"
        command = [PTXAS, "-v", f"--gpu-name={name}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "kernel": function.__name__,
        "capability": capability,
        "shared": result.metadata.shared,
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "spilled": int(re.search(r"(\d+) bytes spill stores", said)[1]),
        "tensor_cores": "mma" in result.asm["ptx"],
    }


def both(capability: int, size: int = 128, groups: int = 4, dtype: torch.dtype = torch.bfloat16) -> list[dict]:
    """Both kernels in the tiles that they would be launched with."""
    number, held = ("*bf16", "*fp16") if dtype == torch.bfloat16 else ("*fp32", "*fp32")
    same = {"QUERY_HEADS": 8 * groups, "GROUPS": groups, "SIZE": size, "WIDTH": size, "CAPPED": False}
    same |= {"PRECISION": "tf32x3", "INTERPRETED": False}
    queries, keys = attention_kernel._attention_tile(size, dtype)
    first = compiled(
        attention_kernel._attention,
        dict.fromkeys(("query", "key", "value", "out"), number)
        | {"sums": "*fp32"}
        | dict.fromkeys(("first", "lengths"), "*i32"),
        {**same, "VALUE_SIZE": size, "VALUE_WIDTH": size, "QUERIES": queries, "KEYS": keys},
        capability,
        8 if queries >= 128 else 4,
    )
    keys = spectrogram_kernel._spectrogram_tile(size, dtype)
    second = compiled(
        spectrogram_kernel._spectrogram,
        dict.fromkeys(("query", "key"), number)
        | dict.fromkeys(("sums", "average", "basis"), "*fp32")
        | dict.fromkeys(("carried", "pending", "after"), held)
        | dict.fromkeys(("first", "held", "lengths"), "*i32"),
        {**same, "GROUPS_POWER": triton.next_power_of_2(groups), "KEYS": keys, "HOP": 16}
        | dict.fromkeys(("average_token", "carried_token", "pending_token", "after_token"), 1),
        capability,
        8 if keys >= 128 else 4,
    )
    return [first, second]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for one in both(int(argument)):
            print(json.dumps(one), flush=True)
