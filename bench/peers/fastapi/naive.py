"""What is written first: everything happens in the event loop, and the runtime has every core."""

from fastapi import FastAPI, Request

from bench.peers.engine import Answer, Engine, read_options

app = FastAPI()
engine = Engine(read_options())


@app.post("/classify")
async def classify(request: Request) -> Answer:
    """Top classes of the picture in the body."""
    return engine.classify(await request.body())
