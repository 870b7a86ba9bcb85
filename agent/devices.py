"""Whether a device that somebody named is there, asked before anything is loaded."""

from __future__ import annotations

from groundstream.errors import SettingsError


def checked_device(device: str) -> str:
    """The device's name, if this machine has it.

    Raises:
        SettingsError: no such kind of device, or none here.
    """
    if device == "cpu":
        return device  # Without importing torch, which takes seconds.
    import torch

    try:
        named = torch.device(device)
    except RuntimeError:
        raise SettingsError(f"{device!r} is no device; give cpu, cuda or cuda:1") from None
    match named.type:
        case "cpu":
            return device
        case "cuda":
            number = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if (named.index or 0) < number:
                return device
            raise SettingsError(f"{device} is not there: PyTorch sees {number} CUDA devices here")
        case "mps":
            if torch.backends.mps.is_available():
                return device
    raise SettingsError(f"{device} is not there, or not supported; give cpu, cuda or cuda:1")
