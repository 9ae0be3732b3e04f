"""What is written next: the work in threads, and a process per core with one runtime thread."""

from typing import Annotated

from fastapi import Depends, FastAPI, Request

from bench.peers.engine import Answer, Engine, read_options

app = FastAPI()
engine = Engine(read_options())


async def body(request: Request) -> bytes:
    """The picture; read in the event loop, as a function in a thread cannot wait for it."""
    return await request.body()


@app.post("/classify")
def classify(picture: Annotated[bytes, Depends(body)]) -> Answer:
    """Top classes of the picture in the body; runs in a thread."""
    return engine.classify(picture)
