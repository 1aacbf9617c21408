"""conftest.py - what all tests with machines want"""
import signal


def pytest_configure(config):
    config.addinivalue_line("markers", "debian: boots Debian guests; needs a KVM that runs Linux")
    # A shell that starts us behind its back (`&` in a script) has them ignored, machines would
    # inherit that, and those that are sent one would go on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
