# SPDX-License-Identifier: Apache-2.0
"""A lifecycle node that says why a transition failed, and that survives an impossible one."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from egoedit_ros.errors import UserError


class ManagedNode(LifecycleNode):
    """Base of the lifecycle nodes here.

    rclpy swallows what a transition's callback raises; here it is logged, and a
    :class:`UserError` (wrong configuration) counts as FAILURE, anything else as ERROR. A request
    for a transition that the present state does not have is refused; in rclpy it ends the process.
    """

    def __init__(self, name: str, **kwargs) -> None:
        super().__init__(name, **kwargs)
        self.failure = ""
        inner = self._service_change_state.callback

        def change_state(request, response):
            try:
                return inner(request, response)
            except Exception as error:  # RCLError is not exported by rclpy
                self.get_logger().warning(f"transition refused: {_first_line(error)}")
                response.success = False
                return response

        self._service_change_state.callback = change_state

    @property
    def state_label(self) -> str:
        """``unconfigured``, ``inactive``, ``active``, ``finalized`` or a transition's name."""
        return self._state_machine.current_state[1]

    def guarded(self, what: str, work: Callable[[], None]) -> TransitionCallbackReturn:
        """Do a transition's work; its result by what the work raises, which is logged."""
        try:
            work()
        except UserError as error:
            self.failure = _first_line(error)
            self.get_logger().error(f"cannot {what}: {self.failure}")
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self.failure = f"{type(error).__name__}: {_first_line(error)}"
            self.get_logger().error(f"fault in {what}: {self.failure}")
            return TransitionCallbackReturn.ERROR
        self.failure = ""
        return TransitionCallbackReturn.SUCCESS

    def autostart(self) -> bool:
        """Configure and activate. Returns whether both succeeded."""
        success = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == success and self.trigger_activate() == success

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, so that the node can be configured anew."""
        self.free()
        return TransitionCallbackReturn.SUCCESS

    def free(self) -> None:
        """Undo what configure and activate did, as far as they came."""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
