"""What the plans of the grouped GEMMs make of the models' shapes on a GPU of 132 SMs, as the table of
docs/kernels/grouped_gemm.md:

python -m bench.grouped_gemm_work

Tensor core flops, and bytes that TMA loads, each over what the shapes demand: flops of the rows alone, each operand
read once. Bytes are those of python_tests/ops/test_grouped_gemm_cuda.py, where the simulator counts the same.
"""

from collections.abc import Iterator
from typing import Any

from hunyuan_kernels._C import plans

from hunyuan_kernels.model.config import PRESETS

Form = plans.GroupedGemmForm
SMS = 132


def loads(rows: int, experts: int) -> Iterator[list[int]]:
    """Rows of each expert: balanced, Zipf (shares of 1, 1/2, 1/3, ...), all to one."""
    for shares in ([1.0] * experts, [1 / (e + 1) for e in range(experts)], [1.0] + [0.0] * (experts - 1)):
        ends = [round(rows * sum(shares[: e + 1]) / sum(shares)) for e in range(experts)]
        yield [end - start for start, end in zip([0, *ends], ends, strict=False)]


def ceil(a: int, b: int) -> int:
    return -(-a // b)


def work(plan: Any, form: Any, sizes: list[int], columns: int, depth: int) -> tuple[float, float]:
    """Flops and TMA bytes over what the shapes demand. ``columns``: lines of b (weight gradient: of grad_out)."""
    tile, rows = plan.taken, sum(sizes)
    if form is Form.weight_gradient:
        tiles = ceil(columns, tile.tile_rows) * ceil(depth, tile.tile_columns)
        area = tiles * tile.tile_rows * tile.tile_columns
        flops = area * sum(16 * ceil(size, 16) for size in sizes)
        loaded = tiles * (tile.tile_rows + tile.tile_columns) * sum(64 * ceil(size, 64) for size in sizes)
        return flops / (rows * columns * depth), loaded / (rows * (columns + depth))
    across = ceil(columns, tile.tile_columns)
    step = tile.tile_rows if tile.cluster else 64  # a warpgroup without rows multiplies nothing
    flops = across * tile.tile_columns * depth * sum(step * ceil(size, step) for size in sizes)
    tiles = across * sum(ceil(size, tile.tile_rows) for size in sizes)
    loaded = tiles * (tile.tile_rows + tile.tile_columns) * 64 * ceil(depth, 64)
    used = sum(size > 0 for size in sizes)
    return flops / (rows * columns * depth), loaded / (rows * depth + used * columns * depth)


def table() -> str:
    lines = [
        "| product | S | tile | flops: balanced | Zipf | one expert | bytes: balanced | Zipf | one expert |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title, counts in (
        ("hunyuan-large", "Large", (16, 512, 4096, 65536)),
        ("hunyuan-a13b", "A13B", (64, 512, 4096, 65536)),
    ):
        config = PRESETS[name]
        hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_experts
        products = [
            ("gate and up", Form.swiglu, 2 * inner, hidden, False),
            ("down", Form.rows, hidden, inner, False),
            ("down, input gradient", Form.rows, inner, hidden, True),
            ("gate and up, input gradient", Form.rows, hidden, 2 * inner, True),
            ("gate and up, weight gradient", Form.weight_gradient, 2 * inner, hidden, False),
            ("down, weight gradient", Form.weight_gradient, hidden, inner, False),
        ]
        for what, form, columns, depth, across in products:
            for rows in counts if "gradient" not in what else counts[-2:]:
                sizes = {"experts": experts, "rows": rows, "columns": columns, "depth": depth}
                plan = plans.grouped_gemm(form=form, **sizes, across=across, sms=SMS)
                ratios = [work(plan, form, groups, columns, depth) for groups in loads(rows, experts)]
                tile = f"{plan.taken.tile_rows} x {plan.taken.tile_columns}"
                tile += f", cluster {plan.taken.cluster}" if plan.taken.cluster > 1 else ""
                numbers = [f"{ratio[i]:.2f}" for i in (0, 1) for ratio in ratios]
                lines.append(f"| {' | '.join([f'{title} {what}', str(rows), tile, *numbers])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
