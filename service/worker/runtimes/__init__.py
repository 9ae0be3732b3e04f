"""One file per runtime library; which of them runs a bundle is chosen in ``choose``."""
