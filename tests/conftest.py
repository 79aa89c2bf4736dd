"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is no fault of the code: nothing here is judged by the clock.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
