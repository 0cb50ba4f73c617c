"""What libraries say of a save that fails: told once, by the error that ends the run, in a line."""
import functools
import logging
import os
import re
import sys


@functools.lru_cache(maxsize=None)
def hush_failed_saves() -> None:
  """Drops, from here on in this process, what Orbax and TensorStore print of a failed save.

  On a full disk these are hundreds of lines: Orbax logs the trace of each of its threads before it
  raises what is in it, asyncio those of tasks that nobody waits for any more, and TensorStore
  reports, for every array, that who waited for it is gone. They come at any time, even after the
  error; hence for good. Warnings are left as they are.
  """
  logging.getLogger("absl").addFilter(_is_new)
  logging.getLogger("asyncio").addFilter(_is_asked_for)
  before = sys.unraisablehook
  sys.unraisablehook = lambda found: None if _is_of_nobody(found) else before(found)


def _is_new(record):
  """Whether a log record says what no exception will."""
  return record.levelno < logging.ERROR or "orbax" not in record.pathname


def _is_asked_for(record):
  """Whether a log record is of anything but one of Orbax's tasks that failed beside another."""
  message = record.getMessage()
  return not ("never retrieved" in message and "orbax" in message)


def _is_of_nobody(found):
  """Whether an exception is a C++ thread's that found the event loop closed which it was to tell."""
  return (found.object is None and isinstance(found.exc_value, RuntimeError)
          and str(found.exc_value) == "Event loop is closed")


def cause(error):
  """The line of Orbax's error, which may quote a trace, that says why a file wasn't written."""
  seen = []
  while error is not None and error not in seen:
    seen.append(error)
    error = error.__cause__ or error.__context__
  known = [e for e in seen if isinstance(e, OSError) and e.strerror]
  if known:
    return known[-1].strerror
  if code := re.search(r"os_error_code='(\d+)'", str(seen[0])):  # TensorStore's, with long paths
    return os.strerror(int(code[1]))
  return str(seen[0]).splitlines()[0]


def is_of_memory(error):
  """Whether memory, the host's or a device's, was too small for what was to be read."""
  return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
