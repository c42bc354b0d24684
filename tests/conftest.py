"""Settings of the whole suite."""

from hypothesis import settings

settings.register_profile("rlsf", deadline=None)  # beside other work a single example may take any time
settings.load_profile("rlsf")
