"""The old place of :mod:`sdesam.autodiff.elementwise`."""

from sdesam.autodiff.elementwise import elementwise

__all__ = ["elementwise"]
