# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from egoedit_ros.cli import main as cli
from egoedit_ros.cli.common import check_output, shelter, timeline
from egoedit_ros.cli.data import check_topic
from egoedit_ros.errors import UserError


def test_instructions_are_sorted_by_second():
    timed = timeline(["2.5:make it blue", "turn it into a cube", "1:a: b"])
    assert [(t.at, t.text) for t in timed] == [
        (0.0, "turn it into a cube"),
        (1.0, "a: b"),
        (2.5, "make it blue"),
    ]


def test_two_instructions_for_one_second_are_refused():
    with pytest.raises(UserError, match="two instructions for second 0"):
        timeline(["one", "0:two"])


def test_existing_output_is_refused(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        check_output(file, False)
    check_output(file, True)
    check_output(tmp_path / "new" / "deep" / "a.mp4", False)


def test_the_input_is_never_replaced(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_text("mine")
    with pytest.raises(UserError, match="is the input"):
        check_output(file, True, file)
    with pytest.raises(UserError, match="lies in"):
        check_output(tmp_path, True, file, "folder")


def test_a_folder_that_is_no_bag_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="is no bag"):
        check_output(tmp_path, True, kind="bag")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="not writable"):
        check_output(tmp_path / "a", False)


def test_output_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        check_output(tmp_path / "file" / "a", False)


def test_shelter_goes_whatever_happens(tmp_path):
    with pytest.raises(KeyboardInterrupt), shelter(tmp_path / "a") as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a b", "/1a", "a//b", "ä"])
def test_topic_names_are_checked(name):
    with pytest.raises(UserError, match="topic name"):
        check_topic(name)


def test_help_is_fast_and_needs_no_ros(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "replay" in shown and "edit" in shown


def test_unknown_command_is_wrong_input(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["frobnicate"])
    assert end.value.code == 2
