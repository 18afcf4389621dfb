# SPDX-License-Identifier: Apache-2.0
"""The one exception that means "the input is wrong, here is what to do"."""


class UserError(Exception):
    """Wrong input or a missing piece of the machine.

    The message is one line that says what to do about it. Commands print it without a traceback
    and end with exit code 2.
    """
