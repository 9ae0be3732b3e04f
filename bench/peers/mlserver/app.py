"""MLServer: a custom runtime with adaptive batching, in parallel workers."""

import json

from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from bench.peers.engine import Engine, read_options


class Classifier(MLModel):
    """Pictures as base64, the one encoding of bytes that its JSON has."""

    async def load(self) -> bool:
        """Open the model, in a worker."""
        self.engine = Engine(read_options())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """A batch, which MLServer has made of several requests."""
        bodies = Base64Codec.decode_input(payload.inputs[0])
        answers = self.engine.run([self.engine.decode(data) for data in bodies])
        texts = [json.dumps(answer) for answer in answers]
        return InferenceResponse(
            model_name=self.name, outputs=[StringCodec.encode_output("top", texts)]
        )
