"""Whether the paper's encoders fit: T5-XXL and CLIP ViT-L/14 compiled for TPUs that nobody here has.

    python -m benchmarks.encode_t5xxl
    python -m benchmarks.encode_t5xxl --topology=v5e:2x4 --data=1 --captions=64 --out=fits.json

The TPU's own compiler (libtpu, extra [tpu]) works ahead of time for a described topology, without hardware: what it
says of memory is what a chip will hold. Each row is the program that `launch.encode` runs, bfloat16, captions of the
full 113 tokens, on --mesh=data=D,fsdp=F. Every tower is compiled by itself, as it is run; `total` is the larger of
the two programs beside the weights of both. Prints a Markdown table in MB a chip.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ediffi_jax.data.embedding_rows import RowFormat
from ediffi_jax.encoders import MAX_T5_TOKENS, Tokens
from ediffi_jax.encoders.sharding import batch_sharding, param_shardings
from ediffi_jax.planning.encoders import paper_encoders
from ediffi_jax.training.embedder import Embedder

ROWS = (("v5e:2x2", 1), ("v5e:2x4", 1), ("v5e:4x4", 1), ("v5e:4x4", 4))  # topology, devices along data

def measure(topology: str, data: int, captions: int, int8: bool) -> dict[str, Any]:
    """Compiles both programs for a topology and reads off their memory."""
    from jax.experimental import topologies

    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    mesh = topologies.make_mesh(chips, (data, len(chips.devices) // data), ("data", "fsdp"))
    encoders = paper_encoders()
    machine = Embedder(encoders, mesh, RowFormat(spec=encoders.spec, int8=int8), captions)
    placed = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        encoders.params,
        param_shardings(mesh, encoders.params),
    )

    def rows(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((captions, *shape), dtype, sharding=batch_sharding(mesh))

    t5, clip = ((rows(n, dtype=jnp.int32), rows(n, dtype=jnp.bool_)) for n in (MAX_T5_TOKENS, 77))
    tokens = Tokens(t5_ids=t5[0], t5_mask=t5[1], clip_ids=clip[0], clip_mask=clip[1])
    began = time.monotonic()
    memory = {"text": machine.text.lower(placed, tokens).compile().memory_analysis()}
    seconds = time.monotonic() - began
    memory["pictures"] = machine.picture.lower(placed, rows(224, 224, 3, dtype=jnp.uint8)).compile().memory_analysis()
    leaves = jax.tree.leaves(placed)
    weights = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    beside = {
        name: found.temp_size_in_bytes + found.output_size_in_bytes + found.generated_code_size_in_bytes
        for name, found in memory.items()
    }
    text = memory["text"]
    return {
        "topology": topology,
        "chips": len(chips.devices),
        "mesh": f"data={data},fsdp={len(chips.devices) // data}",
        "captions": captions,
        "parameters": sum(leaf.size for leaf in leaves),
        "bytes_of_all_weights": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        "bytes": {
            "weights": weights,
            "temporaries": text.temp_size_in_bytes,
            "output": text.output_size_in_bytes,
            "code": text.generated_code_size_in_bytes,
            "temporaries_pictures": memory["pictures"].temp_size_in_bytes,
            "total": weights + max(beside.values()),
        },
        "compile_seconds": round(seconds, 1),
    }


def main() -> None:
    """Compiles, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", help="such as v5e:2x4; default four rows")
    parser.add_argument("--data", type=int, default=1, help="devices along `data`; the rest is `fsdp`")
    parser.add_argument("--captions", type=int, default=64, help="of a batch, over all chips")
    parser.add_argument("--int8", action="store_true", help="tokens as int8")
    parser.add_argument("--out", help="JSON file for the rows")
    args = parser.parse_args()
    rows = []
    sizes = "weights | temporaries | output | code | pictures' temporaries | total"
    print(f"| topology | mesh | captions | {sizes} | compile |\n{'|---' * 10}|")
    for topology, data in [(args.topology, args.data)] if args.topology else ROWS:
        row = measure(topology, data, args.captions, args.int8)
        rows.append(row)
        names = ("weights", "temporaries", "output", "code", "temporaries_pictures", "total")
        cells = " | ".join(f"{row['bytes'][name] / 1e6:.0f}" for name in names)
        what = f"{topology} | {row['mesh']} | {row['captions']}"
        print(f"| {what} | {cells} | {row['compile_seconds']:.0f} s |", flush=True)
    weights = rows[0]["bytes_of_all_weights"] / 1e9
    print(f"\n{rows[0]['parameters'] / 1e9:.2f} billion parameters, {weights:.2f} GB; MB = 10^6 bytes of one chip")
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    # What the TPU runtime would ask its machine; several compilers may run side by side.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    jax.config.update("jax_platforms", "cpu")
    main()
