"""Files that can't be trained on are refused as a whole before their rows are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories import data_config

from lmsys_unsloth.core.errors import UserError
from lmsys_unsloth.data.sources import check_source
from lmsys_unsloth.data_tools.profile import make_profile


def test_a_file_without_outcomes_can_not_be_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "test.csv"
    file.write_text('id,prompt,response_a,response_b\n1,"[""a""]","[""b""]","[""c""]"\n')
    with pytest.raises(UserError, match=r"no column says which response won.*found id, prompt, "):
        check_source(str(file), layout="auto", labelled=True, soft_labels=True)
    check_source(str(file), layout="auto", labelled=False, soft_labels=True)


def test_a_file_without_a_usable_row_has_no_profile(tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text("id,prompt,response_a,response_b,winner\n1,[,[,[,model_a\n")
    config = data_config(name="lmsys", path=str(file), layout="kaggle")
    with pytest.raises(UserError, match="No row can be used"):
        make_profile(config)
