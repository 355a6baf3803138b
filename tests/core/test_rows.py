import pickle

import numpy as np

from natscope.core.rows import RowView


def test_a_view_that_is_sent_to_another_process_holds_its_own_rows_alone():
    view = RowView(np.arange(40_000, dtype=np.float32).reshape(10_000, 4), np.array([7, 3]))
    sent = pickle.dumps(view)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)[:], view[:])
