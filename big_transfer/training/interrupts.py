"""SIGINT and SIGTERM as a wish to stop: the loop finishes its step, saves and leaves.

Of many processes one that gets a signal stops all, at the same step: see `hosts.stop`.
"""
import signal
import threading

import jax

from big_transfer.training import hosts


class Interrupted(Exception):
  """Raised where work is left halfway because a signal came."""


class Interrupts:
  """Within `with Interrupts() as interrupts`, `interrupts.signal` is the name of what came.

  A second SIGINT is an ordinary KeyboardInterrupt. Outside the main thread, where Python allows
  no handlers, nothing is ever received. All processes have to ask equally often.

  One `with` within another hears what comes meanwhile, and tells the outer one as it ends: a run
  that was about to finish does, but what was to follow it is not begun.
  """

  def __init__(self):
    self.signal = None
    self.number = None
    self._many, self._announced = jax.process_count() > 1, False
    self._before = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      # With many, SIGTERM is JAX's: a handler of ours would keep it from telling the others.
      for number in (signal.SIGINT,) if self._many else (signal.SIGINT, signal.SIGTERM):
        self._before[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *exception):
    for number, handler in self._before.items():
      signal.signal(number, handler)
    outer = getattr(self._before.get(self.number), "__self__", None)
    if isinstance(outer, Interrupts):
      outer._receive(self.number, None)

  def poll(self):
    """Returns the name of the signal that came, None while there was none."""
    if self._many and not self.signal and (number := hosts.stop()):
      self.signal, self.number = signal.Signals(number).name, number
    return self.signal

  def check(self):
    """Raises Interrupted if a signal came."""
    if self.poll():
      raise Interrupted(self.signal)

  def _receive(self, number, frame):
    del frame
    if (self.signal or self._announced) and number == signal.SIGINT:
      raise KeyboardInterrupt
    if self._many:
      self._announced = True
      hosts.announce(number)
      return
    self.signal, self.number = signal.Signals(number).name, number
