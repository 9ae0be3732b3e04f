"""From a graph's output arrays to answers, one file per task; no HTTP here."""
