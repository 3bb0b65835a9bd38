"""Small kernels, one for each instruction family, on the simulator and on a Hopper GPU: is the manual read rightly?

    python -m bench.gpu.conformance                  # the simulator, and the GPU where there is one
    python -m bench.gpu.conformance --require-gpu    # fails without one
    python -m bench.gpu.conformance --family wgmma   # of all: see --list

Inputs are seeded. Every result is compared with an oracle that shares no code with the simulator (plain torch), and the
GPU's with the simulator's: bit for bit, save where a case says why the manual does not define the bits. Both run the
same PTX text, launched through the same driver table; a driver compiles it, so nvcc is not needed. What nvcc made of
python_tests/simulator/kernels/ when the tree was built lies in build/test_kernels/.
"""
