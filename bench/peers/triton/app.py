"""Triton, as nvidia-pytriton carries it: its dynamic batcher in front of Python instances."""

import json
from collections.abc import Callable

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from bench.peers.engine import Array, Engine, Options, read_options


def instance(options: Options) -> Callable[..., dict[str, Array]]:
    """One of the functions among which Triton shares the batches out, each with its own model."""
    engine = Engine(options)

    @batch
    def infer(image: Array) -> dict[str, Array]:  # (N, 1) of bytes
        answers = engine.run([engine.decode(data) for data in image[:, 0]])
        texts = [[json.dumps(answer).encode()] for answer in answers]
        return {"top": np.array(texts, dtype=object)}

    return infer


def main() -> None:
    """Serve until told to stop."""
    options = read_options()
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=options.port,
        grpc_address="127.0.0.1",
        grpc_port=options.port + 1,
        allow_metrics=False,
    )
    batcher = DynamicBatcher(max_queue_delay_microseconds=round(options.wait_s * 1e6))
    with Triton(config=config) as triton:
        triton.bind(
            model_name="classifier",
            infer_func=[instance(options) for _ in range(options.workers)],
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="top", dtype=bytes, shape=(1,))],
            config=ModelConfig(max_batch_size=options.max_batch, batcher=batcher),
        )
        triton.serve()


if __name__ == "__main__":
    main()
