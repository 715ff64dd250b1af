"""Sessions of ONNX Runtime: how a file that cannot be read is told."""

import pytest

from kdcompile.onnx_graph.session import cpu_session


def test_a_file_that_cannot_be_read_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError) as told:
        cpu_session(tmp_path / "file" / "teacher.onnx")
    assert told.value.filename == str(tmp_path / "file" / "teacher.onnx")
