from __future__ import annotations

from lib import folders


def test_the_command_prints_the_report_and_writes_the_page(tmp_path, jaxalign_command):
    folder = folders.write_run(tmp_path / "run")
    code, out, _ = jaxalign_command("report", folder)
    assert code == 0
    assert "held-out data" in out
    assert str(folder / "report" / "report.html") in out
    assert (folder / "report" / "report.html").exists()


def test_the_command_refuses_a_folder_that_is_no_run(tmp_path, jaxalign_command):
    code, _, err = jaxalign_command("report", tmp_path)
    assert (code, err.startswith("jaxalign: ")) == (2, True)
    assert "holds no run" in err
