import os
import signal
import threading
import time

import pytest
from PIL import Image

from wrcan_arch.system.threads import without_pillow_size_limit


def test_pillows_limit_is_put_back():
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError), without_pillow_size_limit():
        assert Image.MAX_IMAGE_PIXELS is None
        raise ValueError
    assert Image.MAX_IMAGE_PIXELS == limit is not None


def test_a_fork_waits_until_pillows_limit_is_put_back():
    def lift():
        with without_pillow_size_limit():
            lifted.set()
            time.sleep(0.1)

    lifted = threading.Event()
    thread = threading.Thread(target=lift)
    thread.start()
    assert lifted.wait(10)
    child = os.fork()
    if not child:
        signal.alarm(10)
        another = threading.Thread(target=lift)  # the forking thread itself could enter a lock that it holds
        another.start()
        another.join()
        os._exit(Image.MAX_IMAGE_PIXELS is None)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
