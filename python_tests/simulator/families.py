"""The kernels of faults/: how they are launched, and what they compute."""

import torch

INTEGERS = torch.arange(128, dtype=torch.int32)


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.int32)


class Family:
    """How the kernels of a file are launched, and what the correct one computes."""

    kernel = ""

    block, grid, cluster = 32, 1, 1

    def arguments(self):
        raise NotImplementedError

    def want(self):
        raise NotImplementedError

    def run(self, gpu, module):
        """The result and the reports of the launches."""
        args = self.arguments()
        report = gpu.launch(module, self.kernel, grid=self.grid, block=self.block, cluster=self.cluster, args=args)
        return args[-1], [report]


class Memory(Family):
    kernel = "memory"

    def arguments(self):
        # numpy arrays keep their protection; the input of a kernel may be read-only.
        values = INTEGERS.numpy().copy()
        values.flags.writeable = False
        return [values, zeros(32)]

    def want(self):
        return INTEGERS[0::4] + INTEGERS[1::4]


class Wgmma(Family):
    kernel = "wgmma"
    block = 160

    def arguments(self):
        return [torch.zeros(128, 4)]

    def want(self):
        return torch.full((128, 4), 32.0)


class Copies(Family):
    kernel = "copies"

    def arguments(self):
        return [INTEGERS[:32].clone(), zeros(32)]

    def want(self):
        return 2 * INTEGERS[:32]


class MBarrier(Family):
    kernel = "mbarrier"
    block = 64

    def arguments(self):
        return [zeros(64)]

    def want(self):
        return INTEGERS[:32].repeat(2) + 100


class Cluster(Family):
    kernel = "cluster"
    grid = cluster = 2

    def arguments(self):
        return [zeros(2)]

    def want(self):
        return torch.tensor([8, 7], dtype=torch.int32)


class Barriers(Family):
    kernel = "barriers"
    block = 96

    def arguments(self):
        return [zeros(96)]

    def want(self):
        return INTEGERS[:96].roll(-32)


class GlobalRace(Family):
    kernel = "global_race"
    grid = 2

    def arguments(self):
        return [zeros(32), zeros(1), zeros(32)]

    def want(self):
        return INTEGERS[:32] + 5


class LastBlock(Family):
    kernel = "last_block"
    grid, block = 3, 64

    def arguments(self):
        return [zeros(3 * 64), zeros(1), zeros(64)]

    def want(self):
        return 3 * INTEGERS[:64] + 64 * 3


class Multicast(Family):
    kernel = "multicast"
    grid = cluster = 2

    def arguments(self):
        return [INTEGERS[:32].clone(), zeros(64)]

    def want(self):
        return INTEGERS[:32].repeat(2)


class DependentLaunch(Family):
    kernel = "second"

    def run(self, gpu, module):
        data, out = INTEGERS[:32].clone(), zeros(32)
        gpu.enqueue(module, "first", grid=1, block=32, args=[data])
        gpu.enqueue(module, "second", grid=1, block=32, args=[data, out], programmatic_stream_serialization=True)
        return out, gpu.synchronize()

    def want(self):
        return 4 * INTEGERS[:32]


class Schedules(Family):
    kernel = "schedules"
    grid, block = 2, 64

    def arguments(self):
        return [INTEGERS[64:96].clone(), zeros(2), zeros(3)]

    def want(self):
        return torch.tensor([11, 12, 64], dtype=torch.int32)


FAMILIES = {
    "memory": Memory(),
    "wgmma": Wgmma(),
    "copies": Copies(),
    "mbarrier": MBarrier(),
    "cluster": Cluster(),
    "barriers": Barriers(),
    "global_race": GlobalRace(),
    "last_block": LastBlock(),
    "multicast": Multicast(),
    "dependent_launch": DependentLaunch(),
    "schedules": Schedules(),
}
