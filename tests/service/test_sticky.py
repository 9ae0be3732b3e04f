"""Which errors say that a device is lost to a process."""

import pytest

from service.worker.sticky import lost_the_device


@pytest.mark.parametrize(
    "said",
    [
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0",
        "[ONNXRuntimeError] : 1 : FAIL : cudaErrorIllegalAddress: see the log",
        "CUDA error: device-side assert triggered",
        "CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure",
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "CUDA failure 716: misaligned address",
        "GPU is lost. Reboot the system to recover this GPU",
        "GPU 0000:3b:00.0: GPU has fallen off the bus.",
        "cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable",
        "no CUDA-capable device is detected",
        "CUDA failure 900: operation not permitted when stream is capturing ; GPU=0",
        "CUDA failure 901: operation failed due to a previous error during capture ; GPU=0",
        "cuEventSynchronize: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        "cudaErrorStreamCaptureImplicit: operation would make the legacy stream depend on a "
        "capturing blocking stream",
    ],
)
def test_what_leaves_a_context_broken_is_known(said: str) -> None:
    assert lost_the_device(RuntimeError(said))


@pytest.mark.parametrize(
    "said",
    [
        "CUDA failure 2: out of memory ; GPU=0",
        "Failed to allocate memory for requested buffer of size 1024",
        "CUBLAS_STATUS_NOT_SUPPORTED",
        "Invalid rank for input: images",
        "the device fell silent",
    ],
)
def test_what_only_one_batch_suffers_from_is_not(said: str) -> None:
    assert not lost_the_device(RuntimeError(said))
