"""The batch size that fits in memory, found by trying; the effective batch, which the rates are for, stays the same."""

from __future__ import annotations

import msgspec

from maskrcnn_coco.advice.limits import Say
from maskrcnn_coco.advice.prepare import memory_use, open_setup
from maskrcnn_coco.config import recipes
from maskrcnn_coco.config.resolve import too_large
from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.prepare import RunData
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.system import memory


def halved(
    config: Config, resolved: recipes.Resolved, ranks: Ranks, error: BaseException, say: Say | None
) -> recipes.Resolved:
    """Half the batch size and twice the accumulation, after ``error``: memory that ran out.

    Raises:
        ConfigError: one image did not fit. BaseException: ``error``, where it is something else.
    """
    if not memory.ran_out(error):
        raise error
    batch, parts = config.images_a_pass, config.accumulate
    if batch == 1:
        raise too_large(config, ranks.device) from error
    config = msgspec.structs.replace(config, batch_size=batch // 2, accumulate=parts * 2)
    if say:
        say(f"memory ran out at batch size {batch}: on with {batch // 2}, accumulated {parts * 2} times")
    # "given": it stands in the command line that is advised.
    return recipes.Resolved(config, {**resolved.reasons, "accumulate": "given"}, resolved.warnings)


def settle_batch(resolved: recipes.Resolved, data: RunData, ranks: Ranks, say: Say) -> recipes.Resolved:
    """``--batch-size auto``: the recipe's batch size, halved and accumulated until two training steps fit.

    A data set of the caller's own is not tried: it cannot be opened here.

    Raises:
        ConfigError: not even one image fits.
    """
    if data.train is None:
        return resolved
    while True:
        setup = open_setup(resolved, data, ranks)
        try:
            setup.trials.run(dict.fromkeys(setup.trials.components, 1e-9), 2)  # what is asked is memory, not learning
            say(memory_use(setup)[1])
            why = "the recipe's; two steps of it were tried, and fit"
            return recipes.Resolved(setup.config, {**resolved.reasons, "batch_size": why}, resolved.warnings)
        except (RuntimeError, MemoryError) as error:
            resolved = halved(setup.config, resolved, ranks, error, say)
        finally:
            del setup
            memory.release(ranks.device)
