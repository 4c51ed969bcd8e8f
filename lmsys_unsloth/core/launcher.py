"""What a launcher's environment means: which process this is, and which GPU it uses.

:func:`join` removes the launcher's variables from the environment and hides all GPUs but one. To unsloth,
trl, transformers and accelerate each rank is then an ordinary process with one GPU: they wrap no model in
``DistributedDataParallel``, scale no gradient, and run the same code as without a launcher.
"""

from __future__ import annotations

import os

from lmsys_unsloth.core import ranks
from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.core.joined_ranks import JoinedRanks
from lmsys_unsloth.core.ranks import Ranks

_LAUNCHER = {
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE",
}  # fmt: skip
_PREFIXES = ("ACCELERATE_", "TORCHELASTIC_")
"""Variables by which libraries recognise a launcher, and how further ones begin."""


def join() -> Ranks:
    """Join the other processes of this command, if a launcher started several.

    Must come before the first use of a GPU and before the import of unsloth.

    Raises:
        UserError: the processes do not find each other, the launcher is configured for sharded models, or the
            ranks' GPUs do not fit together.
    """
    joined = _find_others() if os.environ.get("WORLD_SIZE", "1") != "1" else None
    if joined is not None:
        ranks.use(joined)
    names = [name for name in os.environ if name in _LAUNCHER or name.startswith(_PREFIXES)]
    given = {name: os.environ.pop(name) for name in names}
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if given.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise UserError(
                f"accelerate launch is configured for {name}: each process needs the whole model here.\n"
                "  Use torchrun --nproc-per-node=N, or accelerate launch --multi_gpu."
            )
    see_one_gpu(int(given.get("LOCAL_RANK", "0")))
    if joined is not None:
        joined.check_gpus()
    return ranks.current()


def _find_others() -> JoinedRanks:
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that there are several processes, but "
            f"{', '.join(missing)} is not set.\n  Start them with torchrun, or unset WORLD_SIZE."
        )
    try:
        return JoinedRanks()
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the {os.environ['WORLD_SIZE']} processes of this command do not find each other: {error}\n"
            f"  Check that all are started and reach MASTER_ADDR={os.environ['MASTER_ADDR']}; with several "
            "networks, name one: GLOO_SOCKET_IFNAME=eth0."
        ) from None


def see_one_gpu(local_rank: int) -> None:
    """Hide all GPUs but the rank's own, which becomes number 0; the launcher may have done so already.

    Raises:
        UserError: ``CUDA_VISIBLE_DEVICES`` names several GPUs, but fewer than there are processes.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(local_rank)
        return
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if len(names) > 1 and local_rank >= len(names):
        raise UserError(
            f"process {local_rank} of this machine has no GPU: CUDA_VISIBLE_DEVICES={visible} names "
            f"{len(names)}.\n  Start {len(names)} processes on this machine, or name more GPUs."
        )
    if len(names) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = names[local_rank]
