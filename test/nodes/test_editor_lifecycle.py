# SPDX-License-Identifier: Apache-2.0
"""Lifecycle and parameters of the editor node, and its process."""

import os
import signal
import subprocess
import sys

import pytest
from editor_support import ERROR, FAILURE, SUCCESS, InvertingSession, Rig
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.parameter import Parameter
from std_srvs.srv import Trigger

from egoedit_ros.errors import UserError
from egoedit_ros.nodes.editor_node import EditorNode
from egoedit_ros.nodes.parameters import EDITOR_PARAMETERS, INSTRUCTION_PARAMETERS, markdown
from egoedit_ros.stream import names

pytestmark = pytest.mark.ros


@pytest.fixture
def make(ros):
    rigs = []

    def start(*args, **kwargs) -> Rig:
        rigs.append(Rig(*args, **kwargs))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.close()


def test_through_all_states_and_back(make):
    rig = make(activate=False)
    node = rig.node
    assert node.state_label == "unconfigured" and node.editor is None
    assert node.trigger_configure() == SUCCESS and node.editor is not None
    assert not rig.images.get_subscription_count()
    assert node.trigger_activate() == SUCCESS
    rig.meet()
    rig.send(*range(5))
    rig.until_out(5)
    assert node.trigger_deactivate() == SUCCESS
    rig.until(lambda: not rig.images.get_subscription_count())
    rig.until(lambda: rig.status and rig.status[-1].state == names.STATE_INACTIVE)
    assert node.trigger_activate() == SUCCESS
    rig.meet()
    rig.send(*range(5))
    rig.until_out(10)
    assert rig.counters()[:2] == (5, 5)  # counted from this activation on
    assert node.trigger_deactivate() == SUCCESS
    assert node.trigger_cleanup() == SUCCESS and node.editor is None
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_shutdown() == SUCCESS and node.state_label == "finalized"


def test_a_bad_configuration_is_a_failure_with_its_reason(ros):
    def no_model(**kwargs):
        raise UserError("no model 'x' here; use edge")

    node = EditorNode(open_model=no_model)
    assert node.trigger_configure() == FAILURE
    assert node.state_label == "unconfigured" and node.failure == "no model 'x' here; use edge"
    node.destroy_node()


def test_a_fault_in_loading_is_an_error_that_can_be_tried_again(ros):
    sessions = iter([RuntimeError("disk on fire"), InvertingSession()])

    def open_model(**kwargs):
        session = next(sessions)
        if isinstance(session, Exception):
            raise session
        return session

    node = EditorNode(open_model=open_model)
    assert node.trigger_configure() == ERROR
    assert node.state_label == "unconfigured" and "disk on fire" in node.failure
    assert node.autostart()
    node.free()
    node.destroy_node()


def test_a_fault_in_the_warm_up_is_an_error(ros):
    session = InvertingSession()
    session.broken = "no kernel"
    node = EditorNode(open_model=lambda **kwargs: session)
    assert node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == ERROR
    assert node.state_label == "unconfigured" and node.editor is None
    node.destroy_node()


def test_how_instructions_switch_reaches_the_session_and_has_bounds(ros):
    told = []

    def open_model(**kwargs):
        told.append(kwargs)
        return InvertingSession()

    more = [Parameter("recache", value=True), Parameter("blend_chunks", value=2)]
    node = EditorNode(open_model=open_model, parameter_overrides=more)
    assert node.trigger_configure() == SUCCESS
    assert (told[0]["recache"], told[0]["blend_chunks"]) == (True, 2)
    result = node.set_parameters([Parameter("blend_chunks", value=3)])[0]
    assert not result.successful and "clean up first" in result.reason
    node.free()
    node.destroy_node()
    with pytest.raises(UserError, match="blend_chunks"):
        EditorNode(parameter_overrides=[Parameter("blend_chunks", value=1001)])


def test_an_impossible_transition_is_refused_and_the_node_lives_on(make):
    rig = make()
    request = Transition(id=Transition.TRANSITION_CLEANUP)
    assert not rig.call(ChangeState, "editor/change_state", transition=request).success
    rig.send(*range(5))
    rig.until_out(5)


def test_services_answer_when_there_is_no_stream(make):
    rig = make(activate=False)
    for service in ("reset", "flush"):
        answer = rig.call(Trigger, f"editor/{service}")
        assert not answer.success and answer.message == "not active"


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("flush_timeout", float("nan"), "flush_timeout"),
        ("deadline_ms", float("inf"), "deadline_ms"),
        ("camera_fps", -1.0, "camera_fps"),
        ("emit", "sometimes", "use one of: burst, paced"),
        ("policy", "none", "use one of: latest, all"),
        ("size", "big", "WIDTHxHEIGHT"),
        ("jpeg_quality", 101, "jpeg_quality"),
        ("instruction", "x" * 2001, "2001 characters"),
        ("seed", -1, "seed"),
        ("autostart", False, "read-only"),
        ("bypass", "yes", "type"),
    ],
)
def test_wrong_parameters_are_refused_with_a_reason(ros, name, value, says):
    node = EditorNode(open_model=lambda **kwargs: InvertingSession())
    before = node.get_parameter(name).value
    result = node.set_parameters([Parameter(name, value=value)])[0]
    assert not result.successful and says in result.reason
    assert node.get_parameter(name).value == before
    node.destroy_node()


@pytest.mark.parametrize("name, value", [("fit", "squeeze"), ("seed", "x"), ("size", "0x0")])
def test_wrong_parameters_at_start_are_a_user_error_naming_them(ros, name, value):
    with pytest.raises(UserError, match=name):
        EditorNode(parameter_overrides=[Parameter(name, value=value)])


def test_what_the_model_was_made_with_is_fixed_while_configured(make):
    rig = make()
    result = rig.node.set_parameters([Parameter("model", value="null")])[0]
    assert not result.successful and "clean up first" in result.reason
    assert rig.node.set_parameters([Parameter("deadline_ms", value=50.0)])[0].successful
    assert rig.node.reports.deadline_ms == 50.0


def test_the_instruction_parameter_is_in_force_from_the_first_frame(make):
    rig = make(instruction="make it blue", seed=3)
    rig.send(0)
    rig.until_out(1)
    rig.until(lambda: rig.active)
    assert (rig.active[0].text, rig.active[0].seed) == ("make it blue", 3)
    assert rig.node.set_parameters([Parameter("instruction", value="")])[0].successful
    rig.send(*range(1, 5))
    rig.until_out(5)
    assert [m.outcome for m in rig.latency] == [0, 1, 1, 1, 1]


def test_tables_for_the_documentation_name_every_parameter():
    for table in (EDITOR_PARAMETERS, INSTRUCTION_PARAMETERS):
        text = markdown(table)
        assert all(f"| `{p.name}` |" in text for p in table)


def run_editor(*parameters: str) -> subprocess.Popen:
    words = [word for p in parameters for word in ("-p", p)]
    return subprocess.Popen(
        [sys.executable, "-m", "egoedit_ros.nodes.editor_node", "--ros-args", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "parameter, says",
    [
        ("model:=nowhere/to/be/found", "nowhere"),
        ("fit:=squeeze", "fit"),
        ("camera_fps:=.nan", "camera_fps"),
    ],
)
def test_the_process_ends_with_one_line_and_code_2_for_a_wrong_configuration(parameter, says):
    process = run_editor(parameter)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("editor: error: ")]
    assert says in line and "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_process_starts_by_itself_and_stops_when_told(number):
    process = run_editor("model:=null")
    for line in process.stderr:
        if "editing /image_raw" in line:
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in errors
