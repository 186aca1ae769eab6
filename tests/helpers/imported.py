"""What a run imports only under way: imported by a process that forks many runs, once for all of them."""

import nanbench.tiny  # noqa: F401
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

import maskrcnn_coco.data.audit.cache
import maskrcnn_coco.data.layouts  # noqa: F401
