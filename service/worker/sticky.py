"""Errors after which a device runs nothing more for this process, whatever it is asked to run."""

import re

# What CUDA says, by name or in words, less case, blanks and marks; ONNX Runtime and TensorRT pass
# it on. After these the context of a process stays broken until the process ends.
_PHRASES = (
    "illegalmemoryaccess",
    "illegaladdress",
    "illegalinstruction",
    "misalignedaddress",
    "invalidprogramcounter",
    "cudaerrorinvalidpc",
    "invalidaddressspace",
    "hardwarestackerror",
    "devicesideassert",
    "cudaerrorassert",
    "unspecifiedlaunchfailure",
    "launchfailure",
    "launchfailed",
    "launchtimedout",
    "launchtimeout",
    "uncorrectable",
    "contextisdestroyed",
    "nocudacapabledevice",
    "cudaerrornodevice",
    "fallenoffthebus",
    "gpuislost",
    "devicesunavailable",
    "deviceunavailable",
    "mpsclientterminated",
    # CUDA graphs are captured when a model is opened, where a failure is met. Later these say that
    # a stream was left in a capture, and it will run nothing.
    "streamcapture",
    "streamiscapturing",
    "capturingstream",
    "capturingblockingstream",
    "capturesequence",
    "errorduringcapture",
)


def lost_the_device(error: BaseException) -> bool:
    """Whether an error says that nothing will run on the device any more, in this process."""
    text = re.sub(r"[\W_]", "", str(error).lower())
    return any(phrase in text for phrase in _PHRASES)
