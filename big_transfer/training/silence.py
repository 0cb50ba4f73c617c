"""What libraries print of a save that fails, which is told once, by the error that ends the run."""
import functools
import logging
import sys


@functools.lru_cache(maxsize=None)
def hush_failed_saves() -> None:
  """Drops, from here on in this process, what Orbax and TensorStore print of a failed save.

  On a full disk these are hundreds of lines: Orbax logs the trace of each of its threads before it
  raises what is in it, and TensorStore reports, for every array, that who waited for it is gone.
  They come at any time, even after the error; hence for good. Warnings are left as they are.
  """
  logging.getLogger("absl").addFilter(_is_new)
  before = sys.unraisablehook
  sys.unraisablehook = lambda found: None if _is_of_nobody(found) else before(found)


def _is_new(record):
  """Whether a log record says what no exception will."""
  return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _is_of_nobody(found):
  """Whether an exception is a C++ thread's that found the event loop closed which it was to tell."""
  return (found.object is None and isinstance(found.exc_value, RuntimeError)
          and str(found.exc_value) == "Event loop is closed")
