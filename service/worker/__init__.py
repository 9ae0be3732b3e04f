"""The worker process: queue, batches and runtimes."""
