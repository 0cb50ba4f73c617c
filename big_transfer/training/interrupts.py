"""SIGINT and SIGTERM as a wish to stop: the loop finishes its step, saves and leaves."""
import signal
import threading


class Interrupted(Exception):
  """Raised where work is left halfway because a signal came."""


class Interrupts:
  """Within `with Interrupts() as interrupts`, `interrupts.signal` is the name of what came.

  A second SIGINT is an ordinary KeyboardInterrupt. Outside the main thread, where Python allows
  no handlers, nothing is ever received.
  """

  def __init__(self):
    self.signal = None
    self.number = None
    self._before = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._before[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *exception):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def poll(self):
    """Returns the name of the signal that came, None while there was none."""
    return self.signal

  def check(self):
    """Raises Interrupted if a signal came."""
    if self.poll():
      raise Interrupted(self.signal)

  def _receive(self, number, frame):
    del frame
    if self.signal and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.signal, self.number = signal.Signals(number).name, number
