"""Forward-mode derivatives and the transforms of torch.func: right, or refused by name, never silently zero."""

from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

import hunyuan_kernels as hk
from hunyuan_kernels import _ops
from hunyuan_kernels.testing.spec import all_specs

CONSTANTS = {"prepack", "quantize_nf4"}  # as documented: their results are constants
SPECS = {spec.name: spec for spec in all_specs() if spec.stem != "model"}


def split(arguments):
    """The floating tensors among the arguments, however nested, and a function that puts others in their place."""
    leaves, structure = tree_flatten(arguments)
    chosen = [
        i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float32, torch.bfloat16)
    ]

    def join(tensors):
        replaced = list(leaves)
        for i, tensor in zip(chosen, tensors, strict=True):
            replaced[i] = tensor
        return tree_unflatten(replaced, structure)

    return [leaves[i] for i in chosen], join


def nonempty_case(spec):
    for case in spec.cases():
        arguments = case.make(0)
        if all(leaf.numel() for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)):
            return arguments
    raise AssertionError(f"{spec.name} has no case without empty tensors")


@pytest.mark.parametrize("name", sorted(SPECS.keys() - CONSTANTS))
def test_forward_mode_is_refused_by_name(name):
    spec = SPECS[name]
    tensors, join = split(nonempty_case(spec))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, torch.ones_like(t)) for t in tensors]
        with pytest.raises(
            NotImplementedError, match=r"^\w+: forward-mode derivatives are not implemented; use "
        ) as error:
            spec.function(**join(duals))
        assert str(error.value).split(":")[0] in dir(_ops.ops)
        spec.function(**join(tensors))  # no tangents: nothing to refuse


def test_every_op_looks_at_its_tensors():
    """Ops without an autograd kernel of ours are those whose function detaches, or checks as it writes in place."""
    prefix = f"{_ops.NAMESPACE}::"
    names = {
        n.removeprefix(prefix)
        for n in torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
        if n.startswith(prefix)
    }
    unchecked = {n for n in names if not torch._C._dispatch_has_kernel_for_dispatch_key(prefix + n, "Autograd")}
    assert {n for n in unchecked if not n.startswith("ceiling_")} == {*CONSTANTS, "dispatch_", "grouped_gemm_wgrad_"}
    modules = (Path(hk.__file__).parent / "ops").glob("*.py")
    assert [path.name for path in modules if "register_autograd" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("name", sorted(SPECS.keys() - {"expert_gradients"}))
def test_vmap_is_a_loop_or_refused(name):
    spec = SPECS[name]
    tensors, join = split(nonempty_case(spec))

    def call(*tensors):
        return tuple(tree_leaves(spec.function(**join(tensors))))

    batches = [torch.stack([t, t.flip(0) if t.dim() else t / 2]) for t in tensors]
    if name == "grouped_gemm_wgrad_":  # torch: no vmap of a library's ops that write in place
        with pytest.raises(RuntimeError, match="hunyuan_kernels::grouped_gemm_wgrad_"):
            torch.func.vmap(call)(*batches)
        return
    together = torch.func.vmap(call)(*batches)
    for i in range(2):
        for got, expected in zip(together, call(*(b[i] for b in batches)), strict=True):
            torch.testing.assert_close(got[i].float(), expected.float(), rtol=0, atol=0, equal_nan=True)


def test_reverse_mode_of_torch_func_is_refused_by_name():
    x = torch.randn(4, 6)
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.hessian):
        with pytest.raises(NotImplementedError, match=r"^swiglu: the derivatives of torch\.func"):
            transform(lambda x: hk.swiglu(x).sum())(x)


def test_what_the_messages_recommend():
    x, v = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.ones(4, 6)

    def eager(x):
        return torch.nn.functional.silu(x[:, :3]) * x[:, 3:]

    torch.testing.assert_close(
        torch.autograd.functional.jvp(hk.swiglu, x, v)[1], torch.autograd.functional.jvp(eager, x, v)[1]
    )
    for vectorize in (False, True):
        found = torch.autograd.functional.jacobian(hk.swiglu, x, vectorize=vectorize)
        torch.testing.assert_close(found, torch.func.jacrev(eager)(x))
