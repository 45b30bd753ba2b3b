"""Weights, gradients and optimizer state divided over the processes of a run, by PyTorch's FSDP2.

Each process keeps some rows of every parameter. A layer's weights are put together when it is computed, and given up
again after it; its gradient is added up over the processes as soon as it is known. Embeddings and head belong to no
layer: they are put together once a pass. All of this is talk between the processes, so all of them make the same passes
(``ranks.lockstep``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from dipole.config import TrainConfig
from dipole.data.batch import PackedBatch
from dipole.errors import ConfigError
from dipole.policy.adapters import add_adapter
from dipole.policy.head import HeadInput
from dipole.policy.load import fingerprint, load_model
from dipole.policy.locate import allowed_by
from dipole.policy.logprobs import Policy, TokenValues
from dipole.policy.memory import repeated_layers
from dipole.policy.size import empty_model
from dipole.train.ranks import Ranks

P = ParamSpec("P")
T = TypeVar("T")

NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
METHODS = ("none", "lora")
"""What is trained on divided weights in the tests."""


class DividedPolicy(Policy):
    """A policy of which each process has some rows of every parameter.

    Args:
        model: see ``Policy``.
        precision: in which layers are computed: ``"no"``, ``"bf16"`` or ``"fp16"``.
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__(model)
        self.narrow = NARROW.get(precision)
        self._in_forward = False

    def forward(
        self, batch: PackedBatch, byproducts: Sequence[str] = (), reference: HeadInput | None = None
    ) -> TokenValues:
        """See ``Policy``."""
        self._in_forward = True  # where weights have been put together
        try:
            return super().forward(batch, byproducts, reference)
        finally:
            self._in_forward = False

    def head_input(self, batch: PackedBatch) -> HeadInput:
        """See ``Policy``. For a reference this is the whole pass."""
        inner = super().head_input
        return inner(batch) if self._in_forward else self.together(inner, batch)

    def together(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls what reads embeddings or head past ``forward``, such as sampling, with these weights put together.

        Layers put together are narrow, so the call is in mixed precision if the run is.
        """
        with torch.autocast(self.device.type, dtype=self.narrow, enabled=self.narrow is not None):
            return function(*args, **kwargs)


def with_all_weights(policy: Policy, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls what reads embeddings or head past ``forward``, such as sampling: divided ones are put together for it."""
    call = policy.together if isinstance(policy, DividedPolicy) else _plainly
    return call(function, *args, **kwargs)


def _plainly(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return function(*args, **kwargs)


def check_sharding(config: TrainConfig, processes: int, constraints: Sequence[object] = ()) -> None:
    """Raises a ``ConfigError`` for what can't be done, or was never tried, with divided weights."""
    if config.sharding == "none":
        return
    peft = config.peft
    problems = {
        "there is one process, and nothing to divide weights over": processes == 1,
        "a constraint may look at the model, of which no process has all weights": bool(constraints),
        "weights in 4 bits can't be divided": getattr(peft, "quantization", "none") != "none",
        "an adapter that was trained before can't be divided yet": getattr(peft, "start_from", None) is not None,
        f"{peft.method} was never tried on divided weights": peft.method not in METHODS,
    }
    for problem, holds in problems.items():
        if holds:
            remedy = "Launch several with torchrun, or leave it out" if processes == 1 else "Leave it out"
            raise ConfigError(problem, where="--sharding fsdp", remedy=remedy)


def load_divided(config: TrainConfig, dtype: torch.dtype, precision: str, ranks: Ranks) -> tuple[Policy, str]:
    """The policy, divided, and the fingerprint of the model that it starts from.

    The first process alone reads the weights, into main memory, and hands the others their rows.

    Args:
        config: of the run.
        dtype: of the weights; an adapter's are float32.
        precision: in which layers are computed: ``"no"``, ``"bf16"`` or ``"fp16"``.
        ranks: the processes.

    Raises:
        ConfigError: the model can't be loaded or divided.
    """
    weights, generation, whole = "", None, None
    if ranks.is_first:
        model = load_model(config.model, dtype=dtype, allowed=allowed_by(config))
        weights, generation = fingerprint(model), model.generation_config
        whole = Policy(add_adapter(model, config.peft, seed=config.seed))
    empty = empty_model(config.model, dtype=dtype, allowed=allowed_by(config))
    weights, empty.generation_config = ranks.from_first((weights, generation))
    policy = DividedPolicy(add_adapter(empty, config.peft, seed=config.seed), precision)
    divide(policy, ranks)
    _hand_out(policy, whole, ranks, where=config.model)
    return policy.eval(), weights


def divide(policy: DividedPolicy, ranks: Ranks) -> None:
    """Divides parameters without values, in place, and makes room for each process's rows on its device.

    Raises:
        ConfigError: the architecture has no layers that can be divided one by one.
    """
    layers = repeated_layers(policy.transformer, "--sharding fsdp", "divided one by one")
    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    # Else autocast would make a narrow copy of every layer's weights and keep it until the end of the pass. What layers
    # are given stays as it is, since autocast sees to that.
    of_layers = MixedPrecisionPolicy(
        param_dtype=policy.narrow, reduce_dtype=torch.float32 if policy.narrow else None, cast_forward_inputs=False
    )
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=of_layers)
    fully_shard(policy, mesh=mesh)
    for module in policy.modules():
        if isinstance(module, FSDPModule):  # the loop divides by the step's weight, so gradients are sums, not means
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(policy, "together")
    policy.to_empty(device=ranks.device)


@torch.no_grad()
def _hand_out(policy: Policy, whole: Policy | None, ranks: Ranks, *, where: str) -> None:
    """Gives every process its rows of what the first one has."""
    held = ranks.from_first(None if whole is None else _shapes(whole))
    if held != _shapes(policy):
        raise ConfigError(
            "its weights aren't of the shapes and types that its config.json describes, so they can't be divided",
            where=f"--model {where}",
            remedy="Leave out --sharding fsdp",
        )
    values: dict[str, Tensor] = (
        {} if whole is None else {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    )
    for name, parameter in policy.named_parameters():
        assert isinstance(parameter, DTensor)
        value = torch.empty(parameter.shape, dtype=parameter.dtype, device=ranks.device)
        if name in values:
            value.copy_(values.pop(name))
        rows = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        parameter.to_local().copy_(rows.to_local())
    for name, buffer in policy.named_buffers():
        if name in values:
            buffer.copy_(values[name])
        distributed.broadcast(buffer, src=0)


def _shapes(policy: Policy) -> list[tuple[str, tuple[int, ...], str]]:
    tensors = [*policy.named_parameters(), *policy.named_buffers()]
    return [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors]


def put_apart(policy: Policy) -> None:
    """Leaves every process with its own rows, which are what optimizer, checkpoints and a moving reference work on."""
    if isinstance(policy, FSDPModule):
        policy.reshard()  # layers are apart after each pass; embeddings and head stay together for the next


def whole_tensors(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The tensors in one piece, in the first process's main memory; all processes take part, the others get nothing."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        with ranks.in_lockstep():
            value = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if ranks.is_first:
            found[name] = value.cpu()
    return found


def own_rows(file: Any, name: str, like: Tensor) -> Tensor:
    """A tensor of a safetensors file as ``like`` is: whole, or this process's rows of it, which alone are read.

    Args:
        file: what ``safe_open`` gives.
        name: of the tensor in it.
        like: whose shape it has.
    """
    if not isinstance(like, DTensor):
        value: Tensor = file.get_tensor(name)
        return value
    local, mesh = like.to_local(), like.device_mesh
    start = min(mesh.get_local_rank() * -(-like.shape[0] // mesh.size()), like.shape[0])
    rows = file.get_slice(name)[start : start + local.shape[0]] if local.shape[0] else local.clone()
    return DTensor.from_local(
        rows.to(local.device), mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def model_tensors(policy: Policy) -> dict[str, Tensor]:
    """What ``save_pretrained`` writes of a divided model: its trained parameters if it has an adapter, else all."""
    put_apart(policy)
    adapted = hasattr(policy.model, "disable_adapter")
    parameters = dict(policy.model.named_parameters())
    if adapted:
        return {name: value.detach() for name, value in parameters.items() if value.requires_grad}
    buffers = dict(policy.model.named_buffers())
    kept: dict[str, Any] = {name: buffers[name] for name in policy.model.state_dict() if name in buffers}
    return {name: value.detach() for name, value in parameters.items()} | kept
