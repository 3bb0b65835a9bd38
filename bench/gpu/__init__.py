"""Everything that a machine with a Hopper GPU has to say about this tree, by one command and without a network:

    python -m bench.gpu --out out/gpu        # runs all steps; --dry-run prints them
    python -m bench.gpu --only conformance   # a step by its name; several are allowed

In this order: the conformance suite on the simulator and the GPU, every op's cases on the GPU against their references,
the tests, compute-sanitizer's tools over the ops, and the benches beside torch's kernels and a copy, timed in the same
run. A step that fails or takes too long does not stop the others. DIR gets results.json, table.md and a log of each
step. The exit code is 0 when every step passed, 1 when one failed or a tool that it needs is missing, 2 without a GPU.

It needs a tree that was built (./dev setup) where nvcc is, the packages of requirements-dev.txt with a torch for CUDA,
and NVIDIA's driver; nvcc is not needed where it runs, and the conformance suite needs no package but torch.
"""
